//! Datasets from real ZFS, by its `zfs` and `zpool` commands.
//!
//! Owns one [`Table`] for each pool and keeps it true. Each pool is read by a command of its own
//! on a thread of its own, so that a hung pool makes only its own VMs stale; a pool that cannot be
//! read keeps its last good table, with the reason.
//!
//! Changes are found in one of two ways, chosen once at the start:
//!
//! - Where `zpool events` exists, it is followed: each event names a dataset, and that dataset is
//!   read again with all below it. When it ends it is started again, later and later, and until
//!   then the pools are polled.
//! - Otherwise every pool is polled. A poll costs what ZFS needs to list the pool; the pause after
//!   one is at least ten times as long as it took, so that polling never uses more than a tenth of
//!   one processor, however many datasets there are.
//!
//! What ZFS counts by itself (`usedbysnapshots`, the size of a snapshot) has no events; where they
//! are followed it is as old as the last full read.
//!
//! Who changes datasets reads them again by himself; what he read is put into the tables too
//! (`Watched::adopt`), so that it is not read twice.
//!
//! Threads: "zfs" lists the pools; "zfs:POOL" reads one pool; "zpool-events" follows the events. All
//! end when the [`Zfs`] is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};

use super::command::{self, Cancel, Lifeline, Runner, lifeline};
use super::datasets::Table;
use super::index::Entry;
use super::zpool_events::{Event, Parser};
use crate::source::Via;

mod output;
mod pool;
mod watched;

pub use output::Garbage;
pub(super) use output::table;
use pool::Pool;
pub(super) use watched::{Untold, Watched};

/// After the events have ended, their first restart is this much later, each further one twice as
/// much.
const FIRST_RESTART: Duration = Duration::from_millis(500);

/// How long a zone waits for its datasets to be read.
const MOMENT: Duration = Duration::from_millis(500);

/// No restart of the events is later than this.
const LAST_RESTART: Duration = Duration::from_secs(60);

/// Which commands are run, and how often.
#[derive(Clone, Debug)]
pub struct ZfsOptions {
    /// The `zfs` program.
    pub zfs: PathBuf,
    /// The `zpool` program.
    pub zpool: PathBuf,
    /// The shortest pause between two polls.
    pub poll: Duration,
    /// How long a command may take.
    pub deadline: Duration,
}

impl Default for ZfsOptions {
    fn default() -> ZfsOptions {
        ZfsOptions {
            zfs: "zfs".into(),
            zpool: "zpool".into(),
            poll: Duration::from_secs(1),
            deadline: Duration::from_secs(10),
        }
    }
}

/// What has changed, as the callback of [`Zfs::start`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These filesystems, volumes and snapshots came, went or have other properties. The table
    /// shows it already.
    Datasets {
        /// Their full names.
        names: BTreeSet<String>,
        /// How it was found: [`Via::Scan`] if only [`Zfs::refresh`] found what an event should
        /// have announced.
        via: Via,
    },
    /// A pool cannot be read; its table stays as it was. Sent again when the reason changes.
    PoolFailed {
        /// The pool.
        pool: String,
        /// Why, naming the command.
        reason: String,
    },
    /// A pool that failed can be read again, or has gone for good.
    PoolHealed {
        /// The pool.
        pool: String,
    },
}

