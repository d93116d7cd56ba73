//! Changing the zones of a store whose datasets and states are in files.

#![recursion_limit = "512"]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vminfod::sample::{self, change};
use vminfod::source::zones::{Faults, Zones, ZonesOptions};
use vminfod::source::{Apply, Failed, FailedKind, Report, Source};
use vminfod::vm::Object;
use vminfod::vm::property::Part;
use vminfod::vm::verb::Verb;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store of sample VMs.
struct Store {
    dir: TempDir,
}

/// All files below a folder, with their bytes.
type Files = BTreeMap<PathBuf, Vec<u8>>;

impl Store {
    fn new(vms: usize) -> Store {
        let dir = tempfile::tempdir().unwrap();
        sample::write(dir.path(), &sample::Options { vms, seed: 1 }).unwrap();
        Store { dir }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root().join(below)
    }

    fn text(&self, below: &str) -> String {
        fs::read_to_string(self.path(below)).unwrap()
    }

    fn json(&self, below: &str) -> Value {
        serde_json::from_str(&self.text(below)).unwrap()
    }

    fn zones(&self) -> Zones {
        Zones::new(ZonesOptions::new(self.root()))
    }

    fn applier(&self) -> Arc<dyn Apply> {
        self.zones().applier()
    }

    /// An applier that calls this before each step.
    fn with_steps(
        &self,
        hook: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<dyn Apply> {
        let faults = Arc::new(Faults::default());
        faults.on_step(hook);
        Zones::new(ZonesOptions {
            faults,
            ..ZonesOptions::new(self.root())
        })
        .applier()
    }

    /// The first zone of a brand in a state.
    fn find(&self, brand: &str, state: &str) -> Uuid {
        let applier = self.applier();
        let names = change::zonenames(self.root()).unwrap();
        let uuids = names.iter().map(|name| name.parse().unwrap());
        let mut found = uuids.filter(|uuid| {
            let vm = read(&*applier, *uuid);
            vm["brand"] == brand && vm["state"] == state && vm.get("transition_to").is_none()
        });
        found.next().unwrap()
    }

    /// Everything but locks.
    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut folders = vec![self.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_none_or(|end| end != "lockfile") {
                    let name = path.strip_prefix(self.root()).unwrap().to_owned();
                    files.insert(name, fs::read(path).unwrap());
                }
            }
        }
        files
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn read(applier: &dyn Apply, uuid: Uuid) -> Object {
    applier.lock(uuid, soon()).unwrap().vm().clone()
}

/// Changes members of a VM; null removes.
fn update(applier: &dyn Apply, uuid: Uuid, members: Value) -> Result<Object, Failed> {
    let mut locked = applier.lock(uuid, soon())?;
    let mut target = locked.vm().clone();
    for (member, value) in members.as_object().unwrap() {
        match value {
            Value::Null => target.remove(member),
            value => target.insert(member.clone(), value.clone()),
        };
    }
    locked.update(&target)?;
    Ok(locked.vm().clone())
}

fn run(applier: &dyn Apply, uuid: Uuid, verb: &Verb) -> Result<Object, Failed> {
    let mut locked = applier.lock(uuid, soon())?;
    locked.run(verb)?;
    Ok(locked.vm().clone())
}

const STOP: Verb = Verb::Stop {
    force: false,
    timeout: None,
};

/// What is different in these files.
fn changed(before: &Files, after: &Files) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = |name: &&&PathBuf| before.get(**name) != after.get(**name);
    let names = names.iter().filter(differs);
    names.map(|name| name.display().to_string()).collect()
}

/// A value for every member of a zone that an update may set.
fn everything() -> Value {
    json!({
        "alias": "new & <old>", "autoboot": false, "limit_priv": "default,-file_link_any",
        "fs_allowed": "ufs,pcfs", "cpu_shares": 3, "cpu_cap": 150, "max_lwps": 7, "max_msg_ids": 8,
        "max_sem_ids": 9, "max_shm_ids": 10, "max_shm_memory": 11, "zfs_io_priority": 12,
        "max_physical_memory": 513, "max_locked_memory": 512, "max_swap": 1025,
        "billing_id": "11111111-1111-4111-8111-111111111111",
        "owner_uuid": "22222222-2222-4222-8222-222222222222", "package_name": "p",
        "package_version": "2.0.0", "hostname": "h", "dns_domain": "d",
        "resolvers": ["1.1.1.1", "8.8.8.8"], "maintain_resolvers": true, "tmpfs": 77,
        "init_name": "/bin/init", "restart_init": false, "zlog_max_size": 5000,
        "firewall_enabled": true, "do_not_inventory": true, "archive_on_delete": true,
        "internal_metadata_namespaces": ["a", "b"], "tags": {"a": "b", "n": 1, "t": true},
        "customer_metadata": {"k\"": "lines\nof it"}, "internal_metadata": {"root_pw": "x"},
        "routes": {"10.0.0.0/8": "nics[0]"}, "quota": 42, "zfs_root_compression": "gzip",
        "zfs_root_recsize": 8192, "zfs_filesystem_limit": 5, "zfs_snapshot_limit": 6,
        "indestructible_zoneroot": true,
        "nics": [{"interface": "net0", "mac": "02:00:00:00:00:01", "nic_tag": "external",
            "vlan_id": 7, "ip": "10.0.0.5", "ips": ["10.0.0.5/24", "addrconf"], "mtu": 9000,
            "blocked_outgoing_ports": [25, 465], "primary": true, "allow_ip_spoofing": true}],
        "filesystems": [{"source": "/x", "target": "/y", "type": "lofs", "options": ["ro"]}],
    })
}

