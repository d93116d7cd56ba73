//! Snapshots of a VM: `vmsnap-<name>` on its root dataset and on the volumes of its disks.

use super::datasets::{Operation, Step, belongs, disks, volume};
use super::session::Session;
use super::{Progress, failed};
use crate::source::{Failed, FailedKind};

/// Takes one.
pub(super) fn take(session: &Session<'_>, name: &str) -> Result<(), Failed> {
    let snapshots = names(session, name)?;
    if session.table().get(&snapshots[0]).is_some() {
        let reason = format!("snapshot {name}: there is one of this name; choose another");
        return Err(failed(FailedKind::Exists, &reason));
    }
    change(session, "snapshot", &snapshots, &Operation::Snapshot)
}

/// Whether there is one of this name.
pub(super) fn check(session: &Session<'_>, name: &str) -> Result<(), Failed> {
    let snapshots = names(session, name)?;
    match session.table().get(&snapshots[0]) {
        Some(_) => Ok(()),
        None => {
            let reason = format!("snapshot {name}: there is none of this name");
            Err(failed(FailedKind::Invalid, &reason))
        }
    }
}

/// Goes back to one. The VM must not run.
pub(super) fn rollback(session: &Session<'_>, name: &str) -> Result<(), Failed> {
    check(session, name)?;
    change(
        session,
        "rollback",
        &existing(session, name)?,
        &Operation::Rollback,
    )
}

/// Removes one.
pub(super) fn remove(session: &Session<'_>, name: &str) -> Result<(), Failed> {
    check(session, name)?;
    change(
        session,
        "delete-snapshot",
        &existing(session, name)?,
        &Operation::Destroy,
    )
}

fn change(
    session: &Session<'_>,
    label: &str,
    snapshots: &[String],
    operation: &Operation,
) -> Result<(), Failed> {
    let steps: Vec<Step> = (snapshots.iter())
        .map(|snapshot| Step::new(label, snapshot, operation.clone()))
        .collect();
    let mut progress = Progress::new(session.applier);
    let zonename = &session.entry().zonename;
    let (table, deadline) = (session.table(), session.deadline);
    session
        .applier
        .change_datasets(zonename, &steps, table, deadline, &mut progress)?;
    progress.sync()
}

/// The full names, that of the root dataset first.
fn names(session: &Session<'_>, name: &str) -> Result<Vec<String>, Failed> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.:".contains(letter);
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
        let reason = format!("snapshot {name:?}: not a name; use letters, digits and -_.:");
        return Err(failed(FailedKind::Invalid, &reason));
    }
    let Some(root) = session.text("zfs_filesystem") else {
        let reason = format!("snapshot {name}: the VM has no root dataset");
        return Err(failed(FailedKind::Invalid, &reason));
    };
    let volumes = disks(session.vm())
        .filter_map(volume)
        // A disk may be another VM's volume, which is not ours to go back with.
        .filter(|volume| belongs(volume, session.vm()) && session.table().get(volume).is_some());
    let datasets = std::iter::once(root).chain(volumes);
    Ok(datasets
        .map(|dataset| format!("{dataset}@vmsnap-{name}"))
        .collect())
}

/// Those that are there: a disk may be younger than a snapshot.
fn existing(session: &Session<'_>, name: &str) -> Result<Vec<String>, Failed> {
    let mut names = names(session, name)?;
    names.retain(|name| session.table().get(name).is_some());
    Ok(names)
}
