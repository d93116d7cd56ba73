//! The daemon is killed in the middle of what it applies. After the next start each VM is the old or the new
//! one, or is reported as partly applied; no file is torn, and no other VM has changed.
//!
//! `mount-scripts/torture` runs it more often (`VMINFOD_ROUNDS` multiplies the rounds).

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

mod support;

use support::{Mounted, Running, Store, until};

fn rounds(in_ci: usize) -> usize {
    let times = std::env::var("VMINFOD_ROUNDS").map_or(1, |times| times.parse().unwrap());
    in_ci * times
}

/// All files of a folder that do not belong to this VM, with what they hold.
fn others(root: &Path, uuid: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.to_str().unwrap().contains(uuid) {
                continue;
            }
            match path.is_dir() {
                true => dirs.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// Has another process write a text, without waiting for it.
fn write(mounted: &Mounted<'_>, file: &str, text: &str) -> Running {
    // Nothing is made where the mount was, should the daemon be gone by then.
    let script = "printf %s \"$2\" | dd of=\"$1\" conv=nocreat bs=64k iflag=fullblock status=none";
    let mut command = Command::new("bash");
    command
        .args(["-c", script, "bash"])
        .arg(mounted.path(file))
        .arg(text);
    Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

/// Kills the daemon after some of forty milliseconds, and mounts anew.
fn kill<'a>(mut mounted: Mounted<'a>, writer: Running) -> Mounted<'a> {
    let random = RandomState::new().hash_one(mounted.daemon.id());
    thread::sleep(Duration::from_micros(random % 40_000));
    mounted.signal(nix::sys::signal::Signal::SIGKILL);
    mounted.ended();
    let store = mounted.store;
    // First the writer: without a mount in its way it would make a file in the directory below.
    drop(writer);
    drop(mounted);
    store.mount()
}

/// What was reported of a VM.
fn reported(mounted: &Mounted<'_>, uuid: &str) -> Vec<Value> {
    let lines = mounted.read(".errors");
    let all = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|error| error["uuid"] == uuid).collect()
}

#[test]
fn an_update_that_is_cut_off_leaves_the_old_the_new_or_a_report() {
    let store = Store::new(6);
    let mut mounted = store.mount();
    let uuid = mounted.uuid(&store.zones()[0]);
    let before = others(&store.root(), &uuid);
    let set = |n: usize| {
        let tags = json!({"round": n.to_string()});
        json!({"quota": n, "alias": format!("n{n}"), "set_tags": tags, "set_customer_metadata": tags})
    };
    fs::write(mounted.path(format!("{uuid}/vm.json")), set(1).to_string()).unwrap();
    let mut now = 1;
    let mut seen = [0, 0, 0];
    for round in 2..2 + rounds(50) {
        let writer = write(
            &mounted,
            &format!("{uuid}/vm.json"),
            &set(round).to_string(),
        );
        mounted = kill(mounted, writer);
        assert_eq!(mounted.stale(&uuid), None);
        let vm = mounted.json(format!("{uuid}/vm.json"));
        let shown = [
            vm["quota"].to_string(),
            vm["alias"].as_str().unwrap()[1..].to_owned(),
            vm["tags"]["round"].as_str().unwrap().to_owned(),
            vm["customer_metadata"]["round"]
                .as_str()
                .unwrap()
                .to_owned(),
        ];
        let is = |n: usize| shown.iter().all(|value| *value == n.to_string());
        if is(now) {
            seen[0] += 1;
        } else if is(round) {
            seen[1] += 1;
            now = round;
        } else {
            seen[2] += 1;
            let reported = reported(&mounted, &uuid);
            assert!(
                !reported.is_empty(),
                "partly applied and not reported: {shown:?}"
            );
            fs::write(
                mounted.path(format!("{uuid}/vm.json")),
                set(round).to_string(),
            )
            .unwrap();
            now = round;
        }
    }
    assert_eq!(others(&store.root(), &uuid), before);
    eprintln!("old, new, partly: {seen:?}");
}

#[test]
fn a_creation_or_deletion_that_is_cut_off_leaves_a_whole_vm_or_none() {
    let store = Store::new(3);
    let mut mounted = store.mount();
    let uuid = "77777777-1111-4222-8333-444444444444";
    let before = others(&store.root(), uuid);
    let payload = json!({"uuid": uuid, "brand": "joyent", "alias": "cut", "autoboot": false,
        "image_uuid": "01b2c898-945f-11e1-a523-af1afbe22822", "tags": {"a": "b"}});
    for _ in 0..rounds(25) {
        let creating = write(&mounted, "create", &payload.to_string());
        mounted = kill(mounted, creating);
        if !mounted.path(uuid).exists() {
            // Nothing is in the way of another attempt.
            fs::write(mounted.path("create"), payload.to_string()).unwrap();
        }
        assert_eq!(mounted.stale(uuid), None);
        assert_eq!(mounted.read(format!("{uuid}/alias")), "cut\n");
        assert_eq!(mounted.read(format!("{uuid}/tags/a")), "b\n");
        let deleting = write(&mounted, &format!("{uuid}/ctl"), "delete");
        mounted = kill(mounted, deleting);
        if mounted.path(uuid).exists() {
            assert_eq!(mounted.read(format!("{uuid}/tags/a")), "b\n");
            fs::write(mounted.path(format!("{uuid}/ctl")), "delete").unwrap();
        }
        let left = |path: &str| store.path(path.replace('U', uuid)).exists();
        until("nothing of it is left", || {
            let paths = [
                "etc/zones/U.xml",
                "zones/U/config",
                "var/db/datasets/U.json",
            ];
            (!paths.iter().any(|path| left(path))).then_some(())
        });
    }
    let index = |files: &BTreeMap<PathBuf, Vec<u8>>| files[&store.path("etc/zones/index")].clone();
    assert_eq!(index(&others(&store.root(), uuid)), index(&before));
}

