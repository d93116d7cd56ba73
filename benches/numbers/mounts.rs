//! What is measured: stores with daemons on them. Each ends with the value that stands for it, also when a
//! measurement fails.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::{Value, json};
use tempfile::TempDir;
use vminfod::sample;

use crate::Failure;

/// How long a program may take to start or to end before the bench gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of everything here: a tmpfs, so that no disk is measured.
pub struct Scratch {
    dir: TempDir,
    /// Further options of the mounts of the stores in it.
    options: Option<String>,
}

impl Scratch {
    /// Mounts it.
    pub fn mount(options: Option<String>) -> Result<Scratch, Failure> {
        let dir = tempfile::Builder::new()
            .prefix("vminfod-bench-")
            .tempdir()?;
        let (tmpfs, nothing) = (Some("tmpfs"), None::<&str>);
        nix::mount::mount(tmpfs, dir.path(), tmpfs, MsFlags::empty(), nothing)?;
        Ok(Scratch { dir, options })
    }

    /// A path in it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If that fails, removing the folder fails too, and leaves it to be seen.
        let _ = nix::mount::umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// A zone store with sample VMs, and folders beside it: `vms` to mount it on, `waiting` for files
/// that are to be moved into it.
pub struct Store<'a> {
    dir: PathBuf,
    /// How many VMs it was written with.
    pub vms: usize,
    scratch: &'a Scratch,
}

/// A VM, and the zone that it is read from.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its uuid.
    pub uuid: String,
    /// The name of its zone.
    pub name: String,
    /// Its `tags.json`.
    pub tags: PathBuf,
    /// Where a new version of that may wait: on the same filesystem, and watched by nobody.
    pub waiting: PathBuf,
}

impl<'a> Store<'a> {
    /// Writes a store of `vms` VMs.
    pub fn new(scratch: &'a Scratch, name: &str, vms: usize) -> Result<Store<'a>, Failure> {
        let dir = scratch.dir.path().join(name);
        sample::write(&dir.join("store"), &sample::Options { vms, seed: 1 })?;
        for name in ["vms", "ro", "waiting"] {
            fs::create_dir(dir.join(name))?;
        }
        Ok(Store { dir, vms, scratch })
    }

    /// A path beside the store.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Only the folders beside a store: what is mounted is not in it.
    pub fn empty(scratch: &'a Scratch, name: &str) -> Result<Store<'a>, Failure> {
        let dir = scratch.dir.path().join(name);
        for name in ["vms", "ro"] {
            fs::create_dir_all(dir.join(name))?;
        }
        Ok(Store {
            dir,
            vms: 0,
            scratch,
        })
    }

    /// The name of the first zone of a brand.
    pub fn zone_of(&self, brand: &str) -> Result<String, Failure> {
        let index = fs::read_to_string(self.root().join("etc/zones/index"))?;
        let names = index.lines().filter_map(|line| line.split(':').next());
        let marked = format!("brand=\"{brand}\"");
        let is_of_brand = |name: &&str| {
            let xml = self.root().join(format!("etc/zones/{name}.xml"));
            fs::read_to_string(xml).is_ok_and(|xml| xml.contains(&marked))
        };
        let name = names.into_iter().find(is_of_brand).map(str::to_owned);
        name.ok_or_else(|| format!("no zone of brand {brand}").into())
    }

    /// The zone store.
    pub fn root(&self) -> PathBuf {
        self.beside("store")
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.beside("vms")
    }

    /// Where it is mounted read-only.
    pub fn read_only(&self) -> PathBuf {
        self.beside("ro")
    }

    /// Starts a daemon and waits until it has mounted, which it does when its tree is complete.
    pub fn mount(&self) -> Result<Daemon<'_>, Failure> {
        // A host may have a ZFS, which knows nothing of the store.
        self.mount_with("datasets=files,runtime=files")
    }

    /// The same with these options.
    pub fn mount_with(&self, options: &str) -> Result<Daemon<'_>, Failure> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vminfod"));
        // In the foreground it stays in this session, and so has the same share of the machine.
        command
            .args(["mount", "--foreground"])
            .args(["-o", options]);
        if let Some(options) = &self.scratch.options {
            command.args(["-o", options]);
        }
        command
            .args(["-o", &format!("ro_mount={}", self.read_only().display())])
            .arg("--zones-root")
            .args([self.root(), self.mountpoint()])
            .stdin(Stdio::null());
        self.start(command)
    }

    /// Starts a daemon by this command and waits until it has mounted.
    pub fn start(&self, mut command: Command) -> Result<Daemon<'_>, Failure> {
        let began = Instant::now();
        let mut daemon = Daemon {
            store: self,
            child: command.spawn()?,
            took: Duration::ZERO,
        };
        let outside = fs::metadata(&self.dir)?.dev();
        let mounts = daemon.mounts();
        let mounted = |(_, path): &(_, PathBuf)| -> Result<bool, Failure> {
            Ok(fs::metadata(path)?.dev() != outside)
        };
        while !mounts
            .iter()
            .map(mounted)
            .try_fold(true, |all, one| one.map(|one| all && one))?
        {
            if daemon.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                return Err("vminfod did not mount; what it said stands above".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        daemon.took = began.elapsed();
        Ok(daemon)
    }
}

/// The name of the mount in which VMs are changed.
pub const WRITABLE: &str = "writable";
/// The name of the other one.
pub const READ_ONLY: &str = "read-only";

/// A daemon with its mounts.
pub struct Daemon<'a> {
    store: &'a Store<'a>,
    child: Child,
    /// How long it took from the start to the complete tree.
    pub took: Duration,
}

