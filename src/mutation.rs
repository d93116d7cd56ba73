//! Changes of VMs: validated, applied to the source, and confirmed by what the mount shows.
//!
//! ```text
//! turn ─▶ lock, fresh read ─▶ target ─▶ waiter, txn ─▶ apply ─▶ read again ─▶ nudge ─▶ wait ─▶ done
//!          (source)          (vm::payload)              (source)   (source)            (shown)
//! ```
//!
//! Each change has a thread of its own, named `change`, from the beginning to its end: the source may
//! hang, and then only that change does. Changes of one VM take turns. What is wanted is computed
//! from the VM as it was just read from its source under its lock, never from the cache; whether it
//! is there is asked of the snapshot that the mount shows, never of an event, so that it does not matter
//! when the event comes, and whether it comes. The waiter is there before the change is applied.
//!
//! What is published is read from the source; this module publishes nothing. It asks the source to
//! look ([`crate::source::Source::reload`]), more than once if need be, so that a lost event costs
//! time and nothing else.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::cache::Snapshot;
use crate::vm::Object;
use crate::vm::payload::{self, Invalid};
use crate::vm::verb::Verb;

mod engine;
mod goal;
mod read_only;
mod shown;
mod turns;
mod txns;

pub use engine::{Mutations, Timeouts};
pub use read_only::ReadOnly;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A file of the VM's directory gets a text. The names of its path are decoded.
    File {
        /// Its names below the VM's directory.
        path: Vec<String>,
        /// What was written, less one newline at its end.
        text: String,
    },
    /// A document was written to `vm.json`: a payload, or, if it holds `uuid`, a full object.
    Document(Object),
    /// A verb was written to `ctl`.
    Verb(Verb),
}

impl Wish {
    /// What a VM is to be by a wish that is no verb.
    fn target(&self, vm: &Object) -> Result<Object, Invalid> {
        match self {
            Wish::File { path, text } => payload::of_file(vm, path, text),
            Wish::Document(document) if document.contains_key("uuid") => {
                payload::full(vm, document)
            }
            Wish::Document(document) => payload::update(vm, document),
            Wish::Verb(_) => Ok(vm.clone()),
        }
    }

    /// Whether it depends on no part of the VM but what its files hold.
    fn is_of_files(&self) -> bool {
        match self {
            Wish::File { path, .. } => path.first().is_some_and(|name| payload::is_of_files(name)),
            // A full object is compared with all of the VM, and so is a generation.
            Wish::Document(document) => document.keys().all(|name| payload::is_of_files(name)),
            Wish::Verb(_) => false,
        }
    }
}

/// For messages about it: without values, which may be secrets.
impl Display for Wish {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wish::File { path, .. } => formatter.write_str(&path.join("/")),
            Wish::Document(document) => {
                let names: Vec<&str> = document.keys().map(String::as_str).take(4).collect();
                let more = if document.len() > names.len() {
                    ", …"
                } else {
                    ""
                };
                write!(formatter, "vm.json ({}{more})", names.join(", "))
            }
            Wish::Verb(verb) => verb.fmt(formatter),
        }
    }
}

/// Whether the caller waits for the confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until the cache shows it.
    Confirmed,
    /// Until the source has accepted it.
    Applied,
    /// The same, but not for others who change the VM (`O_NONBLOCK`).
    AtOnce,
}

/// How a change ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was so already.
    Already,
    /// Every read shows it.
    Confirmed,
    /// The source has accepted it; nobody waited for more.
    Applied,
}

/// How a change ended otherwise. The text names the thing and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Refused; nothing was applied.
    #[error("{0}")]
    Refused(#[from] Invalid),
    /// `if_generation` did not match; nothing was applied.
    #[error("{0}")]
    Moved(String),
    /// The VM exists already.
    #[error("{0}")]
    Exists(String),
    /// Somebody else has the VM's lock, or another change of it does not end.
    #[error("{0}")]
    Busy(String),
    /// The same, of a change that was not to wait for them. It may be tried again at any time.
    #[error("{0}")]
    WouldBlock(String),
    /// The VM does not exist, or has gone meanwhile.
    #[error("{0}")]
    Gone(String),
    /// The source refused or failed. Says what was applied before.
    #[error("{reason}")]
    Source {
        /// Why, and what was applied.
        reason: String,
        /// What was applied before.
        applied: Vec<String>,
    },
    /// Applied, but the cache does not show it in time. Names the watcher.
    #[error("{0}")]
    Unconfirmed(String),
    /// Applied, but somebody else has changed it again.
    #[error("{0}")]
    Overtaken(String),
    /// The daemon ends; says whether it was applied.
    #[error("{0}")]
    Ended(String),
}

/// What a change came to.
pub type Outcome = Result<Done, Failure>;

/// What is called when a change has ended: once, on some thread. For [`Done::Confirmed`] and
/// [`Done::Already`] that is after the mount's caches are right.
pub type Changed = Box<dyn FnOnce(Outcome) + Send>;

/// What is called when a creation has ended; it gets the new VM's uuid too, if the payload made
/// sense.
pub type Created = Box<dyn FnOnce(Option<Uuid>, Outcome) + Send>;

/// Changes VMs. The mount knows no more of it than this.
pub trait Changes: Send + Sync {
    /// Changes a VM, in the background.
    fn change(&self, uuid: Uuid, wish: Wish, wait: Wait, done: Changed);

    /// Makes a VM, in the background.
    fn create(&self, payload: Object, wait: Wait, done: Created);

    /// The mount shows this snapshot now, and the kernel's caches are right for it.
    fn shown(&self, snapshot: &Arc<Snapshot>);

    /// Answers all that wait, and waits up to `patience` for what is being applied.
    fn end(&self, patience: Duration);
}
