//! A zone's datasets, raw, as `zfs get -Hp` prints them, whoever provided them; and what they
//! say about a VM.
//!
//! Owns the [`Table`], its reading from the file provider's `var/db/datasets/<zonename>.json`,
//! and the conversion into members of the VM object. Running `zfs` is not done here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::config::{self, JsonError};
use super::units::{self, GIB, MIB};
use crate::vm::Object;

/// Where the devices of volumes are.
pub const ZVOL: &str = "/dev/zvol/rdsk/";

/// One filesystem, volume or snapshot: property name to raw value (`10737418240`, `none`, `lz4`).
pub type Dataset = BTreeMap<String, String>;

/// Datasets by name, with the two questions a zone asks: what is mounted here, and which
/// snapshots and children does this have. Immutable once built; shared by `Arc`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Table {
    datasets: BTreeMap<String, Dataset>,
    mounted: HashMap<String, String>,
}

impl Table {
    /// Records one property of one dataset.
    pub fn insert(&mut self, name: &str, property: &str, value: &str) {
        if property == "mountpoint" && value.starts_with('/') {
            self.mounted.insert(value.to_owned(), name.to_owned());
        }
        match self.datasets.get_mut(name) {
            Some(dataset) => {
                dataset.insert(property.to_owned(), value.to_owned());
            }
            None => {
                let dataset = Dataset::from([(property.to_owned(), value.to_owned())]);
                self.datasets.insert(name.to_owned(), dataset);
            }
        }
    }

    /// Puts a dataset in the place of the one of this name, if there is one.
    pub fn replace(&mut self, name: &str, dataset: Dataset) {
        let old = self
            .datasets
            .get(name)
            .and_then(|old| old.get("mountpoint"));
        if old != dataset.get("mountpoint") {
            self.remove(name);
        }
        if let Some(path) = dataset
            .get("mountpoint")
            .filter(|path| path.starts_with('/'))
        {
            self.mounted.insert(path.clone(), name.to_owned());
        }
        self.datasets.insert(name.to_owned(), dataset);
    }

    /// Removes a dataset; its snapshots and children stay.
    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.datasets.remove(name) else {
            return;
        };
        let Some(path) = old.get("mountpoint") else {
            return;
        };
        if self.mounted.get(path).is_some_and(|at| at == name) {
            self.mounted.remove(path);
            // Several filesystems may name one mountpoint; then another one is there now.
            let heir = self
                .iter()
                .find(|(_, dataset)| dataset.get("mountpoint") == Some(path));
            if let Some(heir) = heir.map(|(name, _)| name.to_owned()) {
                self.mounted.insert(path.clone(), heir);
            }
        }
    }

    /// The dataset of this name.
    pub fn get(&self, name: &str) -> Option<&Dataset> {
        self.datasets.get(name)
    }

    /// The name of the filesystem whose mountpoint property is this path.
    pub fn mounted_at(&self, path: &str) -> Option<&str> {
        self.mounted.get(path).map(String::as_str)
    }

    /// The snapshots of a dataset: the name after `@`, and its properties.
    pub fn snapshots_of<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a Dataset)> {
        let prefix = format!("{name}@");
        let skip = prefix.len();
        self.datasets
            .range(prefix.clone()..)
            .take_while(move |(full, _)| full.starts_with(&prefix))
            .map(move |(full, dataset)| (&full[skip..], dataset))
    }

    /// The datasets and snapshots whose names begin like this.
    pub fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.datasets
            .range(prefix.to_owned()..)
            .map(|(name, _)| name.as_str())
            .take_while(move |name| name.starts_with(prefix))
    }

    /// All datasets, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Dataset)> {
        self.datasets
            .iter()
            .map(|(name, dataset)| (name.as_str(), dataset))
    }

    /// How many datasets there are.
    pub fn len(&self) -> usize {
        self.datasets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.datasets.is_empty()
    }
}

/// Reads the file of the file provider: names of datasets to their properties. Numbers and
/// booleans stand for their text, null for a property that is not there.
///
/// # Errors
/// When the bytes are no JSON object, or a dataset or value is of another type than it should be.
pub fn parse(bytes: &[u8]) -> Result<Table, JsonError> {
    table(config::object(bytes)?)
}

