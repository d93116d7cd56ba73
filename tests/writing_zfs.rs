//! Writing through a real mount to zones whose datasets are on real ZFS: `zfs-fuse`, which has no
//! volumes.
//!
//! A script stands before the real `zfs` in the PATH of the daemon, so that somebody can change a dataset
//! just when it matters; another before `zpool` hides the pools of other tests. Nothing is found by
//! polling.

mod support;
#[path = "support/zfs_pool.rs"]
mod zfs_pool;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Mounted, Store, VMINFOD, run, until};
use vminfod::sample::change;
use zfs_pool::Pool;

const IMAGE: &str = "33333333-3333-4333-8333-333333333333";

/// A store with one VM, a pool for its dataset, and who may be in the way.
struct Host {
    store: Store,
    pool: Pool,
    zone: String,
}

impl Host {
    fn new() -> Host {
        let store = Store::new(1);
        let zone = store.zones().remove(0);
        let pool = Pool::create("128M");
        let mountpoint = format!("mountpoint=/zones/{zone}");
        let dataset = pool.dataset(&zone);
        pool.zfs(&["create", "-o", "canmount=off", "-o", &mountpoint, &dataset]);
        let bin = store.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        let list = format!("[ \"$1\" != list ] || exec printf '%s\\n' {}", pool.name());
        script(&bin, "zpool", &list);
        script(
            &bin,
            "zfs",
            &format!(". {}", store.dir().join("mode").display()),
        );
        let host = Host { store, pool, zone };
        host.zfs_does("");
        host
    }

    /// From now on `zfs` does this first; `real` is the real one.
    fn zfs_does(&self, command: &str) {
        let text = format!("real() {{ PATH=${{PATH#*:}} zfs \"$@\"; }}\n{command}");
        change::replace(&self.store.dir().join("mode"), &text).unwrap();
    }

    fn mount(&self) -> Mounted<'_> {
        let mut command = Command::new(VMINFOD);
        command.args(["mount", "--foreground", "--tell-ready", "-o"]);
        command.arg("datasets=zfs,zfs_poll=3600,confirm_timeout=25");
        command.arg("--zones-root").arg(self.store.root());
        command.arg(self.store.mountpoint());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}/bin:{path}", self.store.dir().display()));
        Mounted::start(&self.store, command)
    }

    /// What `zfs get` says.
    fn get(&self, property: &str, below: &str) -> String {
        let name = self.pool.dataset(below);
        let get = ["get", "-Hp", "-o", "value", property, &name];
        run(Command::new("zfs").args(get))
            .succeeded()
            .trim()
            .to_owned()
    }

    /// All datasets and snapshots of the pool.
    fn datasets(&self) -> Vec<String> {
        let list = ["list", "-H", "-r", "-t", "all", "-o", "name"];
        let names = run(Command::new("zfs").args(list).arg(self.pool.name())).succeeded();
        names.lines().map(str::to_owned).collect()
    }

    /// An image to make VMs of.
    fn image(&self) {
        let image = self.pool.dataset(IMAGE);
        self.pool.zfs(&["create", "-o", "canmount=off", &image]);
        self.pool.zfs(&["snapshot", &format!("{image}@final")]);
    }

    /// The property of ZFS that is the VM's quota.
    fn quota(&self, mounted: &Mounted<'_>) -> &'static str {
        let uuid = mounted.uuid(&self.zone);
        match mounted.read(format!("{uuid}/brand")).as_str() {
            "bhyve\n" => "refquota",
            _ => "quota",
        }
    }
}

