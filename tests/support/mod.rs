//! A store, a mount and the tools around them, for tests of the whole program.
//!
//! Everything lies below a temporary folder. A [`Mounted`] ends its own daemon, by its pid, and its
//! own mount, also when a test fails.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vminfod::sample;

pub mod direct;
pub mod fake;
pub mod guest;
pub mod inside;
pub mod libvirt;
pub mod listing;
pub mod map;

/// How long anything may take before a test gives up. It is no measure of speed: nothing that
/// works comes near it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The programs under test.
pub const VMINFOD: &str = env!("CARGO_BIN_EXE_vminfod");
/// The client.
pub const VMINFO: &str = env!("CARGO_BIN_EXE_vminfo");
/// The client that also changes VMs.
pub const VMADM: &str = env!("CARGO_BIN_EXE_vmadm");

/// Waits until something is there.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "still waiting: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A zone store with sample VMs, and an empty folder to mount on.
pub struct Store {
    dir: TempDir,
}

impl Store {
    /// A store of `vms` VMs; the same number gives the same VMs.
    pub fn new(vms: usize) -> Store {
        let dir = tempfile::tempdir().unwrap();
        sample::write(&dir.path().join("store"), &sample::Options { vms, seed: 1 }).unwrap();
        fs::create_dir(dir.path().join("vms")).unwrap();
        fs::create_dir(dir.path().join("read-only")).unwrap();
        Store { dir }
    }

    /// The folder that holds the store and the mount point.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The root of the zone store.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Where it is to be mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("vms")
    }

    /// Where its read-only mount is to be.
    pub fn read_only(&self) -> PathBuf {
        self.dir.path().join("read-only")
    }

    /// A file of the store.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root().join(below)
    }

    /// The names of the zones, in the order of the index.
    pub fn zones(&self) -> Vec<String> {
        sample::change::zonenames(&self.root()).unwrap()
    }

    /// Gives the first zone a name that is not its uuid, and returns its uuid. Only before the store
    /// is mounted.
    #[track_caller]
    pub fn name_zone(&self, name: &str) -> String {
        let zone = self.zones().remove(0);
        for (folder, extension) in [
            ("etc/zones", "xml"),
            ("var/db/datasets", "json"),
            ("var/run/zones", "json"),
        ] {
            let file = self.path(format!("{folder}/{zone}.{extension}"));
            // A zone that does not run has no runtime state.
            if let Ok(text) = fs::read_to_string(&file) {
                let named = self.path(format!("{folder}/{name}.{extension}"));
                fs::write(named, text.replace(&zone, name)).unwrap();
                fs::remove_file(file).unwrap();
            }
        }
        let folder = |zone| self.path(format!("zones/{zone}"));
        fs::rename(folder(zone.as_str()), folder(name)).unwrap();
        let index = self.path("etc/zones/index");
        let text = fs::read_to_string(&index).unwrap();
        let line = text.lines().find(|line| line.starts_with(&zone)).unwrap();
        let mut fields: Vec<String> = line.split(':').map(|it| it.replace(&zone, name)).collect();
        let uuid = line.rsplit(':').next().unwrap().to_owned();
        *fields.last_mut().unwrap() = uuid.clone();
        fs::write(&index, text.replace(line, &fields.join(":"))).unwrap();
        uuid
    }

    /// Mounts it.
    pub fn mount(&self) -> Mounted<'_> {
        self.mount_with(&[])
    }

    /// Mounts it with further arguments of `vminfod mount`.
    #[track_caller]
    pub fn mount_with(&self, args: &[&str]) -> Mounted<'_> {
        let mut command = Command::new(VMINFOD);
        command.args(["mount", "--foreground", "--tell-ready", "--zones-root"]);
        command.arg(self.root()).args(args).arg(self.mountpoint());
        Mounted::start(self, command)
    }
}

/// A mounted store.
pub struct Mounted<'a> {
    /// What is mounted.
    pub store: &'a Store,
    /// The daemon.
    pub daemon: Child,
    /// Where it is mounted.
    pub at: PathBuf,
    stderr: Option<ChildStderr>,
}

