//! An update: what differs between the VM and its target is written, part by part.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::datasets::{Operation, Plan, Step, mark, plan};
use super::journal::Journal;
use super::place::{self, Draft};
use super::session::{Session, pretty};
use super::{Progress, failed, xml};
use crate::source::zones::config;
use crate::source::zones::datasets::Table;
use crate::source::zones::load::{JSON_LIMIT, METADATA_LIMIT, XML_LIMIT};
use crate::source::{Failed, FailedKind};
use crate::vm::Object;
use crate::vm::property::{self, Part};

/// What an update did.
#[derive(Debug, Default)]
pub(super) struct Updated {
    /// What was applied.
    pub(super) applied: Vec<String>,
    /// The datasets of ZFS as they were read after their last change, if they were.
    pub(super) datasets: Option<Table>,
}

/// Writes what differs, and says what that was. Does not read the VM again.
pub(super) fn update(session: &Session<'_>, target: &Object) -> Result<Updated, Failed> {
    let (old, new) = (written(session.vm()), written(target));
    let mut plan = plan(session.vm(), target, session.table())?;
    let made = session.applier.zfs.as_ref().map(|_| mark(&mut plan.before));
    let drafts = drafts(session, target)?;
    let xml = xml_draft(session, target)?;
    if plan.is_empty() && drafts.is_empty() && xml.is_none() {
        return Ok(Updated::default());
    }
    let mut progress = Progress::new(session.applier);
    let journal = match places(session, &plan) + drafts.len() + usize::from(xml.is_some()) {
        0 | 1 => None,
        _ => Some(begin(session, &plan, made, old, new)?),
    };
    let done = write(session, &plan, drafts, xml, &mut progress);
    // Whoever asked is told what happened, so nobody has to be told at the next start.
    let ended = journal.map_or(Ok(()), Journal::end);
    let datasets = done?;
    match ended {
        Ok(()) => Ok(Updated {
            applied: progress.applied,
            datasets,
        }),
        Err(error) => Err(Failed {
            applied: progress.applied,
            ..error
        }),
    }
}

/// How many places of ZFS are written; the file provider's datasets are one.
fn places(session: &Session<'_>, plan: &Plan) -> usize {
    match session.applier.zfs {
        Some(_) => plan.before.len() + plan.after.len(),
        None => usize::from(!plan.before.is_empty()) + usize::from(!plan.after.is_empty()),
    }
}

fn begin(
    session: &Session<'_>,
    plan: &Plan,
    made: Option<String>,
    old: Object,
    new: Object,
) -> Result<Journal, Failed> {
    let names = |steps: &[Step], is_meant: fn(&Step) -> bool| -> Vec<String> {
        let meant = steps.iter().filter(|step| is_meant(step));
        meant.map(|step| step.dataset.clone()).collect()
    };
    let content = json!({
        "operation": "update",
        "zonename": session.entry().zonename,
        "old": old,
        "new": new,
        // Those of them that the XML does not name are removed when this is found; of the new ones,
        // those with the mark `made`.
        "made": made,
        "new_datasets": names(&plan.before, is_new),
        "datasets": names(&plan.after, |_| true),
    });
    Journal::begin(session.applier, session.uuid, content)
}

