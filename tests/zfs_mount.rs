//! Real ZFS below a real mount: `zfs-fuse`, polled.
//!
//! A script stands before the real `zfs` in the PATH of the daemon, so that it can be made to hang
//! or fail for one pool; another before `zpool` hides the pools of other tests.

mod support;
#[path = "support/zfs_pool.rs"]
mod zfs_pool;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{Mounted, Store, VMINFOD, run, until};
use vminfod::sample::change;
use zfs_pool::Pool;

/// A store whose VMs have their datasets on real pools. Nothing of them is mounted.
struct Host {
    store: Store,
    pools: Vec<Pool>,
}

impl Host {
    /// As many VMs as are asked for, each on a pool of its own.
    fn new(vms: usize) -> Host {
        let store = Store::new(vms);
        let pools: Vec<Pool> = (0..vms).map(|_| Pool::create("64M")).collect();
        for (zone, pool) in store.zones().iter().zip(&pools) {
            let mountpoint = format!("mountpoint=/zones/{zone}");
            let dataset = pool.dataset(zone);
            pool.zfs(&["create", "-o", "canmount=off", "-o", &mountpoint, &dataset]);
        }
        let bin = store.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        let names: Vec<&str> = pools.iter().map(Pool::name).collect();
        let list = format!(
            "[ \"$1\" != list ] || exec printf '%s\\n' {}",
            names.join(" ")
        );
        script(&bin, "zpool", &list);
        let obey = format!(". {}", store.dir().join("mode").display());
        script(&bin, "zfs", &obey);
        let host = Host { store, pools };
        host.zfs_does("");
        host
    }

    /// From now on `zfs` does this first.
    fn zfs_does(&self, command: &str) {
        change::replace(&self.store.dir().join("mode"), command).unwrap();
    }

