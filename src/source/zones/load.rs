//! One zone, read: the layout of the store, and the VM object made of a zone's files.
//!
//! [`load`] opens each file of the zone once, and keeps nothing. A part that cannot be read is
//! named in [`Loaded::failed`] and its members are left out; what is computed from several parts
//! is left out, and its part named, when one of them is missing. Watching, caching and threads
//! are the engine's.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;
use tracing::warn;
use uuid::Uuid;

use super::datasets::{self, Table};
use super::files::{self, FileError, Looks};
use super::index::{self, Entry, Index};
use super::runtime::{self, Runtime};
use super::{config, units, xml};
use crate::source::{Failure, Loaded, Via};
use crate::vm::files::Rendered;
use crate::vm::property::{self, Part};
use crate::vm::state::Reading;
use crate::vm::{self, Object};

/// What a file may have at most. Each is many times what is found in the field.
pub(super) const INDEX_LIMIT: u64 = 64 << 20;
pub(super) const XML_LIMIT: u64 = 4 << 20;
pub(super) const METADATA_LIMIT: u64 = 16 << 20;
pub(super) const JSON_LIMIT: u64 = 4 << 20;

/// Where the files of a zone store are.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Where the datasets of a zone are read from.
#[derive(Clone, Debug)]
pub enum DatasetsOf<'a> {
    /// The file provider: `var/db/datasets/`.
    Files,
    /// ZFS: the table of the zone's pool, or why there is none.
    Zfs(Result<&'a Table, String>),
    /// Nowhere: nobody asks for them now.
    LeftOut,
}

/// Where the runtime state of a zone is read from.
#[derive(Clone, Debug)]
pub enum RuntimeOf {
    /// The file provider: `var/run/zones/`.
    Files,
    /// `zoneadm`: what it says of this zone, if it knows it, or why it says nothing.
    Zoneadm(Result<Option<Runtime>, String>),
}