#[test]
fn every_member_is_written_and_read_again() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "running");
    let before = read(&*applier, uuid);
    let after = update(&*applier, uuid, everything()).unwrap();
    for (member, value) in everything().as_object().unwrap() {
        assert_eq!(&after[member], value, "{member}");
    }
    assert!(after["last_modified"].as_str() > before["last_modified"].as_str());
    // And back again: what it had not is removed.
    let mut locked = applier.lock(uuid, soon()).unwrap();
    let mut target = before.clone();
    target.insert("last_modified".to_owned(), after["last_modified"].clone());
    locked.update(&target).unwrap();
    let mut back = locked.vm().clone();
    back.insert("last_modified".to_owned(), after["last_modified"].clone());
    assert_eq!(Value::Object(back), Value::Object(target));
}

#[test]
fn every_vm_of_a_large_store_can_be_updated() {
    let store = Store::new(60);
    let applier = store.applier();
    for zone in change::zonenames(store.root()).unwrap() {
        let uuid = zone.parse().unwrap();
        let members = json!({"alias": "x", "tags": {"a": 1}, "quota": 7});
        let after = update(&*applier, uuid, members).unwrap();
        assert_eq!((&after["alias"], &after["quota"]), (&json!("x"), &json!(7)));
    }
}

#[test]
fn only_what_differs_is_written() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "stopped");
    let cases = [
        (json!({}), vec![]),
        (json!({"alias": "a"}), vec![format!("etc/zones/{uuid}.xml")]),
        (
            json!({"quota": 99}),
            vec![format!("var/db/datasets/{uuid}.json")],
        ),
        (
            json!({"tags": {"only": "this"}}),
            vec![format!("zones/{uuid}/config/tags.json")],
        ),
        (
            json!({"customer_metadata": {"a": "b"}}),
            vec![format!("zones/{uuid}/config/metadata.json")],
        ),
        (
            json!({"alias": "b", "quota": 98}),
            vec![
                format!("etc/zones/{uuid}.xml"),
                format!("var/db/datasets/{uuid}.json"),
            ],
        ),
    ];
    for (members, expected) in cases {
        let before = store.files();
        update(&*applier, uuid, members.clone()).unwrap();
        assert_eq!(changed(&before, &store.files()), expected, "{members}");
    }
}

#[test]
fn an_update_that_leaves_the_xml_alone_gives_it_a_new_time() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "stopped");
    let xml = store.path(&format!("etc/zones/{uuid}.xml"));
    let old = xml.metadata().unwrap().modified().unwrap();
    let before = SystemTime::now() - Duration::from_secs(1);
    update(&*store.applier(), uuid, json!({})).unwrap();
    assert_eq!(xml.metadata().unwrap().modified().unwrap(), old);
    update(&*store.applier(), uuid, json!({"quota": 99})).unwrap();
    assert!(xml.metadata().unwrap().modified().unwrap() > before);
}

#[test]
fn unknown_members_of_files_stay() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "stopped");
    let name = format!("zones/{uuid}/config/metadata.json");
    let mut metadata = store.json(&name);
    metadata["strange"] = json!({"kept": [1]});
    fs::write(store.path(&name), metadata.to_string()).unwrap();
    let datasets = format!("var/db/datasets/{uuid}.json");
    let mut file = store.json(&datasets);
    file[format!("zones/{uuid}")]["strange"] = json!("kept");
    fs::write(store.path(&datasets), file.to_string()).unwrap();
    let members = json!({"customer_metadata": {"a": "b"}, "quota": 3});
    update(&*store.applier(), uuid, members).unwrap();
    let after = store.json(&name);
    assert_eq!(after["strange"], json!({"kept": [1]}));
    assert_eq!(after["internal_metadata"], metadata["internal_metadata"]);
    let after = store.json(&datasets);
    assert_eq!(after[format!("zones/{uuid}")]["strange"], "kept");
}

#[test]
fn a_disk_comes_grows_and_goes_with_its_volume() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("bhyve", "running");
    let mut disks = read(&*applier, uuid)["disks"].clone();
    let count = disks.as_array().unwrap().len();
    let volume = format!("zones/{uuid}-disk7");
    disks.as_array_mut().unwrap().push(json!({
        "path": format!("/dev/zvol/rdsk/{volume}"), "model": "virtio", "media": "disk",
        "size": 1024, "compression": "lz4", "block_size": 4096, "pci_slot": "0:4:7",
    }));
    let after = update(&*applier, uuid, json!({"disks": disks})).unwrap();
    let disk = &after["disks"][count];
    assert_eq!(
        (
            &disk["size"],
            &disk["compression"],
            &disk["block_size"],
            &disk["refreservation"]
        ),
        (&json!(1024), &json!("lz4"), &json!(4096), &json!(1024))
    );
    let mut disks = after["disks"].clone();
    disks[count]["size"] = json!(2048);
    disks[count]["refreservation"] = json!(0);
    let after = update(&*applier, uuid, json!({"disks": disks})).unwrap();
    assert_eq!(after["disks"][count]["size"], 2048);
    let mut disks = after["disks"].clone();
    disks.as_array_mut().unwrap().pop();
    let after = update(&*applier, uuid, json!({"disks": disks})).unwrap();
    assert_eq!(after["disks"].as_array().unwrap().len(), count);
    assert!(
        store
            .json(&format!("var/db/datasets/{uuid}.json"))
            .get(&volume)
            .is_none()
    );
}

#[test]
fn a_lock_that_another_tool_holds_is_busy_and_named() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "running");
    let path = store.path(&format!("var/run/vm.{uuid}.config.lockfile"));
    let file = fs::File::create(&path).unwrap();
    file.lock().unwrap();
    let error = applier.lock(uuid, Instant::now()).err().unwrap();
    assert_eq!(error.kind, FailedKind::Busy);
    assert!(error.reason.contains(".config.lockfile: locked"), "{error}");
    drop(file);
    applier.lock(uuid, soon()).unwrap();
    assert!(path.exists());
}

