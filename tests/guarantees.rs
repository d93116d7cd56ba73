//! What is promised to everybody who reads the mount, one test for each promise that no other file
//! has.
//!
//! 1. Reads come from memory: here.
//! 2. Read after write: `writing.rs`. That nobody sees anything older once a change has settled, nor a
//!    torn value: `caching.rs`, `reading.rs`, `hazards.rs`.
//! 3. Only confirmed values are shown: here, and `writing.rs` for those that were asked for.
//! 4. A change made behind our back shows, also one whose event is lost: here.
//! 5. A source that fails deletes nothing: here, and each kind of bad input in `bad_input.rs`.
//! 6. One slow thing makes only itself slow: here; readers of streams in `hazards.rs`.
//! 7. Order: here; `gap` in `events.rs`.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::{Value, json};
use support::direct::{self, Direct, Hosted};
use support::{Events, PATIENCE, Running, Store, until};
use vminfod::sample::change;

#[test]
fn reads_do_not_wait_for_a_source_that_hangs() {
    let hosted = Hosted::new(5);
    let zones = hosted.store.zones();
    hosted
        .faults
        .hang(&zones.iter().map(String::as_str).collect::<Vec<_>>());
    for zone in &zones {
        change::set_tag(&hosted.store.root(), zone, "role", &json!("hung")).unwrap();
    }
    let vms: Value = serde_json::from_str(&hosted.read("vms.json")).unwrap();
    assert_eq!(vms.as_array().unwrap().len(), zones.len());
    // Everything that is there: names, attributes and contents.
    let find = "find -L \"$0\" -name events -prune -o -type f -print -exec cat {} + > \"$1\"";
    let out = hosted.store.dir().join("out");
    let status = Command::new("sh")
        .args(["-c", find])
        .args([&hosted.path(""), &out])
        .status();
    assert!(status.unwrap().success());
    let out = fs::read_to_string(out).unwrap();
    for zone in &zones {
        assert!(out.contains(&format!("{zone}/vm.json\n")), "{zone}");
    }
    assert!(!out.contains("\"role\":\"hung\""));
    hosted.faults.hang(&[]);
    for zone in &zones {
        until("it heals", || {
            (fs::read_to_string(hosted.path(format!("{zone}/tags/role"))).ok()? == "hung\n")
                .then_some(())
        });
    }
}