/// Mounts with a daemon that kills itself before step `number` of what it applies, has it write, and mounts
/// anew. `None` if there is no such step: then all was applied.
fn killed_at<'a>(store: &'a Store, number: u32, file: &str, text: &str) -> Option<Mounted<'a>> {
    let step = format!("fault_step={number}:abort");
    let mut mounted = store.mount_with(&["-o", &step]);
    let written = fs::write(mounted.path(file), text);
    if written.is_ok() {
        return None;
    }
    mounted.ended();
    drop(mounted);
    Some(store.mount())
}

#[test]
fn killed_before_any_step_of_an_update_the_vm_is_old_new_or_reported() {
    let store = Store::new(3);
    let mounted = store.mount();
    let uuid = mounted.uuid(&store.zones()[0]);
    let file = format!("{uuid}/vm.json");
    let begin = json!({"quota": 1, "alias": "n1", "set_tags": {"round": "1"}});
    fs::write(mounted.path(&file), begin.to_string()).unwrap();
    drop(mounted);
    let mut now = 1;
    let mut steps = 0;
    for number in 1..100 {
        let new = now + 1;
        let tags = json!({"round": new.to_string()});
        let payload = json!({"quota": new, "alias": format!("n{new}"), "set_tags": tags});
        let Some(mounted) = killed_at(&store, number, &file, &payload.to_string()) else {
            steps = number - 1;
            break;
        };
        let vm = mounted.json(&file);
        let shown = [
            vm["quota"].to_string(),
            vm["alias"].as_str().unwrap()[1..].to_owned(),
            vm["tags"]["round"].as_str().unwrap().to_owned(),
        ];
        let is = |n: i32| shown.iter().all(|value| *value == n.to_string());
        if !is(now) && !is(new) {
            let reports = reported(&mounted, &uuid);
            assert_eq!(reports.len(), 1, "{shown:?}");
            let message = reports[0]["message"].as_str().unwrap();
            assert!(message.contains("applied"), "{message}");
            assert!(
                mounted
                    .read(format!("{uuid}/last_error"))
                    .contains("applied")
            );
        } else {
            assert_eq!(reported(&mounted, &uuid), Vec::<Value>::new(), "{shown:?}");
        }
        fs::write(mounted.path(&file), payload.to_string()).unwrap();
        now = new;
    }
    assert!(steps >= 3, "an update of three places has {steps} steps");
}

#[test]
fn killed_before_any_step_of_a_creation_or_deletion_a_vm_is_whole_or_not_there() {
    let store = Store::new(2);
    let uuid = "77777777-1111-4222-8333-444444444444";
    let payload = json!({"uuid": uuid, "brand": "joyent", "alias": "cut", "autoboot": false,
        "image_uuid": "01b2c898-945f-11e1-a523-af1afbe22822", "tags": {"a": "b"}});
    let nothing_left = || {
        for path in [
            "etc/zones/U.xml",
            "zones/U/config",
            "var/db/datasets/U.json",
        ] {
            let path = path.replace('U', uuid);
            assert!(!store.path(&path).exists(), "{path} is left");
        }
    };
    let mut steps = [0, 0];
    for number in 1..100 {
        let Some(mounted) = killed_at(&store, number, "create", &payload.to_string()) else {
            break;
        };
        steps[0] = number;
        match mounted.path(uuid).exists() {
            true => {
                assert_eq!(mounted.read(format!("{uuid}/tags/a")), "b\n");
                fs::write(mounted.path(format!("{uuid}/ctl")), "delete").unwrap();
            }
            false => nothing_left(),
        }
    }
    for number in 1..100 {
        let file = format!("{uuid}/ctl");
        let Some(mounted) = killed_at(&store, number, &file, "delete") else {
            break;
        };
        steps[1] = number;
        match mounted.path(uuid).exists() {
            true => assert_eq!(mounted.read(format!("{uuid}/tags/a")), "b\n"),
            false => {
                nothing_left();
                fs::write(mounted.path("create"), payload.to_string()).unwrap();
            }
        }
    }
    assert!(steps.iter().all(|steps| *steps >= 3), "{steps:?}");
    nothing_left();
}