/// The same of a file that has been parsed.
pub(super) fn table(file: Object) -> Result<Table, JsonError> {
    let mut table = Table::default();
    for (name, properties) in file {
        let Value::Object(properties) = properties else {
            return Err(wrong(name, "an object of its properties"));
        };
        let dataset = table.datasets.entry(name.clone()).or_default();
        for (property, value) in properties {
            let raw = match value {
                Value::Null => continue,
                Value::String(text) => text,
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Array(_) | Value::Object(_) => {
                    return Err(wrong(format!("{name}: {property}"), "a string or a number"));
                }
            };
            if property == "mountpoint" && raw.starts_with('/') {
                table.mounted.insert(raw.clone(), name.clone());
            }
            dataset.insert(property, raw);
        }
    }
    Ok(table)
}

fn wrong(member: String, expected: &'static str) -> JsonError {
    JsonError::Member { member, expected }
}

/// Adds to a VM what its datasets say. The VM already has what its XML says: `brand`, the paths
/// of its `disks`, `flexible_disk_size`, `create_timestamp`.
pub fn describe(vm: &mut Object, zonepath: &str, table: &Table) {
    let mut snapshots = Value::Array(Vec::new());
    if let Some(name) = table.mounted_at(zonepath) {
        if let Some(root) = table.get(name) {
            describe_root(vm, name, root);
        }
        let data = format!("{name}/data");
        if let Some(dataset) = table.get(&data) {
            insert(vm, "zfs_data_compression", compression(dataset));
            insert(vm, "zfs_data_recsize", record_size(dataset));
        }
        for (property, dataset) in [
            ("indestructible_zoneroot", name),
            ("indestructible_delegated", &data),
        ] {
            if is_indestructible(table, dataset) {
                vm.insert(property.to_owned(), Value::Bool(true));
            }
        }
        snapshots = snapshots_of(table, name);
    }
    vm.insert("snapshots".to_owned(), snapshots);
    describe_disks(vm, table);
}

fn describe_root(vm: &mut Object, name: &str, root: &Dataset) {
    vm.insert("zfs_filesystem".to_owned(), Value::from(name));
    vm.insert("zpool".to_owned(), Value::from(pool(name)));
    // The snapshots of a bhyve VM's disks do not count against its quota.
    let quota = match vm.get("brand").and_then(Value::as_str) {
        Some("bhyve") => "refquota",
        _ => "quota",
    };
    insert(
        vm,
        "quota",
        bytes(root, quota).map(|bytes| units::size(bytes, GIB)),
    );
    insert(vm, "zfs_root_compression", compression(root));
    insert(vm, "zfs_root_recsize", record_size(root));
    for (property, raw) in [
        ("zfs_filesystem_limit", "filesystem_limit"),
        ("zfs_snapshot_limit", "snapshot_limit"),
    ] {
        let limit = root.get(raw).and_then(|raw| raw.parse::<u64>().ok());
        // OpenZFS prints no limit as the largest number there is.
        insert(
            vm,
            property,
            limit.filter(|&limit| limit != u64::MAX).map(Value::from),
        );
    }
    if !vm.contains_key("create_timestamp") {
        insert(vm, "create_timestamp", creation(root));
    }
}

