//! The end of a VM: its line in the index first, so that it is gone at once and wholly; then what it
//! had.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use super::create::IMAGE;
use super::datasets::{Operation, Step, belongs, disks, volume};
use super::journal::Journal;
use super::runtime::Manner;
use super::session::{Session, left};
use super::zfs::Commands;
use super::{Applier, Progress, failed, index, place, verbs};
use crate::source::{Failed, FailedKind};

/// Deletes the VM.
pub(super) fn delete(session: &mut Session<'_>) -> Result<(), Failed> {
    for (member, held) in [
        ("indestructible_zoneroot", "its root dataset"),
        ("indestructible_delegated", "its delegated dataset"),
    ] {
        if session.vm().get(member) == Some(&Value::Bool(true)) {
            let reason = format!("{held} is indestructible; set {member} to false first");
            return Err(failed(FailedKind::Source, &reason));
        }
    }
    check_root(session)?;
    let remains = Remains::of(session)?;
    let mut before = Vec::new();
    if verbs::is_running(session) {
        verbs::stop(session, Manner::Forced)?;
        before.push("stop".to_owned());
    }
    let applier = session.applier;
    let zonename = session.entry().zonename.clone();
    let mut progress = Progress::new(applier);
    progress.applied = before;
    let journal = Journal::begin(applier, session.uuid, remains.journal("delete"))?;
    let removed = progress.step("the line in the index", || {
        index::remove(applier, &zonename, session.deadline)
    });
    if let Err(error) = removed {
        // Nothing has been removed.
        journal.end()?;
        return Err(error);
    }
    // What fails now is left to the journal: it is finished at the next start.
    applier.roots.lock().remove(&zonename);
    let removed = remains.remove(applier, session.deadline, &mut progress);
    removed.map_err(|error| Failed {
        reason: format!(
            "{}; the VM is gone, and what is left of it is removed when the daemon starts again",
            error.reason
        ),
        ..error
    })?;
    journal.end()
}

/// Whether the root dataset can be destroyed: nothing but this zone may be in it.
fn check_root(session: &Session<'_>) -> Result<(), Failed> {
    let (Some(_), Some(root)) = (&session.applier.zfs, session.text("zfs_filesystem")) else {
        return Ok(());
    };
    let zonepath = &session.entry().zonepath;
    let refuse = |problem: &str| {
        let reason = format!("{root}: {problem}, so it is not destroyed; repair etc/zones/index");
        Err(failed(FailedKind::Source, &reason))
    };
    if !root.contains('/') || zonepath == "/" {
        return refuse("is the whole of a pool, or of the host");
    }
    let index = session.applier.store.read_index();
    let index = index.map_err(|reason| failed(FailedKind::Source, &reason))?;
    let below = format!("{}/", zonepath.trim_end_matches('/'));
    let other = index.entries.iter().find(|other| {
        other.uuid != session.uuid
            && (other.zonepath == *zonepath || other.zonepath.starts_with(&below))
    });
    match other {
        Some(other) => refuse(&format!("the zone {} lies in it too", other.zonename)),
        None => Ok(()),
    }
}

/// What a zone consists of besides its line in the index.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    pub(super) zonename: String,
    /// If somebody else may have made datasets of the same names: the mark of our own.
    pub(super) made: Option<String>,
    /// Real datasets and snapshots.
    pub(super) datasets: Vec<String>,
    /// Snapshots of images of which only this VM was cloned.
    pub(super) snapshots: Vec<String>,
    /// Files, below the root.
    pub(super) files: Vec<String>,
    /// Folders, below the root, that are removed if they are empty.
    pub(super) folders: Vec<String>,
}

impl Remains {
    /// The files that every zone may have. With real ZFS no dataset is among them yet.
    pub(super) fn files_of(zonename: &str) -> Remains {
        let config = format!("zones/{zonename}/config");
        Remains {
            zonename: zonename.to_owned(),
            made: None,
            datasets: Vec::new(),
            snapshots: Vec::new(),
            files: vec![
                format!("etc/zones/{zonename}.xml"),
                format!("{config}/metadata.json"),
                format!("{config}/tags.json"),
                format!("{config}/routes.json"),
                format!("zones/{zonename}/lastexited"),
                format!("var/run/zones/{zonename}.json"),
                format!("var/db/datasets/{zonename}.json"),
            ],
            folders: vec![config, format!("zones/{zonename}")],
        }
    }

    /// What a VM has. It is refused if ZFS would refuse to destroy it: nothing has been done yet.
    fn of(session: &Session<'_>) -> Result<Remains, Failed> {
        let mut remains = Remains::files_of(&session.entry().zonename);
        if let Some(zfs) = session.applier.commands(session.deadline) {
            let volumes = disks(session.vm()).filter_map(volume);
            let root = session.text("zfs_filesystem");
            // Only what is this VM's by its name or its mountpoint, and what is below that once.
            let mut datasets: Vec<&str> = volumes
                .filter(|volume| belongs(volume, session.vm()))
                .chain(root)
                .filter(|dataset| session.table().get(dataset).is_some())
                .collect();
            if let Some(root) = root {
                let below = format!("{root}/");
                datasets.retain(|dataset| !dataset.starts_with(&below));
            }
            remains.datasets = datasets.into_iter().map(str::to_owned).collect();
            remains.check_holds(session)?;
            remains.check_clones(session, &zfs)?;
        }
        Ok(remains)
    }

