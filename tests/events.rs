//! The event streams over a real mount: what they say, where they start, what they never lose, and
//! the ways in which programs read them.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::select::{FdSet, select};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::inside::{self, Inside};
use support::{Events, Lines, Mounted, PATIENCE, Running, Store, until};
use vminfod::sample::change;

fn keys(event: &Value) -> Vec<&str> {
    event
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn seq(event: &Value) -> u64 {
    event["seq"]
        .as_u64()
        .unwrap_or_else(|| panic!("no seq: {event}"))
}

/// Sets the tag `role` of a zone, and waits until its event can be read.
#[track_caller]
fn set_role(mounted: &Mounted<'_>, zone: &str, role: &str) {
    change::set_tag(&mounted.store.root(), zone, "role", &json!(role)).unwrap();
    let path = mounted.path(format!("{zone}/tags/role"));
    let shown = format!("{role}\n");
    until("the tag shows", || {
        (fs::read_to_string(&path).ok()? == shown).then_some(())
    });
    until_settled(mounted);
}

/// Waits until the streams have come as far as the VMs; returns the numbers of the oldest and the
/// newest event kept.
#[track_caller]
fn until_settled(mounted: &Mounted<'_>) -> (u64, u64) {
    until("the last event is settled", || {
        let events = &mounted.status()["events"];
        let number = |which: &str| events[which].as_u64().unwrap();
        (number("settled") == number("seq")).then(|| (number("oldest"), number("seq")))
    })
}

/// Sets a tag of all zones at once, and waits until their events can be read.
#[track_caller]
fn set_round(mounted: &Mounted<'_>, round: usize) -> (u64, u64) {
    for zone in mounted.store.zones() {
        change::set_tag(&mounted.store.root(), &zone, "round", &json!(round)).unwrap();
    }
    until("all tags show", || {
        let vms = mounted.json("vms.json");
        vms.as_array()
            .unwrap()
            .iter()
            .all(|vm| vm["tags"]["round"] == round)
            .then_some(())
    });
    until_settled(mounted)
}

/// Makes so many events, each of them shown before the next is made.
#[track_caller]
fn make_events(mounted: &Mounted<'_>, zone: &str, events: usize) {
    for number in 0..events {
        set_role(mounted, zone, &format!("role-{number}"));
    }
}

/// Opens a stream that never blocks.
#[track_caller]
fn open_nonblocking(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap()
}

/// The stream of all events; only while all are kept.
#[track_caller]
fn from_the_first(mounted: &Mounted<'_>) -> PathBuf {
    mounted.path(format!(".events/{}", mounted.base()))
}

/// Everything that can be read now, without waiting, in reads of `size` bytes.
#[track_caller]
fn read_available(mut stream: &File, size: usize) -> String {
    let mut buffer = vec![0; size];
    let mut all = Vec::new();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("the stream has ended"),
            Ok(len) => all.extend_from_slice(&buffer[..len]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                return String::from_utf8(all).unwrap();
            }
        }
    }
}

