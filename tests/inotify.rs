//! inotify over a real mount: whoever watches it hears of changes that nobody made through it.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use serde_json::json;
use support::{Events, Lines, Mounted, PATIENCE, Running, Store, until};
use vminfod::sample::change;

/// `inotifywait -m` on some paths, as soon as it watches them all. A line it prints is the path
/// watched, the events, and the name of an entry of a directory. It hears not of reads, or each
/// line would make the test cause more.
fn inotifywait<P: AsRef<OsStr>>(paths: impl IntoIterator<Item = P>) -> (Running, Lines) {
    let mut command = Command::new("inotifywait");
    command
        .args(["-m", "-e", "modify,create,delete", "--format", "%w %e %f"])
        .args(paths);
    let (mut running, lines) = Running::printing(command.stderr(Stdio::piped()));
    let stderr = running.0.stderr.take().unwrap();
    let established = |line: &String| line.contains("Watches established");
    let mut said = BufReader::new(stderr).lines().map_while(Result::ok);
    assert!(said.any(|line| established(&line)), "inotifywait ended");
    (running, lines)
}

/// A watch of the test's own.
struct Watch(Inotify);

impl Watch {
    #[track_caller]
    fn on(path: &Path, flags: AddWatchFlags) -> Watch {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        inotify.add_watch(path, flags).unwrap();
        Watch(inotify)
    }

    /// What has happened and was not asked for yet.
    #[track_caller]
    fn so_far(&self) -> Vec<InotifyEvent> {
        match self.0.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN) => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// What happens next.
    #[track_caller]
    fn next(&self) -> Vec<InotifyEvent> {
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            nix::poll::poll(&mut polled, timeout),
            Ok(1),
            "nothing happens"
        );
        self.so_far()
    }

    /// Whether an entry came or went among what has happened so far.
    #[track_caller]
    fn has(&self, what: AddWatchFlags, name: &str) -> bool {
        let named = |event: &InotifyEvent| event.name.as_deref() == Some(OsStr::new(name));
        self.so_far()
            .iter()
            .any(|event| event.mask.contains(what) && named(event))
    }
}

fn set_role(mounted: &Mounted<'_>, zone: &str, role: &str) {
    change::set_tag(&mounted.store.root(), zone, "role", &json!(role)).unwrap();
}