/// Puts a script before a program of its name. A child writes it: a descriptor that a fork of our
/// own still held open for writing would make the kernel refuse to execute it.
fn script(bin: &Path, name: &str, first: &str) {
    let text = format!("#!/bin/sh\n{first}\nPATH=${{PATH#*:}} exec {name} \"$@\"\n");
    let source = bin.join("source");
    fs::write(&source, text).unwrap();
    run(Command::new("install")
        .arg("-m755")
        .arg(&source)
        .arg(bin.join(name)))
    .succeeded();
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[track_caller]
fn ctl(mounted: &Mounted<'_>, uuid: &str, verb: &str) {
    let written = fs::write(mounted.path(format!("{uuid}/ctl")), verb);
    assert!(
        written.is_ok(),
        "{verb}: {written:?}: {}",
        why(mounted, uuid)
    );
}

/// What the last failure of a VM was.
fn why(mounted: &Mounted<'_>, uuid: &str) -> String {
    fs::read_to_string(mounted.path(format!("{uuid}/last_error"))).unwrap_or_default()
}

#[test]
fn what_is_written_is_at_once_in_zfs_and_in_the_file() {
    let host = Host::new();
    let mounted = host.mount();
    let (uuid, quota) = (mounted.uuid(&host.zone), host.quota(&mounted));
    let events = mounted.events();
    for (written, bytes) in [
        ("2", "2147483648"),
        ("1.5", "1610612736"),
        ("0.125", "134217728"),
        ("0", "0"),
    ] {
        let file = mounted.path(format!("{uuid}/quota"));
        let result = fs::write(file, written);
        assert!(result.is_ok(), "{written}: {}", why(&mounted, &uuid));
        assert_eq!(host.get(quota, &host.zone), bytes);
        let event = events.changed(&uuid, "quota");
        assert_eq!(event["via"], "write");
        assert!(event["txn"].is_string(), "{event}");
    }
    for (file, property, written, set) in [
        ("zfs_root_compression", "compression", "gzip", "gzip"),
        ("zfs_root_compression", "compression", "gzip-9", "gzip-9"),
        ("zfs_root_compression", "compression", "off", "off"),
        ("zfs_root_recsize", "recordsize", "8192", "8192"),
    ] {
        let result = fs::write(mounted.path(format!("{uuid}/{file}")), written);
        assert!(result.is_ok(), "{written}: {}", why(&mounted, &uuid));
        assert_eq!(host.get(property, &host.zone), set);
    }
    // What ZFS itself refuses is told, and nothing is shown.
    let before = mounted.read(format!("{uuid}/zfs_root_recsize"));
    let result = fs::write(mounted.path(format!("{uuid}/zfs_root_recsize")), "8193");
    assert!(errno(result).is_some());
    assert_eq!(mounted.read(format!("{uuid}/zfs_root_recsize")), before);
}

#[test]
fn who_is_overtaken_behind_our_back_is_told_so_and_the_mount_shows_what_zfs_has() {
    let host = Host::new();
    let mounted = host.mount();
    let (uuid, quota) = (mounted.uuid(&host.zone), host.quota(&mounted));
    let dataset = host.pool.dataset(&host.zone);
    // Before the change is read back, it is another.
    host.zfs_does(&format!(
        "case \"$*\" in
        set*{quota}=2147483648*) real \"$@\"; real set {quota}=3G {dataset}; exit ;;
        esac"
    ));
    let result = fs::write(mounted.path(format!("{uuid}/quota")), "2");
    assert_eq!(
        errno(result),
        Some(libc::ESTALE),
        "{}",
        why(&mounted, &uuid)
    );
    assert!(why(&mounted, &uuid).contains("quota = 2"));
    until("what was read back is shown", || {
        (mounted.read(format!("{uuid}/quota")) == "3\n").then_some(())
    });
    fs::write(mounted.path(format!("{uuid}/quota")), "4").unwrap();
    assert_eq!(host.get(quota, &host.zone), "4294967296");
}

#[test]
fn zfs_is_asked_once_before_and_once_after_it_is_changed_and_by_nobody_else() {
    let host = Host::new();
    let mounted = host.mount();
    let uuid = mounted.uuid(&host.zone);
    // Once, the usage text says which properties this release knows.
    fs::write(mounted.path(format!("{uuid}/quota")), "1.5").unwrap();
    let calls = host.store.dir().join("calls");
    host.zfs_does(&format!("echo $1 >> {}", calls.display()));
    let write = |file: &str, text: &str| {
        let _ = fs::remove_file(&calls);
        let events = mounted.events();
        let result = fs::write(mounted.path(format!("{uuid}/{file}")), text);
        assert!(result.is_ok(), "{text}: {}", why(&mounted, &uuid));
        let event = events.changed(&uuid, &file.replace('/', "."));
        let changes = event["changes"].as_array().unwrap();
        assert!(event["txn"].is_string(), "{event}");
        (
            fs::read_to_string(&calls).unwrap_or_default(),
            changes.len(),
        )
    };
    for quota in ["2", "3"] {
        assert_eq!(write("quota", quota).0, "get\nset\nget\n");
    }
    // All that a write does is one event, also the time at which the VM was modified.
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(write("quota", "4").1, 2);
    // What is in files depends on no dataset.
    assert_eq!(write("alias", "web").0, "");
    assert_eq!(write("tags/role", "db").0, "");
}

#[test]
fn who_writes_beside_somebody_with_zfs_set_is_confirmed_or_overtaken_and_never_late() {
    let host = Host::new();
    let mounted = host.mount();
    let (uuid, quota) = (mounted.uuid(&host.zone), host.quota(&mounted));
    let dataset = host.pool.dataset(&host.zone);
    thread::scope(|scope| {
        scope.spawn(|| {
            for size in 100..130 {
                host.pool
                    .zfs(&["set", &format!("{quota}={size}G"), &dataset]);
            }
        });
        for size in 10..25 {
            let result = fs::write(mounted.path(format!("{uuid}/quota")), size.to_string());
            match errno(result) {
                None | Some(libc::ESTALE) => {}
                other => panic!("{other:?}: {}", why(&mounted, &uuid)),
            }
        }
    });
    fs::write(mounted.path(format!("{uuid}/quota")), "7").unwrap();
    assert_eq!(mounted.read(format!("{uuid}/quota")), "7\n");
    assert_eq!(host.get(quota, &host.zone), (7_u64 << 30).to_string());
}

