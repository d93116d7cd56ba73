//! Ways to break the source, for tests of what repairs it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The faults that are switched on. When there are none, they cost a load of an atomic.
#[derive(Debug, Default)]
pub struct Faults {
    /// Events are read and dropped.
    pub deaf: AtomicBool,
    /// Something hangs or is slow.
    hanging: AtomicBool,
    /// Every reading is delayed by up to so many milliseconds.
    delay: AtomicU64,
    hung: Mutex<Vec<String>>,
    healed: Condvar,
    /// Somebody is asked before each step of a change.
    stepping: AtomicBool,
    before_step: Mutex<Option<Hook>>,
}

/// What is called before each step of a change; its error becomes that of the step.
#[derive(Clone)]
struct Hook(Arc<BeforeStep>);

type BeforeStep = dyn Fn(&str) -> io::Result<()> + Send + Sync;

impl fmt::Debug for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hook")
    }
}

impl Faults {
    /// Makes every reading of exactly these zones hang until they are no longer named here.
    /// The name `inotify` makes the thread `watch` hang, so that the queue can overflow.
    pub fn hang(&self, names: &[&str]) {
        let mut hung = self.hung.lock();
        *hung = names.iter().map(|name| (*name).to_owned()).collect();
        self.note(&hung);
        self.healed.notify_all();
    }

    /// Delays every reading of a zone, and of inotify, at random by up to so much.
    pub fn delay(&self, at_most: Duration) {
        self.delay
            .store(at_most.as_millis() as u64, Ordering::Relaxed);
        self.note(&self.hung.lock());
    }

    fn note(&self, hung: &[String]) {
        let is_slow = self.delay.load(Ordering::Relaxed) > 0;
        self.hanging
            .store(is_slow || !hung.is_empty(), Ordering::Relaxed);
    }

    /// From now on this is called before each step of a change, with its name, without any lock.
    pub fn on_step(&self, hook: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) {
        *self.before_step.lock() = Some(Hook(Arc::new(hook)));
        self.stepping.store(true, Ordering::Release);
    }

    /// A step of a change is about to be done.
    pub(super) fn step(&self, name: &str) -> io::Result<()> {
        if !self.stepping.load(Ordering::Acquire) {
            return Ok(());
        }
        let hook = self.before_step.lock().clone();
        hook.map_or(Ok(()), |hook| hook.0(name))
    }

    /// Hangs if what has this name does.
    pub(super) fn pass(&self, wanted: &str) {
        if !self.hanging.load(Ordering::Relaxed) {
            return;
        }
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            let random = RandomState::new().hash_one(wanted);
            thread::sleep(Duration::from_millis(random % (delay + 1)));
        }
        let mut hung = self.hung.lock();
        while hung.iter().any(|name| name == wanted) {
            self.healed.wait(&mut hung);
        }
    }
}