/// Why ZFS cannot be watched at all.
#[derive(Debug, thiserror::Error)]
pub enum ZfsError {
    /// A command failed.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// A command printed what it never prints.
    #[error("{command}: {garbage}")]
    Garbage {
        /// The command line.
        command: String,
        /// What is wrong with it.
        garbage: Garbage,
    },
    /// A thread or a pipe could not be made.
    #[error("{what}: {error}")]
    Setup {
        /// What was being made.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

/// Whether this host has ZFS: `zfs` and `zpool` exist and answer. It may have no pool yet.
pub fn available(options: &ZfsOptions) -> bool {
    let Ok((_lifeline, cancel)) = lifeline() else {
        return false;
    };
    known_columns(options, &cancel).is_ok()
        && list_pools(&Runner::new(&options.zpool, options.deadline, &cancel)).is_ok()
}

/// The datasets of all pools. See the module's text.
pub struct Zfs {
    shared: Arc<Shared>,
    lifeline: Option<Lifeline>,
    asks: Sender<Ask>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads have in common.
struct Shared {
    options: ZfsOptions,
    columns: String,
    cancel: Cancel,
    changed: Box<dyn Fn(Changed) + Send + Sync>,
    /// Until [`Zfs::start`] returns nobody has seen a table, so nobody is told what is put into
    /// one; nor once it is dropped.
    heard: AtomicBool,
    pools: RwLock<BTreeMap<String, Reading>>,
    /// How many readings have been put into tables.
    readings: AtomicU64,
    /// Why the pools could not be listed the last time.
    unlisted: Mutex<Option<String>>,
    /// Whether events are arriving, so that nobody polls.
    following: AtomicBool,
    events: Mutex<EventsStatus>,
}

/// A pool and the thread that reads it.
struct Reading {
    pool: Arc<Pool>,
    thread: JoinHandle<()>,
}

/// How `zpool events` fares, for `.status`.
#[derive(Debug, Default)]
struct EventsStatus {
    supported: bool,
    received: u64,
    dropped: u64,
    restarts: u64,
    last_end: Option<String>,
}

/// What the thread "zfs" is asked to do.
enum Ask {
    ListPools,
    End,
}

impl Zfs {
    /// Starts watching. Returns once every pool has been read or has failed, so after a few
    /// deadlines at the latest; `changed` is called for what happens from then on, on the threads
    /// of the pools, and must not block.
    ///
    /// # Errors
    /// When `zfs` or `zpool` does not answer, or a thread cannot be made.
    pub fn start(
        options: ZfsOptions,
        changed: impl Fn(Changed) + Send + Sync + 'static,
    ) -> Result<Zfs, ZfsError> {
        let (lifeline, cancel) = lifeline().map_err(|error| ZfsError::Setup {
            what: "pipe".to_owned(),
            error,
        })?;
        let columns = known_columns(&options, &cancel)?;
        let zpool = Runner::new(&options.zpool, options.deadline, &cancel);
        // Without `-f` the command lists what the kernel remembers and ends.
        let supported = zpool.run(&["events", "-H"])?.status.success();
        let shared = Arc::new(Shared {
            options,
            columns,
            cancel,
            changed: Box::new(changed),
            heard: AtomicBool::new(false),
            pools: RwLock::default(),
            readings: AtomicU64::new(0),
            unlisted: Mutex::default(),
            following: AtomicBool::new(false),
            events: Mutex::new(EventsStatus {
                supported,
                ..EventsStatus::default()
            }),
        });
        let (asks, asked) = mpsc::channel();
        let mut zfs = Zfs {
            shared: Arc::clone(&shared),
            lifeline: Some(lifeline),
            asks,
            threads: Vec::new(),
        };
        if supported {
            let (shared, asks) = (Arc::clone(&shared), zfs.asks.clone());
            let follow = move || shared.follow_events(&asks);
            zfs.threads.push(spawn("zpool-events", follow)?);
        }
        shared.adopt(list_pools(&zpool)?)?;
        let list = {
            let shared = Arc::clone(&shared);
            move || shared.keep_listing(&zpool, &asked)
        };
        zfs.threads.push(spawn("zfs", list)?);
        for Reading { pool, .. } in shared.pools.read().values() {
            pool.wait_for_answer();
        }
        shared.heard.store(true, Ordering::Release);
        Ok(zfs)
    }

    /// The table that has a dataset, given by its name or, with a leading `/`, by its mountpoint,
    /// which for a zone is its zonepath. Empty if there is no such dataset.
    ///
    /// # Errors
    /// Why it cannot be said: its pool cannot be read, or it is in no table while some pool, or
    /// the list of pools, cannot be read.
    pub fn table(&self, place: &str) -> Result<Arc<Table>, String> {
        let pools = self.shared.pools.read();
        let mut failing = self.shared.unlisted.lock().clone();
        for Reading { pool, .. } in pools.values() {
            let answer = pool.answer();
            let here = match place.strip_prefix('/') {
                Some(_) => answer.table.mounted_at(place).is_some(),
                None => answer.table.get(place).is_some(),
            };
            match answer.failing {
                Some(reason) if here => return Err(reason),
                None if here => return Ok(answer.table),
                Some(reason) => failing = Some(reason),
                None => {}
            }
        }
        failing.map_or_else(|| Ok(Arc::default()), Err)
    }

    /// Asks to list the pools and to read all of them again, now.
    pub fn refresh(&self) {
        // The thread that listens ends only when this is dropped.
        let _ = self.asks.send(Ask::ListPools);
        let via = if self.shared.following.load(Ordering::Acquire) {
            Via::Scan
        } else {
            Via::Event
        };
        self.shared.read_everything(via);
    }

    /// Reads the datasets of one zone again, now: what is called like it in each pool, what is
    /// mounted at its zonepath, the volumes it has (or had, by their names), and all below these.
    /// Waits a moment for that, so that the zone is read once and not twice; a pool that fails, or
    /// does not answer in that time, is not waited for.
    pub(super) fn refresh_zone(&self, entry: &Entry, volumes: &[String]) {
        let pools: Vec<(String, Arc<Pool>)> = (self.shared.pools.read().iter())
            .map(|(name, reading)| (name.clone(), Arc::clone(&reading.pool)))
            .collect();
        for (name, pool) in &pools {
            let table = pool.answer().table;
            let own = format!("{name}/{}", entry.zonename);
            let mounted = table.mounted_at(&entry.zonepath);
            let is_here = |dataset: &&str| dataset.split('/').next() == Some(name.as_str());
            let mut datasets: BTreeSet<&str> = (volumes.iter().map(String::as_str))
                .chain(mounted)
                .filter(is_here)
                .collect();
            datasets.insert(&own);
            let disks = format!("{own}-disk");
            datasets.extend(
                table
                    .starting_with(&disks)
                    .filter(|name| !name.contains('@')),
            );
            // One that lies below another is read with it.
            let is_below = |dataset: &str| {
                datasets.iter().any(|other| {
                    let rest = dataset.strip_prefix(other);
                    rest.is_some_and(|rest| rest.starts_with('/'))
                })
            };
            for dataset in datasets.iter().filter(|dataset| !is_below(dataset)) {
                pool.want_dataset(dataset);
            }
        }
        let until = Instant::now() + MOMENT;
        for (_, pool) in &pools {
            pool.wait_for_read(until.saturating_duration_since(Instant::now()));
        }
    }

    /// How the pools and the events fare, for `.status`.
    pub fn status(&self) -> Value {
        let pools: serde_json::Map<String, Value> = self
            .shared
            .pools
            .read()
            .iter()
            .map(|(name, reading)| (name.clone(), reading.pool.status()))
            .collect();
        let events = self.shared.events.lock();
        json!({
            "provider": "zfs",
            "changes": if self.shared.following.load(Ordering::Acquire) { "events" } else { "polling" },
            "events": {
                "supported": events.supported,
                "received": events.received,
                "dropped": events.dropped,
                "restarts": events.restarts,
                "last_end": events.last_end,
            },
            "unlisted": *self.shared.unlisted.lock(),
            "pools": pools,
        })
    }
}

impl Drop for Zfs {
    fn drop(&mut self) {
        // Running commands end first, so that nobody below waits for one.
        drop(self.lifeline.take());
        self.shared.heard.store(false, Ordering::Release);
        let _ = self.asks.send(Ask::End);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let pools = std::mem::take(&mut *self.shared.pools.write());
        for Reading { pool, .. } in pools.values() {
            pool.end();
        }
        for Reading { thread, .. } in pools.into_values() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn tell(&self, changed: Changed) {
        (self.changed)(changed);
    }

    fn tell_datasets(&self, names: BTreeSet<String>, via: Via) {
        if !names.is_empty() {
            self.tell(Changed::Datasets { names, via });
        }
    }

    fn read_everything(&self, via: Via) {
        for Reading { pool, .. } in self.pools.read().values() {
            pool.want_everything(via);
        }
    }

    /// The thread "zfs": follows the pools as they come and go.
    fn keep_listing(self: &Arc<Shared>, zpool: &Runner, asked: &Receiver<Ask>) {
        let mut pause = self.options.poll;
        loop {
            match asked.recv_timeout(pause) {
                Ok(Ask::ListPools) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let followed = self.following.load(Ordering::Acquire);
                    if followed && self.unlisted.lock().is_none() {
                        continue;
                    }
                }
                Ok(Ask::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let began = Instant::now();
            let listed = list_pools(zpool).and_then(|names| self.adopt(names));
            let unlisted = match listed {
                Ok(()) => None,
                Err(ZfsError::Command(command::Error::Cancelled)) => return,
                Err(error) => Some(error.to_string()),
            };
            let before = std::mem::replace(&mut *self.unlisted.lock(), unlisted.clone());
            if let Some(reason) = unlisted.filter(|_| before.is_none()) {
                tracing::warn!("pools cannot be listed: {reason}");
            }
            pause = self.options.poll.max(began.elapsed() * 10);
        }
    }

    /// Starts reading pools that are new and forgets those that have gone.
    fn adopt(self: &Arc<Shared>, names: BTreeSet<String>) -> Result<(), ZfsError> {
        let known: BTreeSet<String> = self.pools.read().keys().cloned().collect();
        for name in names.difference(&known) {
            let pool = Arc::new(Pool::new(name));
            let (shared, reader) = (Arc::clone(self), Arc::clone(&pool));
            let thread = spawn(&format!("zfs:{name}"), move || reader.keep_reading(&shared))?;
            self.pools
                .write()
                .insert(name.clone(), Reading { pool, thread });
        }
        for name in known.difference(&names) {
            let Some(Reading { pool, thread }) = self.pools.write().remove(name) else {
                continue;
            };
            pool.end();
            // Its last command may hang for as long as its deadline; no other pool waits for that.
            drop(thread);
            let answer = pool.answer();
            let datasets = answer
                .table
                .iter()
                .map(|(name, _)| name.to_owned())
                .collect();
            self.tell_datasets(datasets, Via::Event);
            if answer.failing.is_some() {
                self.tell(Changed::PoolHealed { pool: name.clone() });
            }
        }
        Ok(())
    }

    /// The thread "zpool-events": hands each event to the pool it is about.
    fn follow_events(&self, asks: &Sender<Ask>) {
        let mut pause = FIRST_RESTART;
        loop {
            let began = Instant::now();
            let end = self.follow_once(asks);
            self.following.store(false, Ordering::Release);
            if matches!(end, command::Error::Cancelled) {
                return;
            }
            // Nobody knows what was missed; this also brings the pools back to polling.
            self.read_everything(Via::Event);
            tracing::warn!("{end}; polling until it can be started again");
            {
                let mut events = self.events.lock();
                events.restarts += 1;
                events.last_end = Some(end.to_string());
            }
            if began.elapsed() > LAST_RESTART {
                pause = FIRST_RESTART;
            }
            if self.cancel.sleep(pause).is_err() {
                return;
            }
            pause = (pause * 2).min(LAST_RESTART);
        }
    }

    /// Follows one run of `zpool events` to its end and says why it ended.
    fn follow_once(&self, asks: &Sender<Ask>) -> command::Error {
        let zpool = Runner::new(&self.options.zpool, self.options.deadline, &self.cancel);
        let mut follower = match zpool.follow(&["events", "-vHf"]) {
            Ok(follower) => follower,
            Err(error) => return error,
        };
        self.following.store(true, Ordering::Release);
        // What changed before the command was there to see it.
        let _ = asks.send(Ask::ListPools);
        self.read_everything(Via::Event);
        let mut parser = Parser::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match follower.read(&mut buffer) {
                Ok(count) => self.take_events(parser.feed(&buffer[..count]), asks),
                Err(error) => return error,
            }
        }
    }

    fn take_events(&self, events: Vec<Event>, asks: &Sender<Ask>) {
        self.events.lock().received += events.len() as u64;
        for event in events {
            match event {
                Event::Dataset(name) => {
                    let pool = name.split(['/', '@']).next().unwrap_or(&name);
                    match self.pools.read().get(pool) {
                        Some(Reading { pool, .. }) => pool.want_dataset(&name),
                        None => {
                            let _ = asks.send(Ask::ListPools);
                        }
                    }
                }
                Event::Pools => {
                    let _ = asks.send(Ask::ListPools);
                    self.read_everything(Via::Event);
                }
                Event::Dropped => {
                    self.events.lock().dropped += 1;
                    self.read_everything(Via::Event);
                }
            }
        }
    }
}

fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ZfsError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(job)
        .map_err(|error| ZfsError::Setup {
            what: format!("thread {name}"),
            error,
        })
}

/// The properties this `zfs` knows of those we want.
pub(super) fn known_columns(options: &ZfsOptions, cancel: &Cancel) -> Result<String, ZfsError> {
    let zfs = Runner::new(&options.zfs, options.deadline, cancel);
    // This fails, as it must without a property, and its message is what we are after.
    let finished = zfs.run(&["get"])?;
    output::columns(&String::from_utf8_lossy(&finished.stderr)).map_err(|garbage| {
        ZfsError::Garbage {
            command: format!("{} get", options.zfs.display()),
            garbage,
        }
    })
}

fn list_pools(zpool: &Runner) -> Result<BTreeSet<String>, ZfsError> {
    let stdout = zpool.run(&["list", "-H", "-o", "name"])?.success()?;
    Ok(String::from_utf8_lossy(&stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}