impl Daemon<'_> {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in the mount.
    pub fn path(&self, below: &str) -> PathBuf {
        self.store.mountpoint().join(below)
    }

    /// Its standard input, once.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> Result<(), Failure> {
        self.child.wait()?;
        Ok(())
    }

    /// The mounts, by name.
    pub fn mounts(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            (WRITABLE, self.store.mountpoint()),
            (READ_ONLY, self.store.read_only()),
        ]
    }

    /// Lets the operating system forget all names and attributes that it holds of mounts, and waits until the
    /// daemon has heard so.
    pub fn forgotten(&self) -> Result<(), Failure> {
        fs::write("/proc/sys/vm/drop_caches", "2")?;
        let held = || -> Result<Value, Failure> {
            let status = self.status()?;
            let mounts = ["mount", "readOnlyMount"].map(|mount| &status[mount]);
            let held =
                mounts.map(|mount| json!([mount["inodesHeld"], mount["messages"]["forget"]]));
            Ok(json!(held))
        };
        let mut before = held()?;
        loop {
            thread::sleep(Duration::from_millis(20));
            let now = held()?;
            if now == before {
                return Ok(());
            }
            before = now;
        }
    }

    /// Seconds of a core that all its threads have used, those that have ended too.
    pub fn cpu(&self) -> Result<f64, Failure> {
        cpu(self.child.id())
    }

    /// The status document. Reading it costs the kernel one OPEN, one READ and one RELEASE.
    pub fn status(&self) -> Result<Value, Failure> {
        let fd = nix::fcntl::open(
            &self.path(".status"),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut buffer = vec![0; 128 << 10];
        let len = nix::unistd::read(&fd, &mut buffer)?;
        Ok(serde_json::from_slice(&buffer[..len])?)
    }

    /// All VMs, parsed.
    pub fn vms(&self) -> Result<Vec<Value>, Failure> {
        Ok(serde_json::from_str(&fs::read_to_string(
            self.path("vms.json"),
        )?)?)
    }

    /// The VMs whose tags can be changed: the others are odd on purpose.
    pub fn zones(&self) -> Result<Vec<Zone>, Failure> {
        let zones = self.vms()?.into_iter().filter_map(|vm| {
            let uuid = vm["uuid"].as_str()?.to_owned();
            let name = vm["zonename"].as_str()?.to_owned();
            let tags = format!("zones/{name}/config/tags.json");
            let tags = self.store.root().join(tags);
            let text = fs::read(&tags).ok()?;
            serde_json::from_slice::<Value>(&text).ok()?;
            let waiting = self.store.beside("waiting").join(&uuid);
            Some(Zone {
                uuid,
                name,
                tags,
                waiting,
            })
        });
        Ok(zones.collect())
    }

    /// Bytes of memory the daemon has in use.
    pub fn resident(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.ok_or("/proc/<pid>/status: no VmRSS")? << 10)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        end(&mut self.child, &self.store.mountpoint());
        while nix::mount::umount2(&self.store.beside("ro"), MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// Seconds of a core that all threads of a process have used, those that have ended too.
pub fn cpu(pid: u32) -> Result<f64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program is in brackets, and may hold anything.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
    let second = sysconf(SysconfVar::CLK_TCK)?.ok_or("no CLK_TCK")?;
    Ok(ticks as f64 / second as f64)
}

/// Ends a daemon and its mount.
pub fn end(child: &mut Child, mountpoint: &Path) {
    let running = |child: &mut Child| matches!(child.try_wait(), Ok(None));
    if running(child) {
        // It may end by itself just now; whatever else fails here, the kill below ends it.
        let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while running(child) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    if running(child) {
        let _ = child.kill();
    }
    let _ = child.wait();
    while nix::mount::umount2(mountpoint, MntFlags::MNT_DETACH).is_ok() {}
}

/// Which cores programs run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Where the kernel puts them, which differs from one moment to the next.
    All,
    /// All on the first one: what is measured then is work alone, without the wait for another
    /// core to wake up.
    One,
}

impl Cores {
    /// Lets all threads of these processes, and the one that calls, run there.
    pub fn restrict(self, pids: &[u32]) -> Result<(), Failure> {
        let mut set = CpuSet::new();
        for core in 0..CpuSet::count() {
            if core == 0 || self == Cores::All {
                set.set(core)?;
            }
        }
        sched_setaffinity(Pid::from_raw(0), &set)?;
        for pid in pids {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let tid: i32 = thread?.file_name().to_string_lossy().parse()?;
                sched_setaffinity(Pid::from_raw(tid), &set)?;
            }
        }
        Ok(())
    }
}

/// What the numbers were measured on, in one line.
pub fn machine() -> Result<String, Failure> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("\t: unknown CPU");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!(
        "{model}, {cores} cores, Linux {}, load {load} before the run",
        kernel.trim_end()
    ))
}