impl Store {
    /// The store below this folder.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        Store { root: root.into() }
    }

    /// The folder that everything lies below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The list of zones.
    pub fn index(&self) -> PathBuf {
        self.root.join("etc/zones/index")
    }

    /// The XML of a zone.
    pub fn xml(&self, zonename: &str) -> PathBuf {
        self.root.join(format!("etc/zones/{zonename}.xml"))
    }

    /// The folder of `metadata.json`, `tags.json` and `routes.json`.
    pub fn config_dir(&self, zonename: &str) -> PathBuf {
        self.root.join(format!("zones/{zonename}/config"))
    }

    /// How the zone ended.
    pub fn lastexited(&self, zonename: &str) -> PathBuf {
        self.root.join(format!("zones/{zonename}/lastexited"))
    }

    /// The file provider's datasets of a zone.
    pub fn datasets(&self, zonename: &str) -> PathBuf {
        self.root.join(format!("var/db/datasets/{zonename}.json"))
    }

    /// The file provider's runtime state of a zone.
    pub fn runtime(&self, zonename: &str) -> PathBuf {
        self.root.join(format!("var/run/zones/{zonename}.json"))
    }

    /// What is known of the host.
    pub fn sysinfo(&self) -> PathBuf {
        self.root.join("tmp/.sysinfo.json")
    }

    /// The lock that whoever changes a VM takes, other tools too.
    pub fn lock(&self, uuid: Uuid) -> PathBuf {
        self.lock_of(&uuid.to_string())
    }

    /// The lock of who makes a zone of this name. That of a VM, where its uuid is its name.
    pub(super) fn lock_of(&self, name: &str) -> PathBuf {
        self.root.join(format!("var/run/vm.{name}.config.lockfile"))
    }

    /// The lock of whoever changes the list of zones.
    pub fn index_lock(&self) -> PathBuf {
        self.root.join("var/run/vm.index.lockfile")
    }

    /// What is being done to a VM, while it is in more than one place.
    pub fn journal(&self, uuid: Uuid) -> PathBuf {
        self.root.join(format!("var/run/vm.{uuid}.update.json"))
    }

    /// Reads the list of zones.
    ///
    /// # Errors
    /// When the file cannot be read, a missing one included: no list confirms no absence.
    pub fn read_index(&self) -> Result<Index, String> {
        let path = self.index();
        let contents = files::read(&path, INDEX_LIMIT).map_err(|error| self.name(&path, &error))?;
        Ok(index::parse(&contents.bytes))
    }

    /// Reads the members that every VM of the host has. A host without the file has none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read_sysinfo(&self) -> Result<Object, String> {
        let file = self.read(&self.sysinfo(), JSON_LIMIT, config::sysinfo)?;
        Ok(file.map(|(_, members)| members).unwrap_or_default())
    }

    /// The volumes that the XML of a zone names.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn volumes(&self, zonename: &str) -> Result<Vec<String>, String> {
        let file = self.read(&self.xml(zonename), XML_LIMIT, xml::parse)?;
        let zone = file.map(|(_, zone)| zone.object).unwrap_or_default();
        let disks = zone.get("disks").and_then(Value::as_array);
        let paths = disks.into_iter().flatten();
        let volumes = paths.filter_map(|disk| datasets::volume_name(disk.get("path")?.as_str()?));
        Ok(volumes.map(str::to_owned).collect())
    }

    /// Reads and converts a file: when it was changed, and what it holds. `None` if it is missing.
    pub(super) fn read<T, E: std::fmt::Display>(
        &self,
        path: &Path,
        limit: u64,
        convert: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Result<Option<(SystemTime, T)>, String> {
        self.read_looking(path, limit, convert, &mut Looks::default())
    }

    /// The same, and adds what it looks like.
    fn read_looking<T, E: std::fmt::Display>(
        &self,
        path: &Path,
        limit: u64,
        convert: impl FnOnce(&[u8]) -> Result<T, E>,
        looks: &mut Looks,
    ) -> Result<Option<(SystemTime, T)>, String> {
        let file = files::read(path, limit);
        looks.add(file.as_ref());
        match file {
            Ok(contents) => match convert(&contents.bytes) {
                Ok(value) => Ok(Some((contents.modified, value))),
                Err(error) => Err(self.name(path, &error)),
            },
            Err(FileError::Missing) => Ok(None),
            Err(error) => Err(self.name(path, &error)),
        }
    }

    /// A message about a file, which is named as seen from the root.
    pub(super) fn name(&self, path: &Path, problem: &dyn std::fmt::Display) -> String {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        format!("{}: {problem}", path.display())
    }
}

/// What the files of a zone look like, as [`load_looking`] says when it has read them all.
pub fn look(store: &Store, zonename: &str, datasets: bool, runtime: bool) -> Looks {
    let config = store.config_dir(zonename);
    let mut looks = Looks::default();
    looks.add_path(&store.xml(zonename));
    looks.add_path(&config.join("metadata.json"));
    looks.add_path(&config.join("tags.json"));
    looks.add_path(&config.join("routes.json"));
    if runtime {
        looks.add_path(&store.runtime(zonename));
    }
    looks.add_path(&store.lastexited(zonename));
    if datasets {
        looks.add_path(&store.datasets(zonename));
    }
    looks
}

/// Reads one zone. What cannot be read is in the result's `failed`; `via` is [`Via::Event`],
/// which a caller with another reason replaces.
pub fn load(
    store: &Store,
    entry: &Entry,
    datasets: DatasetsOf<'_>,
    runtime: RuntimeOf,
    sysinfo: &Result<Object, String>,
) -> Loaded {
    load_looking(store, entry, datasets, runtime, sysinfo).0
}