fn parse(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The VMs of `vms.json` by uuid.
fn by_uuid(vms: &Value) -> BTreeMap<String, Value> {
    let vms = vms.as_array().unwrap().iter();
    vms.map(|vm| (vm["uuid"].as_str().unwrap().to_owned(), vm.clone()))
        .collect()
}

/// What a reader of events does with one.
fn fold(vms: &mut BTreeMap<String, Value>, event: &Value) {
    let uuid = event["uuid"].as_str().unwrap().to_owned();
    match event["type"].as_str().unwrap() {
        "create" | "modify" => vms.insert(uuid, event["vm"].clone()),
        "delete" => vms.remove(&uuid),
        other => panic!("what is {other}?"),
    };
}

#[test]
fn events_have_the_members_of_their_kind_in_order() {
    let store = Store::new(2);
    let mounted = store.mount();
    let events = mounted.events();
    assert_eq!(keys(&events.ready), ["type", "date", "uuid", "seq"]);
    assert_eq!(events.ready["uuid"].as_str().unwrap().len(), 36);
    assert_eq!(events.ready["seq"], mounted.base());
    let listeners = mounted.status()["eventsListeners"].clone();
    assert!(
        listeners[events.ready["uuid"].as_str().unwrap()].is_object(),
        "{listeners}"
    );

    let zone = change::add(&store.root(), 1, 70).unwrap();
    let created = events.next();
    assert_eq!(
        keys(&created),
        ["type", "date", "zonename", "uuid", "vm", "seq", "via"]
    );
    assert_eq!(
        (&created["type"], &created["zonename"]),
        (&json!("create"), &json!(zone))
    );
    assert_eq!(created["vm"], mounted.json(format!("{zone}/vm.json")));

    change::set_tag(&store.root(), &zone, "role", &json!("changed")).unwrap();
    let modified = events.changed(&zone, "tags.role");
    let members = [
        "type", "date", "zonename", "uuid", "vm", "changes", "seq", "via",
    ];
    assert_eq!(keys(&modified), members);
    assert_eq!(modified["type"], "modify");
    assert_eq!(modified["vm"]["tags"]["role"], "changed");
    let changes = modified["changes"].as_array().unwrap();
    let role = changes
        .iter()
        .find(|change| change["prettyPath"] == "tags.role")
        .unwrap();
    assert_eq!(
        (&role["path"], &role["newValue"]),
        (&json!(["tags", "role"]), &json!("changed"))
    );

    change::remove(&store.root(), &zone).unwrap();
    let deleted = events.find(|event| event["type"] == "delete");
    assert_eq!(
        keys(&deleted),
        ["type", "date", "zonename", "uuid", "seq", "via"]
    );
    assert_eq!(deleted["uuid"], *zone);
}

#[test]
fn vms_json_read_after_ready_and_the_events_make_the_later_vms_json() {
    const MARK: &str = "last";
    let store = Store::new(12);
    let root = store.root();
    let mounted = store.mount();
    let events = mounted.events();
    let mut folded = by_uuid(&mounted.json("vms.json"));

    // Numbers that look random and are the same each time.
    let mut state: u64 = 42;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut zones = store.zones();
    let mut spare: Vec<usize> = (100..120).collect();
    for number in 0..500 {
        match random(20) {
            0 if zones.len() > 1 => {
                let zone = zones.swap_remove(random(zones.len()));
                change::remove(&root, &zone).unwrap();
            }
            1 if !spare.is_empty() => {
                zones.push(change::add(&root, 1, spare.swap_remove(random(spare.len()))).unwrap());
            }
            _ => {
                let zone = &zones[random(zones.len())];
                change::set_tag(&root, zone, &format!("key{}", random(3)), &json!(number)).unwrap();
            }
        }
    }
    for zone in &zones {
        change::set_tag(&root, zone, MARK, &json!(true)).unwrap();
    }
    // The file and the number of the last change are one state if that is the same before and after. What is shown may
    // be ahead of what has been told, so that all of it has to be told too.
    let (last, vms) = until("all changes show and are told", || {
        let number = |name: &str| mounted.status()["events"][name].as_u64().unwrap();
        let (before, vms, after) = (
            number("settled"),
            by_uuid(&mounted.json("vms.json")),
            number("seq"),
        );
        let complete = vms.len() == zones.len() && vms.values().all(|vm| vm["tags"][MARK] == true);
        (before == after && complete).then_some((after, vms))
    });
    for number in seq(&events.ready) + 1..=last {
        let event = events.next();
        assert_eq!(seq(&event), number, "no number is left out");
        fold(&mut folded, &event);
    }
    assert_eq!(folded, vms);
}

#[test]
fn every_open_has_its_own_cursor() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let early = mounted.events();
    set_role(&mounted, zone, "one");
    let late = mounted.events();
    set_role(&mounted, zone, "two");
    let [one, two] = [early.next(), early.next()];
    let base = mounted.base();
    assert_eq!([seq(&one), seq(&two)], [base + 1, base + 2]);
    assert_ne!(early.ready["uuid"], late.ready["uuid"]);
    assert_eq!(late.ready["seq"], base + 1);
    assert_eq!(late.next(), two);
}

