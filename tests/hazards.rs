//! What can go wrong with a filesystem whose reads may block: readers that nobody can end, mounts
//! that nobody can unmount, caches that nobody puts right.

mod support;

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::json;
use support::direct::{self, Direct};
use support::{Lines, Mounted, Running, Store, VMINFOD, until};
use vminfod::sample::change;

/// A cat(1) that has read the first line of `events`, and is about to wait for the next.
#[track_caller]
fn cat(mounted: &Mounted<'_>) -> (Running, Lines) {
    let (running, lines) = Running::printing(Command::new("cat").arg(mounted.path("events")));
    assert_eq!(lines.json()["type"], "ready");
    (running, lines)
}

fn set_role(mounted: &Mounted<'_>, role: &str) {
    let zone = &mounted.store.zones()[0];
    change::set_tag(&mounted.store.root(), zone, "role", &json!(role)).unwrap();
}

/// The state of a process: `S`, `D`, `T`…
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_blocked_reader_ends_on_a_signal() {
    let store = Store::new(1);
    let mounted = store.mount();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGKILL,
    ] {
        let (mut cat, lines) = cat(&mounted);
        mounted.until_waiting(1);
        cat.signal(signal);
        assert_eq!(cat.ended().signal(), Some(signal as i32));
        assert!(lines.rest().is_empty());
        mounted.until_waiting(0);
    }
}

/// Makes this program, started again, read a file on many threads.
const READ_ON_THREADS: &str = "VMINFOD_TEST_READ_ON_THREADS";

#[test]
fn a_reader_with_many_threads_ends_on_a_signal() {
    if let Some(path) = env::var_os(READ_ON_THREADS) {
        let read = |_| {
            let mut file = File::open(&path).unwrap();
            thread::spawn(move || while file.read(&mut [0; 4096]).is_ok() {})
        };
        (0..8)
            .map(read)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        return;
    }
    let store = Store::new(1);
    let mounted = store.mount();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut reader = Command::new(env::current_exe().unwrap());
        reader.args(["--exact", "a_reader_with_many_threads_ends_on_a_signal"]);
        reader
            .env(READ_ON_THREADS, mounted.path("events"))
            .stdout(Stdio::null());
        let mut reader = Running::start(&mut reader);
        mounted.until_waiting(8);
        reader.signal(signal);
        assert_eq!(reader.ended().signal(), Some(signal as i32));
        mounted.until_waiting(0);
    }
}

/// Makes this program, started again, read a file a few times and say how that went.
const READ_AND_TELL: &str = "VMINFOD_TEST_READ_AND_TELL";

#[test]
fn a_reader_that_blocks_a_signal_is_not_disturbed_by_it() {
    if let Some(path) = env::var_os(READ_AND_TELL) {
        let mut file = File::open(path).unwrap();
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..2 {
            match file.read(&mut buffer) {
                Ok(len) => println!("\nread {len}"),
                Err(error) => println!("\nfailed {error}"),
            }
        }
        return;
    }
    let store = Store::new(1);
    let mounted = store.mount();
    let mut deaf = Command::new("env");
    deaf.arg("--block-signal=USR1")
        .arg(env::current_exe().unwrap())
        .arg("--nocapture");
    deaf.args([
        "--exact",
        "a_reader_that_blocks_a_signal_is_not_disturbed_by_it",
    ]);
    let (deaf, told) = Running::printing(deaf.env(READ_AND_TELL, mounted.path("events")));
    told.find(|line| line.starts_with("read"));
    mounted.until_waiting(1);
    let (mut other, _) = cat(&mounted);
    mounted.until_waiting(2);
    deaf.signal(Signal::SIGUSR1);
    other.signal(Signal::SIGUSR1);
    // Both are looked at together: once one has been let go, the other has been looked at.
    other.ended();
    set_role(&mounted, "changed");
    let second = told.find(|line| line.starts_with("read") || line.starts_with("failed"));
    assert!(second.starts_with("read"), "{second}");
}

