//! Datasets from real ZFS: `zfs-fuse`, polled, and with played `zpool events`.
//!
//! Where a test needs a command that hangs, fails or prints garbage, a shell script stands before
//! the real one and obeys files in the test's folder.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use vminfod::source::Via;
use vminfod::source::zones::zfs::{Changed, Zfs, ZfsOptions, available};

#[path = "support/zfs_pool.rs"]
mod zfs_pool;
use zfs_pool::Pool;

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options that poll fast; `zpool list` shows only this pool, since other tests have theirs.
fn options(dir: &Path, pools: &[&Pool]) -> ZfsOptions {
    list_pools(dir, pools);
    let zpool = format!(
        "case $1 in\n\
         list) exec cat {dir}/pools ;;\n\
         *) exec zpool \"$@\" ;;\n\
         esac\n",
        dir = dir.display(),
    );
    ZfsOptions {
        zpool: script(dir, "zpool", &zpool),
        poll: Duration::from_millis(20),
        deadline: PATIENCE,
        ..ZfsOptions::default()
    }
}

/// Says which pools there are, at once and whole.
fn list_pools(dir: &Path, pools: &[&Pool]) {
    let names: Vec<&str> = pools.iter().map(|pool| pool.name()).collect();
    fs::write(dir.join("pools.new"), names.join("\n")).unwrap();
    fs::rename(dir.join("pools.new"), dir.join("pools")).unwrap();
}

/// Makes a shell script. A child writes it: a descriptor that a fork of our own still held open for
/// writing would make the kernel refuse to execute it.
fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let (source, path) = (dir.join("source"), dir.join(name));
    fs::write(&source, format!("#!/bin/sh\n{text}")).unwrap();
    let mut install = Command::new("install");
    let installed = install
        .arg("-m755")
        .args([&source, &path])
        .status()
        .unwrap();
    assert!(installed.success());
    path
}

/// A `zfs` that does what the file `mode` says, if it is asked about this pool.
fn moody_zfs(dir: &Path, pool: &Pool) -> PathBuf {
    let text = format!(
        "case \"$*\" in\n\
         *{pool}*) . {dir}/mode ;;\n\
         esac\n\
         exec zfs \"$@\"\n",
        pool = pool.name(),
        dir = dir.display(),
    );
    set_mode(dir, "");
    script(dir, "zfs", &text)
}

/// Changes the mode at once and whole.
fn set_mode(dir: &Path, command: &str) {
    fs::write(dir.join("mode.new"), command).unwrap();
    fs::rename(dir.join("mode.new"), dir.join("mode")).unwrap();
}

fn start(options: ZfsOptions) -> (Zfs, Receiver<Changed>) {
    let (sender, changes) = mpsc::channel();
    let zfs = Zfs::start(options, move |changed| {
        let _ = sender.send(changed);
    });
    (zfs.unwrap(), changes)
}

/// The names of changed datasets, until all of these were among them.
#[track_caller]
fn expect_names(changes: &Receiver<Changed>, names: &[String]) {
    let mut missing: BTreeSet<String> = names.iter().cloned().collect();
    while !missing.is_empty() {
        match changes.recv_timeout(PATIENCE) {
            Ok(Changed::Datasets { names, .. }) => missing.retain(|name| !names.contains(name)),
            Ok(other) => panic!("{other:?} instead of {missing:?}"),
            Err(_) => panic!("nobody was told of {missing:?}"),
        }
    }
}

#[track_caller]
fn expect_failure(changes: &Receiver<Changed>, pool: &Pool, part: &str) {
    loop {
        match changes.recv_timeout(PATIENCE).expect("a failure") {
            Changed::PoolFailed { pool: name, reason } => {
                assert_eq!(name, pool.name());
                if reason.contains(part) {
                    return;
                }
            }
            Changed::Datasets { .. } => {}
            healed @ Changed::PoolHealed { .. } => panic!("{healed:?}"),
        }
    }
}

#[track_caller]
fn expect_healed(changes: &Receiver<Changed>, pool: &Pool) {
    loop {
        match changes.recv_timeout(PATIENCE).expect("a recovery") {
            Changed::PoolHealed { pool: name } => return assert_eq!(name, pool.name()),
            Changed::Datasets { .. } | Changed::PoolFailed { .. } => {}
        }
    }
}

fn property(zfs: &Zfs, dataset: &str, property: &str) -> Option<String> {
    zfs.table(dataset)
        .unwrap()
        .get(dataset)?
        .get(property)
        .cloned()
}