#[test]
fn a_stream_after_a_number_goes_on_exactly_there() {
    let store = Store::new(2);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    make_events(&mounted, zone, 5);
    let base = mounted.base();
    let whole = read_available(&open_nonblocking(&from_the_first(&mounted)), 1 << 20);
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 6);
    for after in 0..=5 {
        let part = read_available(
            &open_nonblocking(&mounted.path(format!(".events/{}", base + after))),
            1 << 20,
        );
        let (ready, rest) = part.split_once('\n').unwrap();
        assert_eq!(seq(&parse(ready)[0]), base + after);
        assert!(
            rest.lines()
                .eq(lines.iter().copied().skip(1 + after as usize)),
            "after {after}: {rest}"
        );
    }
    // And it goes on with what happens from now on.
    let resumed = Events::open(&mounted.path(format!(".events/{}", base + 4)));
    set_role(&mounted, zone, "new");
    let next = [seq(&resumed.next()), seq(&resumed.next())];
    assert_eq!(next, [base + 5, base + 6]);
}

#[test]
fn a_stream_after_a_number_that_is_no_longer_kept_begins_with_a_gap() {
    let store = Store::new(40);
    let mounted = store.mount_with(&["-o", "history=64K"]);
    let after = mounted.base() + 1;
    let (oldest, newest) = set_round(&mounted, 1);
    assert!(oldest > after + 1, "40 events are more than 64K: {oldest}");
    let lines = parse(&read_available(
        &open_nonblocking(&mounted.path(format!(".events/{after}"))),
        1 << 20,
    ));
    assert_eq!(
        (&lines[0]["type"], seq(&lines[0])),
        (&json!("ready"), after)
    );
    assert_eq!(
        lines[1],
        json!({"type": "gap", "seq": oldest, "missed": oldest - after - 1})
    );
    let numbers: Vec<u64> = lines[2..].iter().map(seq).collect();
    assert_eq!(numbers, (oldest..=newest).collect::<Vec<_>>());
}

#[test]
fn a_stream_after_a_number_nobody_has_reached_begins_with_a_gap_of_unknown_size() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    set_role(&mounted, zone, "one");
    let base = mounted.base();
    let stream = Events::open(&mounted.path(format!(".events/{}", base + 1_000_000)));
    assert_eq!(
        stream.next(),
        json!({"type": "gap", "seq": base + 2, "missed": null})
    );
    set_role(&mounted, zone, "two");
    assert_eq!(seq(&stream.next()), base + 2);
}

#[test]
fn a_stream_after_a_number_of_an_earlier_daemon_begins_with_a_gap_of_unknown_size() {
    let store = Store::new(1);
    let zone = &store.zones()[0];
    let mounted = store.mount();
    make_events(&mounted, zone, 3);
    let last = mounted.base() + 3;
    drop(mounted);
    let mounted = store.mount();
    let base = mounted.base();
    assert!(base > last);
    set_role(&mounted, zone, "one");
    set_role(&mounted, zone, "two");
    for after in [last, last - 1, 0, base - 1] {
        let stream = Events::open(&mounted.path(format!(".events/{after}")));
        assert_eq!(seq(&stream.ready), after);
        assert_eq!(
            stream.next(),
            json!({"type": "gap", "seq": base + 1, "missed": null})
        );
        assert_eq!(
            [seq(&stream.next()), seq(&stream.next())],
            [base + 1, base + 2]
        );
    }
}

#[test]
fn the_stream_of_one_vm_has_only_its_events() {
    let store = Store::new(2);
    let mounted = store.mount();
    let [other, zone] = &store.zones()[..] else {
        panic!("two zones")
    };
    let stream = Events::open(&mounted.path(format!(".events/{zone}")));
    for role in ["one", "two", "three"] {
        set_role(&mounted, other, role);
        set_role(&mounted, zone, role);
    }
    let numbers = [stream.next(), stream.next(), stream.next()].map(|event| {
        assert_eq!(event["uuid"], **zone);
        seq(&event)
    });
    let base = mounted.base();
    assert_eq!(numbers, [base + 2, base + 4, base + 6]);
    change::remove(&store.root(), zone).unwrap();
    assert_eq!(stream.next()["type"], "delete");
}