#[test]
fn a_value_that_is_half_written_is_never_shown() {
    let store = Store::new(2);
    let mounted = store.mount();
    let [zone, other] = &store.zones()[..] else {
        panic!("two zones")
    };
    let role = |zone: &str| mounted.path(format!("{zone}/tags/role"));
    let all = mounted.events();
    change::set_tag(&store.root(), zone, "role", &json!("whole")).unwrap();
    all.changed(zone, "tags.role");
    let before = mounted.json(format!("{zone}/vm.json"));
    let events = Events::open(&mounted.path(format!(".events/{zone}")));

    // An editor that is half done, and takes its time.
    let tags = store.path(format!("zones/{zone}/config/tags.json"));
    fs::write(&tags, r#"{"role": "ha"#).unwrap();
    change::set_tag(&store.root(), other, "role", &json!("later")).unwrap();
    until("a later change shows", || {
        (fs::read_to_string(role(other)).ok()? == "later\n").then_some(())
    });
    let stale = || mounted.status()["stale"][zone].as_str().map(str::to_owned);
    let reason = until("the VM is marked stale", stale);
    assert!(reason.contains("tags.json"), "{reason}");
    assert_eq!(mounted.json(format!("{zone}/vm.json")), before);
    assert_eq!(fs::read_to_string(role(zone)).unwrap(), "whole\n");

    fs::write(&tags, r#"{"role": "done"}"#).unwrap();
    let event = events.next();
    let changes = event["changes"].as_array().unwrap();
    let change = changes
        .iter()
        .find(|change| change["prettyPath"] == "tags.role")
        .unwrap();
    assert_eq!(
        (&change["oldValue"], &change["newValue"]),
        (&json!("whole"), &json!("done"))
    );
}

#[test]
fn a_change_whose_event_is_lost_is_found_by_the_next_scan_and_counted() {
    let hosted = Hosted::new(3);
    let zones = hosted.store.zones();
    let root = hosted.store.root();
    let events = Events::open(&hosted.path("events"));
    change::set_tag(&root, &zones[0], "role", &json!("heard")).unwrap();
    let heard = events.changed(&zones[0], "tags.role");
    assert_eq!(heard["via"], "event");
    assert!(hosted.health.lock().missed.is_empty());

    hosted.faults.deaf.store(true, Ordering::Release);
    change::set_tag(&root, &zones[0], "role", &json!("lost")).unwrap();
    change::remove(&root, &zones[1]).unwrap();
    let added = change::add(&root, 1, 50).unwrap();
    hosted.rescan();
    let mut expected = vec![
        (&zones[0], "modify"),
        (&zones[1], "delete"),
        (&added, "create"),
    ];
    while !expected.is_empty() {
        let event = events.next();
        assert_eq!(event["via"], "scan", "{event}");
        expected.retain(|(zone, kind)| event["uuid"] != **zone || event["type"] != *kind);
    }
    assert_eq!(hosted.read(format!("{}/tags/role", zones[0])), "lost\n");
    assert!(!hosted.path(&zones[1]).exists());
    assert!(hosted.path(&added).is_dir());
    let missed = hosted.health.lock().missed.clone();
    assert_eq!(missed.get("tags"), Some(&1), "{missed:?}");
    assert_eq!(missed.get("index"), Some(&2), "{missed:?}");
}

#[test]
fn a_scan_every_so_often_repairs_without_being_asked() {
    let store = Store::new(2);
    let mounted = store.mount_with(&["-o", "rescan=1"]);
    let scans = || {
        mounted.status()["refreshLog"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone()
    };
    let base = mounted.base();
    let first = scans();
    until("another scan", || (scans() != first).then_some(()));
    assert_eq!(mounted.status()["missed"], json!({}), "nothing was missed");
    assert_eq!(
        mounted.status()["events"]["seq"],
        base,
        "a scan that finds nothing says nothing"
    );
}

#[test]
fn a_source_that_fails_deletes_nothing() {
    let hosted = Hosted::new(4);
    let zones = hosted.store.zones();
    let index = hosted.store.path("etc/zones/index");
    let good = fs::read_to_string(&index).unwrap();
    let events = Events::open(&hosted.path("events"));
    let half = &good[..good.len() - 60];
    let failures: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&index).unwrap(),
        &|| fs::write(&index, "").unwrap(),
        &|| fs::write(&index, half).unwrap(),
        &|| {
            let _ = fs::remove_file(&index);
            fs::create_dir(&index).unwrap();
        },
    ];
    for fail in failures {
        fail();
        hosted.rescan();
        hosted.until_settled();
        for zone in &zones {
            assert!(hosted.path(zone).join("vm.json").is_file(), "{zone}");
        }
        if index.is_dir() {
            fs::remove_dir(&index).unwrap();
        }
        change::replace(&index, &good).unwrap();
        hosted.rescan();
    }
    // Only an index that is whole says that a VM is gone.
    change::remove(&hosted.store.root(), &zones[0]).unwrap();
    let deleted = events.find(|event| event["type"] == "delete");
    assert_eq!(deleted["uuid"], *zones[0]);
    assert!(!hosted.path(&zones[0]).exists());
    assert!(hosted.path(&zones[1]).exists());
}

#[test]
fn a_vm_that_hangs_holds_up_no_other() {
    let hosted = Hosted::new(3);
    let zones = hosted.store.zones();
    let root = hosted.store.root();
    let events = Events::open(&hosted.path("events"));
    hosted.faults.hang(&[&zones[0]]);
    change::set_tag(&root, &zones[0], "role", &json!("hung")).unwrap();
    for number in 0..50 {
        for zone in &zones[1..] {
            change::set_tag(&root, zone, "number", &json!(number)).unwrap();
            let event = events.changed(zone, "tags.number");
            assert_eq!(event["vm"]["tags"]["number"], number);
        }
    }
    let stale = || {
        hosted
            .cache
            .now()
            .vm(&zones[0].parse().unwrap())?
            .stale
            .clone()
    };
    until("what hangs is marked stale", stale);
    assert!(hosted.path(&zones[0]).join("vm.json").is_file());
    hosted.faults.hang(&[]);
    events.changed(&zones[0], "tags.role");
    until("it is no longer stale", || stale().is_none().then_some(()));
}

#[test]
fn a_consumer_that_does_not_read_holds_up_no_other() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    // It has opened the stream, and its output goes into a pipe that nobody empties.
    let mut slow = Command::new("cat");
    let slow = Running::start(slow.arg(mounted.path("events")).stdout(Stdio::piped()));
    mounted.until_waiting(1);
    let events = mounted.events();
    let base = mounted.base();
    for number in 0..100 {
        change::set_tag(&store.root(), zone, "number", &json!(number)).unwrap();
        assert_eq!(events.next()["seq"], base + number + 1);
        assert_eq!(
            mounted.read(format!("{zone}/tags/number")),
            format!("{number}\n")
        );
    }
    drop(slow);
}

