//! A new VM: its datasets, its files, and at the end its line in the index.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use super::datasets::{self, Operation, Step, disks, volume};
use super::delete::Remains;
use super::journal::Journal;
use super::lock::{self, Lock};
use super::session::{Session, UNDO, now, pretty};
use super::zfs::Commands;
use super::{Applier, Progress, failed, index, place, verbs, xml};
use crate::source::zones::datasets::Table;
use crate::source::zones::index::Entry;
use crate::source::zones::units;
use crate::source::{Extent, Failed, FailedKind};
use crate::vm::Object;

/// What a snapshot of an image is called that is made for one VM. Its name says whose it is: the VM's
/// uuid.
pub(super) const IMAGE: &str = "image";

/// Makes a VM and, if it boots by itself, starts it.
pub(super) fn create(
    applier: &Applier,
    uuid: Uuid,
    target: &Object,
    deadline: Instant,
) -> Result<(), Failed> {
    let vm = complete(uuid, target);
    let entry = entry(uuid, &vm)?;
    let lock = lock::take(&applier.store.lock(uuid), deadline)?;
    let _name = claim(applier, uuid, &entry.zonename)?;
    check_free(applier, &entry)?;
    let xml =
        xml::create(&entry.zonepath, &vm).map_err(|error| failed(FailedKind::Invalid, &error))?;
    let zfs = applier.commands(deadline);
    let mut steps = steps(applier, zfs.as_ref(), &entry, &vm)?;
    let mut remains = Remains::files_of(&entry.zonename);
    if zfs.is_some() {
        remains.made = Some(datasets::mark(&mut steps));
        let (snapshots, made): (Vec<&Step>, Vec<&Step>) =
            steps.iter().rev().partition(|step| step.label == IMAGE);
        let name = |step: &Step| step.dataset.clone();
        remains.datasets = made.into_iter().map(name).collect();
        remains.snapshots = snapshots.into_iter().map(name).collect();
    }
    let journal = Journal::begin(applier, uuid, remains.journal("create"))?;
    let mut progress = Progress::new(applier);
    let made = make(applier, &entry, &vm, &xml, &steps, deadline, &mut progress);
    if let Err(error) = made {
        let mut undo = Progress::new(applier);
        let until = deadline.max(Instant::now() + UNDO);
        let applied = match remains.remove(applier, until, &mut undo) {
            Ok(()) => {
                journal.end()?;
                Vec::new()
            }
            // The journal stays: it is removed at the next start.
            Err(stays) => vec![format!("not removed again yet: {}", stays.reason)],
        };
        return Err(Failed { applied, ..error });
    }
    journal.end()?;
    if vm.get("autoboot") == Some(&Value::Bool(true)) {
        let session = Session::open(applier, uuid, Extent::Whole, lock, deadline);
        let started = session.and_then(|session| verbs::start(&session));
        started.map_err(|error| Failed {
            kind: FailedKind::Source,
            applied: vec!["created".to_owned()],
            reason: format!("it was created, but does not start: {}", error.reason),
        })?;
    }
    Ok(())
}

/// Claims the name of a zone that is being created, here and in other daemons, until the lock is
/// dropped. Locks of VMs are by uuid, so two that are to have one name would not see each other, and each
/// take the other's files for its own. The lock of a VM that is called like its uuid is also that of its
/// name.
fn claim(applier: &Applier, uuid: Uuid, zonename: &str) -> Result<Option<Lock>, Failed> {
    if zonename == uuid.to_string() {
        return Ok(None);
    }
    let path = applier.store.lock_of(zonename);
    match lock::take(&path, Instant::now() + lock::GRACE) {
        Err(error) if error.kind == FailedKind::Busy => {
            let reason = format!("{zonename}: another zone of this name is being created");
            Err(failed(FailedKind::Exists, &reason))
        }
        taken => taken.map(Some),
    }
}