/// The same, and what its files looked like; `None` if that would not tell a change from none.
pub fn load_looking(
    store: &Store,
    entry: &Entry,
    datasets: DatasetsOf<'_>,
    runtime: RuntimeOf,
    sysinfo: &Result<Object, String>,
) -> (Loaded, Option<u64>) {
    let mut draft = Draft {
        store,
        entry,
        vm: Object::new(),
        failed: Vec::new(),
        modified: None,
        looks: Looks::default(),
    };
    // Taken first: whatever changes while the files are read is newer than this.
    let observed = vm::now();
    let xml = draft.add_xml();
    draft.add_names();
    draft.add_config();
    let zone_state = draft.add_runtime(runtime, xml.as_ref());
    draft.add_exit(zone_state.as_deref());
    draft.add_datasets(datasets, xml.is_some());
    match sysinfo {
        Ok(members) => draft.vm.extend(members.clone()),
        Err(reason) => draft.fail(Part::Sysinfo, reason.clone()),
    }
    if let (Some(modified), true) = (draft.modified.and_then(units::iso_time), xml.is_some()) {
        draft.insert("last_modified", modified);
    }
    property::sort(&mut draft.vm);
    // Of a part that failed not every file was read, and it may heal with no change of a file.
    let looks = draft.looks.settled(observed);
    let looks = looks.filter(|_| draft.failed.is_empty());
    let loaded = Loaded {
        uuid: entry.uuid,
        zonename: entry.zonename.clone(),
        vm: Rendered::new(&draft.vm),
        failed: draft.failed,
        via: Via::Event,
        observed,
    };
    (loaded, looks)
}

/// A VM while its zone is read.
struct Draft<'a> {
    store: &'a Store,
    entry: &'a Entry,
    vm: Object,
    failed: Vec<Failure>,
    /// The newest modification time of the files that count for `last_modified`.
    modified: Option<SystemTime>,
    /// What the files read so far looked like.
    looks: Looks,
}

