//! Which changes seen at the source are ours: the numbers that events carry as `txn`.
//!
//! A change is entered before it is applied, and kept some time after it has ended, since what it did
//! may be seen in several steps. Ingest asks for each version that it is about to publish.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::goal::Goal;
use crate::vm::files::Rendered;

/// How long after its end what a change did may be seen and still counts as its doing.
const ECHO: Duration = Duration::from_secs(2);

/// The changes that may still be seen.
#[derive(Debug, Default)]
pub struct Txns {
    /// How many VMs they are of, so that a publication beside which nobody writes costs one load.
    len: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    of: HashMap<Uuid, Vec<(Uuid, Arc<Goal>)>>,
    /// Changes that have ended, until when they are kept: VM and number.
    ended: VecDeque<(Instant, Uuid, Uuid)>,
}

/// A change that is entered, until some time after this is dropped.
#[derive(Debug)]
pub struct Txn {
    txns: Arc<Txns>,
    vm: Uuid,
    id: Uuid,
}

impl Txns {
    /// Enters a change of a VM.
    pub fn enter(self: &Arc<Self>, vm: Uuid, goal: Arc<Goal>) -> Txn {
        let id = Uuid::new_v4();
        let mut state = self.state.lock();
        state.drop_ended(Instant::now());
        state.of.entry(vm).or_default().push((id, goal));
        self.len.store(state.of.len(), Ordering::Release);
        Txn {
            txns: self.clone(),
            vm,
            id,
        }
    }

    /// The change that made `new` of `old`; `None` if it was not one of ours. `new` is none when the
    /// VM went.
    pub fn of(
        &self,
        uuid: &Uuid,
        old: Option<&Rendered>,
        new: Option<&Rendered>,
    ) -> Option<String> {
        if self.len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let entered = {
            let mut state = self.state.lock();
            state.drop_ended(Instant::now());
            self.len.store(state.of.len(), Ordering::Release);
            state.of.get(uuid)?.clone()
        };
        let old = old.map(Rendered::object);
        let new = new.map(Rendered::object);
        entered
            .iter()
            .rev()
            .find(|(_, goal)| goal.brings(old.as_ref(), new.as_ref()))
            .map(|(id, _)| id.to_string())
    }
}

impl State {
    fn drop_ended(&mut self, now: Instant) {
        while let Some(&(until, vm, id)) = self.ended.front()
            && until <= now
        {
            self.ended.pop_front();
            if let Some(entered) = self.of.get_mut(&vm) {
                entered.retain(|(entered, _)| *entered != id);
                if entered.is_empty() {
                    self.of.remove(&vm);
                }
            }
        }
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        let until = Instant::now() + ECHO;
        self.txns
            .state
            .lock()
            .ended
            .push_back((until, self.vm, self.id));
    }
}