#[test]
fn a_reader_can_be_stopped_and_continued() {
    let store = Store::new(1);
    let mounted = store.mount();
    let (mut cat, lines) = cat(&mounted);
    for role in ["one", "two", "three"] {
        mounted.until_waiting(1);
        cat.signal(Signal::SIGSTOP);
        until("it stops", || (state(cat.0.id())? == 'T').then_some(()));
        cat.signal(Signal::SIGCONT);
        set_role(&mounted, role);
        assert_eq!(lines.json()["vm"]["tags"]["role"], role);
    }
    mounted.until_waiting(1);
    cat.signal(Signal::SIGSTOP);
    until("it stops", || (state(cat.0.id())? == 'T').then_some(()));
    cat.signal(Signal::SIGKILL);
    assert_eq!(cat.ended().signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn a_reader_that_is_stopped_holds_up_nobody() {
    let store = Store::new(1);
    let mut mounted = store.mount();
    let (stopped, late) = cat(&mounted);
    mounted.until_waiting(1);
    stopped.signal(Signal::SIGSTOP);
    until("it stops", || (state(stopped.0.id())? == 'T').then_some(()));
    let events = mounted.events();
    let zone = &store.zones()[0];
    for number in 0..100 {
        let role = format!("role-{number}");
        set_role(&mounted, &role);
        events.changed(zone, "tags.role");
        assert_eq!(
            mounted.read(format!("{zone}/tags/role")),
            format!("{role}\n")
        );
    }
    stopped.signal(Signal::SIGCONT);
    for number in 0..100 {
        assert_eq!(late.json()["vm"]["tags"]["role"], format!("role-{number}"));
    }
    mounted.until_waiting(2);
    stopped.signal(Signal::SIGSTOP);
    until("it stops", || (state(stopped.0.id())? == 'T').then_some(()));
    mounted.signal(Signal::SIGTERM);
    assert!(mounted.ended().success());
}

#[test]
fn a_hundred_blocked_readers_hold_up_nobody_and_end_together() {
    let store = Store::new(5);
    let mounted = store.mount();
    let mut reader = Command::new("cat");
    reader.arg(mounted.path("events")).stdout(Stdio::null());
    let mut readers: Vec<Running> = (0..100).map(|_| Running::start(&mut reader)).collect();
    mounted.until_waiting(100);
    for zone in store.zones() {
        let document = mounted.json(format!("{zone}/vm.json"));
        assert_eq!(document["uuid"], *zone);
        assert!(fs::read_dir(mounted.path(&zone)).unwrap().count() > 10);
        assert!(
            fs::metadata(mounted.path(format!("{zone}/state")))
                .unwrap()
                .len()
                > 0
        );
    }
    let events = mounted.events();
    set_role(&mounted, "changed");
    assert_eq!(events.next()["type"], "modify");
    mounted.until_waiting(101);
    readers
        .iter()
        .for_each(|reader| reader.signal(Signal::SIGKILL));
    for reader in &mut readers {
        assert_eq!(reader.ended().signal(), Some(Signal::SIGKILL as i32));
    }
    mounted.until_waiting(1);
}

#[test]
fn a_reader_in_a_pid_namespace_below_ends_on_a_signal() {
    let store = Store::new(1);
    let mounted = store.mount();
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--fork", "--pid", "--kill-child", "cat"])
        .arg(mounted.path("events"));
    let (mut unshare, lines) = Running::printing(&mut unshare);
    assert_eq!(lines.json()["type"], "ready");
    mounted.until_waiting(1);
    unshare.signal(Signal::SIGKILL);
    unshare.ended();
    assert!(lines.rest().is_empty());
    mounted.until_waiting(0);
}

#[test]
fn a_reader_whose_signals_cannot_be_seen_ends_nevertheless() {
    let store = Store::new(1);
    // The daemon sits in a pid namespace of its own, in which the reader has no number.
    let mut command = Command::new("unshare");
    command.args([
        "--fork",
        "--pid",
        "--kill-child",
        VMINFOD,
        "mount",
        "--foreground",
    ]);
    command
        .args(["--tell-ready", "--zones-root"])
        .arg(store.root())
        .arg(store.mountpoint());
    let mut mounted = Mounted::start(&store, command);
    let (mut killed, _) = cat(&mounted);
    let (_kept, lines) = cat(&mounted);
    mounted.until_waiting(2);
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.ended().signal(), Some(Signal::SIGKILL as i32));
    set_role(&mounted, "changed");
    assert_eq!(lines.json()["type"], "modify");
    // unshare(1) keeps signals from the daemon.
    let umount = Command::new(VMINFOD)
        .arg("umount")
        .arg(&mounted.at)
        .status()
        .unwrap();
    assert!(umount.success());
    mounted.ended();
}

#[test]
fn a_mount_that_nobody_uses_is_unmounted_at_once() {
    let store = Store::new(2);
    let mut mounted = store.mount();
    // The daemon has been at work in its own mount: it made names and touched files.
    let events = mounted.events();
    let zone = change::add(&store.root(), 1, 50).unwrap();
    events.find(|event| event["uuid"] == *zone);
    change::remove(&store.root(), &zone).unwrap();
    events.find(|event| event["type"] == "delete");

    let (mut reader, _) = cat(&mounted);
    mounted.until_waiting(2);
    let umount = || {
        let output = Command::new("umount").arg(&mounted.at).output().unwrap();
        output.status.success()
    };
    assert!(!umount(), "it is in use");
    reader.signal(Signal::SIGTERM);
    reader.ended();
    drop(reader);
    mounted.until_waiting(1);
    assert!(!umount(), "it is in use");
    // The last reader is this process.
    drop(events);
    set_role(
        &mounted,
        "wakes the thread that reads, which finds nobody to tell",
    );
    mounted.until_waiting(0);
    until("the descriptor is closed", || {
        let listeners = mounted.status()["eventsListeners"].clone();
        listeners.as_object().unwrap().is_empty().then_some(())
    });
    assert!(umount(), "nobody uses it");
    assert!(mounted.ended().success());
    assert_eq!(fs::read_dir(&mounted.at).unwrap().count(), 0);
}

#[test]
fn a_mount_in_use_can_be_taken_away_lazily() {
    let store = Store::new(1);
    let mut mounted = store.mount();
    let (mut reader, lines) = cat(&mounted);
    let mut inside = Command::new("cat");
    inside
        .current_dir(mounted.path(&store.zones()[0]))
        .stdin(Stdio::piped());
    let mut inside = Running::start(&mut inside);
    mounted.until_waiting(1);
    assert!(
        Command::new("umount")
            .arg("-l")
            .arg(&mounted.at)
            .status()
            .unwrap()
            .success()
    );
    assert!(mounted.ended().success());
    assert!(lines.rest().is_empty());
    reader.ended();
    drop(inside.0.stdin.take());
    assert!(inside.ended().success());
}

#[test]
fn readers_of_a_daemon_that_was_killed_get_an_error() {
    let store = Store::new(1);
    let mut mounted = store.mount();
    let (mut reader, lines) = cat(&mounted);
    let held = File::open(mounted.path("vms.json")).unwrap();
    mounted.until_waiting(1);
    mounted.signal(Signal::SIGKILL);
    mounted.ended();
    assert!(lines.rest().is_empty());
    assert!(!reader.ended().success());
    let gone = |error: std::io::Error| error.raw_os_error() == Some(libc::ENOTCONN);
    assert!(gone(File::open(mounted.path("events")).unwrap_err()));
    assert!(gone((&held).read(&mut [0; 10]).unwrap_err()));
}

/// A tag's value that says which one it is, each longer than the one before.
fn numbered(number: usize) -> String {
    format!("{number:=>width$}", width = number + 5)
}

/// Which value a file shows.
fn number(text: &str) -> usize {
    text.trim_end()
        .trim_start_matches('=')
        .parse()
        .unwrap_or_else(|_| panic!("torn: {text}"))
}

/// Another process that says how large files are.
struct Sizes {
    sh: Running,
    answers: BufReader<std::process::ChildStdout>,
}

impl Sizes {
    fn new() -> Sizes {
        let mut sh = Command::new("sh");
        sh.args(["-c", r#"while read -r path; do stat -c %s "$path"; done"#]);
        let mut sh = Running::start(sh.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let answers = BufReader::new(sh.0.stdout.take().unwrap());
        Sizes { sh, answers }
    }

    fn of(&mut self, path: &Path) -> u64 {
        writeln!(self.sh.0.stdin.as_mut().unwrap(), "{}", path.display()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

#[test]
fn nobody_sees_an_old_size_or_value_of_a_settled_change() {
    const CHANGES: usize = 1500;
    let mut direct = Direct::new(2);
    let vm = direct::uuid(1);
    let dir = direct.path(vm.to_string());
    let role = dir.join("tags/role");
    let numbers = direct.mount().numbers();
    let base = direct.base();
    let first = direct.publish(direct::put(vm, "first", &json!({"role": numbered(1)})));
    direct.until_settled(first);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // The number of a change is the number in its value, and what has settled is the least
        // that may be seen from then on.
        let least = || (numbers.settled() - base) as usize;
        let watch = |look: &'static (dyn Fn(&Path) -> usize + Sync)| {
            let (done, role) = (&done, &role);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let least = least();
                    let mut seen = look(role);
                    if seen < least {
                        // The kernel puts an answer into its inode without keeping those out who
                        // look at it: it says that the attributes are right, and then writes the
                        // size. Who looks in between, which takes two who stat at one time, may
                        // see the size before; it is not kept.
                        seen = look(role);
                    }
                    if seen < least {
                        done.store(true, Ordering::Release);
                        panic!("saw {seen} after {least} had settled");
                    }
                }
            });
        };
        let size = |path: &Path| fs::metadata(path).unwrap().len() as usize - 6;
        let size: &'static (dyn Fn(&Path) -> usize + Sync) = Box::leak(Box::new(size));
        watch(size);
        watch(size);
        watch(&|path| number(&fs::read_to_string(path).unwrap()));
        watch(&|path| {
            let entries = fs::read_dir(path.parent().unwrap()).unwrap();
            let sizes = entries.map(|entry| entry.unwrap().metadata().unwrap().len() as usize);
            sizes.max().unwrap() - 6
        });
        let mut other = Sizes::new();
        for change in 2..=CHANGES {
            let seq = direct.publish(direct::put(vm, "first", &json!({"role": numbered(change)})));
            assert_eq!(seq, base + change as u64);
            if change % 4 == 0 {
                direct.until_settled(seq);
                let size = fs::metadata(&role).unwrap().len() as usize - 6;
                assert_eq!(size, change);
            }
            if change % 100 == 0 {
                assert_eq!(other.of(&role) as usize - 6, change);
            }
            if done.load(Ordering::Acquire) {
                return;
            }
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn a_file_that_changes_while_it_is_first_looked_up_is_not_kept_as_it_was() {
    const ROUNDS: usize = 400;
    let mut direct = Direct::new(1);
    let vm = direct::uuid(1);
    let tags = direct.path(format!("{vm}/tags"));
    assert!(tags.is_dir());
    for round in 0..ROUNDS {
        // A name that nobody has ever looked up.
        let key = format!("key-{round}");
        let path: PathBuf = tags.join(&key);
        let looking = thread::spawn({
            let path = path.clone();
            move || until("the file is there", || fs::metadata(&path).ok())
        });
        for value in ["a", "longer", "the longest"] {
            direct.publish(direct::put(vm, "first", &json!({key.as_str(): value})));
        }
        let seq = direct.cache().now().seq;
        direct.until_settled(seq);
        let size = fs::metadata(&path).unwrap().len();
        assert_eq!(size, "the longest\n".len() as u64, "round {round}");
        looking.join().unwrap();
    }
}

/// Makes this program, started again, take a lease on a file and keep it.
const LEASE: &str = "VMINFOD_TEST_LEASE";

/// Another process, a copy of this program in the named test, that has a lease on a file.
#[track_caller]
fn lease(test: &str, path: &Path) -> Running {
    let mut holder = Command::new("env");
    // The kernel asks for the lease by this signal.
    holder
        .arg("--block-signal=IO")
        .arg(env::current_exe().unwrap())
        .args(["--nocapture", "--exact", test]);
    let mut holder = holder.env(LEASE, path).stdin(Stdio::piped());
    holder = holder.stdout(Stdio::piped());
    let mut holder = Running::start(holder);
    let lines = Lines::of(holder.0.stdout.take().unwrap());
    lines.find(|line| line.ends_with("leased"));
    holder
}

fn keep_a_lease(path: &Path) {
    let file = File::open(path).unwrap();
    let file = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: the descriptor is open, and the call touches no memory.
    let taken = unsafe { libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) };
    assert_eq!(taken, 0, "{}", std::io::Error::last_os_error());
    println!("leased");
    let _ = std::io::stdin().read(&mut [0]);
}

/// Waits until the daemon waits for somebody to give his lease back.
#[track_caller]
fn until_it_waits_for_a_lease(mounted: &Mounted<'_>) {
    let threads = format!("/proc/{}/task", mounted.daemon.id());
    until("a thread waits for the lease", || {
        let mut threads = fs::read_dir(&threads).unwrap().flatten();
        let waits = |thread: fs::DirEntry| {
            let place = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
            place.contains("break_lease").then_some(())
        };
        threads.find_map(waits)
    });
}

#[test]
fn a_lease_on_one_file_keeps_nobody_from_hearing_of_others() {
    const NAME: &str = "a_lease_on_one_file_keeps_nobody_from_hearing_of_others";
    if let Some(path) = env::var_os(LEASE) {
        return keep_a_lease(Path::new(&path));
    }
    let store = Store::new(2);
    let mounted = store.mount();
    let [zone, other] = &store.zones()[..] else {
        panic!("two zones")
    };
    let tag = |zone: &str, role: &str| {
        change::set_tag(&store.root(), zone, "role", &json!(role)).unwrap();
    };
    let events = mounted.events();
    for zone in [zone, other] {
        tag(zone, "first");
        events.changed(zone, "tags.role");
    }
    let leased = mounted.path(format!("{zone}/tags/role"));
    let _holder = lease(NAME, &leased);
    let watched = mounted.path(format!("{other}/tags/role"));
    let flags = nix::sys::inotify::InitFlags::IN_NONBLOCK;
    let watch = nix::sys::inotify::Inotify::init(flags).unwrap();
    let modify = nix::sys::inotify::AddWatchFlags::IN_MODIFY;
    watch.add_watch(&watched, modify).unwrap();
    tag(zone, "leased");
    events.changed(zone, "tags.role");
    until_it_waits_for_a_lease(&mounted);
    for round in 0..10 {
        tag(zone, &format!("leased-{round}"));
        events.changed(zone, "tags.role");
        tag(other, &format!("round-{round}"));
        until("the other file is touched", || watch.read_events().ok());
    }
    until_it_waits_for_a_lease(&mounted);
}

#[test]
fn a_lease_does_not_keep_the_daemon_from_ending() {
    const NAME: &str = "a_lease_does_not_keep_the_daemon_from_ending";
    if let Some(path) = env::var_os(LEASE) {
        return keep_a_lease(Path::new(&path));
    }
    let store = Store::new(1);
    let mut mounted = store.mount();
    set_role(&mounted, "first");
    let leased = mounted.path(format!("{}/tags/role", store.zones()[0]));
    until("the tag is there", || fs::metadata(&leased).ok());
    let _holder = lease(NAME, &leased);
    set_role(&mounted, "second");
    until_it_waits_for_a_lease(&mounted);
    mounted.signal(Signal::SIGTERM);
    assert!(mounted.ended().success());
}

#[test]
fn a_daemon_that_is_killed_at_work_ends_and_leaves_no_reader_waiting() {
    for round in 0..12 {
        let store = Store::new(2);
        let zone = &store.zones()[0];
        let tags = store.path(format!("zones/{zone}/config/tags.json"));
        let set_tags = |value: &str| {
            let values = (0..1000).map(|key| (format!("key-{key}"), json!(value)));
            let text = serde_json::Value::Object(values.collect()).to_string();
            change::replace(&tags, text).unwrap();
        };
        set_tags("first");
        let mut mounted = store.mount();
        // What the kernel holds is what the daemon has to touch.
        let shown = fs::read_dir(mounted.path(format!("{zone}/tags"))).unwrap();
        let shown = shown.map(|entry| entry.unwrap().path());
        let held: Vec<File> = shown.map(|path| File::open(path).unwrap()).collect();
        assert_eq!(held.len(), 1000);
        let (mut reader, lines) = cat(&mounted);
        if round % 2 == 0 {
            set_tags("second");
            // The files are touched after the event has been told of.
            lines.find(|line| line.contains("second"));
        } else {
            let came: Vec<_> = (2..20)
                .map(|number| change::add(&store.root(), 1, number).unwrap())
                .collect();
            lines.find(|line| line.contains(&came[0]));
        }
        mounted.signal(Signal::SIGKILL);
        mounted.ended();
        assert!(!reader.ended().success());
        let gone = |error: std::io::Error| error.raw_os_error() == Some(libc::ENOTCONN);
        assert!(gone(File::open(mounted.path("events")).unwrap_err()));
        assert!(gone((&held[0]).read(&mut [0; 10]).unwrap_err()));
    }
}