#[test]
fn a_vm_that_is_not_there_is_gone_and_leaves_no_lock() {
    let store = Store::new(1);
    let uuid = Uuid::new_v4();
    let error = store.applier().lock(uuid, soon()).err().unwrap();
    assert_eq!(error.kind, FailedKind::Gone);
    assert!(
        !store
            .path(&format!("var/run/vm.{uuid}.config.lockfile"))
            .exists()
    );
}

#[test]
fn a_vm_that_cannot_be_read_wholly_is_not_changed() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    fs::write(store.path(&format!("zones/{uuid}/config/tags.json")), "{").unwrap();
    let error = store.applier().lock(uuid, soon()).err().unwrap();
    assert_eq!(error.kind, FailedKind::Source);
    assert!(
        error.reason.contains("config/tags.json: not JSON"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_none_is_refused_and_nothing_changes() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    let tags = store.path(&format!("zones/{uuid}/config/tags.json"));
    let elsewhere = store.path("elsewhere");
    fs::rename(&tags, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &tags).unwrap();
    let before = store.files();
    let members = json!({"tags": {"a": "b"}, "quota": 9, "alias": "x"});
    let error = update(&*store.applier(), uuid, members).unwrap_err();
    assert!(
        error.reason.contains("tags.json: not a plain file"),
        "{error}"
    );
    assert!(error.applied.is_empty());
    assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
}

#[test]
fn a_value_that_cannot_be_written_changes_nothing() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    let before = store.files();
    for members in [
        json!({"hostname": "a\u{1}", "quota": 9, "tags": {}}),
        json!({"zfs_data_recsize": 512, "alias": "x"}),
        json!({"tags": 7, "alias": "x"}),
    ] {
        let error = update(&*store.applier(), uuid, members).unwrap_err();
        assert_eq!(error.kind, FailedKind::Invalid);
        assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
    }
}

#[test]
fn mode_and_owner_of_a_replaced_file_are_kept() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    let xml = store.path(&format!("etc/zones/{uuid}.xml"));
    fs::set_permissions(&xml, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&xml, Some(7), Some(8)).unwrap();
    update(&*store.applier(), uuid, json!({"alias": "x"})).unwrap();
    let metadata = xml.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (7, 8));
    assert_eq!(metadata.mode() & 0o7777, 0o640);
}

/// Steps of a change, counted; the one of this number fails.
fn failing(number: usize) -> impl Fn(&str) -> io::Result<()> + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |_| match count.fetch_add(1, Ordering::Relaxed) == number {
        true => Err(io::Error::from_raw_os_error(libc_enospc())),
        false => Ok(()),
    }
}

/// No space left on device.
fn libc_enospc() -> i32 {
    nix::errno::Errno::ENOSPC as i32
}

#[test]
fn a_step_that_fails_says_what_was_applied_and_leaves_no_journal() {
    let members = json!({"alias": "x", "quota": 9, "tags": {"a": 1}});
    // The journal, quota, tags.json, the XML.
    let expected: [&[&str]; 4] = [&[], &[], &["quota"], &["quota", "tags.json"]];
    for (number, applied) in expected.into_iter().enumerate() {
        let store = Store::new(30);
        let uuid = store.find("joyent", "running");
        let applier = store.with_steps(failing(number));
        let before = store.files();
        let error = update(&*applier, uuid, members.clone()).unwrap_err();
        assert_eq!(error.kind, FailedKind::Source);
        assert_eq!(error.applied, applied, "{error}");
        assert!(error.reason.contains("No space left"), "{error}");
        assert_eq!(changed(&before, &store.files()).len(), applied.len());
        // It is still a VM, and can be changed.
        let after = update(&*store.applier(), uuid, members.clone()).unwrap();
        assert_eq!(after["alias"], "x");
    }
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    // Root may write everywhere, but nobody below a file.
    fs::rename(store.path("var/run"), store.path("var/away")).unwrap();
    fs::write(store.path("var/run"), "").unwrap();
    let error = store.applier().lock(uuid, soon()).err().unwrap();
    assert_eq!(error.kind, FailedKind::Source);
    assert!(error.reason.contains("var/run"), "{error}");
}

/// What a process leaves that is killed before each of the steps of a change: as many stores.
fn cut(store: &Store, change: impl FnOnce(&dyn Apply)) -> Vec<Store> {
    let copies = Arc::new(Mutex::new(Vec::new()));
    let (root, taken) = (store.root().to_owned(), Arc::clone(&copies));
    let applier = store.with_steps(move |_| {
        let dir = tempfile::tempdir()?;
        copy(&root, dir.path())?;
        taken.lock().unwrap().push(Store { dir });
        Ok(())
    });
    change(&*applier);
    drop(applier);
    Arc::try_unwrap(copies).ok().unwrap().into_inner().unwrap()
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// No journal and no temporary file is left.
#[track_caller]
fn check_tidy(store: &Store) {
    for name in store.files().keys() {
        let name = name.display().to_string();
        assert!(
            !name.contains(".update.json") && !name.contains(".vminfod"),
            "{name}"
        );
    }
}

#[test]
fn an_update_that_was_cut_leaves_a_vm_and_is_told_once() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    let old = read(&*store.applier(), uuid);
    let members = json!({"alias": "x", "quota": 9, "tags": {"a": 1}});
    let stores = cut(&store, |applier| {
        update(applier, uuid, members.clone()).unwrap();
    });
    check_tidy(&store);
    assert_eq!(stores.len(), 4);
    for (number, store) in stores.iter().enumerate() {
        let applier = store.applier();
        let cuts = applier.recover();
        let vm = read(&*applier, uuid);
        match number {
            0 | 1 => {
                assert_eq!(cuts, []);
                assert_eq!(vm["quota"], old["quota"]);
            }
            _ => {
                assert_eq!(cuts.len(), 1, "{cuts:?}");
                assert_eq!(cuts[0].uuid, uuid);
                let (applied, rest) = cuts[0].reason.split_once("; not applied were ").unwrap();
                assert!(applied.contains("quota"), "{applied}");
                assert!(rest.contains("alias"), "{rest}");
                assert_eq!(applied.contains("tags"), number == 3);
                assert_eq!(
                    (&vm["quota"], vm.get("alias")),
                    (&json!(9), old.get("alias"))
                );
            }
        }
        assert_eq!(applier.recover(), []);
        check_tidy(store);
    }
}