    fn mount(&self) -> Mounted<'_> {
        let mut command = Command::new(VMINFOD);
        command.args([
            "mount",
            "--foreground",
            "--tell-ready",
            "-o",
            "datasets=zfs,zfs_poll=0.1",
        ]);
        command
            .arg("--zones-root")
            .arg(self.store.root())
            .arg(self.store.mountpoint());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}/bin:{path}", self.store.dir().display()));
        Mounted::start(&self.store, command)
    }

    /// Sets what the VM's `quota` is read from.
    fn set_quota(&self, number: usize, vm: &Value, quota: &str) {
        let name = if vm["brand"] == "bhyve" {
            "refquota"
        } else {
            "quota"
        };
        let dataset = self.pools[number].dataset(vm["zonename"].as_str().unwrap());
        self.pools[number].zfs(&["set", &format!("{name}={quota}"), &dataset]);
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

/// What cat(1) prints of a file of the mount.
#[track_caller]
fn cat(mounted: &Mounted<'_>, file: &str) -> String {
    run(Command::new("cat").arg(mounted.path(file))).succeeded()
}

#[test]
fn what_zfs_sets_and_snapshots_is_in_the_files_and_the_events() {
    let host = Host::new(1);
    let zone = host.store.zones()[0].clone();
    let (pool, dataset) = (&host.pools[0], host.pools[0].dataset(&zone));
    pool.zfs(&["set", "compression=gzip", &dataset]);
    let mounted = host.mount();
    let vm = mounted.json("vms.json")[0].clone();
    let uuid = vm["uuid"].as_str().unwrap().to_owned();
    assert_eq!(
        cat(&mounted, &format!("{uuid}/zfs_filesystem")),
        format!("{dataset}\n")
    );
    assert_eq!(
        cat(&mounted, &format!("{uuid}/zpool")),
        format!("{}\n", pool.name())
    );
    assert_eq!(
        cat(&mounted, &format!("{uuid}/zfs_root_compression")),
        "gzip\n"
    );
    assert_eq!(vm["snapshots"], json!([]));
    let providers = mounted.status()["fswatcher"]["providers"].clone();
    assert_eq!(providers["datasets"]["provider"], "zfs");

    let events = mounted.events();
    for (quota, shown) in [("1G", "1\n"), ("1536M", "1.5\n"), ("3G", "3\n")] {
        host.set_quota(0, &vm, quota);
        let event = events.changed(&uuid, "quota");
        assert_eq!(
            (&event["type"], &event["via"]),
            (&json!("modify"), &json!("event"))
        );
        assert_eq!(format!("{}\n", event["vm"]["quota"]), shown);
        assert_eq!(cat(&mounted, &format!("{uuid}/quota")), shown);
    }

    let snapshots = mounted.path(format!("{uuid}/snapshots"));
    // A file of a list that has just become shorter is gone.
    let names = || {
        let numbers = fs::read_dir(&snapshots).into_iter().flatten();
        let names =
            numbers.filter_map(|number| fs::read_to_string(number.ok()?.path().join("name")).ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    pool.zfs(&["snapshot", &format!("{dataset}@vmsnap-first")]);
    // Others than those that vmadm makes are not shown.
    pool.zfs(&["snapshot", &format!("{dataset}@backup")]);
    pool.zfs(&["snapshot", &format!("{dataset}@vmsnap-second")]);
    until("the snapshots are there", || {
        (names() == ["first\n", "second\n"]).then_some(())
    });
    pool.zfs(&["destroy", &format!("{dataset}@vmsnap-first")]);
    until("one has gone", || (names() == ["second\n"]).then_some(()));
    assert_eq!(mounted.status()["missed"], json!({}));
}

#[test]
fn a_zfs_that_hangs_fails_or_prints_garbage_makes_only_its_vms_stale_and_heals() {
    let host = Host::new(2);
    let zones = host.store.zones();
    let mounted = host.mount();
    let vms: Vec<Value> = (zones.iter())
        .map(|zone| mounted.json(format!("{}/vm.json", mounted.uuid(zone))))
        .collect();
    let uuid = |number: usize| vms[number]["uuid"].as_str().unwrap();
    let events = mounted.events();
    let quota = |number: usize, set: &str| {
        host.set_quota(number, &vms[number], set);
        events.changed(uuid(number), "quota")
    };
    quota(0, "1G");
    for (round, (does, reason)) in (2_u64..).zip([
        ("exec sleep 600", "no answer"),
        (
            "echo pool I/O is suspended >&2; exit 1",
            "pool I/O is suspended",
        ),
        ("echo what is this; exit 0", "fields"),
    ]) {
        let affected = format!("case \"$*\" in *{}*) {does} ;; esac", host.pools[0].name());
        host.zfs_does(&affected);
        let said = until(&format!("{does}: it is stale"), || mounted.stale(uuid(0)));
        assert!(said.contains("zfs") && said.contains(reason), "{said}");
        assert_eq!(mounted.status()["stale"], json!({ uuid(0): said }));
        // It has its last good values, and the parts that can be read go on changing.
        assert_eq!(
            cat(&mounted, &format!("{}/quota", uuid(0))),
            format!("{}\n", round - 1)
        );
        change::set_tag(&host.store.root(), &zones[0], "round", &json!(round)).unwrap();
        events
            .find(|event| event["zonename"] == *zones[0] && event["vm"]["tags"]["round"] == round);
        let set = format!("{round}G");
        assert_eq!(quota(1, &set)["vm"]["quota"], round);
        assert_eq!(mounted.stale(uuid(1)), None);

        host.set_quota(0, &vms[0], &set);
        host.zfs_does("");
        until(&format!("{does}: it heals"), || {
            mounted.stale(uuid(0)).is_none().then_some(())
        });
        until("what changed meanwhile is shown", || {
            (mounted.read(format!("{}/quota", uuid(0))) == format!("{round}\n")).then_some(())
        });
    }
}

#[test]
fn a_host_without_the_zfs_that_was_asked_for_is_told_so() {
    let store = Store::new(1);
    let mut mount = Command::new(VMINFOD);
    mount
        .args(["mount", "-o", "datasets=zfs", "--zones-root"])
        .arg(store.root());
    mount.arg(store.mountpoint()).env("PATH", store.dir());
    run(&mut mount).failed_with(1, &["zfs", "cannot be started", "files"]);
}