#[test]
fn a_pool_is_read_whole_before_start_returns() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create("64M");
    let (vm, snapshot) = (pool.dataset("vm"), pool.dataset("vm@vmsnap-a"));
    pool.zfs(&[
        "create",
        "-o",
        "canmount=off",
        "-o",
        "mountpoint=/zones/x",
        "-o",
        "quota=10M",
        &vm,
    ]);
    pool.zfs(&["snapshot", &snapshot]);
    pool.zfs(&["hold", "keep", &snapshot]);
    let options = options(dir.path(), &[&pool]);
    assert!(available(&options));
    let (zfs, _changes) = start(options);

    let table = zfs.table("/zones/x").unwrap();
    assert_eq!(table.mounted_at("/zones/x"), Some(vm.as_str()));
    let dataset = table.get(&vm).unwrap();
    assert_eq!(dataset["quota"], "10485760");
    assert_eq!(dataset["recordsize"], "131072");
    assert!(!dataset.contains_key("volsize") && !dataset.contains_key("used"));
    let snapshots: Vec<_> = table.snapshots_of(&vm).collect();
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0].0, "vmsnap-a");
    assert_eq!(snapshots[0].1["userrefs"], "1");
    assert!(snapshots[0].1.contains_key("used"));
    pool.zfs(&["release", "keep", &snapshot]);
}

#[test]
fn polling_finds_what_was_set_made_and_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create("64M");
    let (vm, snapshot) = (pool.dataset("vm"), pool.dataset("vm@vmsnap-a"));
    pool.zfs(&["create", &vm]);
    let (zfs, changes) = start(options(dir.path(), &[&pool]));
    assert_eq!(zfs.status()["changes"], "polling");

    pool.zfs(&["set", "quota=20M", &vm]);
    expect_names(&changes, std::slice::from_ref(&vm));
    assert_eq!(property(&zfs, &vm, "quota").unwrap(), "20971520");
    pool.zfs(&["snapshot", &snapshot]);
    expect_names(&changes, std::slice::from_ref(&snapshot));
    pool.zfs(&["destroy", "-r", &vm]);
    expect_names(&changes, &[vm.clone(), snapshot]);
    assert_eq!(property(&zfs, &vm, "quota"), None);
}

#[test]
fn a_pool_that_comes_is_read_and_one_that_goes_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Pool::create("64M"), Pool::create("64M"));
    let (zfs, changes) = start(options(dir.path(), &[&first]));
    assert!(zfs.table(second.name()).unwrap().is_empty());
    list_pools(dir.path(), &[&first, &second]);
    expect_names(&changes, &[second.name().to_owned()]);
    assert!(!zfs.table(second.name()).unwrap().is_empty());
    list_pools(dir.path(), &[&second]);
    expect_names(&changes, &[first.name().to_owned()]);
    assert!(zfs.table(first.name()).unwrap().is_empty());
}

#[test]
fn a_hung_pool_fails_alone_keeps_its_table_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let (hung, healthy) = (Pool::create("64M"), Pool::create("64M"));
    let options = ZfsOptions {
        zfs: moody_zfs(dir.path(), &hung),
        deadline: Duration::from_millis(500),
        ..options(dir.path(), &[&hung, &healthy])
    };
    let (zfs, changes) = start(options);

    set_mode(dir.path(), "exec sleep 600");
    expect_failure(&changes, &hung, "no answer within 500ms");
    let reason = zfs.table(hung.name()).unwrap_err();
    assert!(reason.contains("no answer"), "{reason}");
    assert!(zfs.table("/nowhere").is_err(), "it may be in the hung pool");
    healthy.zfs(&["set", "quota=20M", healthy.name()]);
    expect_names(&changes, &[healthy.name().to_owned()]);
    assert_eq!(property(&zfs, healthy.name(), "quota").unwrap(), "20971520");

    set_mode(dir.path(), "");
    expect_healed(&changes, &hung);
    assert!(!zfs.table(hung.name()).unwrap().is_empty());
}

#[test]
fn a_pool_that_hangs_from_the_start_does_not_keep_start_from_returning() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create("64M");
    let options = ZfsOptions {
        zfs: moody_zfs(dir.path(), &pool),
        deadline: Duration::from_millis(500),
        ..options(dir.path(), &[&pool])
    };
    set_mode(dir.path(), "exec sleep 600");
    let (zfs, changes) = start(options);
    assert!(zfs.table(pool.name()).unwrap_err().contains("no answer"));
    set_mode(dir.path(), "");
    expect_names(&changes, &[pool.name().to_owned()]);
    expect_healed(&changes, &pool);
}