/// Adds to each disk what its volume says, and to the VM what all of them leave free.
fn describe_disks(vm: &mut Object, table: &Table) {
    let mut taken: u64 = 0;
    let disks = vm.get_mut("disks").and_then(Value::as_array_mut);
    for disk in disks.into_iter().flatten().filter_map(Value::as_object_mut) {
        // A disk may also be a file, such as the image of a CD: no dataset has its path.
        let path = disk.get("path").and_then(Value::as_str);
        let Some(name) = path.and_then(volume_name) else {
            continue;
        };
        let Some(volume) = table.get(name) else {
            disk.insert("missing".to_owned(), Value::Bool(true));
            continue;
        };
        let (zfs_filesystem, zpool) = (Value::from(name), Value::from(pool(name)));
        disk.insert("zfs_filesystem".to_owned(), zfs_filesystem);
        disk.insert("zpool".to_owned(), zpool);
        let size = bytes(volume, "volsize");
        insert(disk, "size", size.map(|bytes| units::size(bytes, MIB)));
        insert(
            disk,
            "compression",
            volume
                .get("compression")
                .map(|raw| Value::from(raw.as_str())),
        );
        let reserved = bytes(volume, "refreservation");
        insert(
            disk,
            "refreservation",
            reserved.map(|bytes| Value::from(bytes.div_ceil(MIB))),
        );
        insert(
            disk,
            "block_size",
            bytes(volume, "volblocksize").map(Value::from),
        );
        let snapshots = bytes(volume, "usedbysnapshots");
        taken = taken
            .saturating_add(size.unwrap_or(0))
            .saturating_add(snapshots.unwrap_or(0));
    }
    let bhyve = vm.get("brand").is_some_and(|brand| brand == "bhyve");
    if let (true, Some(all)) = (bhyve, vm.get("flexible_disk_size").and_then(Value::as_i64)) {
        // Rounding what is taken up rounds what is free down.
        let taken = i64::try_from(taken.div_ceil(MIB)).unwrap_or(i64::MAX);
        vm.insert(
            "free_space".to_owned(),
            Value::from(all.saturating_sub(taken)),
        );
    }
}

/// The snapshots that were made through SmartOS, the newest first.
fn snapshots_of(table: &Table, dataset: &str) -> Value {
    let mut snapshots: Vec<(Reverse<u64>, &str, &Dataset)> = table
        .snapshots_of(dataset)
        .filter_map(|(name, snapshot)| {
            let created = bytes(snapshot, "creation").unwrap_or(0);
            Some((Reverse(created), name.strip_prefix("vmsnap-")?, snapshot))
        })
        .collect();
    snapshots.sort_by_key(|&(created, name, _)| (created, name));
    snapshots
        .into_iter()
        .map(|(_, name, snapshot)| {
            let mut members = Object::new();
            members.insert("name".to_owned(), Value::from(name));
            // Old releases of ZFS do not know what was written before a snapshot.
            let size = bytes(snapshot, "written").or_else(|| bytes(snapshot, "used"));
            insert(
                &mut members,
                "size",
                size.map(|bytes| Value::from(bytes / MIB)),
            );
            insert(&mut members, "created_at", creation(snapshot));
            Value::Object(members)
        })
        .collect()
}

/// A dataset that must not be destroyed has a snapshot that is held.
fn is_indestructible(table: &Table, dataset: &str) -> bool {
    table
        .get(&format!("{dataset}@indestructible"))
        .and_then(|snapshot| bytes(snapshot, "userrefs"))
        .is_some_and(|holds| holds > 0)
}

fn insert(members: &mut Object, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        members.insert(name.to_owned(), value);
    }
}

/// A number of a dataset, where `none` is 0.
fn bytes(dataset: &Dataset, property: &str) -> Option<u64> {
    match dataset.get(property)?.as_str() {
        "none" => Some(0),
        raw => raw.parse().ok(),
    }
}

fn compression(dataset: &Dataset) -> Option<Value> {
    let raw = dataset.get("compression")?;
    (raw != "off" && raw != "-").then(|| Value::from(raw.as_str()))
}

/// illumos has a short name for it that not every `zfs` prints.
fn record_size(dataset: &Dataset) -> Option<Value> {
    bytes(dataset, "recordsize")
        .or_else(|| bytes(dataset, "recsize"))
        .map(Value::from)
}

fn creation(dataset: &Dataset) -> Option<Value> {
    bytes(dataset, "creation")
        .and_then(units::iso_seconds)
        .map(Value::from)
}

fn pool(dataset: &str) -> &str {
    dataset.split_once('/').map_or(dataset, |(pool, _)| pool)
}

