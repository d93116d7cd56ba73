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

use super::Object;

mod addresses;
mod create;
mod difference;
mod draft;
mod elements;
mod file;
mod full;
mod memory;
mod update;
mod value;

pub use create::{Created, create};
pub use difference::{Wanted, revert, wanted};
pub use file::{can_create, of_file};
pub use full::full;
pub use update::{is_of_files, update};

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
