//! Ways to break the source, for tests of what repairs it.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

/// The faults that are switched on. When there are none, they cost a load of an atomic.
#[derive(Debug, Default)]
pub struct Faults {
    /// Events are read and dropped.
    pub deaf: AtomicBool,
    /// Something hangs.
    hanging: AtomicBool,
    hung: Mutex<Vec<String>>,
    healed: Condvar,
}

impl Faults {
    /// Makes every reading of exactly these zones hang until they are no longer named here.
    /// The name `inotify` makes the thread `watch` hang, so that the queue can overflow.
    pub fn hang(&self, names: &[&str]) {
        let mut hung = self.hung.lock();
        *hung = names.iter().map(|name| (*name).to_owned()).collect();
        self.hanging.store(!hung.is_empty(), Ordering::Relaxed);
        self.healed.notify_all();
    }

    /// Hangs if what has this name does.
    pub(super) fn pass(&self, wanted: &str) {
        if !self.hanging.load(Ordering::Relaxed) {
            return;
        }
        let mut hung = self.hung.lock();
        while hung.iter().any(|name| name == wanted) {
            self.healed.wait(&mut hung);
        }
    }
}