/// The VM with what every new one has.
fn complete(uuid: Uuid, target: &Object) -> Object {
    let mut vm = target.clone();
    let mut default = |member: &str, value: Value| {
        if vm.get(member).is_none_or(Value::is_null) {
            vm.insert(member.to_owned(), value);
        }
    };
    default("zonename", json!(uuid.to_string()));
    default("v", json!(1));
    default("create_timestamp", json!(units::iso_seconds(now())));
    default("limit_priv", json!("default"));
    vm
}

/// The line of the new VM in the index.
fn entry(uuid: Uuid, vm: &Object) -> Result<Entry, Failed> {
    let text = |member: &str| vm.get(member).and_then(Value::as_str);
    let zonename = text("zonename").unwrap_or("").to_owned();
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if !zonename.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        || !zonename.chars().all(is_name)
        || zonename.len() > 64
        || zonename == "global"
    {
        let reason = format!(
            "zonename {zonename:?}: not a name for a zone; use at most 64 letters, digits and -_."
        );
        return Err(failed(FailedKind::Invalid, &reason));
    }
    let zonepath = match text("zonepath") {
        Some(zonepath) => zonepath.to_owned(),
        None => format!("/zones/{zonename}"),
    };
    if !zonepath.starts_with('/') || zonepath.contains(|c: char| c == ':' || c.is_control()) {
        let reason = format!("zonepath {zonepath:?}: not an absolute path without colons");
        return Err(failed(FailedKind::Invalid, &reason));
    }
    Ok(Entry {
        zonename,
        state: "installed".to_owned(),
        zonepath,
        uuid,
    })
}

/// Whether nothing of this name is there: what is found later was made by us.
fn check_free(applier: &Applier, entry: &Entry) -> Result<(), Failed> {
    let index = applier.store.read_index();
    let index = index.map_err(|reason| failed(FailedKind::Source, &reason))?;
    if let Some(problem) = index::taken(&index, entry) {
        return Err(failed(FailedKind::Exists, &problem));
    }
    for file in Remains::files_of(&entry.zonename).files {
        let path = applier.store.root().join(&file);
        if path.symlink_metadata().is_ok() {
            let reason = format!(
                "{}: {file} is there already, though no zone has it; remove it, or choose another \
                 uuid",
                entry.uuid
            );
            return Err(failed(FailedKind::Exists, &reason));
        }
    }
    Ok(())
}

/// What makes the datasets of a new VM.
fn steps(
    applier: &Applier,
    zfs: Option<&Commands<'_>>,
    entry: &Entry,
    vm: &Object,
) -> Result<Vec<Step>, Failed> {
    let text = |member: &str| vm.get(member).and_then(Value::as_str);
    let zpool = text("zpool").unwrap_or("zones");
    let root = format!("{zpool}/{}", entry.zonename);
    let mut properties = datasets::root_properties(vm)?;
    properties.insert("mountpoint".to_owned(), entry.zonepath.clone());
    if zfs.is_some() && applier.store.root() != "/" {
        // It belongs to a host whose root is elsewhere, so it is not mounted over ours.
        properties.insert("canmount".to_owned(), "off".to_owned());
    }
    let mut images = Images {
        zfs,
        uuid: entry.uuid,
        steps: Vec::new(),
        seen: BTreeMap::new(),
    };
    let is_hvm = text("brand").is_some_and(crate::vm::property::hvm);
    let origin = match text("image_uuid") {
        Some(image) if !is_hvm => Some(images.origin(zpool, image)?),
        _ => None,
    };
    let create = Operation::Create { properties, origin };
    let mut steps = vec![Step::new("root dataset", &root, create)];
    let delegated = vm.get("datasets").and_then(Value::as_array);
    for name in delegated.into_iter().flatten().filter_map(Value::as_str) {
        if name != format!("{root}/data") {
            let reason = format!("datasets: {name} is not below the VM's own {root}");
            return Err(failed(FailedKind::Invalid, &reason));
        }
        let create = Operation::Create {
            properties: datasets::data_properties(vm)?,
            origin: None,
        };
        steps.push(Step::new("delegated dataset", name, create));
    }
    for disk in disks(vm) {
        datasets::check_path(disk)?;
        let Some(volume) = volume(disk) else {
            continue;
        };
        let (pool, _) = volume.split_once('/').unwrap_or((volume, ""));
        let origin = match disk.get("image_uuid").and_then(Value::as_str) {
            Some(image) => Some(images.origin(pool, image)?),
            None => None,
        };
        let properties = datasets::volume_properties(disk, volume)?;
        let create = Operation::Create { properties, origin };
        steps.push(Step::new(format!("disk {volume}"), volume, create));
    }
    for (member, dataset) in [
        ("indestructible_zoneroot", root.clone()),
        ("indestructible_delegated", format!("{root}/data")),
    ] {
        if vm.get(member) == Some(&Value::Bool(true)) {
            let snapshot = format!("{dataset}@indestructible");
            steps.push(Step::new(member, &snapshot, Operation::Snapshot));
            steps.push(Step::new(member, &snapshot, Operation::Hold));
        }
    }
    if let Some(zfs) = zfs {
        for step in &steps {
            if matches!(step.operation, Operation::Create { .. }) && zfs.exists(&step.dataset)? {
                let reason = format!("{}: there is such a dataset already", step.dataset);
                return Err(failed(FailedKind::Exists, &reason));
            }
        }
    }
    images.steps.extend(steps);
    Ok(images.steps)
}

