//! What a payload asks for: pure.
//!
//! Every change of a VM's properties becomes a *target*: the whole object as it is to be. It is made
//! of the VM as it was just read from its source, never of what the cache believes. Whoever applies it
//! writes what differs, whoever waits for it compares what differs ([`wanted`]).
//!
//! Invariants: a payload is accepted whole or refused whole; a target differs from its VM only in
//! what the payload touches and in what follows from that; what a VM has already, however odd, is
//! accepted when it is given again. What only the source can know is never guessed: such members
//! stay as they were, and a new element lacks them.
//!
//! It applies nothing and knows of no source. `create` needs the time and random numbers, nothing
//! else does but a new nic without a mac.
//!
//! A running domain has two configurations, for which a document means two targets. What would be made
//! up anew for each, such as a mac, is therefore put into the document before ([`prepared`]).

use super::Object;

mod addresses;
mod create;
mod create_domain;
mod difference;
mod domain;
mod draft;
mod elements;
mod file;
mod full;
mod memory;
mod prepared;
mod update;
mod value;
mod views;

pub use create::{Created, create};
pub use create_domain::create_domain;
pub use difference::Wanted;
pub use file::can_create;
pub use prepared::prepared;
pub use update::is_of_files;
pub use views::{full, of_file, revert, update, wanted};

/// Why something is not accepted. Nothing has been applied. The text names the property.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What is wrong.
    pub kind: InvalidKind,
    /// In words that begin with the property or verb.
    pub message: String,
}

/// What is wrong with a payload, value or verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKind {
    /// Not a valid value, document or verb.
    Value,
    /// There is no such property.
    Unknown,
    /// The property cannot be changed, or not for this brand.
    Fixed,
    /// The VM cannot do this in its state.
    State,
}

impl InvalidKind {
    /// The refusal of `name`, which is the property or verb, for this reason.
    pub(crate) fn refuse(
        self,
        name: impl std::fmt::Display,
        reason: impl std::fmt::Display,
    ) -> Invalid {
        Invalid {
            kind: self,
            message: format!("{name}: {reason}"),
        }
    }
}
