//! Changes of one VM take turns, in the order in which they came.
//!
//! A turn ends when its change has ended, or when the change has been applied and waits so long for its
//! confirmation that the others should not wait with it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

/// The queues of all VMs that are being changed.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number and description of each change; the first of a queue has the turn.
    queues: HashMap<Uuid, VecDeque<(u64, String)>>,
    last: u64,
    ended: bool,
}

/// The turn of one change, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    uuid: Uuid,
    number: u64,
}

/// Why a turn did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// Not in time: another change, which is described, still has it.
    Late(String),
    /// No turn comes any more.
    Ended,
}

impl Turns {
    /// Waits for the turn of a change, which `what` describes.
    pub fn take(
        self: &Arc<Self>,
        uuid: Uuid,
        what: String,
        deadline: Instant,
    ) -> Result<Turn, NoTurn> {
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        state
            .queues
            .entry(uuid)
            .or_default()
            .push_back((number, what));
        // From here on leaving the queue is the business of its destructor, which takes the lock.
        let turn = Turn {
            turns: self.clone(),
            uuid,
            number,
        };
        let refused = loop {
            match state.queues.get(&uuid).and_then(VecDeque::front) {
                _ if state.ended => break NoTurn::Ended,
                Some((first, _)) if *first == number => return Ok(turn),
                first => {
                    let other = first.map(|(_, what)| what.clone()).unwrap_or_default();
                    if self.moved.wait_until(&mut state, deadline).timed_out() {
                        break NoTurn::Late(other);
                    }
                }
            }
        };
        drop(state);
        Err(refused)
    }

    /// Ends all waiting for turns.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.moved.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        if let Some(queue) = state.queues.get_mut(&self.uuid) {
            queue.retain(|(number, _)| *number != self.number);
            if queue.is_empty() {
                state.queues.remove(&self.uuid);
            } else {
                self.turns.moved.notify_all();
            }
        }
    }
}
