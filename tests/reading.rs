//! Reading files while they change: what a handle shows, who is woken, and what happens to
//! those who hold something of a VM that goes.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::thread;

use nix::fcntl::{OFlag, SpliceFFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use support::inside::{self, Inside, put, uuid};
use support::{Running, map, until};

/// How many milliseconds a wait for what must come may take before a test gives up.
const PATIENT: u16 = 30_000;

const SHORT: &str = "short";
const LONG: &str = "a value that is longer than the other one";

/// A tree of one VM whose alias is short, and that file, open.
fn alias() -> (Inside, File) {
    let mut tree = Inside::new(1);
    tree.set(0, "alias", json!(SHORT));
    let file = File::open(tree.file(0, "alias")).unwrap();
    (tree, file)
}

fn rest(file: &mut File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// What is in the file from a position on.
fn at(file: &File, position: u64) -> String {
    let mut buffer = [0; 256];
    let read = file.read_at(&mut buffer, position).unwrap();
    String::from_utf8(buffer[..read].to_vec()).unwrap()
}

#[test]
fn bytes_read_one_by_one_across_changes_are_of_one_version() {
    let (mut tree, mut file) = alias();
    let mut text = Vec::new();
    let mut byte = [0];
    while file.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
        let next = if text.len() % 2 == 0 { SHORT } else { LONG };
        tree.set(0, "alias", json!(next));
    }
    assert_eq!(text, format!("{SHORT}\n").into_bytes());
}

#[test]
fn the_first_read_takes_the_snapshot_at_whatever_offset_it_is() {
    let (mut tree, file) = alias();
    tree.set(0, "alias", json!(LONG));
    assert_eq!(at(&file, 10), format!("{}\n", &LONG[10..]));
    tree.set(0, "alias", json!(SHORT));
    assert_eq!(at(&file, 2), format!("{}\n", &LONG[2..]));
}

#[test]
fn a_read_at_the_beginning_is_fresh() {
    let (mut tree, mut file) = alias();
    assert_eq!(rest(&mut file), format!("{SHORT}\n"));
    tree.set(0, "alias", json!(LONG));
    assert_eq!(rest(&mut file), "");
    file.seek(SeekFrom::Start(0)).unwrap();
    assert_eq!(rest(&mut file), format!("{LONG}\n"));
    tree.set(0, "alias", json!(SHORT));
    assert_eq!(at(&file, 0), format!("{SHORT}\n"));
}

#[test]
fn two_handles_have_each_a_snapshot_of_their_own() {
    let (mut tree, one) = alias();
    assert_eq!(at(&one, 0), format!("{SHORT}\n"));
    tree.set(0, "alias", json!(LONG));
    let two = File::open(tree.file(0, "alias")).unwrap();
    assert_eq!(at(&two, 2), format!("{}\n", &LONG[2..]));
    assert_eq!(at(&one, 2), format!("{}\n", &SHORT[2..]));
}

#[test]
fn a_change_is_read_through_an_open_handle_whether_or_not_its_size_changed() {
    let (mut tree, file) = alias();
    for round in 10..50 {
        tree.set(0, "quota", json!(round));
        tree.set(0, "alias", json!("x".repeat(round)));
        assert_eq!(at(&file, 0).len(), round + 1);
        assert_eq!(tree.read(0, "quota"), format!("{round}\n"));
    }
}

#[test]
fn vms_json_read_in_pieces_while_vms_change_is_one_version() {
    const VMS: usize = 40;
    let mut tree = Inside::new(VMS);
    for handle in 0..3 {
        let mut file = File::open(tree.path("vms.json")).unwrap();
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        let mut version = handle * 1000;
        loop {
            let read = file.read(&mut piece).unwrap();
            if read == 0 {
                break;
            }
            text.extend_from_slice(&piece[..read]);
            version += 1;
            let all = (0..VMS).map(|number| {
                let mut vm = inside::vm(number);
                vm.insert("alias".to_owned(), json!("x".repeat(version % 50)));
                vm.insert("quota".to_owned(), json!(version));
                put(&vm)
            });
            let mut changes: Vec<_> = all.collect();
            // Every other time the first VM is not there, and another one is.
            if version % 2 == 0 {
                changes.push(inside::remove(0));
                changes.push(put(&inside::vm(VMS)));
            } else {
                changes.push(inside::remove(VMS));
            }
            tree.publish(changes);
        }
        assert!(version > handle * 1000 + 2, "it was read in pieces");
        let vms: Vec<Value> = serde_json::from_slice(&text).unwrap();
        assert_eq!(vms.len(), VMS);
        let mut quotas: Vec<_> = vms
            .iter()
            .filter(|vm| vm["uuid"] != uuid(VMS).to_string())
            .collect();
        quotas.dedup_by_key(|vm| vm["quota"].as_u64());
        assert_eq!(quotas.len(), 1, "VMs of several versions");
    }
}

#[test]
fn the_history_has_an_end_and_goes_on_for_a_held_handle() {
    let mut tree = Inside::new(1);
    let mut history = File::open(tree.path(".history")).unwrap();
    assert_eq!(rest(&mut history), "");
    let mut all = String::new();
    for quota in 100..120 {
        tree.set(0, "quota", json!(quota));
        assert_eq!(
            rest(&mut File::open(tree.path(".history")).unwrap()).len(),
            {
                let new = rest(&mut history);
                assert_eq!(new.lines().count(), 1);
                let event: Value = serde_json::from_str(&new).unwrap();
                assert_eq!(event["vm"]["quota"], quota);
                all.push_str(&new);
                all.len()
            }
        );
        assert_eq!(
            fs::metadata(tree.path(".history")).unwrap().len(),
            all.len() as u64
        );
    }
    let whole = fs::read_to_string(tree.path(".history")).unwrap();
    assert_eq!(whole, all);
}

#[test]
fn tail_f_shows_new_lines_of_the_history() {
    let mut tree = Inside::new(1);
    tree.set(0, "quota", json!(11));
    let mut tail = Command::new("tail");
    tail.args(["-n", "+1", "-f"])
        .arg(tree.path(".history"))
        .stdout(Stdio::piped());
    let mut tail = Running::start(&mut tail);
    let mut lines = BufReader::new(tail.0.stdout.take().unwrap()).lines();
    for quota in 11..20 {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(event["vm"]["quota"], quota);
        tree.set(0, "quota", json!(quota + 1));
    }
}

/// What poll(2) says at once.
fn polled(file: &File) -> PollFlags {
    let wanted = PollFlags::POLLPRI | PollFlags::POLLERR;
    let mut fds = [PollFd::new(file.as_fd(), wanted)];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().unwrap()
}

const CHANGED: PollFlags = PollFlags::POLLPRI.union(PollFlags::POLLERR);

#[test]
fn poll_tells_a_change_of_the_attribute_until_it_is_read() {
    let (mut tree, file) = alias();
    assert_eq!(polled(&file), PollFlags::empty());
    assert_eq!(at(&file, 0), format!("{SHORT}\n"));
    for round in 0..5 {
        tree.set(0, "quota", json!(100 + round));
        assert_eq!(
            polled(&file),
            PollFlags::empty(),
            "another file of the VM has changed"
        );
        tree.set(0, "alias", json!(format!("{LONG}{round}")));
        assert_eq!(polled(&file), CHANGED);
        assert_eq!(polled(&file), CHANGED, "it has not been read");
        assert_eq!(at(&file, 0), format!("{LONG}{round}\n"));
        assert_eq!(polled(&file), PollFlags::empty());
    }
    tree.set(0, "alias", Value::Null);
    assert_eq!(polled(&file), CHANGED, "the property has gone");
}

#[test]
fn who_waits_in_poll_is_woken_by_every_change() {
    let (mut tree, file) = alias();
    thread::scope(|scope| {
        for round in 0..5 {
            let asked = tree.messages()["poll"];
            let waiter = scope.spawn(|| {
                let mut fds = [PollFd::new(file.as_fd(), CHANGED)];
                // At the end of its time poll(2) asks again, and would not miss the wake-up.
                nix::poll::poll(&mut fds, 2 * PATIENT).unwrap();
                let woken = fds[0].revents().unwrap();
                at(&file, 0);
                woken
            });
            until("poll has asked", || {
                (tree.messages()["poll"] > asked).then_some(())
            });
            tree.set(0, "quota", json!(100 + round));
            assert!(!waiter.is_finished());
            tree.set(0, "alias", json!(format!("{LONG}{round}")));
            until("poll is woken", || waiter.is_finished().then_some(()));
            assert_eq!(waiter.join().unwrap(), CHANGED);
        }
    });
}

#[test]
fn edge_triggered_epoll_tells_each_change_once() {
    let (mut tree, file) = alias();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let wanted = EpollFlags::EPOLLPRI | EpollFlags::EPOLLET;
    epoll.add(&file, EpollEvent::new(wanted, 7)).unwrap();
    let told = |timeout: EpollTimeout| {
        let mut events = [EpollEvent::empty()];
        let count = epoll.wait(&mut events, timeout).unwrap();
        events[..count]
            .iter()
            .map(EpollEvent::events)
            .collect::<Vec<_>>()
    };
    assert_eq!(told(EpollTimeout::ZERO), []);
    for round in 0..5 {
        tree.set(0, "alias", json!(format!("{LONG}{round}")));
        assert_eq!(
            told(PATIENT.into()),
            [EpollFlags::EPOLLPRI | EpollFlags::EPOLLERR]
        );
        assert_eq!(told(EpollTimeout::ZERO), []);
        // Half of the rounds read the change; the next one is told in either case.
        if round % 2 == 0 {
            at(&file, 0);
        }
    }
}

#[test]
fn events_are_readable_when_there_is_one() {
    let mut tree = Inside::new(2);
    let mut events = File::open(tree.path("events")).unwrap();
    let mut only = File::open(tree.path(".events").join(uuid(1).to_string())).unwrap();
    let readable = |file: &File, timeout: PollTimeout| {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, timeout).unwrap();
        fds[0].revents().unwrap()
    };
    let mut buffer = vec![0; 1 << 16];
    for stream in [&mut events, &mut only] {
        assert_eq!(
            readable(stream, PollTimeout::ZERO),
            PollFlags::POLLIN,
            "the ready line"
        );
        assert!(stream.read(&mut buffer).unwrap() > 0);
        assert_eq!(readable(stream, PollTimeout::ZERO), PollFlags::empty());
    }
    tree.set(0, "quota", json!(100));
    assert_eq!(readable(&events, PATIENT.into()), PollFlags::POLLIN);
    assert_eq!(
        readable(&only, PollTimeout::ZERO),
        PollFlags::empty(),
        "another VM has changed"
    );
    tree.set(1, "quota", json!(100));
    assert_eq!(readable(&only, PATIENT.into()), PollFlags::POLLIN);
    assert!(events.read(&mut buffer).unwrap() > 0);
    assert_eq!(readable(&events, PollTimeout::ZERO), PollFlags::empty());
}

