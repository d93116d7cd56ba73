//! What is being done, on disk while it is being done: `var/run/vm.<uuid>.update.json`.
//!
//! It is written before the first step and removed after the last. What is found of a process that
//! was killed between them says what was wanted, and what that process alone has made.

use uuid::Uuid;

use super::session::pretty;
use super::{Applier, failed, place};
use crate::source::{Failed, FailedKind};
use crate::vm::Object;

/// The journal of a change in progress. Dropped without being ended, it stays.
#[derive(Debug)]
pub(super) struct Journal {
    path: std::path::PathBuf,
}

impl Journal {
    /// Writes down what is about to be done.
    pub(super) fn begin(
        applier: &Applier,
        uuid: Uuid,
        content: serde_json::Value,
    ) -> Result<Journal, Failed> {
        let path = applier.store.journal(uuid);
        // What an earlier change left, and could not be settled, is not to be forgotten.
        if path.symlink_metadata().is_ok() {
            let name = path.strip_prefix(applier.store.root()).unwrap_or(&path);
            let reason = format!(
                "{}: an earlier change of this VM was cut and is not ended; start the daemon again to end \
                 it, or look what is left of it and remove this file",
                name.display()
            );
            return Err(failed(FailedKind::Busy, &reason));
        }
        let content = match content {
            serde_json::Value::Object(content) => content,
            _ => Object::new(),
        };
        // Passwords are in it.
        place::replace(&path, &pretty(content), 0o600)?;
        let begun = applier.faults.step("journal");
        let journal = Journal { path };
        match begun {
            Ok(()) => Ok(journal),
            Err(error) => {
                journal.end()?;
                Err(failed(
                    FailedKind::Source,
                    &format_args!("journal: {error}"),
                ))
            }
        }
    }

    /// All is done, or taken back, or has been told.
    pub(super) fn end(self) -> Result<(), Failed> {
        Ok(place::remove(&self.path)?)
    }
}
