//! What killed processes left: the journals of changes that were not ended.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::datasets::{Operation, Step, disks, volume};
use super::delete::Remains;
use super::session::Session;
use super::update::written;
use super::{Applier, Progress, lock, place};
use crate::source::zones::config;
use crate::source::zones::load::METADATA_LIMIT;
use crate::source::{Cut, Extent, Failed, FailedKind};
use crate::vm::Object;
use crate::vm::diff::diff;

/// How long ending what one process began may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends or takes back what was begun, and says what was cut.
pub(super) fn recover(applier: &Applier) -> Vec<Cut> {
    let folder = fs::read_dir(applier.store.root().join("var/run"));
    let mut uuids: Vec<Uuid> = (folder.into_iter().flatten().flatten())
        .filter_map(|file| {
            let name = file.file_name();
            let uuid = name
                .to_str()?
                .strip_prefix("vm.")?
                .strip_suffix(".update.json")?;
            uuid.parse().ok()
        })
        .collect();
    uuids.sort_unstable();
    uuids
        .into_iter()
        .filter_map(|uuid| settle(applier, uuid))
        .collect()
}

/// Settles one journal.
fn settle(applier: &Applier, uuid: Uuid) -> Option<Cut> {
    let cut = |reason: String| Some(Cut { uuid, reason });
    // Who holds the lock is alive, and so is his journal.
    let lock = match lock::take(&applier.store.lock(uuid), Instant::now() + lock::GRACE) {
        Ok(lock) => lock,
        Err(error) if error.kind == FailedKind::Busy => return None,
        Err(error) => return cut(format!("a change was cut: {error}")),
    };
    let path = applier.store.journal(uuid);
    let journal = match applier
        .store
        .read(&path, 4 * METADATA_LIMIT, config::object)
    {
        Ok(Some((_, journal))) => journal,
        Ok(None) => return None,
        Err(reason) => {
            return cut(format!(
                "a change was cut: {reason}; look at it, then remove it"
            ));
        }
    };
    let deadline = Instant::now() + PATIENCE;
    let operation = journal.get("operation").and_then(Value::as_str);
    let is_listed = match applier.entry(uuid) {
        Ok(_) => true,
        Err(error) if error.kind == FailedKind::Gone => false,
        Err(error) => return cut(format!("a change was cut, and stays so: {error}")),
    };
    let heir = heir(applier, &journal);
    let settled = match (operation, is_listed) {
        (Some("create" | "delete"), false) if heir.is_some() => Err(Open::Told(format!(
            "creating or deleting it was cut, and not all of it was removed: the zone {} of another \
             VM has its name; look what of it is left",
            heir.unwrap_or_default()
        ))),
        (Some("create"), false) => remove(applier, &journal, deadline).map_err(|error| {
            Open::Stays(format!(
                "creating it was cut, and not all of it was removed: {error}"
            ))
        }),
        (Some("delete"), false) => remove(applier, &journal, deadline).map_err(|error| {
            Open::Stays(format!("deleting it was cut, and cannot be ended: {error}"))
        }),
        // The line in the index is the end of the one and the begin of the other.
        (Some("create" | "delete"), true) => Ok(()),
        (Some("update"), false) => Ok(()),
        (Some("update"), true) => match Session::open(applier, uuid, Extent::Whole, lock, deadline)
        {
            Ok(session) => update(&session, &journal),
            Err(error) => Err(Open::Stays(format!(
                "an update was cut, and it is not known where: {error}"
            ))),
        },
        _ => Err(Open::Stays(
            "a change was cut, whose journal is not understood".to_owned(),
        )),
    };
    // What could not be ended is tried again at the next start.
    if let Err(Open::Stays(reason)) = settled {
        let journal = path.strip_prefix(applier.store.root()).unwrap_or(&path);
        let reason = format!(
            "{reason}; it is tried again when the daemon starts again, until {} is removed",
            journal.display()
        );
        return cut(reason);
    }
    match (settled, place::remove(&path)) {
        (Ok(()), Ok(())) => None,
        (Ok(()), Err(error)) => cut(format!("{error}; remove it")),
        (Err(Open::Told(reason) | Open::Stays(reason)), _) => cut(reason),
    }
}

/// Why a change that was cut is neither ended nor taken back.
enum Open {
    /// Nothing more is to be done about it here.
    Told(String),
    /// Something failed that may work later: the journal stays.
    Stays(String),
}

