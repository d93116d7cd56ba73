//! What is to be done to a VM's datasets so that they are as wanted: pure.
//!
//! A plan is a list of [`Step`]s that do not depend on who keeps the datasets. [`super::zfs`] runs
//! them as commands, [`super::records`] writes them into the file provider's file.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use super::failed;
use super::xml::mebibytes;
use crate::source::zones::datasets::Table;
use crate::source::zones::units::{GIB, MIB};
use crate::source::{Failed, FailedKind};
use crate::vm::Object;

/// One thing that is done to one dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Make a filesystem, or a volume, which has a `volsize`; with an origin, as a clone of that
    /// snapshot.
    Create {
        properties: BTreeMap<String, String>,
        origin: Option<String>,
    },
    /// Set a property to a raw value.
    Set { property: String, value: String },
    /// Take this snapshot.
    Snapshot,
    /// Keep this snapshot from being destroyed.
    Hold,
    /// The opposite.
    Release,
    /// Go back to this snapshot; later ones go.
    Rollback,
    /// Destroy it with all that is below it, and its snapshots.
    Destroy,
    /// Destroy it alone; refused if anything is below it, which others have made.
    DestroyAlone,
}

/// An operation on a dataset, and what it is called in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// `quota`, `disk zones/z-disk1`.
    pub(super) label: String,
    /// The dataset or snapshot.
    pub(super) dataset: String,
    pub(super) operation: Operation,
}

impl Step {
    pub(super) fn new(label: impl Into<String>, dataset: &str, operation: Operation) -> Step {
        Step {
            label: label.into(),
            dataset: dataset.to_owned(),
            operation,
        }
    }

    /// What takes it back, as far as that can be done, where this was the table before.
    pub(super) fn undo(&self, table: &Table) -> Option<Step> {
        let operation = match &self.operation {
            Operation::Create { .. } | Operation::Snapshot => Operation::DestroyAlone,
            Operation::Hold => Operation::Release,
            Operation::Release => Operation::Hold,
            Operation::Set { property, .. } => Operation::Set {
                value: table.get(&self.dataset)?.get(property)?.clone(),
                property: property.clone(),
            },
            Operation::Rollback | Operation::Destroy | Operation::DestroyAlone => return None,
        };
        Some(Step::new(self.label.clone(), &self.dataset, operation))
    }
}

/// What an update does to datasets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Before the XML names what is new.
    pub(super) before: Vec<Step>,
    /// Once the XML no longer names what is removed.
    pub(super) after: Vec<Step>,
}

/// Properties of the root dataset and of the delegated one below it: the member, the property.
const ROOT: [(&str, &str); 4] = [
    ("zfs_root_compression", "compression"),
    ("zfs_root_recsize", "recordsize"),
    ("zfs_filesystem_limit", "filesystem_limit"),
    ("zfs_snapshot_limit", "snapshot_limit"),
];
const DATA: [(&str, &str); 2] = [
    ("zfs_data_compression", "compression"),
    ("zfs_data_recsize", "recordsize"),
];

/// A filesystem of a zone.
enum Place {
    Root,
    /// The delegated one below it.
    Data,
}

/// The property that every dataset gets with which a change makes it. What another tool has made
/// under the same name does not have it, so it is not taken for ours when the change is undone.
pub(super) const MADE: &str = "vminfod:txn";

/// Gives what these steps make a mark of their own, which is returned.
pub(super) fn mark(steps: &mut [Step]) -> String {
    let mark = Uuid::new_v4().to_string();
    for step in steps {
        if let Operation::Create { properties, .. } = &mut step.operation {
            properties.insert(MADE.to_owned(), mark.clone());
        }
    }
    mark
}

