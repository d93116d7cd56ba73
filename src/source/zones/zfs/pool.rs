//! One pool: its table, what is to be read of it next, and the thread that reads it.
//!
//! Requests are merged while a read is going on, so a burst of changes becomes one command. The
//! table is changed in place, at the cost of what has changed, unless somebody is looking at it.
//!
//! Others may put into the table what they have read themselves ([`Pool::adopt`]). A command of ours
//! that began before may have looked earlier or later than they: what it says of those datasets is
//! thrown away, and they are read once more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::output::{Rows, apply, difference, is_in, parse};
use super::{Changed, Shared, ZfsError};
use crate::source::Via;
use crate::source::zones::command::{Error, Runner};
use crate::source::zones::datasets::Table;
use crate::source::zones::zpool_events::subtree_of;

/// Reading more subtrees than this one by one costs more than reading the pool.
const MOST_SUBTREES: usize = 16;

/// One pool. See the module's text.
pub(super) struct Pool {
    name: String,
    wanted: Mutex<Wanted>,
    wake: Condvar,
    view: Mutex<View>,
    answered: Condvar,
}

/// What is to be read next.
#[derive(Default)]
struct Wanted {
    everything: Option<Via>,
    subtrees: BTreeSet<String>,
    /// How often anything was asked for.
    asked: u64,
    ended: bool,
}

/// What is known.
#[derive(Default)]
struct View {
    table: Arc<Table>,
    failing: Option<String>,
    reads: u64,
    last_read: Duration,
    /// What was asked for up to this number has been read, or could not be.
    caught_up: u64,
    /// The subtrees that others have read since our last command began.
    adopted: BTreeSet<String>,
}

/// The table, and why it may be old.
pub(super) struct Answer {
    pub(super) table: Arc<Table>,
    pub(super) failing: Option<String>,
}

/// One piece of work for the thread.
enum Work {
    Everything(Via),
    Subtree(String),
}