    /// Whether a dataset or snapshot goes with these.
    fn has(&self, name: &str) -> bool {
        let rests = self
            .datasets
            .iter()
            .map(|own| name.strip_prefix(own.as_str()));
        let mut own = rests.flatten();
        own.any(|rest| rest.is_empty() || rest.starts_with(['/', '@']))
    }

    fn check_holds(&self, session: &Session<'_>) -> Result<(), Failed> {
        let is_held = |holds: &String| holds.parse::<u64>().is_ok_and(|holds| holds > 0);
        let held = session
            .table()
            .iter()
            .find(|(name, dataset)| self.has(name) && dataset.get("userrefs").is_some_and(is_held));
        match held {
            None => Ok(()),
            Some((name, _)) => {
                let reason = format!(
                    "{name} is held, so it cannot be destroyed; see zfs holds, and release it first"
                );
                Err(failed(FailedKind::Busy, &reason))
            }
        }
    }

    /// Looks for what depends on these, and for snapshots of images that go with them.
    fn check_clones(&mut self, session: &Session<'_>, zfs: &Commands<'_>) -> Result<(), Failed> {
        let pools = self
            .datasets
            .iter()
            .filter_map(|name| name.split('/').next());
        let pools: BTreeSet<String> = pools.map(str::to_owned).collect();
        let own = format!("@{}", session.uuid);
        let mut foreign = Vec::new();
        for pool in pools {
            for (clone, origin) in zfs.clones(&pool)? {
                match (self.has(&clone), self.has(&origin)) {
                    (false, true) => foreign.push(format!("{clone} is a clone of {origin}")),
                    (true, false) if origin.ends_with(&own) => self.snapshots.push(origin),
                    _ => {}
                }
            }
        }
        if foreign.is_empty() {
            self.snapshots.sort();
            self.snapshots.dedup();
            return Ok(());
        }
        let reason = format!(
            "{}; destroy or promote what depends on the VM first",
            foreign.join(", ")
        );
        Err(failed(FailedKind::Busy, &reason))
    }

    pub(super) fn journal(&self, operation: &str) -> Value {
        json!({
            "operation": operation,
            "zonename": self.zonename,
            "made": self.made,
            "datasets": self.datasets,
            "snapshots": self.snapshots,
            "files": self.files,
            "folders": self.folders,
        })
    }

    /// Whether one of these datasets is there still, and ours.
    fn is_left(&self, zfs: &Commands<'_>, name: &str) -> Result<bool, Failed> {
        let Some(mark) = &self.made else {
            return zfs.exists(name);
        };
        match name.split_once('@') {
            None => zfs.is_made_by(name, mark),
            Some((dataset, _)) => Ok(zfs.is_made_by(dataset, mark)? && zfs.exists(name)?),
        }
    }

    /// Destroys one of these datasets. What is marked is destroyed alone, since all that we made is
    /// among these, each after what is below it; a snapshot that we held is let go first.
    fn destroy(&self, zfs: &Commands<'_>, name: &str) -> Result<(), Failed> {
        let step = |operation| Step::new("", name, operation);
        if self.made.is_none() {
            return zfs.apply(&step(Operation::Destroy));
        }
        if name.contains('@') {
            // It fails if it was not held yet.
            let _ = zfs.apply(&step(Operation::Release));
        }
        zfs.apply(&step(Operation::DestroyAlone))
    }

    /// Removes it all. Goes on after a failure, of which it tells the first.
    pub(super) fn remove(
        &self,
        applier: &Applier,
        deadline: Instant,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failed> {
        let root = applier.store.root();
        let mut result = Ok(());
        let mut keep_first = |done: Result<(), Failed>| {
            if let Err(error) = done
                && result.is_ok()
            {
                result = Err(error);
            }
        };
        for file in &self.files {
            let remove = || Ok(place::remove(&root.join(file))?);
            keep_first(progress.step(file, remove));
        }
        if let Some(zfs) = applier.commands(deadline) {
            for dataset in &self.datasets {
                let destroy = || match self.is_left(&zfs, dataset)? {
                    true => self.destroy(&zfs, dataset),
                    false => Ok(()),
                };
                if left(deadline).is_zero() {
                    let reason = format!("{dataset}: not destroyed in time");
                    keep_first(Err(failed(FailedKind::Source, &reason)));
                } else {
                    keep_first(progress.step(dataset, destroy));
                }
            }
        }
        if let Some(zfs) = applier.commands(deadline) {
            for snapshot in &self.snapshots {
                let destroyed = zfs.apply(&Step::new(IMAGE, snapshot, Operation::DestroyAlone));
                // Others may have made clones of it, and an image with one more snapshot harms nobody.
                if let Err(error) = destroyed {
                    tracing::info!("{snapshot} stays: {error}");
                }
            }
        }
        for folder in &self.folders {
            keep_first(place::remove_empty(&root.join(folder)).map_err(Failed::from));
        }
        result.map_err(|error| Failed {
            applied: progress.applied.clone(),
            ..error
        })
    }
}