impl<'a> Mounted<'a> {
    /// Starts a daemon and waits until it has mounted.
    #[track_caller]
    pub fn start(store: &'a Store, mut command: Command) -> Mounted<'a> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut daemon = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mut stderr = daemon.stderr.take().unwrap();
        if line != "ready\n" {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
            let status = daemon.wait().unwrap();
            panic!("the daemon did not mount ({status}): {said}");
        }
        Mounted {
            store,
            daemon,
            at: store.mountpoint(),
            stderr: Some(stderr),
        }
    }

    /// A path in the mount.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.at.join(below)
    }

    /// What a file holds.
    #[track_caller]
    pub fn read(&self, below: impl AsRef<Path>) -> String {
        let path = self.path(below);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// A file as JSON.
    #[track_caller]
    pub fn json(&self, below: impl AsRef<Path>) -> Value {
        serde_json::from_str(&self.read(below)).unwrap()
    }

    /// The daemon's status document.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(".status")
    }

    /// The number before that of the first event; only while all events are kept.
    #[track_caller]
    pub fn base(&self) -> u64 {
        self.status()["events"]["oldest"].as_u64().unwrap() - 1
    }

    /// How many messages of a kind the kernel has sent. Reading it costs messages itself: an open, a
    /// read or two, a release.
    #[track_caller]
    pub fn messages(&self, kind: &str) -> u64 {
        self.status()["mount"]["messages"][kind].as_u64().unwrap()
    }

    /// The events from now on.
    #[track_caller]
    pub fn events(&self) -> Events {
        Events::open(&self.path("events"))
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the daemon to end.
    #[track_caller]
    pub fn ended(&mut self) -> std::process::ExitStatus {
        until("the daemon ends", || self.daemon.try_wait().unwrap())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.daemon.try_wait().unwrap().is_none() {
            // A daemon that a test has stopped must go on to end.
            self.signal(nix::sys::signal::Signal::SIGCONT);
            self.signal(nix::sys::signal::Signal::SIGTERM);
            let deadline = Instant::now() + PATIENCE;
            while self.daemon.try_wait().unwrap().is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
            if self.daemon.try_wait().unwrap().is_none() {
                let _ = self.daemon.kill();
                // Lets go of whoever waits for a reply that will not come, the daemon included.
                let _ = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_FORCE);
                let _ = self.daemon.wait();
            }
        }
        let detach = nix::mount::MntFlags::MNT_DETACH;
        while nix::mount::umount2(&self.at, detach).is_ok() {}
        if thread::panicking()
            && let Some(mut stderr) = self.stderr.take()
        {
            let mut said = String::new();
            let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
            eprintln!("the daemon said:\n{said}");
        }
    }
}

/// Lines of a stream, read on a thread of their own.
pub struct Events {
    lines: Receiver<Value>,
    /// The first line.
    pub ready: Value,
}

impl Events {
    /// Opens a stream and reads its `ready` line.
    #[track_caller]
    pub fn open(path: &Path) -> Events {
        let file =
            fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::with_capacity(1 << 20, file).lines() {
                let Ok(line) = line else { return };
                if send.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        let ready: Value = lines.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ready["type"], "ready");
        Events { lines, ready }
    }

    /// The next event.
    #[track_caller]
    pub fn next(&self) -> Value {
        self.lines.recv_timeout(PATIENCE).expect("an event")
    }

    /// The next event for which something holds.
    #[track_caller]
    pub fn find(&self, mut is: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let event = self.next();
            if is(&event) {
                return event;
            }
        }
    }

    /// The next event in which a property changed, by its `prettyPath`.
    #[track_caller]
    pub fn changed(&self, uuid: &str, pretty_path: &str) -> Value {
        self.find(|event| {
            event["uuid"] == uuid
                && event["changes"].as_array().is_some_and(|changes| {
                    changes
                        .iter()
                        .any(|change| change["prettyPath"] == pretty_path)
                })
        })
    }

    /// Whether the stream has ended, and nothing more was in it.
    pub fn ended(&self) -> bool {
        matches!(
            self.lines.recv_timeout(PATIENCE),
            Err(mpsc::RecvTimeoutError::Disconnected)
        )
    }
}

