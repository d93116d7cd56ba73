//! Real ZFS for tests: pools on files, served by Debian's `zfs-fuse`.
//!
//! ```ignore
//! let pool = Pool::create("256M");
//! pool.zfs(&["create", &format!("{}/a", pool.name())]);
//! ```
//!
//! A machine can run one `zfs-fuse` only, and test programs run side by side. So the first
//! [`Pool`] starts the daemon and the last one stops it, whichever program they are in: each holds
//! a shared lock on one file while it lives, and starting and stopping are done under another. A
//! daemon that was there before is used and left alone. A program that was killed lets go of its
//! locks; its daemon is used, and stopped, by the next one.
//!
//! The root dataset is mounted nowhere, so what is created below it is not mounted either, unless
//! it gets a `mountpoint`; `canmount=off` sets that property without mounting anything.
//! Everything panics when it fails: a test without its pool tests nothing.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long the daemon may take to come and to go.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pool that is destroyed when it is dropped.
pub(crate) struct Pool {
    name: String,
    file: PathBuf,
    // Dropped after the pool has been destroyed.
    _daemon: Daemon,
}

impl Pool {
    /// Makes a pool with a name of its own on a sparse file of `size` (as truncate(1) takes it; at
    /// least `64M`).
    pub(crate) fn create(size: &str) -> Pool {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let daemon = Daemon::join();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmtest-{}-{count}", std::process::id());
        let file = std::env::temp_dir().join(format!("{name}.pool"));
        let path = file.to_str().expect("the temporary folder's name is text");
        run("truncate", &["-s", size, path]);
        // Without a cache file the pool is not looked for after a restart of the daemon.
        let arguments = ["create", "-o", "cachefile=none", "-m", "none", &name, path];
        run("zpool", &arguments);
        Pool {
            name,
            file,
            _daemon: daemon,
        }
    }

    /// The pool's name, which is its root dataset's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The full name of a dataset or snapshot in the pool: `dataset("a@s")`.
    pub(crate) fn dataset(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// Runs `zfs` with these arguments, which must succeed; again while somebody reads what it needs for itself.
    pub(crate) fn zfs(&self, arguments: &[&str]) {
        let until = Instant::now() + PATIENCE;
        loop {
            let output = output("zfs", arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                return;
            }
            let is_busy = said.contains("dataset is busy") && Instant::now() < until;
            assert!(is_busy, "zfs {arguments:?}: {said}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let destroyed = output("zpool", &["destroy", "-f", &self.name]);
        if !destroyed.status.success() && !thread::panicking() {
            panic!("pool {} stays: {destroyed:?}", self.name);
        }
        let _ = fs::remove_file(&self.file);
    }
}

/// A share in the daemon.
struct Daemon {
    users: File,
}

impl Daemon {
    fn join() -> Daemon {
        let _gate = gate();
        if !answers() {
            start();
        }
        let users = open("users");
        users.lock_shared().expect("lock of the daemon's users");
        Daemon { users }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gate = gate();
        let _ = self.users.unlock();
        if open("users").try_lock().is_ok() {
            stop();
        }
    }
}

/// The lock under which the daemon is started and stopped.
fn gate() -> File {
    let gate = open("gate");
    gate.lock().expect("lock of the daemon's gate");
    gate
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vminfod-test-zfs-fuse.{name}"))
}

fn open(name: &str) -> File {
    let mut options = File::options();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(path(name));
    file.expect("lock file in the temporary folder")
}

fn answers() -> bool {
    output("zpool", &["list", "-H"]).status.success()
}

fn start() {
    // In the foreground, since then its pid is known; it survives us if others use it.
    let mut daemon = Command::new("zfs-fuse")
        .args(["--no-daemon", "--no-kstat-mount"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("zfs-fuse starts: apt-get install zfs-fuse");
    fs::write(path("pid"), daemon.id().to_string()).expect("pid file");
    let until = Instant::now() + PATIENCE;
    while !answers() {
        let ended = daemon.try_wait().expect("status of zfs-fuse");
        assert!(ended.is_none(), "zfs-fuse ended: {ended:?}");
        assert!(Instant::now() < until, "zfs-fuse does not answer");
        thread::sleep(Duration::from_millis(20));
    }
    // Whoever stops it, it is ours to bury.
    thread::spawn(move || daemon.wait());
}

fn stop() {
    // Without this file the daemon was there before us.
    let Ok(pid) = fs::read_to_string(path("pid")) else {
        return;
    };
    if is_daemon(&pid) {
        run("kill", &[&pid]);
    }
    let until = Instant::now() + PATIENCE;
    while is_daemon(&pid) {
        assert!(Instant::now() < until, "zfs-fuse ({pid}) does not end");
        thread::sleep(Duration::from_millis(20));
    }
    let _ = fs::remove_file(path("pid"));
}

/// Whether this is the pid of a living zfs-fuse: not of a zombie, nor, if the file is an old one,
/// of somebody else.
fn is_daemon(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.starts_with("Name:\tzfs-fuse\n") && !status.contains("State:\tZ")
}

fn output(program: &str, arguments: &[&str]) -> Output {
    let result = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    result.unwrap_or_else(|error| panic!("{program}: {error}: apt-get install zfs-fuse"))
}

fn run(program: &str, arguments: &[&str]) {
    let output = output(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
