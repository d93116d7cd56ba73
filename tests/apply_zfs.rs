//! Changing zones whose datasets are on real ZFS. `zfs-fuse` has no volumes; the commands for those
//! are tested where they are made.

#![recursion_limit = "256"]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vminfod::source::zones::{Faults, Provider, Zones, ZonesOptions};
use vminfod::source::{Apply, Failed, FailedKind, Report, Source};
use vminfod::vm::Object;
use vminfod::vm::property::Part;
use vminfod::vm::verb::Verb;

#[path = "support/zfs_pool.rs"]
mod zfs_pool;
use zfs_pool::Pool;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

const IMAGE: &str = "33333333-3333-4333-8333-333333333333";

/// A store without zones, and a pool for those that come.
struct Host {
    dir: TempDir,
    pool: Pool,
}

impl Host {
    fn new() -> Host {
        let host = Host {
            dir: TempDir::new().unwrap(),
            pool: Pool::create("256M"),
        };
        fs::create_dir_all(host.dir.path().join("etc/zones")).unwrap();
        fs::write(
            host.dir.path().join("etc/zones/index"),
            "global:installed:/\n",
        )
        .unwrap();
        host
    }

    fn options(&self) -> ZonesOptions {
        ZonesOptions {
            datasets: Provider::Commands,
            runtime: Provider::Files,
            // Nothing is found by polling.
            zfs_poll: Duration::from_secs(3600),
            ..ZonesOptions::new(self.dir.path())
        }
    }

    fn applier(&self) -> Arc<dyn Apply> {
        Zones::new(self.options()).applier()
    }