impl Pool {
    /// A pool of which everything is wanted.
    pub(super) fn new(name: &str) -> Pool {
        Pool {
            name: name.to_owned(),
            wanted: Mutex::new(Wanted {
                everything: Some(Via::Event),
                ..Wanted::default()
            }),
            wake: Condvar::new(),
            view: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    /// The last good table, and why it could not be read since.
    pub(super) fn answer(&self) -> Answer {
        let view = self.view.lock();
        let unread = || format!("pool {}: has not been read yet", self.name);
        Answer {
            table: Arc::clone(&view.table),
            failing: view
                .failing
                .clone()
                .or_else(|| (view.reads == 0).then(unread)),
        }
    }

    /// Waits until the pool has been read or has failed.
    pub(super) fn wait_for_answer(&self) {
        let mut view = self.view.lock();
        while view.reads == 0 && view.failing.is_none() {
            self.answered.wait(&mut view);
        }
    }

    /// Asks to read the whole pool.
    pub(super) fn want_everything(&self, via: Via) {
        let mut wanted = self.wanted.lock();
        // An event that asks for the same read explains what it finds.
        if wanted.everything != Some(Via::Event) {
            wanted.everything = Some(via);
        }
        self.wake.notify_one();
    }

    /// Waits until what was asked for before has been read, but not for a pool that fails.
    pub(super) fn wait_for_read(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let asked = self.wanted.lock().asked;
        let mut view = self.view.lock();
        while view.caught_up < asked && view.failing.is_none() {
            if self.answered.wait_until(&mut view, until).timed_out() {
                return;
            }
        }
    }

    /// Asks to read what an event has named.
    pub(super) fn want_dataset(&self, name: &str) {
        let mut wanted = self.wanted.lock();
        wanted.asked += 1;
        wanted.subtrees.insert(subtree_of(name).to_owned());
        if wanted.subtrees.len() > MOST_SUBTREES {
            wanted.subtrees.clear();
            wanted.everything = Some(Via::Event);
        }
        self.wake.notify_one();
    }

    /// Puts into the table what somebody has just read of a subtree, all of which `read` has. Returns
    /// the names of what came, went or changed. If the table has been told something `since` that
    /// reading began, the subtree is only read once more.
    pub(super) fn adopt(
        &self,
        shared: &Shared,
        read: &Table,
        subtree: &str,
        since: u64,
    ) -> BTreeSet<String> {
        let rows: Rows<'_> = (read.iter())
            .filter(|(name, _)| is_in(name, subtree))
            .map(|(name, properties)| {
                let pairs = properties.iter();
                let row = pairs.map(|(property, value)| (property.as_str(), value.as_str()));
                (name, row.collect())
            })
            .collect();
        let mut view = self.view.lock();
        if shared.readings.load(Ordering::Acquire) != since {
            drop(view);
            self.want_dataset(subtree);
            return BTreeSet::new();
        }
        let found = difference(&view.table, &rows, subtree);
        if !found.is_empty() {
            apply(Arc::make_mut(&mut view.table), &rows, &found);
        }
        view.adopted.insert(subtree.to_owned());
        found.settings.into_iter().chain(found.accounting).collect()
    }

    /// Ends the thread after its present read.
    pub(super) fn end(&self) {
        self.wanted.lock().ended = true;
        self.wake.notify_one();
    }

    /// How it fares, for `.status`.
    pub(super) fn status(&self) -> Value {
        let view = self.view.lock();
        json!({
            "datasets": view.table.len(),
            "reads": view.reads,
            "last_read_ms": view.last_read.as_secs_f64() * 1000.0,
            "failing": view.failing,
        })
    }

    /// The thread "zfs:POOL".
    pub(super) fn keep_reading(&self, shared: &Shared) {
        let options = &shared.options;
        let zfs = Runner::new(&options.zfs, options.deadline, &shared.cancel);
        let mut pause = options.poll;
        while let Some(work) = self.next(shared, pause) {
            let began = Instant::now();
            // A command that hangs uses no processor, so a failing pool is tried more often.
            let share = match self.read(shared, &zfs, &work) {
                Ok(()) => 10,
                Err(ZfsError::Command(Error::Cancelled)) => return,
                Err(error) => {
                    self.fail(shared, error.to_string());
                    1
                }
            };
            if let Work::Everything(_) = work {
                pause = options.poll.max(began.elapsed() * share);
            }
        }
    }

    /// Waits for work; `None` when the pool has ended. Where no events arrive, and while the pool
    /// fails, everything is read again after the pause.
    fn next(&self, shared: &Shared, pause: Duration) -> Option<Work> {
        let due = Instant::now() + pause;
        let mut wanted = self.wanted.lock();
        loop {
            if wanted.ended {
                return None;
            }
            if wanted.everything == Some(Via::Event) {
                wanted.subtrees.clear();
            }
            // Before a scan, so that it is not blamed for what an event has announced.
            if let Some(name) = wanted.subtrees.pop_first() {
                let below = format!("{name}/");
                wanted.subtrees.retain(|other| !other.starts_with(&below));
                return Some(Work::Subtree(name));
            }
            if let Some(via) = wanted.everything.take() {
                return Some(Work::Everything(via));
            }
            self.view.lock().caught_up = wanted.asked;
            self.answered.notify_all();
            let followed = shared.following.load(Ordering::Acquire);
            if followed && self.view.lock().failing.is_none() {
                self.wake.wait(&mut wanted);
            } else if self.wake.wait_until(&mut wanted, due).timed_out() {
                wanted.everything.get_or_insert(Via::Event);
            }
        }
    }

    /// Reads a part of the pool, or all of it, into the table and tells what has changed.
    fn read(&self, shared: &Shared, zfs: &Runner, work: &Work) -> Result<(), ZfsError> {
        let began = Instant::now();
        self.view.lock().adopted.clear();
        let (subtree, via) = match work {
            Work::Everything(via) => (&self.name, Some(*via)),
            Work::Subtree(name) => (name, None),
        };
        let arguments = [
            "get",
            "-Hp",
            "-r",
            "-o",
            "name,property,value",
            &shared.columns,
            subtree,
        ];
        let stdout = match zfs.run(&arguments)?.success() {
            Ok(stdout) => Some(stdout),
            // It was destroyed or renamed: that it is gone is the answer.
            Err(Error::Failed { message, .. })
                if via.is_none() && message.contains("does not exist") =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        let rows = match &stdout {
            None => Rows::new(),
            Some(stdout) => parse(stdout, subtree).map_err(|garbage| ZfsError::Garbage {
                command: format!("{} get -r {subtree}", shared.options.zfs.display()),
                garbage,
            })?,
        };
        // But for what is adopted only this thread changes the table, so it can be compared without
        // holding the lock.
        let mut found = difference(&self.answer().table, &rows, subtree);
        let (heard, healed, again) = {
            let mut view = self.view.lock();
            shared.readings.fetch_add(1, Ordering::AcqRel);
            let again = std::mem::take(&mut view.adopted);
            found.leave_out(&again);
            if !found.is_empty() {
                apply(Arc::make_mut(&mut view.table), &rows, &found);
            }
            if via.is_some() {
                view.reads += 1;
                view.last_read = began.elapsed();
            }
            // Asked for before anybody can see this: what `start` waits for is told to nobody,
            // and what comes later to everybody.
            let heard = shared.heard.load(Ordering::Acquire);
            let healed = via.is_some() && view.failing.take().is_some();
            (heard, healed, again)
        };
        self.answered.notify_all();
        for other in again {
            if is_in(&other, subtree) || is_in(subtree, &other) {
                self.want_dataset(&other);
            }
        }
        if healed {
            tracing::info!("pool {}: can be read again", self.name);
        }
        if heard {
            // Accounting has no events, so a scan that finds it moved has found nothing missing.
            shared.tell_datasets(found.settings, via.unwrap_or(Via::Event));
            shared.tell_datasets(found.accounting, Via::Event);
            if healed {
                let pool = self.name.clone();
                shared.tell(Changed::PoolHealed { pool });
            }
        }
        Ok(())
    }

    fn fail(&self, shared: &Shared, reason: String) {
        let (heard, before) = {
            let mut view = self.view.lock();
            let heard = shared.heard.load(Ordering::Acquire);
            (heard, view.failing.replace(reason.clone()))
        };
        self.answered.notify_all();
        if before.as_ref() == Some(&reason) || self.wanted.lock().ended {
            return;
        }
        tracing::warn!("pool {}: {reason}", self.name);
        if heard {
            let pool = self.name.clone();
            shared.tell(Changed::PoolFailed { pool, reason });
        }
    }
}
