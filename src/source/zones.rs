//! The zones source: the SmartOS layout below a root folder.
//!
//! ```text
//!   folders ──▶ watch ──┐                    ┌──▶ load-0 ┐
//!   zfs, zoneadm ───────┼─signals─▶ zones ───┤    load-1 ├──▶ zones ──report──▶ ingest
//!   rescan, reload ─────┘          (thread)  └──▶ …      ┘
//! ```
//!
//! - `watch` announces changes of files, the providers those of datasets and runtime state.
//! - The thread `zones` (`engine`) decides by the pure `schedule` what is read when, and
//!   reports. It never touches a file of a zone.
//! - The threads `load-N` (`loaders`) do, by [`load`].
//! - What changes zones (`apply`) works on its callers' threads, and what it wrote is announced like any
//!   other change; only what it has read of ZFS itself is put into the tables, and not read once more.
//!
//! # Which providers are used
//!
//! Where the choice is automatic, a store that has the folder `var/db/datasets` (for runtime
//! state: `var/run/zones`) uses the files in it; else `zfs` (`zoneadm`) is used if this host has
//! it and it answers; else the files, which then may come later.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;

use super::{Apply, Report, Source, SourceError};
use apply::Applier;
use engine::{Engine, Message};
#[doc(hidden)]
pub use faults::Faults;
use load::Store;
use loaders::Loaders;
use providers::{Choice, Providers};
use read::Reader;
use schedule::Causes;
use watch::Watch;
pub use watch::Watcher;

mod apply;
pub mod command;
pub mod config;
pub mod datasets;
mod engine;
mod faults;
pub mod files;
mod health;
pub mod index;
pub mod load;
mod loaders;
mod owners;
mod providers;
mod read;
pub mod runtime;
mod schedule;
mod units;
mod watch;
pub mod xml;
pub mod zfs;
pub mod zoneadm;
pub mod zpool_events;

/// Who knows a part of a VM that lies outside its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// What the host has.
    #[default]
    Auto,
    /// The host's commands: `zfs` and `zpool`, or `zoneadm`.
    Commands,
    /// Files below the root.
    Files,
}

/// What to read, and how.
#[derive(Clone, Debug)]
pub struct ZonesOptions {
    /// The folder that holds `etc/zones/index`.
    pub root: PathBuf,
    /// How long from one full scan to the next; without it 300 s, or 8 ms a zone if that is more.
    pub rescan: Option<Duration>,
    /// The shortest pause between two polls of ZFS, where it announces nothing.
    pub zfs_poll: Duration,
    /// Where datasets are read from.
    pub datasets: Provider,
    /// Where runtime state is read from.
    pub runtime: Provider,
    /// What starts and stops zones whose state is in files: it is called with a verb and a uuid, and
    /// what it leaves in those files is the truth. Without it, a change is only recorded.
    pub runtime_exec: Option<PathBuf>,
    /// How long reading one zone may take before the VM counts as silent.
    pub load_deadline: Duration,
    /// What watches the folders of zones.
    pub watcher: Watcher,
    /// At most this many inotify watches are used.
    pub max_watches: usize,
    /// Ways to break the watching, for tests.
    #[doc(hidden)]
    pub faults: Arc<Faults>,
}

impl ZonesOptions {
    /// The defaults, for the store below this folder.
    pub fn new(root: impl Into<PathBuf>) -> ZonesOptions {
        ZonesOptions {
            root: root.into(),
            rescan: None,
            zfs_poll: Duration::from_secs(1),
            datasets: Provider::Auto,
            runtime: Provider::Auto,
            runtime_exec: None,
            load_deadline: Duration::from_secs(2),
            watcher: Watcher::Auto,
            max_watches: usize::MAX,
            faults: Arc::default(),
        }
    }
}

/// The zones of a host. Dropping it ends its threads.
pub struct Zones {
    options: ZonesOptions,
    inbox: Sender<Message>,
    /// The other end of the inbox, until the engine takes it.
    outbox: Mutex<Option<Receiver<Message>>>,
    running: Mutex<Option<Running>>,
    choice: OnceLock<Choice>,
    applier: OnceLock<Arc<Applier>>,
    /// Where the applier leaves what it has read of ZFS.
    watched: zfs::Watched,
}