#[test]
fn watchers_hear_of_changes_made_in_every_way_that_editors_have() {
    let store = Store::new(2);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    set_role(&mounted, zone, "before");
    let role = mounted.path(format!("{zone}/tags/role"));
    until("the tag is there", || {
        (fs::read_to_string(&role).ok()? == "before\n").then_some(())
    });
    let tags = mounted.path(format!("{zone}/tags"));
    let vm = mounted.path(zone);
    let watched = [
        &role,
        &tags,
        &vm,
        &mounted.path("events"),
        &mounted.path("vms.json"),
        &mounted.path(".history"),
    ];
    let (_inotifywait, lines) = inotifywait(watched);

    let file = store.path(format!("zones/{zone}/config/tags.json"));
    let elsewhere = store.dir().join("elsewhere");
    let ways = [
        ("written", r#"printf '{"role": "written"}' > "$0""#),
        ("sed", r#"sed -i 's/written/sed/' "$0""#),
        (
            "renamed",
            r#"printf '{"role": "renamed"}' > "$0.tmp" && mv "$0.tmp" "$0""#,
        ),
        (
            "moved",
            r#"printf '{"role": "moved"}' > "$1" && mv "$1" "$0""#,
        ),
        ("anew", r#"rm "$0" && printf '{"role": "anew"}' > "$0""#),
        (
            "patched",
            r#"printf '{"role": "patched"}' | dd of="$0" conv=notrunc status=none"#,
        ),
    ];
    for (value, script) in ways {
        let mut sh = Command::new("sh");
        sh.args(["-c", script]).args([&file, &elsewhere]);
        assert!(sh.status().unwrap().success(), "{value}");
        let told = |path: PathBuf, name: &str| format!("{} MODIFY {name}", path.display());
        let mut expected = vec![
            told(role.clone(), ""),
            told(tags.join(""), "role"),
            told(vm.join(""), "vm.json"),
            told(mounted.path("events"), ""),
            told(mounted.path("vms.json"), ""),
            told(mounted.path(".history"), ""),
        ];
        // Whoever looks only when told sees the value.
        while !expected.is_empty() {
            let line = lines.next();
            let shown = fs::read_to_string(&role).is_ok_and(|role| role == format!("{value}\n"));
            expected.retain(|expected| *expected != line || !shown);
        }
    }
}

#[test]
fn a_watched_directory_tells_of_files_that_are_new_in_it() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let watch = Watch::on(
        &mounted.path(format!("{zone}/tags")),
        AddWatchFlags::IN_MODIFY,
    );
    change::set_tag(&store.root(), zone, "new", &json!("value")).unwrap();
    until("the new file is told of", || {
        watch.has(AddWatchFlags::IN_MODIFY, "new").then_some(())
    });
    assert_eq!(mounted.read(format!("{zone}/tags/new")), "value\n");
}

#[test]
fn a_vm_is_announced_before_anything_else_shows_it() {
    const CAME: AddWatchFlags = AddWatchFlags::IN_CREATE;
    const WENT: AddWatchFlags = AddWatchFlags::IN_DELETE;
    let store = Store::new(5);
    let mounted = store.mount();
    let by_event = Watch::on(&mounted.at, CAME | WENT);
    let by_document = Watch::on(&mounted.at, CAME | WENT);
    let events = mounted.events();
    for round in 0..10 {
        let zone = change::add(&store.root(), 1, 50 + round).unwrap();
        until("vms.json shows the VM", || {
            mounted.read("vms.json").contains(&zone).then_some(())
        });
        assert!(
            by_document.has(CAME, &zone),
            "vms.json came before IN_CREATE"
        );
        let created = events.find(|event| event["type"] == "create");
        assert_eq!(created["uuid"], *zone);
        assert!(mounted.path(&zone).join("vm.json").is_file());

        change::remove(&store.root(), &zone).unwrap();
        until("vms.json no longer shows it", || {
            (!mounted.read("vms.json").contains(&zone)).then_some(())
        });
        assert!(
            by_document.has(WENT, &zone),
            "vms.json came before IN_DELETE"
        );
        events.find(|event| event["type"] == "delete");
        assert!(!mounted.path(&zone).exists());
        let heard = by_event.so_far();
        assert_eq!(heard.len(), 2, "each is announced once: {heard:?}");
    }
    for round in 0..10 {
        let zone = change::add(&store.root(), 1, 80 + round).unwrap();
        events.find(|event| event["type"] == "create");
        assert!(by_event.has(CAME, &zone), "the event came before IN_CREATE");
        change::remove(&store.root(), &zone).unwrap();
        events.find(|event| event["type"] == "delete");
        assert!(by_event.has(WENT, &zone), "the event came before IN_DELETE");
    }
}

#[test]
fn inotifywait_on_the_mount_tells_of_vms() {
    let store = Store::new(2);
    let mounted = store.mount();
    let (_inotifywait, lines) = inotifywait([&mounted.at]);
    let root = mounted.at.display();
    let zone = change::add(&store.root(), 1, 50).unwrap();
    lines.find(|line| line == format!("{root}/ CREATE,ISDIR {zone}"));
    change::remove(&store.root(), &zone).unwrap();
    lines.find(|line| line == format!("{root}/ DELETE,ISDIR {zone}"));
}

#[test]
fn a_watch_stays_alive_through_a_hundred_changes() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let role = mounted.path(format!("{zone}/tags/role"));
    let watch = Watch::on(&role, AddWatchFlags::IN_ALL_EVENTS);
    for number in 0..100 {
        let value = format!("role-{number}");
        set_role(&mounted, zone, &value);
        let heard = watch.next();
        let other = !AddWatchFlags::IN_MODIFY;
        assert!(
            heard.iter().all(|event| !event.mask.intersects(other)),
            "{heard:?}"
        );
        // Told of it means that it is there. (Reading it here would raise other events.)
        let size = fs::metadata(&role).unwrap().len();
        assert_eq!(size, value.len() as u64 + 1);
    }
}

#[test]
fn whoever_reads_only_when_told_sees_the_last_value_of_a_burst() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let role = mounted.path(format!("{zone}/tags/role"));
    for path in ["tags/role", "tags", "vm.json", "", "../events"] {
        let path = mounted.path(zone).join(path);
        let watch = Watch::on(&path, AddWatchFlags::IN_MODIFY);
        for number in 0..100 {
            set_role(&mounted, zone, &format!("{}-{number}", path.display()));
        }
        let last = format!("{}-99\n", path.display());
        while fs::read_to_string(&role).unwrap() != last {
            watch.next();
        }
    }
}

