//! What changes the zones of a store: the other direction of the zones source.
//!
//! ```text
//!   lock ─▶ read afresh ─▶ update: plan ─▶ drafts ─▶ journal ─▶ datasets ─▶ files ─▶ XML ─▶ read again
//!                       └▶ run:    start, stop, …, delete, snapshots
//! ```
//!
//! - A VM's lock is a file that other tools take too ([`lock`]). Under it everything is read from
//!   where it is kept, never from the watchers' tables.
//! - An update writes only what differs, in the order that leaves a valid VM wherever it is cut:
//!   what the XML is going to name is made first, the XML is replaced, and then goes what it no longer
//!   names. All that can fail for want of room is done before anything is changed.
//! - When more than one place is written, a journal says beforehand what is wanted ([`journal`]);
//!   [`Apply::recover`] reads those that killed processes left.
//! - A zone exists when the index names it: that line is the last thing made and the first removed.
//!
//! There is no thread and no state here but the highest zoneid that was given, and where root datasets
//! were. Validating is the business of whoever calls, confirming too: the watchers find what was written
//! by themselves, and get what was read of ZFS.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::ZonesOptions;
use super::command::Cancel;
use super::faults::Faults;
use super::load::Store;
use super::providers::Choice;
use super::zfs::{Watched, ZfsOptions};
use super::zoneadm::ZoneadmOptions;
use crate::source::{Accepted, Apply, Cut, Extent, Failed, FailedKind, Locked};
use crate::vm::Object;
use crate::vm::property::Part;
use crate::vm::verb::Verb;
use listed::Listed;
use session::{Datasets, Session};
use zfs::Zfs;

mod create;
mod datasets;
mod delete;
mod index;
mod journal;
mod listed;
mod lock;
mod place;
mod records;
mod recover;
mod runtime;
mod session;
mod snapshots;
mod update;
mod verbs;
mod xml;
mod zfs;

/// How long a VM whose lock was taken may be read at least.
const READING: Duration = Duration::from_secs(4);

/// Changes the zones below one root. See the module's text.
pub(super) struct Applier {
    store: Store,
    listed: Listed,
    /// `None`: the file provider.
    zfs: Option<Zfs>,
    runtime: Runtimes,
    faults: Arc<Faults>,
    /// A change that has begun goes on when the daemon ends.
    cancel: Cancel,
    /// The largest zoneid that the file provider has given.
    zoneids: OnceLock<AtomicU64>,
    /// Where each zone's root dataset was the last time: looked for there first.
    roots: Mutex<HashMap<String, String>>,
}

/// Who runs zones.
enum Runtimes {
    /// Nobody: what would happen is recorded in `var/run/zones/`.
    Files,
    /// A program that is given, which leaves what it did in those files.
    Program(PathBuf),
    /// `zoneadm`.
    Zoneadm(ZoneadmOptions),
}

impl Applier {
    /// What changes the zones that these options and providers read. What it reads of ZFS it gives to
    /// the tables that are watched.
    pub(super) fn new(options: &ZonesOptions, choice: Choice, watched: Watched) -> Applier {
        let zfs = choice.zfs.then(|| {
            let options = ZfsOptions {
                poll: options.zfs_poll,
                ..ZfsOptions::default()
            };
            Zfs::new(options, watched)
        });
        let runtime = match (choice.zoneadm, &options.runtime_exec) {
            (true, _) => Runtimes::Zoneadm(ZoneadmOptions::default()),
            (false, Some(program)) => Runtimes::Program(program.clone()),
            (false, None) => Runtimes::Files,
        };
        Applier {
            store: Store::new(&options.root),
            listed: Listed::default(),
            zfs,
            runtime,
            faults: Arc::clone(&options.faults),
            cancel: Cancel::never(),
            zoneids: OnceLock::new(),
            roots: Mutex::default(),
        }
    }

    fn take_lock(&self, uuid: Uuid, until: Instant) -> Result<lock::Lock, Failed> {
        // A VM that does not exist leaves no lock file behind.
        self.entry(uuid)?;
        lock::take(&self.store.lock(uuid), until)
    }
}