#[test]
fn the_directory_of_streams_lists_nothing() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    assert_eq!(fs::read_dir(mounted.path(".events")).unwrap().count(), 0);
    for name in ["0", "18", zone] {
        assert!(mounted.path(".events").join(name).is_file(), "{name}");
    }
    for name in [
        "x",
        "-1",
        "01",
        "+1",
        "99999999999999999999",
        "00000000-0000-0000-0000-000000000000",
    ] {
        assert!(!mounted.path(".events").join(name).exists(), "{name}");
    }
}

#[test]
fn a_reader_that_falls_behind_is_told_how_much_it_missed() {
    let store = Store::new(40);
    let mounted = store.mount_with(&["-o", "history=64K"]);
    let mut slow = open_nonblocking(&mounted.path("events"));
    set_role(&mounted, &store.zones()[0], "changed");
    // It has begun an event when it falls behind: that one it still gets whole.
    let mut begun = vec![0; 200];
    let ready = slow.read(&mut begun).unwrap();
    assert!(begun[..ready].ends_with(b"\n"));
    slow.read_exact(&mut begun[ready..]).unwrap();
    set_round(&mounted, 1);
    let (_, newest) = set_round(&mounted, 2);
    let mut text = String::from_utf8(begun).unwrap();
    text.push_str(&read_available(&slow, 1 << 16));
    let lines = parse(&text);
    assert_eq!(lines[0]["type"], "ready");
    let gaps = lines.iter().filter(|line| line["type"] == "gap").count();
    assert_eq!(gaps, 1);
    let mut next = seq(&lines[0]) + 1;
    for line in &lines[1..] {
        if line["type"] == "gap" {
            next += line["missed"].as_u64().unwrap();
            assert_eq!(seq(line), next, "the gap names the event that follows it");
        } else {
            assert_eq!(seq(line), next, "nothing is missing but what the gap says");
            next += 1;
        }
    }
    assert_eq!(next, newest + 1);
}

#[test]
fn a_shell_reads_events_line_by_line() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let script = r#"while IFS= read -r line; do printf '%s\n' "$line"; done < "$0""#;
    let mut bash = Command::new("bash");
    let (_bash, printed) = Running::printing(bash.args(["-c", script]).arg(mounted.path("events")));
    assert_eq!(printed.json()["type"], "ready");
    set_role(&mounted, zone, "one");
    set_role(&mounted, zone, "two");
    let lines = [printed.next(), printed.next()];
    let history = mounted.read(".history");
    assert!(
        history.lines().eq(lines.iter().map(String::as_str)),
        "{lines:?}"
    );
}

