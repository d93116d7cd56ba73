//! Where VMs are read from.
//!
//! A [`Source`] watches one host's VMs and sends [`Report`]s. It says only what it has read;
//! what it could not read it names, so that nothing is deleted because a source failed: a VM is
//! present, confirmed absent, or unknown. A source never sees the cache: when a part of a VM
//! cannot be read, ingest keeps that part's last good values.

use std::sync::mpsc::Sender;
use std::time::{Instant, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use crate::vm::Object;
use crate::vm::files::Rendered;
use crate::vm::payload::{self, Created, Invalid};
use crate::vm::property::Part;
use crate::vm::verb::Verb;

pub mod libvirt;
pub mod zones;

/// What made us look at a VM, as `via` in events and in `user.vminfod.via`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A watcher or a poll announced the change.
    Event,
    /// A write through us is being confirmed.
    Write,
    /// Only a full scan found it.
    Scan,
}

impl Via {
    /// The word used in events and extended attributes.
    pub fn as_str(self) -> &'static str {
        match self {
            Via::Event => "event",
            Via::Write => "write",
            Via::Scan => "scan",
        }
    }
}

/// A part of a VM that could not be read; its properties keep their last good values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which part.
    pub part: Part,
    /// Why, naming the file or command: `zones/<zone>/config/tags.json: not JSON (line 1)`.
    pub reason: String,
}

/// One VM as just read from its source.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The VM's uuid, which names its directory.
    pub uuid: Uuid,
    /// Its zonename (libvirt: the domain's name).
    pub zonename: String,
    /// Its properties, as far as they could be read, in the order of the property table. They are
    /// text already: a listing of everything holds all VMs at once, and text is a fifth of what
    /// parsed objects take.
    pub vm: Rendered,
    /// The parts that could not be read. A VM with failures is shown as stale.
    pub failed: Vec<Failure>,
    /// What made us look.
    pub via: Via,
    /// When it was read.
    pub observed: SystemTime,
}

/// A zone that cannot be shown as a VM, reported in `.status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// The zone's name, or the text that stands where a name should.
    pub zonename: String,
    /// Why it has no directory: no uuid, a uuid that another zone already has, a broken line.
    pub reason: String,
}

/// The result of a full scan.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Every VM that could be read, at least in part.
    pub vms: Vec<Loaded>,
    /// The VMs that are as they were last reported, and when that was seen.
    pub same: Vec<(Uuid, SystemTime)>,
    /// VMs that exist but gave no answer: they are kept as they were and marked stale.
    pub silent: Vec<(Uuid, String)>,
    /// `None`: the list of VMs itself was read whole, so a VM that is in none of these
    /// is confirmed absent. Otherwise why that list cannot be trusted; then nothing is
    /// deleted.
    pub incomplete: Option<String>,
}

/// What a source says to ingest.
#[derive(Clone, Debug)]
pub enum Report {
    /// VMs that were read again because something announced a change.
    Changed(Vec<Loaded>),
    /// A VM whose source does not answer: it keeps its values and is marked stale.
    Silent {
        /// Which VM.
        uuid: Uuid,
        /// Why, naming what does not answer.
        reason: String,
    },
    /// The source positively says that this VM no longer exists.
    Gone(Uuid),
    /// A full scan has ended. The first report of every source is one.
    Listing(Listing),
}

/// A source of VMs. Its methods never block: the work is done on threads of its own.
pub trait Source: Send + Sync {
    /// What is read, for messages and `.status`: `zones below /`.
    fn describe(&self) -> String;

    /// Starts watching, then scans; the first report is a [`Report::Listing`].
    ///
    /// # Errors
    /// When there is nothing to watch: a root that is missing or cannot be read.
    fn start(&self, reports: Sender<Report>) -> Result<(), SourceError>;

    /// Asks for a full scan, which ends in a [`Report::Listing`].
    fn rescan(&self);

    /// Asks to read one VM again, as if it had announced a change.
    fn reload(&self, uuid: Uuid);

    /// The same after a change, when who applied it has read back what is in no file, and that is
    /// known to the source: it asks nobody for that again.
    fn reload_files(&self, uuid: Uuid) {
        self.reload(uuid);
    }

    /// The health of its watchers and providers, for `.status`, as an object. Its member `unplaced`
    /// lists what has no place in the tree now ([`Unplaced`]); its member `index`, if it is a
    /// string, says why the list of VMs cannot be trusted.
    fn status(&self) -> Value;
}

