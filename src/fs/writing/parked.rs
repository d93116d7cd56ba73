//! Writes that wait for their change: the replies that are owed, and to whom.
//!
//! A write that waits holds its inode's lock, so the daemon must not touch that file until it has
//! been answered ([`Touches::hold_back`]).

use std::collections::HashMap;
use std::sync::Arc;

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyWrite};
use parking_lot::Mutex;

use super::super::touch::Touches;
use super::super::wait::{Caller, Interrupts};

/// What ended well or not, as the caller is told.
pub type Told = Result<(), Errno>;

/// A reply that is owed.
#[derive(Debug)]
pub enum Owed {
    /// To a WRITE of so many bytes.
    Write(ReplyWrite, u32),
    /// To a FLUSH.
    Flush(ReplyEmpty),
}

impl Owed {
    /// Answers.
    pub fn pay(self, told: Told) {
        match (self, told) {
            (Owed::Write(reply, len), Ok(())) => reply.written(len),
            (Owed::Write(reply, _), Err(errno)) => reply.error(errno),
            (Owed::Flush(reply), Ok(())) => reply.ok(),
            (Owed::Flush(reply), Err(errno)) => reply.error(errno),
        }
    }
}

#[derive(Debug)]
struct Parked {
    /// The change it waits for.
    attempt: u64,
    caller: Caller,
    /// The inode whose lock the caller holds.
    ino: INodeNo,
    owed: Owed,
}

impl Parked {
    fn locks(&self) -> bool {
        // close(2) sends its FLUSH without the lock.
        matches!(self.owed, Owed::Write(..))
    }
}

/// All writes that wait.
pub struct ParkedWrites {
    parked: Mutex<HashMap<u64, Parked>>,
    touches: Arc<Touches>,
    interrupts: Arc<Interrupts>,
}

impl ParkedWrites {
    /// Nobody waits yet.
    pub fn new(touches: Arc<Touches>, interrupts: Arc<Interrupts>) -> ParkedWrites {
        ParkedWrites {
            parked: Mutex::default(),
            touches,
            interrupts,
        }
    }

    /// Keeps a reply until the change has ended.
    pub fn park(&self, attempt: u64, caller: Caller, ino: INodeNo, owed: Owed) {
        let parked = Parked {
            attempt,
            caller,
            ino,
            owed,
        };
        if parked.locks() {
            self.touches.hold_back(ino);
        }
        self.parked.lock().insert(parked.caller.id, parked);
        self.interrupts.ring();
    }

    /// Takes all that wait for a change, to be answered once no lock is held.
    #[must_use]
    pub fn take(&self, attempt: u64) -> Due<'_> {
        self.take_those(|parked| parked.attempt == attempt)
    }

    /// Takes everybody.
    #[must_use]
    pub fn take_all(&self) -> Due<'_> {
        self.take_those(|_| true)
    }

    /// Answers EINTR to everybody who is to be interrupted; whether anybody still waits.
    pub fn interrupt(&self) -> bool {
        // Looking at a caller is a read of /proc: not under the lock.
        let callers: Vec<Caller> = {
            let parked = self.parked.lock();
            let callers = parked.values().map(|parked| parked.caller.clone());
            callers.collect()
        };
        for caller in callers.iter().filter(|caller| caller.is_interrupted()) {
            self.take_those(|parked| parked.caller.id == caller.id)
                .pay(Err(Errno::EINTR));
        }
        !self.parked.lock().is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.parked.lock().len()
    }

    fn take_those(&self, whom: impl Fn(&Parked) -> bool) -> Due<'_> {
        let mut parked = self.parked.lock();
        let due = parked.extract_if(|_, parked| whom(parked));
        Due {
            parked: due.map(|(_, parked)| parked).collect(),
            touches: &self.touches,
        }
    }
}

/// Writes whose answer is known.
pub struct Due<'a> {
    parked: Vec<Parked>,
    touches: &'a Touches,
}

impl Due<'_> {
    /// Whether nobody waited.
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Answers them.
    pub fn pay(self, told: Told) {
        for parked in self.parked {
            let locked = parked.locks().then_some(parked.ino);
            parked.owed.pay(told);
            if let Some(ino) = locked {
                self.touches.let_go(ino);
            }
        }
    }
}