/// Those three use the page cache also of a file that is opened for direct I/O.
#[test]
fn splice_sendfile_and_private_maps_are_fresh_after_a_new_open() {
    let (mut tree, _file) = alias();
    let path = tree.file(0, "alias");
    for round in 0..10 {
        let value = if round % 2 == 0 {
            format!("{LONG}{round}")
        } else {
            format!("{round}")
        };
        tree.set(0, "alias", json!(value));
        let expected = format!("{value}\n");
        let from_pipe = |fill: &dyn Fn(&std::io::PipeWriter) -> usize| {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let filled = fill(&writer);
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text.len(), filled);
            text
        };
        let sent = from_pipe(&|writer| {
            let file = File::open(&path).unwrap();
            nix::sys::sendfile::sendfile(writer, &file, None, 4096).unwrap()
        });
        assert_eq!(sent, expected, "sendfile");
        let spliced = from_pipe(&|writer| {
            let file = File::open(&path).unwrap();
            nix::fcntl::splice(&file, None, writer, None, 4096, SpliceFFlags::empty()).unwrap()
        });
        assert_eq!(spliced, expected, "splice");
        let file = File::open(&path).unwrap();
        let mapped = map::mapped(&file, expected.len()).unwrap();
        assert_eq!(mapped, expected.as_bytes(), "mmap");
    }
}