struct Running {
    thread: JoinHandle<()>,
    status: Box<dyn Fn() -> Value + Send>,
}

impl Zones {
    /// A source that does nothing yet.
    pub fn new(options: ZonesOptions) -> Zones {
        let (inbox, outbox) = mpsc::channel();
        Zones {
            options,
            inbox,
            outbox: Mutex::new(Some(outbox)),
            running: Mutex::new(None),
            choice: OnceLock::new(),
            applier: OnceLock::new(),
            watched: zfs::Watched::default(),
        }
    }

    /// What changes these zones. It goes on working when the source is dropped.
    pub fn applier(&self) -> Arc<dyn Apply> {
        let make = || {
            let watched = self.watched.clone();
            Arc::new(Applier::new(&self.options, self.choice(), watched))
        };
        let applier: Arc<Applier> = Arc::clone(self.applier.get_or_init(make));
        applier
    }

    /// Who provides what; asked once, so that reading and writing agree.
    fn choice(&self) -> Choice {
        *self.choice.get_or_init(|| Choice::make(&self.options))
    }

    /// Whether there is a zone store to read.
    fn check_root(&self) -> Result<(), SourceError> {
        let root = &self.options.root;
        let problem = match std::fs::read_dir(root) {
            Ok(_) => return Ok(()),
            Err(error) => match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "no such folder; give the one that holds etc/zones as --zones-root".to_owned()
                }
                std::io::ErrorKind::NotADirectory => {
                    "not a folder; give the one that holds etc/zones as --zones-root".to_owned()
                }
                std::io::ErrorKind::PermissionDenied => {
                    "permission denied; run as root, or as a user who may read it".to_owned()
                }
                _ => error.to_string(),
            },
        };
        Err(SourceError::Root {
            root: root.display().to_string(),
            problem,
        })
    }
}

impl Source for Zones {
    fn describe(&self) -> String {
        format!("zones below {}", self.options.root.display())
    }

    fn start(&self, reports: Sender<Report>) -> Result<(), SourceError> {
        self.check_root()?;
        let setup = |what: &str| {
            let what = what.to_owned();
            move |error| SourceError::Setup { what, error }
        };
        let Some(messages) = self.outbox.lock().take() else {
            let error = std::io::Error::other("already started");
            return Err(setup("zones source")(error));
        };
        let store = Store::new(&self.options.root);
        let providers = Providers::start(&self.options, self.choice(), &self.watched, &self.inbox)?;
        let signals = self.inbox.clone();
        let faults = Arc::clone(&self.options.faults);
        let watch = Watch::start(
            store.clone(),
            self.options.watcher,
            self.options.max_watches,
            faults,
            move |notice| {
                // The engine ends first only when the source is dropped.
                let _ = signals.send(Message::Watch(notice));
            },
        )
        .map_err(setup("thread watch"))?;
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let loaders = Arc::new(Loaders::start(cores.max(2)).map_err(setup("loader threads"))?);
        let reader = Arc::new(Reader::new(
            store,
            watch,
            providers,
            Arc::clone(&self.options.faults),
        ));
        let engine = Engine::new(&self.options, reader, loaders, self.inbox.clone(), reports);
        let status = Box::new(engine.status());
        let thread = thread::Builder::new()
            .name("zones".to_owned())
            .spawn(move || engine.run(&messages))
            .map_err(setup("thread zones"))?;
        *self.running.lock() = Some(Running { thread, status });
        Ok(())
    }

    fn rescan(&self) {
        // Nobody listens before the start, and then everything is scanned anyway.
        let _ = self.inbox.send(Message::Rescan);
    }

    fn reload(&self, uuid: Uuid) {
        let _ = self.inbox.send(Message::Reload(uuid, Causes::ASKED));
    }

    fn reload_files(&self, uuid: Uuid) {
        let _ = self.inbox.send(Message::Reload(uuid, Causes::default()));
    }

    fn status(&self) -> Value {
        match &*self.running.lock() {
            Some(running) => (running.status)(),
            None => Value::Null,
        }
    }
}

impl Drop for Zones {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Stop);
        if let Some(running) = self.running.lock().take() {
            // What the status looks at is let go before the thread that ends with it.
            drop(running.status);
            // A panic of the thread has been reported by its hook.
            let _ = running.thread.join();
        }
    }
}