#[test]
fn a_disk_that_was_made_before_the_cut_does_not_stay() {
    let store = Store::new(30);
    let uuid = store.find("bhyve", "running");
    let mut disks = read(&*store.applier(), uuid)["disks"].clone();
    let volume = format!("zones/{uuid}-disk7");
    disks.as_array_mut().unwrap().push(json!({
        "path": format!("/dev/zvol/rdsk/{volume}"), "model": "virtio", "size": 10,
    }));
    let stores = cut(&store, |applier| {
        update(applier, uuid, json!({"disks": disks})).unwrap();
    });
    let last = stores.last().unwrap();
    let name = format!("var/db/datasets/{uuid}.json");
    assert!(last.json(&name).get(&volume).is_some());
    assert_eq!(last.applier().recover(), []);
    assert!(last.json(&name).get(&volume).is_none());
}

#[test]
fn a_journal_of_somebody_alive_is_left_alone() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    let applier = store.applier();
    let locked = applier.lock(uuid, soon()).unwrap();
    let journal = store.path(&format!("var/run/vm.{uuid}.update.json"));
    fs::write(&journal, "{\"operation\": \"update\"}").unwrap();
    assert_eq!(store.applier().recover(), []);
    assert!(journal.exists());
    drop(locked);
    assert_eq!(store.applier().recover(), []);
    assert!(!journal.exists());
}

#[test]
fn a_journal_that_is_not_understood_is_told() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "running");
    let journal = store.path(&format!("var/run/vm.{uuid}.update.json"));
    fs::write(&journal, "{").unwrap();
    let cuts = store.applier().recover();
    assert!(cuts[0].reason.contains("update.json: not JSON"), "{cuts:?}");
}

#[test]
fn start_stop_reboot_and_kill_are_recorded() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "stopped");
    let largest = fs::read_dir(store.path("var/run/zones"))
        .unwrap()
        .map(|file| {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()["zoneid"]
                .as_u64()
                .unwrap()
        });
    let largest = largest.max().unwrap();
    let vm = run(&*applier, uuid, &Verb::Start).unwrap();
    assert_eq!(
        (&vm["state"], &vm["zoneid"]),
        (&json!("running"), &json!(largest + 1))
    );
    assert_eq!(vm["init_restarts"], 0);
    assert!(vm.contains_key("boot_timestamp") && !vm.contains_key("exit_status"));
    let again = run(&*applier, uuid, &Verb::Start).unwrap_err();
    assert_eq!(again.kind, FailedKind::Busy);

    let vm = run(&*applier, uuid, &Verb::Reboot { force: false }).unwrap();
    assert_eq!(vm["zoneid"], largest + 2);
    let vm = run(&*applier, uuid, &Verb::Kill("TERM")).unwrap();
    assert_eq!(
        (&vm["state"], &vm["init_restarts"]),
        (&json!("running"), &json!(1))
    );
    update(&*applier, uuid, json!({"restart_init": false})).unwrap();
    let vm = run(&*applier, uuid, &Verb::Kill("TERM")).unwrap();
    assert_eq!(
        (&vm["state"], &vm["exit_status"]),
        (&json!("stopped"), &json!(-15))
    );
    assert_eq!(vm["zoneid"], Value::Null);
    assert!(!vm.contains_key("boot_timestamp"));

    run(&*applier, uuid, &Verb::Start).unwrap();
    let vm = run(&*applier, uuid, &STOP).unwrap();
    assert_eq!(
        (&vm["state"], &vm["exit_status"]),
        (&json!("stopped"), &json!(0))
    );
    run(&*applier, uuid, &Verb::Start).unwrap();
    let force = Verb::Stop {
        force: true,
        timeout: None,
    };
    let vm = run(&*applier, uuid, &force).unwrap();
    assert_eq!(vm["exit_status"], -9);
    for verb in [STOP, Verb::Reboot { force: true }, Verb::Kill("HUP")] {
        assert_eq!(
            run(&*applier, uuid, &verb).unwrap_err().kind,
            FailedKind::Busy
        );
    }
    for verb in [Verb::Sync, Verb::Revert] {
        assert_eq!(
            run(&*applier, uuid, &verb).unwrap_err().kind,
            FailedKind::Invalid
        );
    }
}

#[test]
fn a_kvm_zone_remembers_whether_it_ran() {
    let store = Store::new(60);
    let applier = store.applier();
    let uuid = store.find("kvm", "running");
    let vm = run(&*applier, uuid, &STOP).unwrap();
    assert_eq!(
        (&vm["autoboot"], &vm["state"]),
        (&json!(false), &json!("stopped"))
    );
    let vm = run(&*applier, uuid, &Verb::Start).unwrap();
    assert_eq!(
        (&vm["autoboot"], &vm["state"]),
        (&json!(true), &json!("running"))
    );
    let xml = store.text(&format!("etc/zones/{uuid}.xml"));
    assert!(xml.contains(" autoboot=\"false\""));
}