#[test]
fn telling_watchers_is_no_change_that_is_told_of() {
    let store = Store::new(2);
    let mounted = store.mount();
    let [zone, other] = &store.zones()[..] else {
        panic!("two zones")
    };
    let watch = Watch::on(&mounted.path(zone), AddWatchFlags::IN_MODIFY);
    let tags = Watch::on(
        &mounted.path(format!("{zone}/tags")),
        AddWatchFlags::IN_MODIFY,
    );
    let of_other = Watch::on(
        &mounted.path(format!("{other}/tags/role")),
        AddWatchFlags::IN_MODIFY,
    );
    let events = mounted.events();
    set_role(&mounted, zone, "changed");
    let event = events.changed(zone, "tags.role");
    // Files are touched one after the other: once a later change has been told of, so has this.
    set_role(&mounted, other, "fence");
    of_other.next();
    assert!(watch.has(AddWatchFlags::IN_MODIFY, "vm.json"));
    assert!(tags.has(AddWatchFlags::IN_MODIFY, "role"));
    for fence in 0..10 {
        set_role(&mounted, other, &format!("fence-{fence}"));
        of_other.next();
        assert_eq!(
            watch.so_far().len() + tags.so_far().len(),
            0,
            "told of twice"
        );
    }
    let others = 11;
    let newest = mounted.status()["events"]["seq"].as_u64().unwrap();
    assert_eq!(
        newest,
        event["seq"].as_u64().unwrap() + others,
        "telling made no event"
    );
}

#[test]
fn a_vm_that_comes_back_can_be_watched_again() {
    let store = Store::new(1);
    let mounted = store.mount();
    let root = store.root();
    let in_root = Watch::on(
        &mounted.at,
        AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE,
    );
    for round in 0..5 {
        let zone = change::add(&root, 1, 50).unwrap();
        until("it has come", || {
            in_root.has(AddWatchFlags::IN_CREATE, &zone).then_some(())
        });
        let events = Events::open(&mounted.path(format!(".events/{zone}")));
        let file = mounted.path(format!("{zone}/tags/role"));
        set_role(&mounted, &zone, "before");
        until("the tag shows", || {
            (fs::read_to_string(&file).ok()? == "before\n").then_some(())
        });
        let watch = Watch::on(&file, AddWatchFlags::IN_MODIFY);
        let dir = Watch::on(&mounted.path(&zone), AddWatchFlags::IN_MODIFY);
        let value = format!("round-{round}");
        set_role(&mounted, &zone, &value);
        until("its watchers are told", || {
            watch.next();
            (fs::read_to_string(&file).ok()? == format!("{value}\n")).then_some(())
        });
        assert!(!dir.next().is_empty());
        events.find(|event| event["vm"]["tags"]["role"] == *value);
        change::remove(&root, &zone).unwrap();
        until("it has gone", || {
            in_root.has(AddWatchFlags::IN_DELETE, &zone).then_some(())
        });
    }
}