impl Draft<'_> {
    fn insert(&mut self, property: &str, value: impl Into<Value>) {
        self.vm.insert(property.to_owned(), value.into());
    }

    fn insert_some(&mut self, property: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.insert(property, value);
        }
    }

    fn fail(&mut self, part: Part, reason: String) {
        self.failed.push(Failure { part, reason });
    }

    /// Reads a file that counts for `last_modified`.
    fn read<T, E: std::fmt::Display>(
        &mut self,
        path: &Path,
        limit: u64,
        convert: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Result<Option<T>, String> {
        let file = (self.store).read_looking(path, limit, convert, &mut self.looks)?;
        let Some((modified, value)) = file else {
            return Ok(None);
        };
        self.modified = self.modified.max(Some(modified));
        Ok(Some(value))
    }

    /// Adds what the XML says, and gives the rest of it.
    fn add_xml(&mut self) -> Option<xml::Zone> {
        let path = self.store.xml(&self.entry.zonename);
        let missing = "missing while the index names the zone";
        let mut xml = match self.read(&path, XML_LIMIT, xml::parse) {
            Ok(Some(xml)) => xml,
            Ok(None) => {
                self.fail(Part::Zone, self.store.name(&path, &missing));
                return None;
            }
            Err(reason) => {
                self.fail(Part::Zone, reason);
                return None;
            }
        };
        for problem in &xml.warnings {
            warn!(
                "{}",
                self.store.name(&path, &format_args!("{problem}; left out"))
            );
        }
        self.vm = std::mem::take(&mut xml.object);
        let brand = self.vm.get("brand").and_then(Value::as_str);
        let hvm = brand.is_some_and(property::hvm);
        self.insert("hvm", hvm);
        Some(xml)
    }

    /// Adds what the index says. It names all the files, so it has the last word on the name.
    fn add_names(&mut self) {
        self.insert("zonename", self.entry.zonename.as_str());
        self.insert("zonepath", self.entry.zonepath.as_str());
        self.insert("uuid", self.entry.uuid.to_string());
    }

    fn add_config(&mut self) {
        let dir = self.store.config_dir(&self.entry.zonename);
        match self.read(&dir.join("metadata.json"), METADATA_LIMIT, config::metadata) {
            Ok(metadata) => {
                let metadata = metadata.unwrap_or_default();
                self.insert("customer_metadata", metadata.customer);
                self.insert("internal_metadata", metadata.internal);
            }
            Err(reason) => self.fail(Part::Metadata, reason),
        }
        for (part, property, file) in [
            (Part::Tags, "tags", "tags.json"),
            (Part::Routes, "routes", "routes.json"),
        ] {
            match self.read(&dir.join(file), JSON_LIMIT, config::object) {
                Ok(map) => self.insert(property, map.unwrap_or_default()),
                Err(reason) => self.fail(part, reason),
            }
        }
    }

    /// Adds what the zone is doing, and gives its `zone_state`.
    fn add_runtime(&mut self, runtime: RuntimeOf, xml: Option<&xml::Zone>) -> Option<String> {
        let index_state = &self.entry.state;
        let path = self.store.runtime(&self.entry.zonename);
        let runtime = match runtime {
            RuntimeOf::Zoneadm(answer) => answer,
            RuntimeOf::Files => {
                let parse = |bytes: &[u8]| runtime::parse(bytes, index_state);
                let file = (self.store).read_looking(&path, JSON_LIMIT, parse, &mut self.looks);
                file.map(|file| file.map(|(_, runtime)| runtime))
            }
        };
        let runtime = match runtime {
            Ok(runtime) => runtime.unwrap_or_else(|| Runtime::at_rest(index_state)),
            Err(reason) => {
                self.fail(Part::Runtime, reason);
                return None;
            }
        };
        self.insert("zoneid", runtime.zoneid);
        self.insert("zone_state", runtime.state.as_str());
        self.insert_some("pid", runtime.pid);
        self.insert_some("init_restarts", runtime.init_restarts);
        self.insert_some(
            "boot_timestamp",
            runtime.boot_time.and_then(units::iso_seconds),
        );
        match xml {
            Some(xml) => {
                let state = Reading {
                    zone_state: &runtime.state,
                    transition: xml.transition.as_deref(),
                    provisioning: xml.provisioning,
                    failed: xml.failed,
                }
                .state();
                self.insert("state", state.state);
                self.insert_some("transition_to", state.transition_to);
                self.insert_some("transition_expire", state.transition_expire);
            }
            None => self.fail_without_xml(Part::Runtime, "its state"),
        }
        Some(runtime.state)
    }

    /// Adds how the last run ended, while there is no new one.
    fn add_exit(&mut self, zone_state: Option<&str>) {
        let path = self.store.lastexited(&self.entry.zonename);
        match (self.read(&path, JSON_LIMIT, config::last_exit), zone_state) {
            (Err(reason), _) => self.fail(Part::LastExited, reason),
            (Ok(Some(_)), None) => {
                let problem = "of no use while it is unknown whether the zone runs";
                self.fail(Part::LastExited, self.store.name(&path, &problem));
            }
            (Ok(None), _) | (Ok(_), Some("running")) => {}
            (Ok(Some(exit)), Some(_)) => {
                self.insert("exit_status", exit.status);
                self.insert("exit_timestamp", exit.timestamp);
            }
        }
    }

    /// Adds what the datasets say, which takes the brand and the disks of the XML.
    fn add_datasets(&mut self, datasets: DatasetsOf<'_>, has_xml: bool) {
        if !has_xml {
            self.fail_without_xml(Part::Datasets, "what its datasets say");
            return;
        }
        let zonepath = &self.entry.zonepath;
        let path = self.store.datasets(&self.entry.zonename);
        match datasets {
            DatasetsOf::Zfs(Ok(table)) => datasets::describe(&mut self.vm, zonepath, table),
            DatasetsOf::Zfs(Err(reason)) => self.fail(Part::Datasets, reason),
            DatasetsOf::LeftOut => {}
            DatasetsOf::Files => {
                match (self.store).read_looking(&path, JSON_LIMIT, datasets::parse, &mut self.looks)
                {
                    Ok(file) => {
                        let table = file.map(|(_, table)| table).unwrap_or_default();
                        datasets::describe(&mut self.vm, zonepath, &table);
                    }
                    Err(reason) => self.fail(Part::Datasets, reason),
                }
            }
        }
    }

    fn fail_without_xml(&mut self, part: Part, what: &str) {
        self.fail(part, format!("{what} cannot be told without its XML"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const ZONE: &str = "5a02245a-422c-4e0a-c5f8-fd6fac1ac04e";
    const XML: &str = include_str!("../../../tests/data/zones/kvm-disk-sort.xml");

    /// A store of one zone, whose files a test then changes.
    struct Fixture {
        dir: tempfile::TempDir,
        store: Store,
        entry: Entry,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let fixture = Fixture {
                store: Store::new(dir.path()),
                dir,
                entry: Entry {
                    zonename: ZONE.to_owned(),
                    state: "installed".to_owned(),
                    zonepath: format!("/zones/{ZONE}"),
                    uuid: ZONE.parse().unwrap(),
                },
            };
            fixture.write(&fixture.store.xml(ZONE), XML);
            fixture
        }

        fn write(&self, path: &Path, text: &str) {
            assert!(path.starts_with(self.dir.path()));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn config(&self, file: &str) -> PathBuf {
            self.store.config_dir(ZONE).join(file)
        }

        fn load(&self) -> Loaded {
            let (datasets, runtime) = (DatasetsOf::Files, RuntimeOf::Files);
            load(
                &self.store,
                &self.entry,
                datasets,
                runtime,
                &Ok(Object::new()),
            )
        }

        /// Loads the zone, of which exactly one part must have failed.
        fn failure(&self) -> (Part, String) {
            let failed = self.load().failed;
            assert_eq!(failed.len(), 1, "{failed:?}");
            (failed[0].part, failed[0].reason.clone())
        }
    }

    #[test]
    fn a_zone_with_no_file_but_its_xml_is_whole() {
        let loaded = Fixture::new().load();
        assert_eq!(loaded.failed, []);
        let vm = Value::Object(loaded.vm.object());
        for (member, expected) in [
            ("uuid", json!(ZONE)),
            ("zonename", json!(ZONE)),
            ("zonepath", json!(format!("/zones/{ZONE}"))),
            ("alias", json!("kvm7")),
            ("hvm", json!(true)),
            ("state", json!("stopped")),
            ("zone_state", json!("installed")),
            ("zoneid", json!(null)),
            ("tags", json!({})),
            ("routes", json!({})),
            ("customer_metadata", json!({})),
            ("internal_metadata", json!({})),
            ("snapshots", json!([])),
        ] {
            assert_eq!(vm.get(member), Some(&expected), "{member}");
        }
        assert_eq!(vm["disks"][1]["missing"], true);
    }

    #[test]
    fn members_stand_in_the_order_of_the_table() {
        let vm = Fixture::new().load().vm.object();
        let positions: Vec<_> = vm
            .keys()
            .map(|name| property::position(name).unwrap())
            .collect();
        assert!(positions.is_sorted());
    }

    #[test]
    fn a_running_zone_has_its_runtime_and_no_exit() {
        let fixture = Fixture::new();
        let runtime = r#"{"zoneid": 7, "state": "running", "init_pid": 42, "init_restarts": 0,
                          "boot_time": 1523467256}"#;
        fixture.write(&fixture.store.runtime(ZONE), runtime);
        fixture.write(&fixture.store.lastexited(ZONE), "1523467256 256");
        let vm = Value::Object(fixture.load().vm.object());
        assert_eq!((&vm["zoneid"], &vm["pid"]), (&json!(7), &json!(42)));
        assert_eq!(
            (&vm["state"], &vm["init_restarts"]),
            (&json!("running"), &json!(0))
        );
        assert_eq!(vm["boot_timestamp"], "2018-04-11T17:20:56.000Z");
        assert_eq!(vm.get("exit_status"), None);
    }

    #[test]
    fn a_stopped_zone_says_how_it_ended() {
        let fixture = Fixture::new();
        fixture.write(&fixture.store.lastexited(ZONE), "1523467256 256");
        let vm = fixture.load().vm.object();
        assert_eq!(vm["exit_status"], 1);
        assert_eq!(vm["exit_timestamp"], "2018-04-11T17:20:56.000Z");
    }

    #[test]
    fn last_modified_is_the_newest_of_the_files_that_count() {
        let fixture = Fixture::new();
        let at = |path: &Path, seconds| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 789);
            fs::File::options()
                .append(true)
                .open(path)
                .unwrap()
                .set_modified(time)
                .unwrap();
        };
        at(&fixture.store.xml(ZONE), 1000);
        let modified = || {
            fixture.load().vm.object()["last_modified"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(modified(), "1970-01-01T00:16:40.000Z");
        for (path, text, seconds) in [
            (fixture.config("metadata.json"), "{}", 2001),
            (fixture.config("routes.json"), "{}", 2002),
            (fixture.config("tags.json"), "{}", 2003),
            (fixture.store.lastexited(ZONE), "1 0", 2004),
        ] {
            fixture.write(&path, text);
            at(&path, seconds);
            assert_eq!(modified(), units::iso_seconds(seconds).unwrap());
        }
        fixture.write(&fixture.store.datasets(ZONE), "{}");
        assert_eq!(modified(), units::iso_seconds(2004).unwrap());
    }

    #[test]
    fn the_members_of_the_host_are_in_every_vm() {
        let fixture = Fixture::new();
        fixture.write(
            &fixture.store.sysinfo(),
            r#"{"UUID": "host", "Live Image": "2026"}"#,
        );
        let sysinfo = fixture.store.read_sysinfo();
        let loaded = load(
            &fixture.store,
            &fixture.entry,
            DatasetsOf::Files,
            RuntimeOf::Files,
            &sysinfo,
        );
        assert_eq!(loaded.vm.object()["server_uuid"], "host");
        assert_eq!(loaded.vm.object()["platform_buildstamp"], "2026");
    }

    #[test]
    fn a_host_without_sysinfo_has_no_such_members() {
        assert_eq!(Fixture::new().store.read_sysinfo(), Ok(Object::new()));
    }

    #[test]
    fn providers_that_do_not_answer_are_failures_of_their_parts_only() {
        let fixture = Fixture::new();
        fixture.write(&fixture.store.lastexited(ZONE), "1523467256 256");
        let loaded = load(
            &fixture.store,
            &fixture.entry,
            DatasetsOf::Zfs(Err("zfs get: no answer".to_owned())),
            RuntimeOf::Zoneadm(Err("zoneadm list: exit code 1".to_owned())),
            &Err("tmp/.sysinfo.json: not JSON".to_owned()),
        );
        let parts: Vec<_> = loaded.failed.iter().map(|failure| failure.part).collect();
        assert_eq!(
            parts,
            [
                Part::Runtime,
                Part::LastExited,
                Part::Datasets,
                Part::Sysinfo
            ]
        );
        assert_eq!(loaded.vm.object()["alias"], "kvm7");
        for member in [
            "state",
            "zone_state",
            "zoneid",
            "exit_status",
            "quota",
            "snapshots",
        ] {
            assert_eq!(loaded.vm.object().get(member), None, "{member}");
        }
    }

    #[test]
    fn a_zone_that_zoneadm_does_not_know_is_as_the_index_says() {
        let fixture = Fixture::new();
        let table = Table::default();
        let datasets = DatasetsOf::Zfs(Ok(&table));
        let runtime = RuntimeOf::Zoneadm(Ok(None));
        let loaded = load(
            &fixture.store,
            &fixture.entry,
            datasets,
            runtime,
            &Ok(Object::new()),
        );
        assert_eq!(loaded.failed, []);
        assert_eq!(loaded.vm.object()["state"], "stopped");
        assert_eq!(loaded.vm.object()["zoneid"], Value::Null);
    }

    #[test]
    fn without_its_xml_a_zone_keeps_what_does_not_need_it() {
        let fixture = Fixture::new();
        fs::remove_file(fixture.store.xml(ZONE)).unwrap();
        fixture.write(&fixture.config("tags.json"), r#"{"role": "web"}"#);
        let loaded = fixture.load();
        let parts: Vec<_> = loaded.failed.iter().map(|failure| failure.part).collect();
        assert_eq!(parts, [Part::Zone, Part::Runtime, Part::Datasets]);
        let expected = format!("etc/zones/{ZONE}.xml: missing while the index names the zone");
        assert_eq!(loaded.failed[0].reason, expected);
        assert_eq!(loaded.vm.object()["tags"], json!({"role": "web"}));
        assert_eq!(loaded.vm.object()["zonename"], ZONE);
        for member in ["state", "quota", "last_modified", "hvm", "brand"] {
            assert_eq!(loaded.vm.object().get(member), None, "{member}");
        }
    }

    #[test]
    fn bad_files_are_failures_of_their_parts_and_nothing_else_suffers() {
        type PathOf = fn(&Fixture) -> PathBuf;
        let files: [(Part, PathOf); 6] = [
            (Part::Tags, |fixture| fixture.config("tags.json")),
            (Part::Routes, |fixture| fixture.config("routes.json")),
            (Part::Metadata, |fixture| fixture.config("metadata.json")),
            (Part::LastExited, |fixture| fixture.store.lastexited(ZONE)),
            (Part::Runtime, |fixture| fixture.store.runtime(ZONE)),
            (Part::Datasets, |fixture| fixture.store.datasets(ZONE)),
        ];
        for (part, path) in files {
            for bad in ["", "{\"a\": ", "\u{7f}ELF\0", "[1]"] {
                let fixture = Fixture::new();
                fixture.write(&path(&fixture), bad);
                let (failed, reason) = fixture.failure();
                assert_eq!(failed, part, "{bad:?}");
                let name = path(&fixture);
                let name = name
                    .strip_prefix(fixture.dir.path())
                    .unwrap()
                    .display()
                    .to_string();
                assert!(reason.starts_with(&format!("{name}: ")), "{reason}");
                assert_eq!(fixture.load().vm.object()["alias"], "kvm7");
            }
        }
    }

    #[test]
    fn a_huge_file_a_fifo_and_a_directory_are_refused() {
        let fixture = Fixture::new();
        let path = fixture.config("tags.json");
        fixture.write(&path, "");
        fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
        let (part, reason) = fixture.failure();
        assert_eq!(part, Part::Tags);
        assert!(
            reason.ends_with("tags.json: larger than 4 MiB; not read"),
            "{reason}"
        );
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(
            fixture
                .failure()
                .1
                .contains("tags.json: a FIFO stands where")
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(
            fixture
                .failure()
                .1
                .contains("tags.json: a directory stands where")
        );
    }

    #[test]
    fn the_index_is_read_from_its_place() {
        let fixture = Fixture::new();
        let missing = fixture.store.read_index().unwrap_err();
        assert_eq!(missing, "etc/zones/index: missing");
        let line = format!("{ZONE}:installed:/zones/{ZONE}:\n");
        fixture.write(&fixture.store.index(), &line);
        assert_eq!(fixture.store.read_index().unwrap().entries, [fixture.entry]);
    }
}