fn write(
    session: &Session<'_>,
    plan: &Plan,
    drafts: Vec<(&'static str, Draft)>,
    xml: Option<Draft>,
    progress: &mut Progress<'_>,
) -> Result<Option<Table>, Failed> {
    let applier = session.applier;
    let zonename = &session.entry().zonename;
    let (table, deadline) = (session.table(), session.deadline);
    applier.change_datasets(zonename, &plan.before, table, deadline, progress)?;
    // Read back before the files are written: whoever watches is told only after these, when these
    // commands are dropped, and so sees all of the change at once.
    let zfs = applier.commands(deadline).filter(|_| is_final(plan));
    // If that fails, it is tried again when all is written, and then told.
    let read_back = zfs
        .as_ref()
        .and_then(|zfs| applier.read_own_datasets(Some(zfs), session.entry()).ok());
    for (label, draft) in drafts {
        progress.place(label, draft)?;
    }
    match xml {
        Some(draft) => progress.place("the zone's XML", draft)?,
        // last_modified is the newest time of the zone's files, and must move.
        None => {
            let touched = place::touch(&applier.store.xml(zonename)).map_err(Failed::from);
            touched.map_err(|error| Failed {
                applied: progress.applied.clone(),
                ..error
            })?;
        }
    }
    // What nothing names any more is destroyed only when that is sure to last.
    progress.sync()?;
    applier.change_datasets(zonename, &plan.after, table, deadline, progress)?;
    progress.sync()?;
    Ok(read_back)
}

/// Whether datasets are changed, and are then as they stay: none comes, which the XML does not name
/// yet, and none goes.
fn is_final(plan: &Plan) -> bool {
    !plan.before.is_empty() && !plan.before.iter().any(is_new) && plan.after.is_empty()
}

fn is_new(step: &Step) -> bool {
    matches!(step.operation, Operation::Create { .. })
}

/// The JSON files that are to change, each on disk beside the old one.
fn drafts(session: &Session<'_>, target: &Object) -> Result<Vec<(&'static str, Draft)>, Failed> {
    let store = &session.applier.store;
    let config = store.config_dir(&session.entry().zonename);
    let differs = |member: &&str| session.vm().get(*member) != target.get(*member);
    let mut drafts = Vec::new();
    let metadata: Vec<&str> = ["customer_metadata", "internal_metadata"]
        .into_iter()
        .filter(differs)
        .collect();
    if !metadata.is_empty() {
        let path = config.join("metadata.json");
        let file = store.read(&path, METADATA_LIMIT, config::object);
        let file = file.map_err(|reason| failed(FailedKind::Source, &reason))?;
        let mut file = file.map(|(_, file)| file).unwrap_or_default();
        for member in metadata {
            file.insert(member.to_owned(), map(target, member)?);
        }
        drafts.push(("metadata.json", Draft::write(&path, &pretty(file), 0o600)?));
    }
    for (member, name) in [("tags", "tags.json"), ("routes", "routes.json")] {
        if differs(&member) {
            let Value::Object(file) = map(target, member)? else {
                continue;
            };
            drafts.push((
                name,
                Draft::write(&config.join(name), &pretty(file), 0o644)?,
            ));
        }
    }
    let limit = |path: &PathBuf| match path.ends_with("metadata.json") {
        true => METADATA_LIMIT,
        false => JSON_LIMIT,
    };
    for (name, draft) in &drafts {
        let path = config.join(name);
        if draft.len() > limit(&path) {
            let most = limit(&path) >> 20;
            let reason = format!("{name}: would be larger than {most} MiB; keep less in it");
            return Err(failed(FailedKind::Invalid, &reason));
        }
    }
    Ok(drafts)
}

/// A map of the target; one that is not there is empty.
fn map(target: &Object, member: &str) -> Result<Value, Failed> {
    match target.get(member) {
        None | Some(Value::Null) => Ok(Value::Object(Object::new())),
        Some(map @ Value::Object(_)) => Ok(map.clone()),
        Some(_) => Err(failed(
            FailedKind::Invalid,
            &format!("{member}: not an object"),
        )),
    }
}

/// The XML as it is to be, if it is to change.
pub(super) fn xml_draft(session: &Session<'_>, target: &Object) -> Result<Option<Draft>, Failed> {
    let path = session.applier.store.xml(&session.entry().zonename);
    let bytes = session.xml()?;
    let edited = xml::edit(&bytes, session.vm(), target).map_err(|error| {
        let kind = match error {
            xml::EditError::Value { .. } | xml::EditError::Characters { .. } => FailedKind::Invalid,
            xml::EditError::Xml(_) | xml::EditError::Layout(_) => FailedKind::Source,
        };
        failed(kind, &session.applier.store.name(&path, &error))
    })?;
    if edited.len() as u64 > XML_LIMIT {
        let most = XML_LIMIT >> 20;
        let reason = format!("the zone's XML would be larger than {most} MiB; keep less in it");
        return Err(failed(FailedKind::Invalid, &reason));
    }
    match edited == bytes {
        true => Ok(None),
        false => Ok(Some(Draft::write(&path, &edited, 0o644)?)),
    }
}

/// The members of a VM that an update writes.
pub(super) fn written(vm: &Object) -> Object {
    let is_written = |name: &str| {
        property::property(name).is_some_and(|property| match property.part {
            Part::Zone => !matches!(
                name,
                "zonename"
                    | "brand"
                    | "hvm"
                    | "last_modified"
                    | "transition_to"
                    | "transition_expire"
            ),
            Part::Metadata | Part::Tags | Part::Routes => true,
            Part::Datasets => !matches!(
                name,
                "zfs_filesystem" | "zpool" | "free_space" | "snapshots"
            ),
            Part::LastExited | Part::Runtime | Part::Sysinfo => false,
        })
    };
    let mut written: Object = (vm.iter())
        .filter(|(name, _)| is_written(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let disks = written.get_mut("disks").and_then(Value::as_array_mut);
    for disk in disks.into_iter().flatten().filter_map(Value::as_object_mut) {
        for computed in ["zfs_filesystem", "zpool", "missing", "block_size"] {
            disk.remove(computed);
        }
    }
    written
}