#[test]
fn a_deleted_vm_leaves_nothing_and_the_others_as_they_were() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "running");
    let before = store.files();
    applier
        .lock(uuid, soon())
        .unwrap()
        .run(&Verb::Delete)
        .unwrap();
    let after = store.files();
    let of_zone = |name: &PathBuf| name.display().to_string().contains(&uuid.to_string());
    assert!(!after.keys().any(of_zone));
    assert!(!store.path(&format!("zones/{uuid}")).exists());
    let others = changed(&before, &after);
    assert!(
        others
            .iter()
            .all(|name| name.contains(&uuid.to_string()) || name == "etc/zones/index")
    );
    let index = store.text("etc/zones/index");
    let line = format!("{uuid}:installed:/zones/{uuid}:{uuid}\n");
    let old = String::from_utf8(before[Path::new("etc/zones/index")].clone()).unwrap();
    assert_eq!(index, old.replace(&line, ""));
    assert_eq!(
        applier.lock(uuid, soon()).err().unwrap().kind,
        FailedKind::Gone
    );
}

#[test]
fn a_vm_that_cannot_be_read_is_deleted_wholly_and_the_others_stay() {
    for (brand, broken) in [
        ("joyent", "etc/zones/ZONE.xml"),
        ("kvm", "etc/zones/ZONE.xml"),
        ("bhyve", "zones/ZONE/config/tags.json"),
    ] {
        let store = Store::new(30);
        let applier = store.applier();
        let uuid = store.find(brand, "running");
        let zone = uuid.to_string();
        fs::write(store.path(&broken.replace("ZONE", &zone)), "<").unwrap();
        let before = store.files();
        let error = applier.lock(uuid, soon()).err().unwrap();
        assert_eq!(error.kind, FailedKind::Source);
        applier.delete(uuid, soon()).unwrap();
        let after = store.files();
        assert!(
            !after
                .keys()
                .any(|name| name.display().to_string().contains(&zone))
        );
        let others = changed(&before, &after);
        let is_its_own = |name: &String| name.contains(&zone) || name == "etc/zones/index";
        assert!(others.iter().all(is_its_own), "{others:?}");
        let gone = applier.delete(uuid, soon()).unwrap_err();
        assert_eq!(gone.kind, FailedKind::Gone);
    }
}

#[test]
fn a_vm_of_which_too_little_can_be_read_is_not_deleted() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "running");
    let xml = store.path(&format!("etc/zones/{uuid}.xml"));
    update(&*applier, uuid, json!({"indestructible_zoneroot": true})).unwrap();
    fs::write(&xml, "<").unwrap();
    let refused = |why: &str| {
        let before = store.files();
        let error = applier.delete(uuid, soon()).unwrap_err();
        assert_eq!(error.kind, FailedKind::Source);
        assert!(error.reason.contains(why), "{error}");
        assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
    };
    refused("indestructible_zoneroot");
    // Nobody knows whether it runs, or what its datasets are.
    fs::write(store.path(&format!("var/run/zones/{uuid}.json")), "{").unwrap();
    refused("var/run/zones");
    fs::remove_file(store.path(&format!("var/run/zones/{uuid}.json"))).unwrap();
    fs::write(store.path(&format!("var/db/datasets/{uuid}.json")), "{").unwrap();
    refused("var/db/datasets");
}

#[test]
fn what_is_indestructible_is_not_deleted() {
    let store = Store::new(30);
    let applier = store.applier();
    let uuid = store.find("joyent", "running");
    update(&*applier, uuid, json!({"indestructible_zoneroot": true})).unwrap();
    let before = store.files();
    let error = run(&*applier, uuid, &Verb::Delete).unwrap_err();
    assert!(error.reason.contains("indestructible_zoneroot"), "{error}");
    assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
    update(&*applier, uuid, json!({"indestructible_zoneroot": false})).unwrap();
    applier
        .lock(uuid, soon())
        .unwrap()
        .run(&Verb::Delete)
        .unwrap();
}

#[test]
fn a_delete_that_was_cut_is_ended_or_has_not_begun() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "stopped");
    let stores = cut(&store, |applier| {
        applier
            .lock(uuid, soon())
            .unwrap()
            .run(&Verb::Delete)
            .unwrap();
    });
    check_tidy(&store);
    assert!(stores.len() > 3);
    for store in stores {
        let was_listed = store.text("etc/zones/index").contains(&uuid.to_string());
        let applier = store.applier();
        assert_eq!(applier.recover(), []);
        check_tidy(&store);
        let left = store.files().into_keys();
        let left = left.filter(|name| name.display().to_string().contains(&uuid.to_string()));
        match was_listed {
            true => assert_eq!(read(&*applier, uuid)["state"], "stopped"),
            false => assert_eq!(left.count(), 0),
        }
    }
}