#[test]
fn a_handle_of_a_vm_that_went_keeps_its_snapshot_and_gets_no_other() {
    let (mut tree, mut file) = alias();
    let unread = File::open(tree.file(0, "alias")).unwrap();
    let mut first = [0; 2];
    file.read_exact(&mut first).unwrap();
    tree.publish(vec![inside::remove(0)]);
    assert_eq!(rest(&mut file), format!("{}\n", &SHORT[2..]));
    for handle in [&file, &unread] {
        let error = handle.read_at(&mut [0; 16], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
    assert!(!tree.file(0, "alias").exists());
}

#[test]
fn a_vm_that_comes_back_works_while_somebody_sits_in_its_old_directory() {
    let mut tree = Inside::new(2);
    let dir = tree.file(0, "");
    let mut held = Vec::new();
    for round in 0..10 {
        // Each round somebody more stays behind: in the directory, in one below it, with a file.
        let below = ["", "tags", "nics/net0"][round % 3];
        let mut sitting = Command::new("cat");
        sitting
            .current_dir(dir.join(below))
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        held.push((
            Running::start(&mut sitting),
            File::open(&dir).unwrap(),
            File::open(dir.join("quota")).unwrap(),
        ));
        tree.publish(vec![inside::remove(0)]);
        assert!(!dir.exists());
        assert!(fs::read_dir(&dir).is_err());

        let mut vm = inside::vm(0);
        vm.insert("quota".to_owned(), json!(100 + round));
        tree.publish(vec![put(&vm)]);
        assert!(fs::metadata(&dir).unwrap().is_dir());
        let names = fs::read_dir(&dir).unwrap().count();
        assert_eq!(
            names,
            vm.len() + 3,
            "its files, vm.json, ctl and last_error"
        );
        assert_eq!(tree.read(0, "quota"), format!("{}\n", 100 + round));
        assert_eq!(tree.read(0, "tags/role"), "web\n");
        assert_eq!(tree.read(0, "nics/net0/ip"), "10.0.0.7\n");
        let ls = Command::new("ls").args(["-lR"]).arg(&dir).output().unwrap();
        assert!(
            ls.status.success(),
            "{}",
            String::from_utf8_lossy(&ls.stderr)
        );
        let here = Command::new("cat")
            .arg("quota")
            .current_dir(&dir)
            .output()
            .unwrap();
        assert_eq!(here.stdout, format!("{}\n", 100 + round).into_bytes());

        let stream = nix::fcntl::open(
            &tree.path(".events").join(uuid(0).to_string()),
            OFlag::O_RDONLY,
            Mode::empty(),
        );
        let mut stream = BufReader::new(File::from(stream.unwrap())).lines();
        assert!(stream.next().unwrap().unwrap().contains("ready"));
        tree.set(0, "ram", json!(2048));
        assert!(stream.next().unwrap().unwrap().contains("2048"));
        assert_eq!(tree.read(0, "ram"), "2048\n");
    }
    for (mut sitting, ..) in held {
        drop(sitting.0.stdin.take());
        assert!(sitting.0.wait().unwrap().success());
    }
}

#[test]
fn a_directory_that_comes_back_in_a_vm_works_while_somebody_sits_in_the_old_one() {
    let mut tree = Inside::new(1);
    let nic = tree.file(0, "nics/net0");
    let mut held = Vec::new();
    for round in 0..5 {
        let mut sitting = Command::new("cat");
        sitting
            .current_dir(&nic)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        held.push((Running::start(&mut sitting), File::open(&nic).unwrap()));
        tree.set(0, "nics", json!([]));
        assert!(!nic.exists());
        let ip = format!("10.0.0.{round}");
        tree.set(0, "nics", json!([{"interface": "net0", "ip": ip}]));
        assert_eq!(fs::read_dir(&nic).unwrap().count(), 2);
        assert_eq!(tree.read(0, "nics/net0/ip"), format!("{ip}\n"));
        let here = Command::new("cat")
            .arg("ip")
            .current_dir(&nic)
            .output()
            .unwrap();
        assert_eq!(here.stdout, format!("{ip}\n").into_bytes());
    }
}
