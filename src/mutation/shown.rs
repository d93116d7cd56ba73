//! What the mount shows, and who waits for it to show something else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::cache::Snapshot;
use crate::vm::Vm;

/// The newest snapshot that the mount shows, and those who wait for another version of a VM.
#[derive(Debug)]
pub struct Shown {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    now: Arc<Snapshot>,
    waiting: HashMap<u64, Arc<Waiter>>,
    last: u64,
}

/// One who waits for a VM.
#[derive(Debug)]
struct Waiter {
    uuid: Uuid,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug)]
struct Seen {
    vm: Option<Arc<Vm>>,
    is_new: bool,
}

/// A wait for versions of a VM. It misses none from its beginning on, but may skip some.
#[derive(Debug)]
pub struct Watch<'a> {
    shown: &'a Shown,
    number: u64,
    waiter: Arc<Waiter>,
}

impl Shown {
    /// A mount that shows this.
    pub fn new(now: Arc<Snapshot>) -> Shown {
        Shown {
            state: Mutex::new(State {
                now,
                waiting: HashMap::new(),
                last: 0,
            }),
        }
    }

    /// The mount shows this now.
    pub fn show(&self, snapshot: &Arc<Snapshot>) {
        let mut state = self.state.lock();
        state.now = snapshot.clone();
        for waiter in state.waiting.values() {
            let vm = snapshot.vm(&waiter.uuid);
            let mut seen = waiter.seen.lock();
            let is_same = match (&seen.vm, vm) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            if !is_same {
                seen.vm = vm.cloned();
                seen.is_new = true;
                waiter.changed.notify_one();
            }
        }
    }

    /// The VM as the mount shows it now.
    pub fn vm(&self, uuid: &Uuid) -> Option<Arc<Vm>> {
        self.state.lock().now.vm(uuid).cloned()
    }

    /// Begins to wait for versions of a VM; the first is the one that is shown now.
    pub fn watch(&self, uuid: Uuid) -> Watch<'_> {
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        let waiter = Arc::new(Waiter {
            uuid,
            seen: Mutex::new(Seen {
                vm: state.now.vm(&uuid).cloned(),
                is_new: true,
            }),
            changed: Condvar::new(),
        });
        state.waiting.insert(number, waiter.clone());
        Watch {
            shown: self,
            number,
            waiter,
        }
    }

    /// Lets all who wait look again.
    pub fn wake(&self) {
        for waiter in self.state.lock().waiting.values() {
            waiter.seen.lock().is_new = true;
            waiter.changed.notify_one();
        }
    }
}

impl Watch<'_> {
    /// Waits for a version that was not returned yet, or until the deadline. Returns the newest, and
    /// whether it was not returned before.
    pub fn next(&self, deadline: Instant) -> (Option<Arc<Vm>>, bool) {
        let mut seen = self.waiter.seen.lock();
        while !seen.is_new
            && !self
                .waiter
                .changed
                .wait_until(&mut seen, deadline)
                .timed_out()
        {}
        let is_new = std::mem::take(&mut seen.is_new);
        (seen.vm.clone(), is_new)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.shown.state.lock().waiting.remove(&self.number);
    }
}