#[test]
fn snapshots_come_are_gone_back_to_and_go() {
    let store = Store::new(60);
    let applier = store.applier();
    let uuid = store.find("bhyve", "running");
    let names = |vm: &Object| -> Vec<String> {
        let snapshots = vm["snapshots"].as_array().unwrap().iter();
        snapshots
            .map(|snapshot| snapshot["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let old = names(&read(&*applier, uuid));
    let snapshot = |name: &str| Verb::Snapshot(name.to_owned());
    let vm = run(&*applier, uuid, &snapshot("one")).unwrap();
    assert!(names(&vm).contains(&"one".to_owned()));
    assert_eq!(vm["state"], "running");
    assert_eq!(
        run(&*applier, uuid, &snapshot("one")).unwrap_err().kind,
        FailedKind::Exists
    );
    assert_eq!(
        run(&*applier, uuid, &snapshot("a/b")).unwrap_err().kind,
        FailedKind::Invalid
    );
    run(&*applier, uuid, &snapshot("two")).unwrap();
    let datasets = store.json(&format!("var/db/datasets/{uuid}.json"));
    let on_disks = datasets
        .as_object()
        .unwrap()
        .keys()
        .filter(|name| name.ends_with("disk0@vmsnap-one"));
    assert_eq!(on_disks.count(), 1);

    let zoneid = vm["zoneid"].clone();
    let vm = run(&*applier, uuid, &Verb::Rollback("one".to_owned())).unwrap();
    assert!(!names(&vm).contains(&"two".to_owned()));
    assert_eq!(vm["state"], "running");
    assert_ne!(vm["zoneid"], zoneid, "it was stopped for that");
    let none = Verb::Rollback("two".to_owned());
    assert_eq!(
        run(&*applier, uuid, &none).unwrap_err().kind,
        FailedKind::Invalid
    );
    let vm = run(&*applier, uuid, &Verb::DeleteSnapshot("one".to_owned())).unwrap();
    assert_eq!(names(&vm), old);
}

/// What a create payload comes to.
fn wanted(uuid: Uuid, brand: &str) -> Object {
    let mut vm = everything().as_object().unwrap().clone();
    vm.remove("indestructible_zoneroot");
    let more = json!({"uuid": uuid.to_string(), "brand": brand, "zpool": "zones",
        "image_uuid": "33333333-3333-4333-8333-333333333333"});
    vm.extend(more.as_object().unwrap().clone());
    vm
}

#[test]
fn a_created_vm_is_what_was_asked_for_and_can_be_deleted() {
    let store = Store::new(3);
    let applier = store.applier();
    let before = store.files();
    let uuid = Uuid::new_v4();
    let wanted = wanted(uuid, "joyent");
    applier.create(uuid, &wanted, soon()).unwrap();
    check_tidy(&store);
    let vm = read(&*applier, uuid);
    for (member, value) in &wanted {
        assert_eq!(&vm[member], value, "{member}");
    }
    assert_eq!((&vm["state"], &vm["v"]), (&json!("stopped"), &json!(1)));
    assert_eq!(vm["zfs_filesystem"], format!("zones/{uuid}"));
    assert_eq!(vm["zonepath"], format!("/zones/{uuid}"));
    let exists = applier.create(uuid, &wanted, soon()).unwrap_err();
    assert_eq!(exists.kind, FailedKind::Exists);
    applier
        .lock(uuid, soon())
        .unwrap()
        .run(&Verb::Delete)
        .unwrap();
    assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
}

#[test]
fn a_vm_that_boots_by_itself_runs_once_it_is_created() {
    let store = Store::new(3);
    let applier = store.applier();
    for brand in ["lx", "kvm", "bhyve"] {
        let uuid = Uuid::new_v4();
        let vm = json!({"brand": brand, "autoboot": true, "ram": 256, "quota": 10, "disks": [
            {"path": format!("/dev/zvol/rdsk/zones/{uuid}-disk0"), "size": 512, "boot": true,
             "image_uuid": "33333333-3333-4333-8333-333333333333"}]});
        applier
            .create(uuid, vm.as_object().unwrap(), soon())
            .unwrap();
        let vm = read(&*applier, uuid);
        assert_eq!(
            (&vm["state"], &vm["autoboot"]),
            (&json!("running"), &json!(true))
        );
        assert_eq!(vm["disks"][0]["size"], 512);
    }
}

#[test]
fn a_create_that_was_cut_or_failed_leaves_nothing() {
    let store = Store::new(3);
    let before = store.files();
    let uuid = Uuid::new_v4();
    let stores = cut(&store, |applier| {
        applier
            .create(uuid, &wanted(uuid, "joyent"), soon())
            .unwrap();
    });
    assert!(stores.len() > 5);
    let count = stores.len();
    for store in stores {
        assert_eq!(store.applier().recover(), []);
        assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
        assert!(!store.path(&format!("zones/{uuid}")).exists());
    }
    for number in 0..count {
        let store = Store::new(3);
        let applier = store.with_steps(failing(number));
        let error = applier
            .create(uuid, &wanted(uuid, "joyent"), soon())
            .unwrap_err();
        assert!(error.applied.is_empty(), "{error:?}");
        assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
        store
            .applier()
            .create(uuid, &wanted(uuid, "joyent"), soon())
            .unwrap();
    }
}

#[test]
fn who_gives_a_name_that_another_is_just_giving_is_refused_and_takes_nothing_from_it() {
    let store = Store::new(3);
    let named = |uuid: Uuid| {
        let mut vm = wanted(uuid, "joyent");
        vm.insert("zonename".to_owned(), json!("web"));
        vm
    };
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let refused = Arc::new(Mutex::new(None));
    let (applier, kept) = (
        Arc::new(Mutex::new(None::<Arc<dyn Apply>>)),
        refused.clone(),
    );
    let (inner, vm) = (applier.clone(), named(second));
    let outer = store.with_steps(move |step| {
        // The first has found the name free and made nothing yet.
        let applier = match step {
            "journal" => inner.lock().unwrap().take(),
            _ => None,
        };
        if let Some(applier) = applier {
            *kept.lock().unwrap() = Some(applier.create(second, &vm, soon()));
        }
        Ok(())
    });
    // Another daemon, which shares nothing with the first but the store.
    *applier.lock().unwrap() = Some(store.applier());
    outer.create(first, &named(first), soon()).unwrap();
    let error = refused.lock().unwrap().take().unwrap().unwrap_err();
    assert_eq!(error.kind, FailedKind::Exists);
    assert_eq!(
        read(&*outer, first)["alias"],
        wanted(first, "joyent")["alias"]
    );
    check_tidy(&store);
}

#[test]
fn what_a_cut_create_left_is_not_removed_once_another_vm_has_the_name() {
    for verb in ["create", "delete"] {
        let store = Store::new(3);
        let (cut, other) = (Uuid::new_v4(), Uuid::new_v4());
        let mut vm = wanted(other, "joyent");
        vm.insert("zonename".to_owned(), json!("web"));
        store.applier().create(other, &vm, soon()).unwrap();
        let journal = json!({"operation": verb, "zonename": "web", "datasets": [],
            "files": ["etc/zones/web.xml", "zones/web/config/metadata.json"], "folders": []});
        let path = store.path(&format!("var/run/vm.{cut}.update.json"));
        fs::write(path, journal.to_string()).unwrap();
        let before = read(&*store.applier(), other);
        let cuts = store.applier().recover();
        assert_eq!(cuts.len(), 1);
        assert!(cuts[0].reason.contains("the zone web"), "{cuts:?}");
        assert_eq!(read(&*store.applier(), other), before);
    }
}

#[test]
fn a_name_that_is_taken_or_none_is_refused() {
    let store = Store::new(3);
    let applier = store.applier();
    let taken = change::zonenames(store.root()).unwrap().remove(0);
    for (zonename, kind) in [
        (taken.as_str(), FailedKind::Exists),
        ("global", FailedKind::Invalid),
        ("a/b", FailedKind::Invalid),
        ("..", FailedKind::Invalid),
        ("a:b", FailedKind::Invalid),
    ] {
        let uuid = Uuid::new_v4();
        let mut vm = wanted(uuid, "joyent");
        vm.insert("zonename".to_owned(), json!(zonename));
        let before = store.files();
        let error = applier.create(uuid, &vm, soon()).unwrap_err();
        assert_eq!(error.kind, kind, "{zonename}");
        assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
    }
}

#[test]
fn a_torn_index_is_not_written() {
    let store = Store::new(3);
    let index = store.text("etc/zones/index");
    let torn = index.trim_end();
    fs::write(store.path("etc/zones/index"), torn).unwrap();
    let uuid = Uuid::new_v4();
    let error = store
        .applier()
        .create(uuid, &wanted(uuid, "joyent"), soon())
        .unwrap_err();
    assert!(error.reason.contains("its last line has no end"), "{error}");
    assert_eq!(store.text("etc/zones/index"), torn);
    assert!(!store.path(&format!("etc/zones/{uuid}.xml")).exists());
}

/// A program that runs zones: it is a script of this text.
fn runner(store: &Store, text: &str) -> (Arc<dyn Apply>, Zones) {
    let (script, program) = (store.path("source.sh"), store.path("run-zones"));
    fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
    // Another process writes it: a descriptor of ours that a fork still holds open for writing would
    // make the kernel refuse to execute it.
    let mut install = std::process::Command::new("install");
    assert!(
        install
            .arg("-m755")
            .arg(&script)
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    let zones = Zones::new(ZonesOptions {
        runtime_exec: Some(program),
        ..ZonesOptions::new(store.root())
    });
    (zones.applier(), zones)
}

#[test]
fn a_program_that_runs_zones_has_the_last_word() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "stopped");
    let text = format!(
        "echo \"$@\" >> {root}/calls\n\
         [ $1 = start ] || exit 0\n\
         sleep 600 > {root}/out 2>&1 & echo $! > {root}/pid\n\
         echo '{{\"zoneid\": 777, \"state\": \"running\"}}' > {root}/var/run/zones/$2.json",
        root = store.root().display(),
    );
    let (applier, _zones) = runner(&store, &text);
    let vm = run(&*applier, uuid, &Verb::Start).unwrap();
    assert_eq!(vm["zoneid"], 777);
    let pid = store.text("pid").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    run(&*applier, uuid, &Verb::Kill("USR1")).unwrap();
    let force = Verb::Stop {
        force: true,
        timeout: None,
    };
    let vm = run(&*applier, uuid, &force).unwrap();
    assert_eq!(vm["state"], "running", "it did nothing");
    let calls = format!("start {uuid}\nkill {uuid} USR1\nstop {uuid} force\n");
    assert_eq!(store.text("calls"), calls);
}

#[test]
fn a_program_that_fails_or_hangs_is_told() {
    let store = Store::new(30);
    let uuid = store.find("joyent", "stopped");
    let (applier, _zones) = runner(&store, "echo no memory left >&2; exit 3");
    let error = run(&*applier, uuid, &Verb::Start).unwrap_err();
    assert_eq!(error.kind, FailedKind::Source);
    assert!(
        error.reason.ends_with("exit status: 3: no memory left"),
        "{error}"
    );
    let (applier, _zones) = runner(&store, "sleep 600; true");
    let mut locked = applier
        .lock(uuid, Instant::now() + Duration::from_secs(3))
        .unwrap();
    let error = locked.run(&Verb::Start).unwrap_err();
    assert!(error.reason.contains("no answer within"), "{error}");
}

#[test]
fn who_would_notice_is_named() {
    let store = Store::new(1);
    let applier = store.applier();
    assert_eq!(applier.watcher(Part::Zone), "inotify on etc/zones");
    assert_eq!(
        applier.watcher(Part::Datasets),
        "inotify on var/db/datasets"
    );
}

/// Waits for a VM that is as wanted.
fn wait(reports: &Receiver<Report>, uuid: Uuid, wanted: impl Fn(&Object) -> bool) {
    loop {
        let vms = match reports.recv_timeout(PATIENCE).unwrap() {
            Report::Changed(vms) => vms,
            Report::Listing(listing) => listing.vms,
            _ => continue,
        };
        if vms
            .iter()
            .any(|vm| vm.uuid == uuid && wanted(&vm.vm.object()))
        {
            return;
        }
    }
}

#[test]
fn a_nudge_finds_what_no_event_announced() {
    let store = Store::new(3);
    let uuid: Uuid = change::zonenames(store.root()).unwrap()[0].parse().unwrap();
    let faults = Arc::new(Faults::default());
    faults.deaf.store(true, Ordering::Relaxed);
    let zones = Zones::new(ZonesOptions {
        faults,
        ..ZonesOptions::new(store.root())
    });
    let applier = zones.applier();
    let (sender, reports) = channel();
    zones.start(sender).unwrap();
    wait(&reports, uuid, |_| true);
    update(&*applier, uuid, json!({"alias": "nudged"})).unwrap();
    zones.reload(uuid);
    wait(&reports, uuid, |vm| {
        vm.get("alias") == Some(&json!("nudged"))
    });
    let new = Uuid::new_v4();
    applier.create(new, &wanted(new, "joyent"), soon()).unwrap();
    zones.reload(new);
    wait(&reports, new, |vm| vm["quota"] == 42);
    applier
        .lock(new, soon())
        .unwrap()
        .run(&Verb::Delete)
        .unwrap();
    zones.reload(new);
    loop {
        if let Report::Gone(gone) = reports.recv_timeout(PATIENCE).unwrap() {
            assert_eq!(gone, new);
            break;
        }
    }
    let status = zones.status();
    let boots = status["providers"]["runtime"]["boots"].as_str().unwrap();
    assert!(boots.starts_with("nothing"), "{boots}");
}

#[test]
fn many_writers_of_many_vms_lose_nothing() {
    let store = Store::new(4);
    let applier = store.applier();
    let uuids: Vec<Uuid> = change::zonenames(store.root())
        .unwrap()
        .iter()
        .map(|name| name.parse().unwrap())
        .collect();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (applier, uuids) = (&applier, &uuids);
            scope.spawn(move || {
                for round in 0..10 {
                    let uuid = uuids[(writer + round) % uuids.len()];
                    let mut locked = applier.lock(uuid, soon()).unwrap();
                    let mut target = locked.vm().clone();
                    target["tags"][format!("{writer}-{round}")] = json!(true);
                    locked.update(&target).unwrap();
                }
            });
            scope.spawn(move || {
                let uuid = Uuid::new_v4();
                applier
                    .create(uuid, &wanted(uuid, "joyent"), soon())
                    .unwrap();
                applier
                    .lock(uuid, soon())
                    .unwrap()
                    .run(&Verb::Delete)
                    .unwrap();
            });
        }
    });
    let tags = uuids.iter().map(|uuid| {
        let vm = read(&*applier, *uuid);
        let tags = vm["tags"].as_object().unwrap();
        tags.keys()
            .filter(|key| key.contains('-') && key.len() <= 3)
            .count()
    });
    assert_eq!(tags.sum::<usize>(), 40);
    assert_eq!(change::zonenames(store.root()).unwrap().len(), 4);
}