/// What changes VMs at their source. Its methods may block, for as long as the source does.
pub trait Apply: Send + Sync {
    /// Takes a VM's lock, which other tools respect, and reads the VM afresh.
    ///
    /// # Errors
    /// When the VM does not exist, the lock is not free until the deadline, or it cannot be read.
    fn lock(&self, uuid: Uuid, deadline: Instant) -> Result<Box<dyn Locked + '_>, Failed> {
        self.lock_for(uuid, Extent::Whole, deadline, deadline)
    }

    /// The same, with as much of the VM as is asked for; `until` says how long somebody else's lock is
    /// waited for, the deadline how long what is done under it may take.
    ///
    /// # Errors
    /// As those of [`Apply::lock`].
    fn lock_for(
        &self,
        uuid: Uuid,
        extent: Extent,
        until: Instant,
        deadline: Instant,
    ) -> Result<Box<dyn Locked + '_>, Failed>;

    /// Does something with a VM that cannot be read, if that needs no reading; `None` if it does.
    fn unread(&self, uuid: Uuid, verb: &Verb, deadline: Instant) -> Option<Result<(), Failed>> {
        (*verb == Verb::Delete).then(|| self.delete(uuid, deadline))
    }

    /// Removes a VM that cannot be read: what is known to be its own without its configuration.
    ///
    /// # Errors
    /// When it does not exist, the lock is not free until the deadline, or the source fails.
    fn delete(&self, uuid: Uuid, deadline: Instant) -> Result<(), Failed>;

    /// What VM a create payload asks for here: by default, what it asks for as a zone.
    ///
    /// # Errors
    /// When a required property is missing or one is not acceptable.
    fn created(&self, payload: &Object) -> Result<Created, Invalid> {
        payload::create(payload)
    }

    /// Makes a VM.
    ///
    /// # Errors
    /// When its uuid is taken, or the source fails; then what was made has been removed again,
    /// or is named.
    fn create(&self, uuid: Uuid, target: &Object, deadline: Instant) -> Result<(), Failed>;

    /// What earlier processes began and did not end, because they were killed. What could be ended or
    /// taken back has been; what could not is told once.
    fn recover(&self) -> Vec<Cut>;

    /// Who would have to notice a change of this part: `inotify on zones/<zone>/config`.
    fn watcher(&self, part: Part) -> String;
}

/// How much of a VM is read under its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// What a change that depends on nothing but files needs: what would have to be asked of somebody,
    /// such as datasets of ZFS, may be left out.
    Files,
}

/// A VM whose lock is held until this is dropped.
pub trait Locked {
    /// The VM as it was last read.
    fn vm(&self) -> &Object;

    /// Reads it again.
    ///
    /// # Errors
    /// When it does not exist any more or cannot be read.
    fn read(&mut self) -> Result<(), Failed>;

    /// Writes what differs between the VM as it was last read and the target, and then reads it
    /// again.
    ///
    /// # Errors
    /// When the source refuses or fails; says what was applied before.
    fn update(&mut self, target: &Object) -> Result<Accepted, Failed>;

    /// Does something with the whole VM, and then, unless it was deleted, reads it again.
    ///
    /// # Errors
    /// When the source refuses or fails.
    fn run(&mut self, verb: &Verb) -> Result<Accepted, Failed>;
}

/// How far a change is that its source has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The source has it: what is read of it from now on says so.
    Done,
    /// Somebody was asked who may follow or not: a guest.
    Asked,
}

/// Why a change could not be applied, or not wholly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failed {
    /// What went wrong.
    pub kind: FailedKind,
    /// What was applied before, each in words: `quota`, `tags.json`. Empty if nothing was.
    pub applied: Vec<String>,
    /// Why, naming the file, dataset or command and what to do.
    pub reason: String,
}

/// What went wrong at a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedKind {
    /// There is no such VM.
    Gone,
    /// Somebody else has its lock, or it cannot do this now.
    Busy,
    /// It exists already.
    Exists,
    /// A value that only the source can judge: an image that does not exist.
    Invalid,
    /// Whoever the daemon runs as may not change it.
    Forbidden,
    /// The source refused or failed.
    Source,
    /// The source has not answered in time; what was asked of it may still be done.
    Unanswered,
}

/// A change that a killed process left between two steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The VM.
    pub uuid: Uuid,
    /// What was applied and what was not, in words.
    pub reason: String,
}

/// Why a source cannot start. The text names the thing and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The root of the zone store is missing, no directory, or unreadable.
    #[error("zones root {root}: {problem}")]
    Root {
        /// The folder given as `--zones-root`.
        root: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A provider was forced that this host does not have.
    #[error("{provider}: {problem}")]
    Provider {
        /// `datasets=zfs`, `runtime=zoneadm`.
        provider: String,
        /// What is missing, and what to do.
        problem: String,
    },
    /// A watcher or thread could not be set up.
    #[error("{what}: {error}")]
    Setup {
        /// What was being set up.
        what: String,
        /// The system's error.
        error: std::io::Error,
    },
}