    /// An applier of which this happens before the step of this number.
    fn at_step(
        &self,
        number: usize,
        event: fn() -> std::io::Result<()>,
    ) -> (Arc<dyn Apply>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let (faults, counted) = (Arc::new(Faults::default()), Arc::clone(&count));
        faults.on_step(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
            step if step == number => event(),
            _ => Ok(()),
        });
        let options = ZonesOptions {
            faults,
            ..self.options()
        };
        (Zones::new(options).applier(), count)
    }

    /// An image to make VMs of.
    fn image(&self) {
        let image = self.pool.dataset(IMAGE);
        self.pool.zfs(&["create", "-o", "canmount=off", &image]);
        self.pool.zfs(&["snapshot", &format!("{image}@final")]);
    }

    fn create(&self, applier: &dyn Apply, more: Value) -> Result<Uuid, Failed> {
        let uuid = Uuid::new_v4();
        applier.create(uuid, &self.wanted(uuid, more), soon())?;
        Ok(uuid)
    }

    fn wanted(&self, uuid: Uuid, more: Value) -> Object {
        let vm = json!({"uuid": uuid.to_string(), "brand": "joyent", "zpool": self.pool.name(),
            "quota": 1, "alias": "new"});
        let mut vm = vm.as_object().unwrap().clone();
        vm.extend(more.as_object().unwrap().clone());
        vm
    }

    /// All datasets and snapshots, less what ZFS counts.
    fn datasets(&self) -> Vec<String> {
        let list = [
            "list",
            "-H",
            "-r",
            "-t",
            "all",
            "-o",
            "name",
            self.pool.name(),
        ];
        let output = Command::new("zfs").args(list).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn get(&self, property: &str, name: &str) -> String {
        let name = self.pool.dataset(name);
        let get = ["get", "-Hp", "-o", "value", property, &name];
        let output = Command::new("zfs").args(get).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
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

fn delete(applier: &dyn Apply, uuid: Uuid) {
    applier
        .lock(uuid, soon())
        .unwrap()
        .run(&Verb::Delete)
        .unwrap();
}

#[test]
fn a_vm_is_cloned_from_its_image_changed_and_deleted() {
    let host = Host::new();
    host.image();
    let before = host.datasets();
    let applier = host.applier();
    let uuid = host
        .create(&*applier, json!({"image_uuid": IMAGE}))
        .unwrap();
    let name = uuid.to_string();
    let vm = read(&*applier, uuid);
    assert_eq!((&vm["quota"], &vm["alias"]), (&json!(1), &json!("new")));
    assert_eq!(vm["zfs_filesystem"], host.pool.dataset(&name));
    assert_eq!(
        host.get("origin", &name),
        host.pool.dataset(&format!("{IMAGE}@final"))
    );
    assert_eq!(host.get("mountpoint", &name), format!("/zones/{uuid}"));

    let members = json!({"quota": 2, "zfs_root_compression": "gzip", "zfs_root_recsize": 8192,
        "indestructible_zoneroot": true, "alias": "changed", "tags": {"a": "b"}});
    let vm = update(&*applier, uuid, members.clone()).unwrap();
    for (member, value) in members.as_object().unwrap() {
        assert_eq!(&vm[member], value, "{member}");
    }
    assert_eq!(host.get("quota", &name), "2147483648");
    let members = json!({"quota": null, "zfs_root_compression": null,
        "indestructible_zoneroot": null});
    let vm = update(&*applier, uuid, members).unwrap();
    assert_eq!(vm["quota"], 0);
    assert!(!vm.contains_key("zfs_root_compression"));
    assert!(!vm.contains_key("indestructible_zoneroot"));
    delete(&*applier, uuid);
    assert_eq!(host.datasets(), before);
}

#[test]
fn an_image_without_a_final_snapshot_gets_one_for_the_vm() {
    let host = Host::new();
    host.pool
        .zfs(&["create", "-o", "canmount=off", &host.pool.dataset(IMAGE)]);
    let before = host.datasets();
    let applier = host.applier();
    let uuid = host
        .create(&*applier, json!({"image_uuid": IMAGE}))
        .unwrap();
    let origin = host.pool.dataset(&format!("{IMAGE}@{uuid}"));
    assert_eq!(host.get("origin", &uuid.to_string()), origin);
    // It goes with the VM, unless somebody else has a clone of it.
    delete(&*applier, uuid);
    assert_eq!(host.datasets(), before);
    let uuid = host
        .create(&*applier, json!({"image_uuid": IMAGE}))
        .unwrap();
    let origin = host.pool.dataset(&format!("{IMAGE}@{uuid}"));
    let clone = host.pool.dataset("somebody-elses");
    host.pool
        .zfs(&["clone", "-o", "canmount=off", &origin, &clone]);
    delete(&*applier, uuid);
    assert!(host.datasets().contains(&origin) && host.datasets().contains(&clone));
    assert!(
        !host
            .datasets()
            .contains(&host.pool.dataset(&uuid.to_string()))
    );
}

#[test]
fn what_others_make_under_our_names_outlives_what_we_take_back() {
    let host = Host::new();
    for is_killed in [false, true] {
        let uuid = Uuid::new_v4();
        let root = host.pool.dataset(&uuid.to_string());
        let (faults, made) = (Arc::new(Faults::default()), format!("{root}/theirs"));
        faults.on_step(move |label| {
            // After it was looked for, and before it is made.
            if label == "root dataset" {
                let mut create = Command::new("zfs");
                create.args(["create", "-p", "-o", "canmount=off", &made]);
                assert!(create.status().unwrap().success());
                assert!(!is_killed, "as if killed");
            }
            Ok(())
        });
        let options = ZonesOptions {
            faults,
            ..host.options()
        };
        let applier = Zones::new(options).applier();
        let wanted = host.wanted(uuid, json!({}));
        let created = catch_unwind(AssertUnwindSafe(|| applier.create(uuid, &wanted, soon())));
        match created {
            Ok(created) => {
                let error = created.unwrap_err();
                assert!(error.reason.contains("already exists"), "{error}");
                assert!(error.applied.is_empty(), "{error:?}");
            }
            Err(_) => assert!(is_killed),
        }
        assert_eq!(host.applier().recover(), []);
        assert!(host.datasets().contains(&format!("{root}/theirs")));
    }
}

#[test]
fn a_vm_that_zfs_would_not_destroy_is_not_deleted_and_loses_nothing() {
    let host = Host::new();
    let applier = host.applier();
    let uuid = host.create(&*applier, json!({})).unwrap();
    run(&*applier, uuid, &Verb::Start).unwrap();
    run(&*applier, uuid, &Verb::Snapshot("a".to_owned())).unwrap();
    let snapshot = host.pool.dataset(&format!("{uuid}@vmsnap-a"));
    let clone = host.pool.dataset("somebody-elses");
    let refused = |expected: &str| {
        let before = (host.datasets(), read(&*applier, uuid));
        let error = run(&*applier, uuid, &Verb::Delete).unwrap_err();
        assert_eq!(error.kind, FailedKind::Busy);
        assert!(error.reason.contains(expected), "{error}");
        assert!(error.applied.is_empty(), "{error:?}");
        assert_eq!((host.datasets(), read(&*applier, uuid)), before);
    };
    host.pool
        .zfs(&["clone", "-o", "canmount=off", &snapshot, &clone]);
    refused(&format!("{clone} is a clone of {snapshot}"));
    host.pool.zfs(&["destroy", &clone]);
    host.pool.zfs(&["hold", "mine", &snapshot]);
    refused(&format!("{snapshot} is held"));
    host.pool.zfs(&["release", "mine", &snapshot]);
    delete(&*applier, uuid);
    assert_eq!(host.datasets(), [host.pool.name()]);
}

#[test]
fn a_journal_whose_end_fails_stays_and_is_told_until_it_can_be_ended() {
    let host = Host::new();
    let uuid = host.create(&*host.applier(), json!({})).unwrap();
    let snapshot = host.pool.dataset(&format!("{uuid}@mine"));
    // The line in the index has gone, its first file has not.
    let (applier, _) = host.at_step(2, || panic!("as if killed"));
    assert!(catch_unwind(AssertUnwindSafe(|| delete(&*applier, uuid))).is_err());
    host.pool.zfs(&["snapshot", &snapshot]);
    host.pool.zfs(&["hold", "mine", &snapshot]);
    let journal = host
        .dir
        .path()
        .join(format!("var/run/vm.{uuid}.update.json"));
    for _ in 0..2 {
        let cuts = host.applier().recover();
        assert_eq!(cuts.len(), 1);
        let reason = &cuts[0].reason;
        assert!(
            reason.contains("cannot be ended") && reason.contains("update.json is removed"),
            "{reason}"
        );
        assert!(journal.exists());
        // Nobody else takes its place meanwhile.
        let again = host.applier().create(
            uuid,
            &host.wanted(uuid, json!({"zonename": "other"})),
            soon(),
        );
        assert_eq!(again.unwrap_err().kind, FailedKind::Busy);
    }
    host.pool.zfs(&["release", "mine", &snapshot]);
    assert_eq!(host.applier().recover(), []);
    assert_eq!(host.datasets(), [host.pool.name()]);
    assert!(!journal.exists());
}

#[test]
fn a_missing_image_is_refused_by_name_and_nothing_is_made() {
    let host = Host::new();
    let before = host.datasets();
    let error = host
        .create(&*host.applier(), json!({"image_uuid": IMAGE}))
        .unwrap_err();
    assert_eq!(error.kind, FailedKind::Invalid);
    assert!(error.reason.contains(IMAGE), "{error}");
    assert_eq!(host.datasets(), before);
    assert!(!host.dir.path().join("zones").exists());
}

#[test]
fn a_dataset_that_is_there_is_nobody_elses_to_make() {
    let host = Host::new();
    let uuid = Uuid::new_v4();
    let name = host.pool.dataset(&uuid.to_string());
    host.pool.zfs(&["create", "-o", "canmount=off", &name]);
    let wanted = host.wanted(uuid, json!({}));
    let error = host.applier().create(uuid, &wanted, soon()).unwrap_err();
    assert_eq!(error.kind, FailedKind::Exists);
    assert!(host.datasets().contains(&name));
}

#[test]
fn snapshots_are_taken_gone_back_to_and_destroyed() {
    let host = Host::new();
    let applier = host.applier();
    let uuid = host.create(&*applier, json!({})).unwrap();
    let name = |verb: fn(String) -> Verb, name: &str| verb(name.to_owned());
    for snapshot in ["one", "two"] {
        run(&*applier, uuid, &name(Verb::Snapshot, snapshot)).unwrap();
    }
    let again = run(&*applier, uuid, &name(Verb::Snapshot, "one")).unwrap_err();
    assert_eq!(again.kind, FailedKind::Exists);
    run(&*applier, uuid, &Verb::Start).unwrap();
    let vm = run(&*applier, uuid, &name(Verb::Rollback, "one")).unwrap();
    let left: Vec<&Value> = vm["snapshots"].as_array().unwrap().iter().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(
        (&left[0]["name"], &vm["state"]),
        (&json!("one"), &json!("running"))
    );
    let vm = run(&*applier, uuid, &name(Verb::DeleteSnapshot, "one")).unwrap();
    assert_eq!(vm["snapshots"], json!([]));
}

#[test]
fn what_zfs_refuses_is_taken_back_and_told() {
    let host = Host::new();
    let applier = host.applier();
    let uuid = host.create(&*applier, json!({})).unwrap();
    // Quota is set first, and then it does not know this compression.
    let members = json!({"quota": 3, "zfs_root_compression": "strange", "alias": "other"});
    let error = update(&*applier, uuid, members).unwrap_err();
    assert_eq!(error.kind, FailedKind::Source);
    assert!(
        error.reason.contains("zfs set compression=strange"),
        "{error}"
    );
    assert!(error.applied.is_empty(), "{error:?}");
    let vm = read(&*applier, uuid);
    assert_eq!((&vm["quota"], &vm["alias"]), (&json!(1), &json!("new")));
    assert!(
        !host
            .dir
            .path()
            .join(format!("var/run/vm.{uuid}.update.json"))
            .exists()
    );
}

#[test]
fn a_create_that_fails_or_is_cut_leaves_no_dataset() {
    let host = Host::new();
    host.pool
        .zfs(&["create", "-o", "canmount=off", &host.pool.dataset(IMAGE)]);
    let before = host.datasets();
    let fail = || Err(std::io::Error::other("refused"));
    let more = || json!({"image_uuid": IMAGE, "indestructible_zoneroot": true});
    let mut number = 0;
    loop {
        let (applier, count) = host.at_step(number, fail);
        let created = host.create(&*applier, more());
        if count.load(Ordering::Relaxed) <= number {
            created.unwrap();
            break;
        }
        let error = created.unwrap_err();
        assert!(
            error.reason.contains("refused") && error.applied.is_empty(),
            "{error:?}"
        );
        assert_eq!(host.datasets(), before, "step {number}");

        // A panic leaves what a killed process would.
        let (applier, _) = host.at_step(number, || panic!("as if killed"));
        let cut = catch_unwind(AssertUnwindSafe(|| host.create(&*applier, more())));
        assert!(cut.is_err());
        assert_eq!(host.applier().recover(), []);
        assert_eq!(host.datasets(), before, "step {number}");
        number += 1;
    }
    assert!(number >= 7);
}

#[test]
fn a_delete_that_was_cut_is_ended() {
    let host = Host::new();
    let mut number = 0;
    loop {
        let uuid = host.create(&*host.applier(), json!({})).unwrap();
        let (applier, count) = host.at_step(number, || panic!("as if killed"));
        let _ = catch_unwind(AssertUnwindSafe(|| delete(&*applier, uuid)));
        assert_eq!(host.applier().recover(), []);
        // Before the line in the index has gone, nothing has.
        if number < 2 && count.load(Ordering::Relaxed) > number {
            delete(&*host.applier(), uuid);
        }
        assert_eq!(host.datasets(), [host.pool.name()], "step {number}");
        if count.load(Ordering::Relaxed) <= number {
            break;
        }
        number += 1;
    }
    assert!(number > 3);
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
fn a_nudge_reads_the_datasets_of_the_vm_at_once() {
    let host = Host::new();
    let applier = host.applier();
    let uuid = host.create(&*applier, json!({"brand": "bhyve"})).unwrap();
    let zones = Zones::new(host.options());
    let (sender, reports) = channel();
    zones.start(sender).unwrap();
    let quota = |vm: &Object, quota: u64| vm.get("quota") == Some(&json!(quota));
    wait(&reports, uuid, |vm| quota(vm, 1));
    update(&*applier, uuid, json!({"quota": 2})).unwrap();
    zones.reload(uuid);
    wait(&reports, uuid, |vm| quota(vm, 2));
    run(&*applier, uuid, &Verb::Snapshot("a".to_owned())).unwrap();
    zones.reload(uuid);
    wait(&reports, uuid, |vm| vm["snapshots"][0]["name"] == "a");
    let new = host.create(&*applier, json!({})).unwrap();
    zones.reload(new);
    wait(&reports, new, |vm| quota(vm, 1));
    assert!(applier.watcher(Part::Datasets).contains("zfs get every 1h"));
}