/// A program that ends with the test.
pub struct Running(pub Child);

impl Running {
    /// Starts it in a process group of its own.
    pub fn start(command: &mut Command) -> Running {
        Running(command.process_group(0).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // What waits in a mount that is broken ends when the mount does, which is after this.
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Mounted<'_> {
    /// The uuid of a zone that is shown.
    #[track_caller]
    pub fn uuid(&self, zonename: &str) -> String {
        let vms = self.json("vms.json");
        let vm = vms
            .as_array()
            .unwrap()
            .iter()
            .find(|vm| vm["zonename"] == zonename);
        vm.unwrap_or_else(|| panic!("{zonename} is not shown"))["uuid"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Why a VM is stale, as getfattr(1) reads it; `None` if it is not.
    #[track_caller]
    pub fn stale(&self, uuid: &str) -> Option<String> {
        let mut getfattr = Command::new("getfattr");
        getfattr.args([
            "--only-values",
            "-n",
            "user.vminfod.stale",
            "--absolute-names",
        ]);
        let output = getfattr.arg(self.path(uuid)).output().unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Finished {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it said on standard output.
    pub out: String,
    /// What it said on standard error.
    pub err: String,
}

impl Finished {
    /// Asserts success, and gives what was printed.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Asserts success that is told by these words on standard error, and by nothing else.
    #[track_caller]
    pub fn said(&self, words: &str) {
        assert_eq!(self.err, format!("{words}\n"), "{self:?}");
        assert_eq!((self.code, self.out.as_str()), (Some(0), ""));
    }

    /// Asserts a failure that is one line on standard error which names these things.
    #[track_caller]
    pub fn failed_with(&self, code: i32, names: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        for name in names {
            assert!(self.err.contains(name), "{name} is not in: {}", self.err);
        }
    }
}

impl Mounted<'_> {
    /// How many readers wait for an event.
    #[track_caller]
    pub fn waiting(&self) -> u64 {
        self.status()["mount"]["readersWaiting"].as_u64().unwrap()
    }

    /// Waits until so many readers wait for an event.
    #[track_caller]
    pub fn until_waiting(&self, readers: u64) {
        until("readers wait for an event", || {
            (self.waiting() == readers).then_some(())
        });
    }
}

/// Lines that something writes, read on a thread of their own.
pub struct Lines(Receiver<String>);

impl Lines {
    /// The lines of a file or pipe.
    pub fn of(from: impl std::io::Read + Send + 'static) -> Lines {
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::with_capacity(1 << 20, from)
                .lines()
                .map_while(Result::ok)
            {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Lines(lines)
    }

    /// The next line.
    #[track_caller]
    pub fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next line, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let line = self.next();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The next line for which something holds.
    #[track_caller]
    pub fn find(&self, mut is: impl FnMut(&str) -> bool) -> String {
        loop {
            let line = self.next();
            if is(&line) {
                return line;
            }
        }
    }

    /// What has come and was not asked for yet.
    pub fn so_far(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }

    /// All lines up to the end.
    #[track_caller]
    pub fn rest(&self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.0.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return lines,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("no end after {} lines", lines.len())
                }
            }
        }
    }
}

/// The line of `/proc/self/mountinfo` of what is mounted here, split at blanks.
pub fn mount_entry(path: &Path) -> Option<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = mounts
        .lines()
        .map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    lines
        .into_iter()
        .rfind(|fields| Path::new(&fields[4]) == path)
}

/// Whether a process runs. One that has ended and waits to be collected does not.
pub fn is_running(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name is in brackets and may hold anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

impl Running {
    /// Starts it and reads the lines it prints.
    #[track_caller]
    pub fn printing(command: &mut Command) -> (Running, Lines) {
        let mut running = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let lines = Lines::of(running.0.stdout.take().unwrap());
        (running, lines)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for it to end.
    #[track_caller]
    pub fn ended(&mut self) -> std::process::ExitStatus {
        until("the program ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Store {
    /// Ends a daemon in the background that a failing test has left, by taking its mount away.
    fn drop(&mut self) {
        while nix::mount::umount2(&self.mountpoint(), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    }
}