/// The volume whose device this is.
pub(super) fn volume_name(path: &str) -> Option<&str> {
    path.strip_prefix(ZVOL)
        .or_else(|| path.strip_prefix("/dev/zvol/dsk/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What `describe` makes of a VM at `/zones/z` and a file of datasets.
    fn described(vm: Value, file: Value) -> Value {
        let Value::Object(mut vm) = vm else {
            panic!("a VM is an object");
        };
        let table = parse(file.to_string().as_bytes()).unwrap();
        describe(&mut vm, "/zones/z", &table);
        Value::Object(vm)
    }

    #[test]
    fn values_of_a_file_become_the_text_that_zfs_prints() {
        let file = br#"{"p": {"a": 10737418240, "b": "lz4", "c": true, "d": null, "e": -1.5}}"#;
        let table = parse(file).unwrap();
        let dataset = table.get("p").unwrap();
        let pairs: Vec<_> = dataset
            .iter()
            .map(|(name, raw)| (name.as_str(), raw.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("a", "10737418240"),
                ("b", "lz4"),
                ("c", "true"),
                ("e", "-1.5")
            ]
        );
    }

    #[test]
    fn a_file_gives_the_table_that_single_inserts_give() {
        let file =
            br#"{"p/z": {"mountpoint": "/zones/z", "quota": 0}, "p/y": {"mountpoint": "none"}}"#;
        let mut table = Table::default();
        table.insert("p/z", "mountpoint", "/zones/z");
        table.insert("p/z", "quota", "0");
        table.insert("p/y", "mountpoint", "none");
        assert_eq!(parse(file).unwrap(), table);
    }

    #[test]
    fn a_dataset_of_another_type_is_named() {
        let message = |bytes| parse(bytes).unwrap_err().to_string();
        assert_eq!(
            message(br#"{"p": 1}"#),
            "p is not an object of its properties"
        );
        assert_eq!(
            message(br#"{"p": {"q": []}}"#),
            "p: q is not a string or a number"
        );
    }

    #[test]
    fn the_root_dataset_is_the_one_mounted_at_the_zonepath() {
        let file = json!({
            "tank/vm/z": {"mountpoint": "/zones/z", "quota": 10_737_418_240_u64,
                "refquota": 1, "compression": "lz4", "recsize": 131_072, "filesystem_limit": 5,
                "snapshot_limit": "none", "creation": 1_523_467_256},
            "tank/vm/z/data": {"compression": "off", "recordsize": 8192},
            "tank/vm/z@indestructible": {"userrefs": 1},
            "tank/vm/z/data@indestructible": {"userrefs": 0},
        });
        let expected = json!({
            "brand": "joyent", "zfs_filesystem": "tank/vm/z", "zpool": "tank", "quota": 10,
            "zfs_root_compression": "lz4", "zfs_root_recsize": 131_072, "zfs_filesystem_limit": 5,
            "create_timestamp": "2018-04-11T17:20:56.000Z", "zfs_data_recsize": 8192,
            "indestructible_zoneroot": true, "snapshots": [],
        });
        assert_eq!(described(json!({"brand": "joyent"}), file), expected);
    }

    #[test]
    fn a_quota_is_not_rounded_and_that_of_bhyve_is_the_refquota() {
        let file =
            json!({"z": {"mountpoint": "/zones/z", "quota": 1_610_612_736, "refquota": "none"}});
        assert_eq!(
            described(json!({"brand": "lx"}), file.clone())["quota"],
            json!(1.5)
        );
        assert_eq!(
            described(json!({"brand": "bhyve"}), file)["quota"],
            json!(0)
        );
    }

    #[test]
    fn a_create_timestamp_of_the_xml_stays() {
        let file = json!({"z": {"mountpoint": "/zones/z", "creation": 0}});
        let vm = described(json!({"create_timestamp": "then"}), file);
        assert_eq!(vm["create_timestamp"], "then");
    }

    #[test]
    fn snapshots_are_those_of_smartos_the_newest_first() {
        let file = json!({
            "z": {"mountpoint": "/zones/z"},
            "z@vmsnap-old": {"creation": 10, "written": 3_145_728, "used": 0},
            "z@vmsnap-new": {"creation": 20, "used": 2_097_151},
            "z@backup": {"creation": 30},
            "z2@vmsnap-other": {"creation": 40},
        });
        assert_eq!(
            described(json!({}), file)["snapshots"],
            json!([
                {"name": "new", "size": 1, "created_at": "1970-01-01T00:00:20.000Z"},
                {"name": "old", "size": 3, "created_at": "1970-01-01T00:00:10.000Z"},
            ])
        );
    }

    #[test]
    fn a_disk_has_what_its_volume_says() {
        let vm = json!({"disks": [
            {"path": "/dev/zvol/rdsk/zones/z-disk0", "boot": true},
            {"path": "/dev/zvol/rdsk/zones/z-disk1"},
            {"path": "/cd.iso"},
        ]});
        let file = json!({"zones/z-disk0": {"type": "volume", "volsize": 10_737_418_240_u64,
            "refreservation": 1_048_577, "compression": "off", "volblocksize": 8192}});
        assert_eq!(
            described(vm, file)["disks"],
            json!([
                {"path": "/dev/zvol/rdsk/zones/z-disk0", "boot": true,
                 "zfs_filesystem": "zones/z-disk0", "zpool": "zones", "size": 10240,
                 "compression": "off", "refreservation": 2, "block_size": 8192},
                {"path": "/dev/zvol/rdsk/zones/z-disk1", "missing": true},
                {"path": "/cd.iso"},
            ])
        );
    }

    #[test]
    fn free_space_is_what_volumes_and_their_snapshots_leave_rounded_down() {
        let vm = json!({"brand": "bhyve", "flexible_disk_size": 100, "disks": [
            {"path": "/dev/zvol/rdsk/z-disk0"}, {"path": "/dev/zvol/rdsk/z-disk1"},
        ]});
        let file = json!({
            "z-disk0": {"volsize": 10 << 20, "usedbysnapshots": 1},
            "z-disk1": {"volsize": 20 << 20},
        });
        assert_eq!(described(vm, file)["free_space"], 69);
    }

    #[test]
    fn without_datasets_a_vm_has_no_snapshots_and_no_more() {
        assert_eq!(described(json!({}), json!({})), json!({"snapshots": []}));
    }

    fn mounted(path: &str) -> Dataset {
        Dataset::from([("mountpoint".to_owned(), path.to_owned())])
    }

    #[test]
    fn a_dataset_that_moves_or_goes_leaves_no_mountpoint_behind() {
        let mut table = Table::default();
        table.replace("zones/a", mounted("/a"));
        table.replace("zones/a", mounted("/b"));
        assert_eq!(table.mounted_at("/a"), None);
        assert_eq!(table.mounted_at("/b"), Some("zones/a"));
        table.remove("zones/a");
        assert_eq!(table.mounted_at("/b"), None);
        assert!(table.is_empty());
    }

    #[test]
    fn of_two_datasets_with_one_mountpoint_the_other_takes_over() {
        let mut table = Table::default();
        table.replace("zones/a", mounted("/a"));
        table.replace("zones/b", mounted("/a"));
        table.remove("zones/b");
        assert_eq!(table.mounted_at("/a"), Some("zones/a"));
        table.replace("zones/a", mounted("none"));
        assert_eq!(table.mounted_at("/a"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_value_makes_the_description_panic(
            values in proptest::collection::hash_map(
                prop_oneof![Just("z"), Just("z/data"), Just("z@vmsnap-a"), Just("z-disk0")],
                proptest::collection::hash_map(
                    prop_oneof![
                        Just("quota"), Just("volsize"), Just("creation"), Just("written"),
                        Just("usedbysnapshots"), Just("refreservation"), Just("compression"),
                    ],
                    prop_oneof![any::<u64>().prop_map(|n| n.to_string()), "\\PC*"],
                    0..7,
                ),
                0..4,
            )
        ) {
            let mut file = json!(values);
            file["z"]["mountpoint"] = json!("/zones/z");
            let vm = json!({"brand": "bhyve", "flexible_disk_size": i64::MIN,
                "disks": [{"path": "/dev/zvol/rdsk/z-disk0"}]});
            described(vm, file);
        }
    }
}