#[test]
fn garbage_and_failures_are_reported_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create("64M");
    let options = ZfsOptions {
        zfs: moody_zfs(dir.path(), &pool),
        ..options(dir.path(), &[&pool])
    };
    let (zfs, changes) = start(options);
    for (command, reason) in [
        ("printf 'a b c\\n'; exit 0", "has 1 fields instead of 3"),
        ("printf '\\377\\n'; exit 0", "not UTF-8"),
        ("exit 0", "says nothing of"),
        (
            "echo pool I/O is suspended >&2; exit 1",
            "pool I/O is suspended",
        ),
    ] {
        set_mode(dir.path(), command);
        expect_failure(&changes, &pool, reason);
        assert!(zfs.table(pool.name()).unwrap_err().contains(reason));
    }
    assert!(zfs.status()["pools"][pool.name()]["failing"].is_string());
    set_mode(dir.path(), "");
    expect_healed(&changes, &pool);
}

#[test]
fn a_host_without_zfs_is_seen_as_such() {
    let none = ZfsOptions {
        zfs: "/nonexistent/zfs".into(),
        ..ZfsOptions::default()
    };
    assert!(!available(&none));
    let error = Zfs::start(none, |_| {}).err().unwrap();
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/zfs get: cannot be started")
    );
}

/// A `zpool` whose `events -f` plays what is written into a FIFO, until that is closed.
fn playing_zpool(dir: &Path, pool: &Pool) -> PathBuf {
    let text = format!(
        "case \"$*\" in\n\
         list*) echo {pool} ;;\n\
         'events -H') ;;\n\
         'events -vHf') exec cat {dir}/events ;;\n\
         *) exit 2 ;;\n\
         esac\n",
        pool = pool.name(),
        dir = dir.display(),
    );
    let fifo = dir.join("events");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    script(dir, "playing-zpool", &text)
}

/// The recorded history event of one change, for another dataset.
fn recorded(dataset: &str) -> String {
    include_str!("data/zpool-events-set.txt").replace("zones/vm", dataset)
}

#[test]
fn events_are_followed_and_only_what_they_name_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create("64M");
    let (vm, other) = (pool.dataset("vm"), pool.dataset("other"));
    let snapshot = pool.dataset("vm@vmsnap-a");
    pool.zfs(&["create", &vm]);
    pool.zfs(&["create", &other]);
    let options = ZfsOptions {
        zpool: playing_zpool(dir.path(), &pool),
        // Nothing is found by polling.
        poll: Duration::from_secs(3600),
        ..options(dir.path(), &[])
    };
    let (zfs, changes) = start(options);
    let mut events = fs::File::options()
        .write(true)
        .open(dir.path().join("events"))
        .unwrap();
    // The answer to this one shows that everything asked for before has been read.
    let settle = |events: &mut fs::File, quota: &str| {
        pool.zfs(&["set", &format!("quota={quota}"), &vm]);
        events.write_all(recorded(&vm).as_bytes()).unwrap();
        expect_names(&changes, std::slice::from_ref(&vm));
    };
    settle(&mut events, "20M");
    assert_eq!(zfs.status()["changes"], "events");

    // Nobody announces this one, so nobody sees it until the next refresh.
    pool.zfs(&["set", "quota=30M", &other]);
    settle(&mut events, "40M");
    assert_eq!(property(&zfs, &other, "quota").unwrap(), "0");
    zfs.refresh();
    let missed = changes.recv_timeout(PATIENCE).unwrap();
    let expected = Changed::Datasets {
        names: BTreeSet::from([other.clone()]),
        via: Via::Scan,
    };
    assert_eq!(missed, expected);

    pool.zfs(&["snapshot", &snapshot]);
    events.write_all(recorded(&snapshot).as_bytes()).unwrap();
    expect_names(&changes, std::slice::from_ref(&snapshot));
    pool.zfs(&["destroy", "-r", &vm]);
    events.write_all(recorded(&vm).as_bytes()).unwrap();
    expect_names(&changes, &[vm, snapshot]);
    pool.zfs(&["set", "quota=50M", &other]);
    events.write_all(b"dropped 3 events\n").unwrap();
    expect_names(&changes, &[other]);
    assert_eq!(zfs.status()["events"]["dropped"], 1);
}

#[test]
fn when_the_events_end_the_pools_are_polled_until_they_are_back() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::create("64M");
    let options = ZfsOptions {
        zpool: playing_zpool(dir.path(), &pool),
        ..options(dir.path(), &[])
    };
    let (zfs, changes) = start(options);
    let fifo = dir.path().join("events");
    // Opening waits for the reader; closing ends it.
    drop(fs::File::options().write(true).open(&fifo).unwrap());
    pool.zfs(&["set", "quota=20M", pool.name()]);
    expect_names(&changes, &[pool.name().to_owned()]);
    // The second reader is there: the events are back.
    let mut events = fs::File::options().write(true).open(&fifo).unwrap();
    pool.zfs(&["set", "quota=30M", pool.name()]);
    events.write_all(recorded(pool.name()).as_bytes()).unwrap();
    expect_names(&changes, &[pool.name().to_owned()]);
    assert!(zfs.status()["events"]["restarts"].as_u64().unwrap() >= 1);
}