#[test]
fn snapshots_are_taken_gone_back_to_and_removed() {
    let host = Host::new();
    let mounted = host.mount();
    let uuid = mounted.uuid(&host.zone);
    let shown = || {
        let vm = mounted.json(format!("{uuid}/vm.json"));
        let snapshots = vm["snapshots"].as_array().unwrap().clone();
        let mut names: Vec<Value> = (snapshots.into_iter())
            .map(|snapshot| snapshot["name"].clone())
            .collect();
        names.sort_by_key(Value::to_string);
        Value::Array(names)
    };
    let snapshot = |name: &str| host.pool.dataset(&format!("{}@vmsnap-{name}", host.zone));
    for name in ["one", "two", "three"] {
        ctl(&mounted, &uuid, &format!("snapshot {name}"));
        assert!(host.datasets().contains(&snapshot(name)));
    }
    assert_eq!(shown(), json!(["one", "three", "two"]));
    ctl(&mounted, &uuid, "delete-snapshot two");
    assert_eq!(shown(), json!(["one", "three"]));
    ctl(&mounted, &uuid, "rollback one");
    assert_eq!(shown(), json!(["one"]));
    assert!(!host.datasets().contains(&snapshot("three")));
    ctl(&mounted, &uuid, "snapshot four");
    ctl(&mounted, &uuid, "revert");
    assert_eq!(shown(), json!(["one"]));
}

#[test]
fn a_vm_is_created_from_its_image_and_deleted_and_leaves_nothing() {
    let host = Host::new();
    host.image();
    let mounted = host.mount();
    let before = host.datasets();
    let other = mounted.read(format!("{}/vm.json", mounted.uuid(&host.zone)));
    for round in ["4", "5"] {
        let uuid = format!("{round}4444444-4444-4444-8444-444444444444");
        let payload = json!({"uuid": uuid, "brand": "joyent", "alias": format!("new{round}"),
            "image_uuid": IMAGE, "zpool": host.pool.name(), "quota": 1, "autoboot": false,
            "zonename": format!("zone{round}")});
        let created = fs::write(mounted.path("create"), payload.to_string());
        assert!(created.is_ok(), "{created:?}: {}", mounted.read(".errors"));
        let zone = format!("zone{round}");
        assert_eq!(
            host.get("origin", &zone),
            host.pool.dataset(&format!("{IMAGE}@final"))
        );
        assert_eq!(mounted.read(format!("{uuid}/quota")), "1\n");
        fs::write(mounted.path(format!("{uuid}/quota")), "2").unwrap();
        assert_eq!(host.get("quota", &zone), "2147483648");
        ctl(&mounted, &uuid, "delete");
        assert!(!mounted.path(&uuid).exists());
        assert_eq!(host.datasets(), before);
    }
    let now = mounted.read(format!("{}/vm.json", mounted.uuid(&host.zone)));
    assert_eq!(now, other);
    until("nothing is being done", || {
        let run = fs::read_dir(host.store.path("var/run")).unwrap();
        let journals = run.filter(|file| {
            let name = file.as_ref().unwrap().file_name();
            name.to_string_lossy().ends_with(".update.json")
        });
        (journals.count() == 0).then_some(())
    });
}

#[test]
fn a_vm_that_others_depend_on_is_not_deleted_and_one_that_zfs_keeps_is_at_the_next_start() {
    let host = Host::new();
    let mounted = host.mount();
    let uuid = mounted.uuid(&host.zone);
    ctl(&mounted, &uuid, "snapshot one");
    let snapshot = host.pool.dataset(&format!("{}@vmsnap-one", host.zone));
    let clone = host.pool.dataset("somebody-elses");
    host.pool
        .zfs(&["clone", "-o", "canmount=off", &snapshot, &clone]);
    let delete = || fs::write(mounted.path(format!("{uuid}/ctl")), "delete");
    assert_eq!(errno(delete()), Some(libc::EBUSY));
    assert!(why(&mounted, &uuid).contains(&clone));
    assert!(mounted.path(&uuid).exists());
    assert!(host.datasets().contains(&clone) && host.datasets().contains(&snapshot));
    host.pool.zfs(&["destroy", &clone]);
    // What nobody can foresee: the VM has gone, and what it had goes later.
    host.zfs_does("[ $1 != destroy ] || { echo dataset is busy >&2; exit 1; }");
    assert_eq!(errno(delete()), Some(libc::EIO));
    let errors = mounted.read(".errors");
    let last: Value = serde_json::from_str(errors.lines().last().unwrap()).unwrap();
    let applied = last["applied"].as_array().unwrap();
    assert!(applied.contains(&json!("the line in the index")), "{last}");
    let message = last["message"].as_str().unwrap();
    assert!(
        message.contains("dataset is busy") && message.contains("when the daemon starts again"),
        "{last}"
    );
    until("it has gone", || {
        (!mounted.path(&uuid).exists()).then_some(())
    });
    assert!(host.datasets().contains(&snapshot));
    drop(mounted);
    host.zfs_does("");
    let mounted = host.mount();
    assert_eq!(host.datasets(), [host.pool.name()]);
    assert!(!mounted.path(&uuid).exists());
}