/// What makes the datasets of `old` those of `new`.
///
/// # Errors
/// When the VM has no such dataset, or a value is not one.
pub(super) fn plan(old: &Object, new: &Object, table: &Table) -> Result<Plan, Failed> {
    let mut plan = Plan::default();
    plan.filesystems(old, new, table)?;
    plan.disks(old, new, table)?;
    Ok(plan)
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    fn filesystems(&mut self, old: &Object, new: &Object, table: &Table) -> Result<(), Failed> {
        let differs = |member: &str| old.get(member) != new.get(member);
        let root = old.get("zfs_filesystem").and_then(Value::as_str);
        let here = |member: &str| {
            let zonepath = old.get("zonepath").and_then(Value::as_str).unwrap_or("");
            root.ok_or_else(|| invalid(member, &format!("no dataset is mounted at {zonepath}")))
        };
        if differs("quota") {
            let value = size(new, "quota", GIB)?;
            let property = quota_property(new);
            self.set("quota", here("quota")?, property, value);
        }
        for (member, property) in ROOT.into_iter().filter(|(member, _)| differs(member)) {
            self.set(member, here(member)?, property, raw(new, member, property)?);
        }
        let data = |member: &str| {
            let data = format!("{}/data", here(member)?);
            match table.get(&data) {
                Some(_) => Ok(data),
                None => Err(invalid(member, &format!("there is no dataset {data}"))),
            }
        };
        for (member, property) in DATA.into_iter().filter(|(member, _)| differs(member)) {
            self.set(
                member,
                &data(member)?,
                property,
                raw(new, member, property)?,
            );
        }
        for (member, place) in [
            ("indestructible_zoneroot", Place::Root),
            ("indestructible_delegated", Place::Data),
        ] {
            if is_true(old, member) == is_true(new, member) {
                continue;
            }
            let dataset = match place {
                Place::Root => here(member)?.to_owned(),
                Place::Data => data(member)?,
            };
            let snapshot = format!("{dataset}@indestructible");
            let operations = match (is_true(new, member), table.get(&snapshot)) {
                (true, Some(_)) => vec![Operation::Hold],
                (true, None) => vec![Operation::Snapshot, Operation::Hold],
                (false, _) => vec![Operation::Release, Operation::Destroy],
            };
            for operation in operations {
                self.before.push(Step::new(member, &snapshot, operation));
            }
        }
        Ok(())
    }

    fn set(&mut self, label: &str, dataset: &str, property: &str, value: String) {
        let property = property.to_owned();
        let set = Operation::Set { property, value };
        self.before.push(Step::new(label, dataset, set));
    }

    fn disks(&mut self, old: &Object, new: &Object, table: &Table) -> Result<(), Failed> {
        for disk in disks(new) {
            check_path(disk)?;
            let Some(volume) = volume(disk) else {
                continue;
            };
            let before = disks(old).find(|other| other.get("path") == disk.get("path"));
            match before {
                None => self.add_disk(disk, volume, table)?,
                Some(before) => self.change_disk(before, disk, volume, new)?,
            }
        }
        for disk in disks(old) {
            let is_named = disks(new).any(|other| other.get("path") == disk.get("path"));
            if let (Some(volume), false) = (volume(disk), is_named)
                && belongs(volume, old)
                && table.get(volume).is_some()
            {
                let label = format!("disk {volume}");
                (self.after).push(Step::new(label, volume, Operation::Destroy));
            }
        }
        Ok(())
    }

    fn add_disk(&mut self, disk: &Object, volume: &str, table: &Table) -> Result<(), Failed> {
        let is_there = table.get(volume).is_some();
        match (is_there, disk.get("size")) {
            // It is taken as it is.
            (true, None) => Ok(()),
            (true, Some(_)) => {
                let reason =
                    format!("disk {volume}: there is such a volume already; name another path");
                Err(failed(FailedKind::Exists, &reason))
            }
            (false, _) => {
                let properties = volume_properties(disk, volume)?;
                let origin = None;
                let create = Operation::Create { properties, origin };
                let label = format!("disk {volume}");
                self.before.push(Step::new(label, volume, create));
                Ok(())
            }
        }
    }

    fn change_disk(
        &mut self,
        old: &Object,
        new: &Object,
        volume: &str,
        vm: &Object,
    ) -> Result<(), Failed> {
        let label = |member: &str| format!("{member} of disk {volume}");
        let differs = |member: &str| new.contains_key(member) && old.get(member) != new.get(member);
        let is_changed = ["size", "compression", "refreservation"]
            .map(differs)
            .contains(&true);
        if is_changed && !belongs(volume, vm) {
            let reason = format!("disk {volume}: another VM's volume; change it there");
            return Err(failed(FailedKind::Invalid, &reason));
        }
        if differs("size") {
            let value = size(new, "size", MIB)?;
            self.set(&label("size"), volume, "volsize", value);
        }
        if differs("compression") {
            let value = raw(new, "compression", "compression")?;
            self.set(&label("compression"), volume, "compression", value);
        }
        if differs("refreservation") {
            let value = size(new, "refreservation", MIB)?;
            self.set(&label("refreservation"), volume, "refreservation", value);
        }
        Ok(())
    }
}