/// A small file system of its own, unmounted at the end.
struct Small {
    store: Store,
}

impl Small {
    fn new() -> Small {
        let dir = tempfile::tempdir().unwrap();
        mount(
            Some("small"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=2m"),
        )
        .unwrap();
        let small = Small {
            store: Store { dir },
        };
        sample::write(small.store.root(), &sample::Options { vms: 3, seed: 1 }).unwrap();
        small
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(self.store.root(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_changes_nothing_and_the_file_is_named() {
    let small = Small::new();
    let store = &small.store;
    let uuid: Uuid = change::zonenames(store.root()).unwrap()[0].parse().unwrap();
    let before = store.files();
    let large = json!({"alias": "x", "quota": 9, "tags": {"a": 1},
        "customer_metadata": {"large": "x".repeat(4 << 20)}});
    let error = update(&*store.applier(), uuid, large).unwrap_err();
    assert_eq!(error.kind, FailedKind::Source);
    assert!(error.applied.is_empty(), "{error:?}");
    assert!(
        error
            .reason
            .contains("metadata.json: No space left on device"),
        "{error}"
    );
    assert!(
        error.reason.ends_with("make room there, then try again"),
        "{error}"
    );
    assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
    // Not even room for an empty file.
    let fill = fs::File::create(store.path("fill")).unwrap();
    let mut room = vec![0; 4096];
    while io::Write::write(&mut &fill, &room).is_ok_and(|count| count > 0) {}
    room.clear();
    let before = store.files();
    let members = json!({"alias": "x", "quota": 9, "tags": {"a": 1}});
    let error = update(&*store.applier(), uuid, members).unwrap_err();
    assert!(error.reason.contains("No space left on device"), "{error}");
    assert!(error.applied.is_empty(), "{error:?}");
    assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
    let new = Uuid::new_v4();
    let error = store
        .applier()
        .create(new, &wanted(new, "joyent"), soon())
        .unwrap_err();
    assert!(error.reason.contains("No space left on device"), "{error}");
    assert_eq!(changed(&before, &store.files()), Vec::<String>::new());
}

#[test]
fn a_store_that_is_mounted_read_only_says_so() {
    let small = Small::new();
    let store = &small.store;
    let uuid: Uuid = change::zonenames(store.root()).unwrap()[0].parse().unwrap();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(
        None::<&str>,
        store.root(),
        None::<&str>,
        flags,
        None::<&str>,
    )
    .unwrap();
    let error = store.applier().lock(uuid, soon()).err().unwrap();
    assert_eq!(error.kind, FailedKind::Source);
    assert!(
        error
            .reason
            .contains("config.lockfile: Read-only file system"),
        "{error}"
    );
}

#[test]
fn a_store_of_any_kind_of_vm_takes_every_verb_and_stays_readable() {
    let store = Store::new(40);
    let applier = store.applier();
    for zone in change::zonenames(store.root()).unwrap() {
        let uuid: Uuid = zone.parse().unwrap();
        let force = Verb::Stop {
            force: true,
            timeout: None,
        };
        for verb in [
            Verb::Start,
            Verb::Kill("TERM"),
            Verb::Reboot { force: true },
            Verb::Snapshot("all".to_owned()),
            Verb::Rollback("all".to_owned()),
            Verb::DeleteSnapshot("all".to_owned()),
            force,
        ] {
            match run(&*applier, uuid, &verb) {
                Ok(vm) => assert_eq!(vm["uuid"], zone),
                Err(error) => assert_ne!(error.kind, FailedKind::Gone, "{verb:?}: {error}"),
            }
        }
        let deleted = applier.lock(uuid, soon()).unwrap().run(&Verb::Delete);
        if let Err(error) = deleted {
            assert!(error.reason.contains("is indestructible"), "{error}");
        }
    }
    assert_eq!(change::zonenames(store.root()).unwrap().len(), 1);
}