/// The snapshots that new datasets are clones of.
struct Images<'a> {
    zfs: Option<&'a Commands<'a>>,
    uuid: Uuid,
    /// The snapshots that must be taken first.
    steps: Vec<Step>,
    seen: BTreeMap<String, String>,
}

impl Images<'_> {
    /// The snapshot of an image: its `@final`, else one of its own for this VM.
    fn origin(&mut self, zpool: &str, image: &str) -> Result<String, Failed> {
        let dataset = format!("{zpool}/{image}");
        if let Some(seen) = self.seen.get(&dataset) {
            return Ok(seen.clone());
        }
        let of_image = format!("{dataset}@final");
        let origin = match self.zfs {
            // Recorded; nobody can tell whether it is there.
            None => of_image,
            Some(zfs) if zfs.exists(&of_image)? => of_image,
            Some(zfs) if zfs.exists(&dataset)? => {
                let own = format!("{dataset}@{}", self.uuid);
                if zfs.exists(&own)? {
                    let reason = format!("{own}: there is such a snapshot already");
                    return Err(failed(FailedKind::Exists, &reason));
                }
                self.steps.push(Step::new(IMAGE, &own, Operation::Snapshot));
                own
            }
            Some(_) => {
                let reason = format!(
                    "image_uuid: there is no image {image} ({dataset} does not exist); import it \
                     first"
                );
                return Err(failed(FailedKind::Invalid, &reason));
            }
        };
        self.seen.insert(dataset, origin.clone());
        Ok(origin)
    }
}

/// Makes everything, the line in the index last.
fn make(
    applier: &Applier,
    entry: &Entry,
    vm: &Object,
    xml: &[u8],
    steps: &[Step],
    deadline: Instant,
    progress: &mut Progress<'_>,
) -> Result<(), Failed> {
    let none = Table::default();
    applier.change_datasets(&entry.zonename, steps, &none, deadline, progress)?;
    progress.sync()?;
    let store = &applier.store;
    let config = store.config_dir(&entry.zonename);
    let map = |member: &str| match vm.get(member) {
        Some(Value::Object(map)) => map.clone(),
        _ => Object::new(),
    };
    let metadata = json!({
        "customer_metadata": map("customer_metadata"),
        "internal_metadata": map("internal_metadata"),
    });
    let metadata = format!("{metadata:#}\n").into_bytes();
    for (name, bytes, mode) in [
        ("metadata.json", metadata, 0o600),
        ("tags.json", pretty(map("tags")), 0o644),
        ("routes.json", pretty(map("routes")), 0o644),
    ] {
        progress.step(name, || {
            Ok(place::replace(&config.join(name), &bytes, mode)?)
        })?;
    }
    progress.step("the zone's XML", || {
        Ok(place::replace(&store.xml(&entry.zonename), xml, 0o644)?)
    })?;
    progress.step("the line in the index", || {
        index::add(applier, entry, deadline)
    })
}