/// The properties of a new volume.
pub(super) fn volume_properties(
    disk: &Object,
    volume: &str,
) -> Result<BTreeMap<String, String>, Failed> {
    let member = match disk.contains_key("size") {
        true => "size",
        false => "image_size",
    };
    let bytes = size(disk, member, MIB)?;
    if bytes == "none" {
        let reason = format!("disk {volume}: has no size; give it one in MiB");
        return Err(failed(FailedKind::Invalid, &reason));
    }
    let mut properties = BTreeMap::from([("volsize".to_owned(), bytes)]);
    for (member, property) in [
        ("compression", "compression"),
        ("block_size", "volblocksize"),
    ] {
        if disk.contains_key(member) {
            properties.insert(property.to_owned(), raw(disk, member, property)?);
        }
    }
    if disk.contains_key("refreservation") {
        let reserved = size(disk, "refreservation", MIB)?;
        properties.insert("refreservation".to_owned(), reserved);
    }
    Ok(properties)
}

/// The properties of a new root dataset, less its mountpoint.
pub(super) fn root_properties(vm: &Object) -> Result<BTreeMap<String, String>, Failed> {
    let mut properties = BTreeMap::new();
    if vm.contains_key("quota") {
        let quota = quota_property(vm).to_owned();
        properties.insert(quota, size(vm, "quota", GIB)?);
    }
    for (member, property) in ROOT {
        if vm.contains_key(member) {
            properties.insert(property.to_owned(), raw(vm, member, property)?);
        }
    }
    Ok(properties)
}

/// The properties of a new delegated dataset.
pub(super) fn data_properties(vm: &Object) -> Result<BTreeMap<String, String>, Failed> {
    let mut properties = BTreeMap::new();
    for (member, property) in DATA {
        if vm.contains_key(member) {
            properties.insert(property.to_owned(), raw(vm, member, property)?);
        }
    }
    Ok(properties)
}

/// The snapshots of disks do not count against the quota of bhyve VMs.
fn quota_property(vm: &Object) -> &'static str {
    match vm.get("brand").and_then(Value::as_str) {
        Some("bhyve") => "refquota",
        _ => "quota",
    }
}

/// The disks of a VM.
pub(super) fn disks(vm: &Object) -> impl Iterator<Item = &Object> {
    let disks = vm.get("disks").and_then(Value::as_array);
    disks.into_iter().flatten().filter_map(Value::as_object)
}

/// Whether a disk has the path by which it is known.
pub(super) fn check_path(disk: &Object) -> Result<(), Failed> {
    match disk.get("path").and_then(Value::as_str) {
        Some(path) if path.starts_with('/') => Ok(()),
        _ => Err(invalid("disks", "a disk has no path; name its device")),
    }
}

/// The volume of a disk; a disk may also be a file.
pub(super) fn volume(disk: &Object) -> Option<&str> {
    let path = disk.get("path")?.as_str()?;
    crate::source::zones::datasets::volume_name(path)
}

/// Whether a dataset's name says that it is this VM's: only what is its own is ever destroyed.
pub(super) fn belongs(dataset: &str, vm: &Object) -> bool {
    let Some(zonename) = vm.get("zonename").and_then(Value::as_str) else {
        return false;
    };
    dataset.split('/').skip(1).any(|part| {
        part.strip_prefix(zonename)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("-disk"))
    })
}

fn is_true(vm: &Object, member: &str) -> bool {
    vm.get(member) == Some(&Value::Bool(true))
}

/// A size in a larger unit as raw bytes; none, if it is 0 or not there.
fn size(object: &Object, member: &str, unit: u64) -> Result<String, Failed> {
    let number = match object.get(member) {
        None | Some(Value::Null) => return Ok("none".to_owned()),
        Some(Value::Number(number)) => number,
        Some(_) => return Err(invalid(member, "not a number")),
    };
    let bytes = mebibytes(number).and_then(|bytes| match unit {
        MIB => Some(bytes),
        // A whole number of units may be too large for the float of a fraction of them.
        _ => match number.as_u64() {
            Some(whole) => whole.checked_mul(unit),
            None => Some((number.as_f64()? * unit as f64).round() as u64),
        },
    });
    match bytes {
        None => Err(invalid(member, "no sensible size")),
        Some(0) => Ok("none".to_owned()),
        Some(bytes) => Ok(bytes.to_string()),
    }
}

/// A value as ZFS takes it, or what stands for none.
fn raw(object: &Object, member: &str, property: &str) -> Result<String, Failed> {
    match object.get(member) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        None | Some(Value::Null | Value::String(_)) => match property {
            "compression" => Ok("off".to_owned()),
            "recordsize" => Ok("131072".to_owned()),
            _ => Ok("none".to_owned()),
        },
        Some(_) => Err(invalid(member, "neither a text nor a number")),
    }
}