#[test]
fn cat_and_jq_print_an_event_when_it_happens() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let (_cat, cat) = Running::printing(Command::new("cat").arg(mounted.path("events")));
    let mut jq = Command::new("jq");
    jq.args(["--unbuffered", "-c", r"[.type, .seq]"])
        .arg(mounted.path("events"));
    let (_jq, jq) = Running::printing(&mut jq);
    assert_eq!(cat.json()["type"], "ready");
    let base = mounted.base();
    assert_eq!(jq.next(), format!(r#"["ready",{base}]"#));
    for (number, role) in (base + 1..).zip(["one", "two"]) {
        set_role(&mounted, zone, role);
        assert_eq!(seq(&cat.json()), number);
        assert_eq!(jq.next(), format!(r#"["modify",{number}]"#));
    }
}

#[test]
fn a_small_buffer_gets_parts_of_a_line_and_the_next_read_goes_on() {
    let store = Store::new(1);
    let mounted = store.mount();
    make_events(&mounted, &store.zones()[0], 2);
    for size in [1, 7, 1000, 5000] {
        let stream = open_nonblocking(&from_the_first(&mounted));
        let text = read_available(&stream, size);
        let (_, events) = text.split_once('\n').unwrap();
        assert_eq!(events, mounted.read(".history"), "in pieces of {size}");
    }
}

#[test]
fn a_read_returns_as_many_whole_lines_as_fit() {
    let store = Store::new(1);
    let mounted = store.mount();
    make_events(&mounted, &store.zones()[0], 3);
    let history = mounted.read(".history");
    let [one, two, three] = history.split_inclusive('\n').collect::<Vec<_>>()[..] else {
        panic!("three lines: {history}")
    };
    let mut stream = open_nonblocking(&from_the_first(&mounted));
    let mut ready = [0; 4096];
    // A line that would not fit whole behind another waits for the next read.
    let len = stream.read(&mut ready[..one.len().min(4096)]).unwrap();
    assert!(
        ready[..len].ends_with(b"\n") && len < 200,
        "{}",
        String::from_utf8_lossy(&ready[..len])
    );
    let mut both = vec![0; one.len() + two.len() + three.len() / 2];
    let len = stream.read(&mut both).unwrap();
    assert_eq!(String::from_utf8_lossy(&both[..len]), format!("{one}{two}"));
    let len = stream.read(&mut both).unwrap();
    assert_eq!(String::from_utf8_lossy(&both[..len]), three);
}

#[test]
fn a_stream_that_must_not_block_says_so_and_goes_on() {
    let store = Store::new(1);
    let mounted = store.mount();
    let stream = open_nonblocking(&mounted.path("events"));
    assert_eq!(parse(&read_available(&stream, 4096)).len(), 1);
    assert_eq!(read_available(&stream, 4096), "");
    set_role(&mounted, &store.zones()[0], "one");
    let after = until("the event is readable", || {
        Some(read_available(&stream, 1 << 20)).filter(|text| !text.is_empty())
    });
    assert_eq!(seq(&parse(&after)[0]), mounted.base() + 1);
    assert_eq!(read_available(&stream, 4096), "");
}

#[test]
fn poll_and_select_wait_for_an_event() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let stream = open_nonblocking(&mounted.path("events"));
    let poll = |timeout: PollTimeout| {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut polled, timeout).unwrap();
        polled[0].revents().unwrap()
    };
    // At the end of their time they ask again, and would not miss the wake-up.
    let time = 2 * PATIENCE;
    let asked = || mounted.status()["mount"]["messages"]["poll"].as_u64();
    assert_eq!(poll(PollTimeout::ZERO), PollFlags::POLLIN, "the ready line");
    for role in ["one", "two"] {
        read_available(&stream, 1 << 20);
        assert_eq!(poll(PollTimeout::ZERO), PollFlags::empty());
        std::thread::scope(|scope| {
            let before = asked();
            let polling = scope.spawn(|| poll(PollTimeout::try_from(time).unwrap()));
            until("poll has asked", || (asked() > before).then_some(()));
            set_role(&mounted, zone, role);
            until("poll is woken", || polling.is_finished().then_some(()));
            assert_eq!(polling.join().unwrap(), PollFlags::POLLIN);
        });
    }
    read_available(&stream, 1 << 20);
    std::thread::scope(|scope| {
        let before = asked();
        let selecting = scope.spawn(|| {
            let mut readable = FdSet::new();
            readable.insert(stream.as_fd());
            let mut timeout = nix::sys::time::TimeVal::new(time.as_secs() as i64, 0);
            select(None, &mut readable, None, None, &mut timeout).unwrap()
        });
        until("select has asked", || (asked() > before).then_some(()));
        set_role(&mounted, zone, "three");
        until("select is woken", || selecting.is_finished().then_some(()));
        assert_eq!(selecting.join().unwrap(), 1);
    });
}

#[test]
fn epoll_waits_for_an_event_level_and_edge_triggered() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let patience = EpollTimeout::try_from(PATIENCE).unwrap();
    let waiting = |flags: EpollFlags| {
        let stream = open_nonblocking(&mounted.path("events"));
        read_available(&stream, 4096);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&stream, EpollEvent::new(flags, 7)).unwrap();
        (stream, epoll)
    };
    let wait = |epoll: &Epoll, timeout: EpollTimeout| {
        epoll.wait(&mut [EpollEvent::empty(); 4], timeout).unwrap()
    };
    let (level_stream, level) = waiting(EpollFlags::EPOLLIN);
    let (edge_stream, edge) = waiting(EpollFlags::EPOLLIN | EpollFlags::EPOLLET);
    for role in ["one", "two", "three"] {
        assert_eq!(wait(&level, EpollTimeout::ZERO), 0);
        assert_eq!(wait(&edge, EpollTimeout::ZERO), 0);
        set_role(&mounted, zone, role);
        assert_eq!(wait(&level, patience), 1);
        assert_eq!(
            wait(&level, patience),
            1,
            "as long as there is something to read"
        );
        assert_eq!(wait(&edge, patience), 1);
        assert!(!read_available(&level_stream, 1 << 20).is_empty());
        assert!(!read_available(&edge_stream, 1 << 20).is_empty());
    }
}

