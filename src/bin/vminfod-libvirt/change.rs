//! The changes of domains: each is made by a thread `change` of its own, with a connection that nothing is read by.
//! A libvirtd serves few calls of one client at a time, so changes that hang would keep the reading waiting.
//!
//! - A change is answered once, by [`Message::Answered`], however it ends, unless the program ends first.
//! - After [`Changes::end`] none is begun.
//! - No lock is held during a call to libvirt.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;
use virt::connect::Connect;
use vminfod::source::libvirt::wire::{Answer, Change};
use vminfod::source::{Failed, FailedKind};

use crate::engine::{Message, is_not_allowed, is_within_this_process};
use crate::load::{Context, Rebooted};
use crate::steps::Work;

/// How many changes are made at the same time, each with a connection; the others wait for their turn.
const MOST: usize = 64;

/// How many connections are kept for the changes to come.
const KEPT: usize = 4;

/// All changes. Clones are the same.
#[derive(Clone)]
pub struct Changes(Arc<Inner>);

struct Inner {
    uri: String,
    context: Context,
    inbox: Sender<Message>,
    state: Mutex<State>,
    fewer: Condvar,
}

#[derive(Default)]
struct State {
    /// Connections that nobody uses now.
    idle: Vec<Connect>,
    /// Counts how often all connections were given up.
    epoch: u64,
    /// How many changes are not answered yet.
    running: usize,
    /// How many of them are being made.
    places: usize,
    is_over: bool,
}

impl Changes {
    pub fn new(uri: String, context: Context, inbox: Sender<Message>) -> Changes {
        Changes(Arc::new(Inner {
            uri,
            context,
            inbox,
            state: Mutex::default(),
            fewer: Condvar::new(),
        }))
    }

    /// Begins a change. The connection is the one that is read by: a driver that lives within this process has
    /// its domains in it.
    pub fn start(
        &self,
        number: u64,
        uuid: Uuid,
        change: Change,
        reader: &Connect,
        rebooted: Option<Rebooted>,
    ) {
        {
            let mut state = self.0.state.lock();
            if state.is_over {
                return;
            }
            state.running += 1;
        }
        let reads_only = matches!(&change, Change::Steps(steps) if steps.is_empty());
        let changed = (!reads_only).then_some(uuid);
        let (inner, reader) = (self.0.clone(), reader.clone());
        let started = thread::Builder::new().name("change".into()).spawn(move || {
            let running = Running(inner);
            let made = || {
                let _place = running.0.place()?;
                running.0.make(uuid, change, reader, rebooted)
            };
            // Who waits for an answer gets one, whatever is wrong here.
            let result = catch_unwind(AssertUnwindSafe(made)).unwrap_or_else(|_| {
                let reason =
                    "vminfod-libvirt failed within itself; read the domain to see what was applied";
                Err(failed(reason.to_owned()))
            });
            // The engine ends only with the program.
            let _ = (running.0.inbox).send(Message::Answered(number, changed, result));
        });
        if let Err(error) = started {
            drop(Running(self.0.clone()));
            let failed = failed(format!("cannot start a thread: {error}"));
            let _ = (self.0.inbox).send(Message::Answered(number, changed, Err(failed)));
        }
    }

    /// Gives up all connections.
    pub fn disconnect(&self) {
        let idle = {
            let mut state = self.0.state.lock();
            state.epoch += 1;
            std::mem::take(&mut state.idle)
        };
        if !idle.is_empty() {
            // Who closes a connection waits for libvirt. Without a thread they are closed here.
            let _ = thread::Builder::new()
                .name("close".into())
                .spawn(move || drop(idle));
        }
    }

    /// Begins no more changes and waits for those that are being made, so long.
    pub fn end(&self, most: Duration) {
        let mut state = self.0.state.lock();
        state.is_over = true;
        // Who waits for a place does not get one.
        self.0.fewer.notify_all();
        let is_working = |state: &mut State| state.running > 0;
        self.0.fewer.wait_while_for(&mut state, is_working, most);
    }
}

/// One of the changes that are being made.
struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
        self.0.fewer.notify_all();
    }
}

/// The right to make a change, until this is dropped.
struct Place<'a>(&'a Inner);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state.lock().places -= 1;
        self.0.fewer.notify_all();
    }
}

impl Inner {
    /// Waits until fewer changes are being made than may be.
    fn place(&self) -> Result<Place<'_>, Failed> {
        let mut state = self.state.lock();
        while state.places >= MOST && !state.is_over {
            self.fewer.wait(&mut state);
        }
        if state.is_over {
            return Err(failed("the daemon ends: nothing was applied".to_owned()));
        }
        state.places += 1;
        Ok(Place(self))
    }

    fn make(
        &self,
        uuid: Uuid,
        change: Change,
        reader: Connect,
        rebooted: Option<Rebooted>,
    ) -> Result<Answer, Failed> {
        let (connect, epoch) = match is_within_this_process(&self.uri) {
            true => (reader, None),
            false => {
                let (connect, epoch) = self.connect()?;
                (connect, Some(epoch))
            }
        };
        let work = Work::new(&connect, uuid, &self.context, rebooted);
        let result = match change {
            Change::Steps(steps) => work.steps(&steps),
            Change::Create(target) => work.create(target),
        };
        if let Some(epoch) = epoch {
            self.give_back(connect, epoch);
        }
        result
    }

    fn connect(&self) -> Result<(Connect, u64), Failed> {
        let epoch = loop {
            let mut state = self.state.lock();
            let Some(connect) = state.idle.pop() else {
                break state.epoch;
            };
            let epoch = state.epoch;
            drop(state);
            if connect.is_alive().unwrap_or(false) {
                return Ok((connect, epoch));
            }
        };
        let uri = &self.uri;
        let connect = Connect::open(Some(uri)).map_err(|error| match is_not_allowed(&error) {
            true => Failed {
                kind: FailedKind::Forbidden,
                ..failed(format!(
                    "{uri}: libvirt lets vminfod only read: {}; run it as a user that may change domains",
                    error.message()
                ))
            },
            false => failed(format!("{uri}: {}", error.message())),
        })?;
        // As for the connection that is read by.
        let _ = connect.set_keep_alive(3, 3);
        Ok((connect, epoch))
    }

    fn give_back(&self, connect: Connect, epoch: u64) {
        if !connect.is_alive().unwrap_or(false) {
            return;
        }
        let mut state = self.state.lock();
        if state.epoch == epoch && state.idle.len() < KEPT {
            state.idle.push(connect);
        }
    }
}

fn failed(reason: String) -> Failed {
    Failed {
        kind: FailedKind::Source,
        applied: Vec::new(),
        reason,
    }
}