#[test]
fn who_has_read_an_event_finds_nothing_older_anywhere() {
    const CHANGES: u64 = 600;
    let mut direct = Direct::new(3);
    let base = direct.base();
    let vm = direct::uuid(2);
    let dir = direct.path(vm.to_string());
    let mut stream = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(direct.path("events"))
        .unwrap();
    let mut next = || -> Vec<Value> {
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut polled, timeout), Ok(1), "no event");
        let mut buffer = vec![0; 1 << 20];
        let len = stream.read(&mut buffer).unwrap();
        let lines = std::str::from_utf8(&buffer[..len]).unwrap().lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    next();
    let number = |text: &str| {
        text.trim_start_matches(['a', '='])
            .trim_end()
            .parse::<u64>()
            .unwrap()
    };
    std::thread::scope(|scope| {
        let at = [
            direct.path("vms.json"),
            direct.path(".by/alias"),
            direct.path(".history"),
        ];
        let [document, aliases, history] = at;
        scope.spawn(|| {
            for n in 1..=CHANGES {
                let role = format!("{n:=>width$}", width = n as usize + 5);
                direct.publish(direct::put(
                    vm,
                    &format!("a{n}"),
                    &json!({"role": role, "looked-at": role}),
                ));
                // Sometimes many changes settle as one, sometimes each alone.
                if n % 3 != 0 {
                    direct.until_settled(base + n);
                }
            }
        });
        let mut seen = 0;
        while seen < CHANGES {
            for event in next() {
                seen += 1;
                assert_eq!(event["seq"], base + seen);
            }
            // It is never read, which would make the kernel ask for its attributes again.
            assert!(fs::metadata(dir.join("tags/looked-at")).unwrap().len() >= seen + 6);
            let role = dir.join("tags/role");
            assert!(number(&fs::read_to_string(&role).unwrap()) >= seen);
            assert!(number(&fs::read_to_string(dir.join("alias")).unwrap()) >= seen);
            let shown: Value =
                serde_json::from_str(&fs::read_to_string(dir.join("vm.json")).unwrap()).unwrap();
            assert!(number(shown["alias"].as_str().unwrap()) >= seen);
            let vms: Value = serde_json::from_str(&fs::read_to_string(&document).unwrap()).unwrap();
            let shown = vms
                .as_array()
                .unwrap()
                .iter()
                .find(|shown| shown["uuid"] == vm.to_string());
            assert!(number(shown.unwrap()["alias"].as_str().unwrap()) >= seen);
            let names = fs::read_dir(&aliases)
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
            let names: Vec<&String> = names
                .iter()
                .filter(|name| !name.starts_with("first"))
                .collect();
            assert!(
                !names.is_empty() && names.iter().all(|name| number(name) >= seen),
                "{names:?}"
            );
            assert!(fs::symlink_metadata(aliases.join(format!("a{}", seen - 1))).is_err());
            let last = fs::read_to_string(&history).unwrap();
            let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
            assert!(last["seq"].as_u64().unwrap() >= base + seen);
        }
    });
}
