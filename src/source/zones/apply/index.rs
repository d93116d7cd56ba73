//! The list of zones, changed: one line comes or goes, all other bytes stay.

use std::time::Instant;

use super::{Applier, failed, lock, place};
use crate::source::zones::files;
use crate::source::zones::index::{self, Entry};
use crate::source::zones::load::INDEX_LIMIT;
use crate::source::{Failed, FailedKind};

/// Adds the line of a new zone.
///
/// # Errors
/// [`FailedKind::Exists`] if its name or uuid is taken.
pub(super) fn add(applier: &Applier, entry: &Entry, deadline: Instant) -> Result<(), Failed> {
    change(applier, deadline, |bytes| {
        let index = index::parse(bytes);
        if let Some(problem) = taken(&index, entry) {
            return Err(failed(FailedKind::Exists, &problem));
        }
        let Entry {
            zonename,
            state,
            zonepath,
            uuid,
        } = entry;
        let line = format!("{zonename}:{state}:{zonepath}:{uuid}\n");
        Ok([bytes, line.as_bytes()].concat())
    })
}

/// Removes the line of a zone, if it is there.
pub(super) fn remove(applier: &Applier, zonename: &str, deadline: Instant) -> Result<(), Failed> {
    let own = format!("{zonename}:");
    change(applier, deadline, |bytes| {
        let lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let others = lines.filter(|line| !line.starts_with(own.as_bytes()));
        Ok(others.collect::<Vec<_>>().concat())
    })
}

/// Why a zone cannot be added, if its name or uuid is taken.
pub(super) fn taken(index: &index::Index, entry: &Entry) -> Option<String> {
    let same = |other: &&Entry| other.uuid == entry.uuid || other.zonename == entry.zonename;
    if let Some(other) = index.entries.iter().find(same) {
        return Some(format!(
            "{}: the zone {} in etc/zones/index is this VM already; delete it first, or choose \
             another uuid",
            entry.uuid, other.zonename
        ));
    }
    let unplaced = index
        .unplaced
        .iter()
        .any(|other| other.zonename == entry.zonename);
    unplaced.then(|| {
        format!(
            "{}: etc/zones/index has a broken line for a zone of this name; repair it",
            entry.zonename
        )
    })
}

/// Replaces the index, which must be whole.
fn change(
    applier: &Applier,
    deadline: Instant,
    edit: impl FnOnce(&[u8]) -> Result<Vec<u8>, Failed>,
) -> Result<(), Failed> {
    let store = &applier.store;
    let _lock = lock::take(&store.index_lock(), deadline)?;
    let path = store.index();
    let contents = files::read(&path, INDEX_LIMIT);
    let bytes = contents
        .map_err(|error| failed(FailedKind::Source, &store.name(&path, &error)))?
        .bytes;
    // A file that somebody is just writing must not be made ours.
    if let Some(reason) = index::parse(&bytes).broken {
        let reason = format!("etc/zones/index: {reason}; repair it, then try again");
        return Err(failed(FailedKind::Source, &reason));
    }
    let edited = edit(&bytes)?;
    if edited != bytes {
        place::replace(&path, &edited, 0o644)?;
    }
    Ok(())
}