#[test]
fn two_processes_can_share_one_descriptor() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let stream = File::open(mounted.path("events")).unwrap();
    let reader = || {
        let mut running = Running::start(
            Command::new("cat")
                .stdin(stream.try_clone().unwrap())
                .stdout(Stdio::piped()),
        );
        let lines = Lines::of(running.0.stdout.take().unwrap());
        (running, lines)
    };
    let readers = [reader(), reader()];
    // Each waits in a read of its own, though they have one position.
    mounted.until_waiting(2);
    make_events(&mounted, zone, 10);
    let mut seen = Vec::new();
    until("each event is read by one of them", || {
        let lines = readers.iter().flat_map(|(_, lines)| lines.so_far());
        seen.extend(
            lines
                .flat_map(|line| parse(&line))
                .filter(|line| line["type"] != "ready"),
        );
        (seen.len() >= 10).then_some(())
    });
    let mut numbers: Vec<u64> = seen.iter().map(seq).collect();
    numbers.sort_unstable();
    let base = mounted.base();
    assert_eq!(numbers, (base + 1..=base + 10).collect::<Vec<_>>());
    mounted.until_waiting(2);
    for (mut reader, _) in readers {
        reader.signal(Signal::SIGTERM);
        reader.ended();
    }
}

#[test]
fn history_is_the_events_as_a_file_with_an_end() {
    let store = Store::new(1);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    assert_eq!(mounted.read(".history"), "");
    let mut tail = Command::new("tail");
    let (_tail, tail) =
        Running::printing(tail.args(["-n", "+1", "-f"]).arg(mounted.path(".history")));
    make_events(&mounted, zone, 3);
    let stream = read_available(&open_nonblocking(&from_the_first(&mounted)), 1 << 20);
    let (_, events) = stream.split_once('\n').unwrap();
    assert_eq!(mounted.read(".history"), events);
    assert_eq!(
        fs::metadata(mounted.path(".history")).unwrap().len(),
        events.len() as u64
    );
    for line in events.lines() {
        assert_eq!(tail.next(), line);
    }
}

#[test]
fn streams_end_when_the_daemon_does() {
    let store = Store::new(1);
    let mut mounted = store.mount();
    let streams = [mounted.events(), Events::open(&from_the_first(&mounted))];
    let (mut cat, lines) = Running::printing(Command::new("cat").arg(mounted.path("events")));
    assert_eq!(lines.json()["type"], "ready");
    let polled = open_nonblocking(&mounted.path("events"));
    read_available(&polled, 4096);
    mounted.until_waiting(3);
    mounted.signal(Signal::SIGTERM);
    for stream in streams {
        assert!(stream.ended());
    }
    assert!(lines.rest().is_empty());
    assert!(cat.ended().success());
    assert!(mounted.ended().success());
}

#[test]
fn a_gap_is_told_when_the_files_are_as_after_what_is_missing() {
    const VMS: usize = 40;
    let mut tree = Inside::with_history(VMS, 4096);
    let stream = open_nonblocking(&tree.path("events"));
    let ready = parse(&read_available(&stream, 1 << 16));
    // It has one event to read, which will be gone before it does.
    tree.set(0, "quota", json!(50));
    let barrier = tree.mount().barriers().publication.clone();
    let held = barrier.write();
    let changed = |number| {
        let mut vm = inside::vm(number);
        vm.insert("quota".to_owned(), json!(99));
        inside::put(&vm)
    };
    // One publication is more than the history keeps, and the files still show what was before.
    tree.writer.publish((0..VMS).map(changed).collect());
    let oldest = tree.cache.events().oldest();
    assert!(oldest > seq(&ready[0]) + 1);
    assert_eq!(read_available(&stream, 1 << 16), "", "nothing is told yet");
    drop(held);
    let told = until("the gap is told", || {
        Some(parse(&read_available(&stream, 1 << 16))).filter(|lines| !lines.is_empty())
    });
    assert_eq!(
        (&told[0]["type"], seq(&told[0])),
        (&json!("gap"), oldest),
        "{told:?}"
    );
    let shown: Value =
        serde_json::from_str(&fs::read_to_string(tree.path("vms.json")).unwrap()).unwrap();
    for vm in shown.as_array().unwrap() {
        assert_eq!(vm["quota"], 99);
    }
    assert_eq!(seq(told.last().unwrap()), tree.cache.now().seq);
}