fn text(journal: &Object, member: &str) -> Option<String> {
    let text = journal.get(member)?.as_str()?;
    Some(text.to_owned())
}

fn texts(journal: &Object, member: &str) -> Vec<String> {
    let list = journal.get(member).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// The zone that has the name of the journal's zone by now, when that is not listed for its own uuid: what
/// the journal names may be that zone's.
fn heir(applier: &Applier, journal: &Object) -> Option<String> {
    let zonename = journal.get("zonename").and_then(Value::as_str)?;
    let index = applier.store.read_index().ok()?;
    let listed = index.entries.iter().map(|entry| &entry.zonename);
    let unplaced = index.unplaced.iter().map(|entry| &entry.zonename);
    let mut names = listed.chain(unplaced);
    names.find(|name| *name == zonename).cloned()
}

/// Removes what the journal names.
fn remove(applier: &Applier, journal: &Object, deadline: Instant) -> Result<(), Failed> {
    let remains = Remains {
        zonename: String::new(),
        made: text(journal, "made"),
        datasets: texts(journal, "datasets"),
        snapshots: texts(journal, "snapshots"),
        files: texts(journal, "files"),
        folders: texts(journal, "folders"),
    };
    remains.remove(applier, deadline, &mut Progress::new(applier))
}

/// Looks how far an update came. Volumes that it made and the XML does not name, or no longer names,
/// are removed.
fn update(session: &Session<'_>, journal: &Object) -> Result<(), Open> {
    let part = |member: &str| match journal.get(member) {
        Some(Value::Object(part)) => without_blanks(part),
        _ => Object::new(),
    };
    let (old, new) = (part("old"), part("new"));
    let is_wanted = |name: &String| old.contains_key(name) || new.contains_key(name);
    let mut now = without_blanks(&written(session.vm()));
    now.retain(|name, _| is_wanted(name));
    let missing = diff(&now, &new);
    let (mut done, mut open) = (Vec::new(), Vec::new());
    for change in diff(&old, &new) {
        let is_open = missing
            .iter()
            .any(|other| other.path == change.path && other.ident == change.ident);
        let list = if is_open { &mut open } else { &mut done };
        let name = match &change.ident {
            Some(ident) => format!("{} ({ident})", change.pretty_path),
            None => change.pretty_path,
        };
        if !list.contains(&name) {
            list.push(name);
        }
    }
    for file in Remains::files_of(&session.entry().zonename).files {
        // What stays is used again by the next change of that file.
        let _ = place::forget_draft(&session.applier.store.root().join(file));
    }
    remove_volumes(session, journal)
        .map_err(|error| Open::Stays(format!("an update was cut, and a volume stays: {error}")))?;
    if !done.is_empty() && !open.is_empty() {
        return Err(Open::Told(format!(
            "an update was cut: applied were {}; not applied were {}; apply these again",
            done.join(", "),
            open.join(", ")
        )));
    }
    Ok(())
}

fn remove_volumes(session: &Session<'_>, journal: &Object) -> Result<(), Failed> {
    let is_unnamed = |name: &String| {
        let is_named = disks(session.vm()).any(|disk| volume(disk) == Some(name));
        !is_named && session.table().get(name).is_some()
    };
    let mut volumes = texts(journal, "datasets");
    volumes.retain(is_unnamed);
    let zfs = session.applier.commands(session.deadline);
    for new in texts(journal, "new_datasets")
        .into_iter()
        .filter(is_unnamed)
    {
        // Somebody else may have made one of this name.
        let is_ours = match (&zfs, text(journal, "made")) {
            (Some(zfs), Some(mark)) => zfs.is_made_by(&new, &mark)?,
            _ => true,
        };
        if is_ours {
            volumes.push(new);
        }
    }
    let unnamed: Vec<Step> = (volumes.iter())
        .map(|name| Step::new(format!("disk {name}"), name, Operation::Destroy))
        .collect();
    // With the file provider this also asks whether it is recorded.
    let mut progress = Progress::new(session.applier);
    session
        .applier
        .change_datasets(
            &session.entry().zonename,
            &unnamed,
            session.table(),
            session.deadline,
            &mut progress,
        )
        .and_then(|()| progress.sync())
}

/// An object less what stands for nothing: a source shows some of these as absent.
fn without_blanks(object: &Object) -> Object {
    let is_blank = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(_) => false,
    };
    let members = object.iter().filter(|(_, value)| !is_blank(value));
    members
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