impl Apply for Applier {
    fn lock_for(
        &self,
        uuid: Uuid,
        extent: Extent,
        until: Instant,
        deadline: Instant,
    ) -> Result<Box<dyn Locked + '_>, Failed> {
        let lock = self.take_lock(uuid, until)?;
        // Who has the lock at last also gets the time to read: who only looks does not wait for a lock,
        // but commands take what they take.
        let deadline = deadline.max(Instant::now() + READING);
        Ok(Box::new(Session::open(self, uuid, extent, lock, deadline)?))
    }

    fn delete(&self, uuid: Uuid, deadline: Instant) -> Result<(), Failed> {
        let lock = self.take_lock(uuid, deadline)?;
        delete::delete(&mut Session::open_unread(self, uuid, lock, deadline)?)
    }

    fn create(&self, uuid: Uuid, target: &Object, deadline: Instant) -> Result<(), Failed> {
        create::create(self, uuid, target, deadline)
    }

    fn recover(&self) -> Vec<Cut> {
        recover::recover(self)
    }

    fn watcher(&self, part: Part) -> String {
        match part {
            Part::Zone => "inotify on etc/zones".to_owned(),
            Part::Metadata | Part::Tags | Part::Routes => {
                "fanotify or inotify on zones/<zone>/config".to_owned()
            }
            Part::LastExited => "fanotify or inotify on zones/<zone>".to_owned(),
            Part::Sysinfo => "inotify on tmp".to_owned(),
            Part::Datasets => match &self.zfs {
                None => "inotify on var/db/datasets".to_owned(),
                Some(zfs) => {
                    let poll = humantime::format_duration(zfs.poll());
                    format!("zpool events, or else zfs get every {poll}")
                }
            },
            Part::Runtime => match &self.runtime {
                Runtimes::Files | Runtimes::Program(_) => "inotify on var/run/zones".to_owned(),
                Runtimes::Zoneadm(options) => {
                    let poll = humantime::format_duration(options.poll);
                    format!("zoneadm list every {poll}")
                }
            },
        }
    }
}

impl Locked for Session<'_> {
    fn vm(&self) -> &Object {
        Session::vm(self)
    }

    fn read(&mut self) -> Result<(), Failed> {
        Session::read(self)
    }

    fn update(&mut self, target: &Object) -> Result<Accepted, Failed> {
        let update::Updated { applied, datasets } = update::update(self, target)?;
        let read = match datasets {
            Some(table) => self.read_with(Datasets::Known(table)),
            None => Session::read(self),
        };
        read.map_err(|error| Failed { applied, ..error })?;
        Ok(Accepted::Done)
    }

    fn run(&mut self, verb: &Verb) -> Result<Accepted, Failed> {
        verbs::run(self, verb)?;
        if *verb != Verb::Delete {
            Session::read(self).map_err(|error| Failed {
                applied: vec!["all of it".to_owned()],
                ..error
            })?;
        }
        Ok(Accepted::Done)
    }
}

/// A failure before anything was applied.
fn failed(kind: FailedKind, reason: &dyn std::fmt::Display) -> Failed {
    Failed {
        kind,
        applied: Vec::new(),
        reason: reason.to_string(),
    }
}

impl From<place::PlaceError> for Failed {
    fn from(error: place::PlaceError) -> Failed {
        failed(FailedKind::Source, &error)
    }
}

/// The steps of one change, as they are done.
struct Progress<'a> {
    faults: &'a Faults,
    applied: Vec<String>,
    /// Files that have been renamed into place.
    unsynced: Vec<PathBuf>,
}

impl<'a> Progress<'a> {
    fn new(applier: &'a Applier) -> Progress<'a> {
        Progress {
            faults: &applier.faults,
            applied: Vec::new(),
            unsynced: Vec::new(),
        }
    }

    /// Puts a file in its place. The renames of one change follow each other at once, so that whoever
    /// watches hardly sees a state between them; [`Progress::sync`] then makes them last.
    fn place(&mut self, label: &str, draft: place::Draft) -> Result<(), Failed> {
        let mut placed = None;
        self.step(label, || {
            placed = Some(draft.rename()?);
            Ok(())
        })?;
        self.unsynced.extend(placed);
        Ok(())
    }

    /// Makes sure that what was put into place stays there.
    fn sync(&mut self) -> Result<(), Failed> {
        for file in std::mem::take(&mut self.unsynced) {
            place::sync_folder(&file).map_err(|error| Failed {
                applied: self.applied.clone(),
                ..Failed::from(error)
            })?;
        }
        Ok(())
    }

    /// Does a step. The error says what was applied before.
    fn step(
        &mut self,
        label: &str,
        action: impl FnOnce() -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let refused = |error| failed(FailedKind::Source, &format_args!("{label}: {error}"));
        let done = self.faults.step(label).map_err(refused);
        done.and_then(|()| action()).map_err(|error| Failed {
            applied: self.applied.clone(),
            ..error
        })?;
        if !self.applied.iter().any(|applied| applied == label) {
            self.applied.push(label.to_owned());
        }
        Ok(())
    }
}