#[test]
fn nobody_looks_for_signals_while_nobody_waits() {
    let store = Store::new(1);
    let mounted = store.mount();
    let tasks = format!("/proc/{}/task", mounted.daemon.id());
    // A thread has its name only once it runs.
    let interrupts = until("the thread has its name", || {
        let mut tasks = fs::read_dir(&tasks)
            .unwrap()
            .map(|task| task.unwrap().path());
        tasks.find(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "interrupts\n")
        })
    });
    // A thread that sleeps for a while is in nanosleep(2); one that waits to be told, in futex(2).
    let waits_to_be_told = || {
        until("the thread waits to be told", || {
            let call = fs::read_to_string(interrupts.join("syscall")).unwrap();
            call.starts_with(&format!("{} ", libc::SYS_futex))
                .then_some(())
        });
    };
    waits_to_be_told();
    let (mut cat, _printed) = Running::printing(Command::new("cat").arg(mounted.path("events")));
    mounted.until_waiting(1);
    cat.signal(Signal::SIGINT);
    cat.ended();
    waits_to_be_told();
}

#[test]
fn whoever_follows_the_history_gets_whole_lines_and_all_of_them() {
    const EVENTS: u64 = 100;
    // About 20 lines fit.
    let mut tree = Inside::with_history(1, 16 << 10);
    let mut tail = Command::new("tail");
    tail.args(["-n", "+1", "-s", "0.01", "-f"])
        .stderr(Stdio::null());
    let (_tail, tail) = Running::printing(tail.arg(tree.path(".history")));
    let mut lines = 0;
    for number in 0..EVENTS {
        let newest = tree.set(0, "quota", json!(number + 100));
        loop {
            lines += 1;
            // It panics on half a line.
            let shown = seq(&tail.json());
            assert!(shown <= newest);
            if shown == newest {
                break;
            }
        }
    }
    // When the older half goes, tail shows the other half again.
    assert!(lines < 3 * EVENTS, "{lines} lines of {EVENTS} events");
}

#[test]
fn a_reader_of_the_history_who_comes_back_too_late_is_told_how_much_he_missed() {
    let mut tree = Inside::with_history(1, 16 << 10);
    let mut history = File::open(tree.path(".history")).unwrap();
    let mut rest = || {
        let mut text = String::new();
        history.read_to_string(&mut text).unwrap();
        parse(&text)
    };
    let mut next = tree.set(0, "quota", json!(99));
    let mut missed = 0;
    for round in 0..20 {
        for line in rest() {
            if line["type"] == "gap" {
                missed += line["missed"].as_u64().unwrap();
                next += line["missed"].as_u64().unwrap();
                assert_eq!(seq(&line), next);
            } else {
                assert_eq!(seq(&line), next);
                next += 1;
            }
        }
        assert_eq!(next, tree.cache.now().seq + 1);
        for number in 0..4 * round {
            tree.set(0, "quota", json!(1000 * round + number));
        }
    }
    assert!(missed > 0);
}

#[test]
fn a_reader_at_the_end_of_the_history_keeps_no_old_events() {
    let mut tree = Inside::with_history(1, 16 << 10);
    let first = tree.set(0, "quota", json!(99));
    let event = Arc::downgrade(&tree.cache.events().get(first).unwrap().event);
    let mut history = File::open(tree.path(".history")).unwrap();
    let mut text = String::new();
    history.read_to_string(&mut text).unwrap();
    assert_eq!(seq(&parse(&text)[0]), first);
    for number in 100..200 {
        tree.set(0, "quota", json!(number));
    }
    assert!(event.upgrade().is_none());
}
