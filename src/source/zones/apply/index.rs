//! The list of zones, changed: one line comes or goes, all other bytes stay.

use std::time::Instant;

use super::place::Draft;
use super::session::left;
use super::{Applier, failed, lock};
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
    edit: impl Fn(&[u8]) -> Result<Vec<u8>, Failed>,
) -> Result<(), Failed> {
    let store = &applier.store;
    let _lock = lock::take(&store.index_lock(), deadline)?;
    let path = store.index();
    let read = || match files::read(&path, INDEX_LIMIT) {
        Ok(contents) => Ok(contents.bytes),
        Err(error) => Err(failed(FailedKind::Source, &store.name(&path, &error))),
    };
    let mut bytes = read()?;
    loop {
        // A file that somebody is just writing must not be made ours.
        if let Some(reason) = index::parse(&bytes).broken {
            let reason = format!("etc/zones/index: {reason}; repair it, then try again");
            return Err(failed(FailedKind::Source, &reason));
        }
        let edited = edit(&bytes)?;
        if edited == bytes {
            return Ok(());
        }
        let draft = Draft::write(&path, &edited, 0o644)?;
        // Who does not take our lock may have written it since; only what comes within the
        // microseconds from here to the rename is lost.
        let now = read()?;
        if now == bytes {
            return Ok(draft.place()?);
        }
        if left(deadline).is_zero() {
            let reason = "etc/zones/index: somebody writes it all the time; try again later";
            return Err(failed(FailedKind::Busy, &reason));
        }
        bytes = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::source::zones::ZonesOptions;
    use crate::source::zones::providers::Choice;

    #[test]
    fn what_a_tool_without_our_lock_writes_meanwhile_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/zones/index");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "global:installed:/\n").unwrap();
        let choice = Choice {
            zfs: false,
            zoneadm: false,
        };
        let options = ZonesOptions::new(dir.path());
        let applier = Applier::new(&options, choice, Default::default());
        let foreign = Cell::new(3);
        let deadline = Instant::now() + Duration::from_secs(30);
        change(&applier, deadline, |bytes| {
            // Somebody writes between our reading and our rename, three times.
            if foreign.get() > 0 {
                foreign.set(foreign.get() - 1);
                let line = format!("other{}:installed:/zones/o:\n", foreign.get());
                fs::write(&path, [bytes, line.as_bytes()].concat()).unwrap();
            }
            Ok([bytes, b"ours:installed:/zones/ours:\n"].concat())
        })
        .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(names, ["global", "other2", "other1", "other0", "ours"]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