fn invalid(member: &str, problem: &str) -> Failed {
    failed(FailedKind::Invalid, &format!("{member}: {problem}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("{other}"),
        }
    }

    fn zone(members: Value) -> Object {
        let mut vm = object(json!({"brand": "joyent", "zonename": "z", "zfs_filesystem": "p/z"}));
        vm.extend(object(members));
        vm
    }

    fn sets(old: Value, new: Value) -> Vec<String> {
        let plan = plan(&zone(old), &zone(new), &Table::default()).unwrap();
        assert!(plan.after.is_empty());
        (plan.before.into_iter())
            .map(|step| match step.operation {
                Operation::Set { property, value } => {
                    format!("{} {property}={value}", step.dataset)
                }
                other => format!("{} {other:?}", step.dataset),
            })
            .collect()
    }

    #[test]
    fn each_member_that_differs_is_set_in_its_unit() {
        let cases = [
            (json!({}), json!({"quota": 10}), "p/z quota=10737418240"),
            (json!({}), json!({"quota": 1.5}), "p/z quota=1610612736"),
            (json!({"quota": 1}), json!({}), "p/z quota=none"),
            (json!({"quota": 1}), json!({"quota": 0}), "p/z quota=none"),
            (
                json!({"zfs_root_compression": "lz4"}),
                json!({}),
                "p/z compression=off",
            ),
            (
                json!({}),
                json!({"zfs_root_recsize": 8192}),
                "p/z recordsize=8192",
            ),
            (
                json!({"zfs_snapshot_limit": 3}),
                json!({}),
                "p/z snapshot_limit=none",
            ),
            (
                json!({"brand": "bhyve"}),
                json!({"brand": "bhyve", "quota": 1}),
                "p/z refquota=1073741824",
            ),
        ];
        for (old, new, expected) in cases {
            assert_eq!(sets(old, new), [expected]);
        }
        assert!(sets(json!({"quota": 1}), json!({"quota": 1})).is_empty());
    }

    #[test]
    fn a_disk_is_created_before_and_destroyed_after_the_xml() {
        let disk = |path: &str| json!({"path": format!("/dev/zvol/rdsk/p/{path}"), "size": 1});
        let old = zone(json!({"disks": [disk("z-disk0"), disk("foreign")]}));
        let new = zone(json!({"disks": [disk("z-disk1")]}));
        let mut table = Table::default();
        table.insert("p/z-disk0", "volsize", "1048576");
        table.insert("p/foreign", "volsize", "1048576");
        let plan = plan(&old, &new, &table).unwrap();
        assert_eq!(plan.before.len(), 1);
        assert_eq!(plan.before[0].dataset, "p/z-disk1");
        // Another VM's volume is not destroyed, whoever names it.
        assert_eq!(plan.after.len(), 1);
        assert_eq!(plan.after[0].dataset, "p/z-disk0");
        let undo = plan.before[0].undo(&table).unwrap();
        assert_eq!(undo.operation, Operation::DestroyAlone);
    }

    #[test]
    fn a_volume_that_is_there_is_not_made_again() {
        let old = zone(json!({}));
        let new = zone(json!({"disks": [{"path": "/dev/zvol/rdsk/p/z-disk0", "size": 1}]}));
        let mut table = Table::default();
        table.insert("p/z-disk0", "volsize", "1048576");
        assert_eq!(
            plan(&old, &new, &table).unwrap_err().kind,
            FailedKind::Exists
        );
    }

    #[test]
    fn what_has_no_dataset_is_refused_by_name() {
        let mut old = zone(json!({"zonepath": "/zones/z"}));
        let mut new = zone(json!({"zfs_data_recsize": 8192}));
        let error = plan(&old, &new, &Table::default()).unwrap_err();
        assert_eq!(
            error.reason,
            "zfs_data_recsize: there is no dataset p/z/data"
        );
        old.remove("zfs_filesystem");
        new.remove("zfs_data_recsize");
        new.insert("quota".to_owned(), json!(1));
        let error = plan(&old, &new, &Table::default()).unwrap_err();
        assert_eq!(error.reason, "quota: no dataset is mounted at /zones/z");
    }

    #[test]
    fn an_indestructible_dataset_has_a_held_snapshot() {
        let destructible = zone(json!({}));
        let held = zone(json!({"indestructible_zoneroot": true}));
        let operations = |old, new| {
            let plan = plan(old, new, &Table::default()).unwrap();
            let steps = plan.before.into_iter();
            steps.map(|step| step.operation).collect::<Vec<_>>()
        };
        assert_eq!(
            operations(&destructible, &held),
            [Operation::Snapshot, Operation::Hold]
        );
        assert_eq!(
            operations(&held, &destructible),
            [Operation::Release, Operation::Destroy]
        );
    }
}
