//! A real libvirtd with QEMU, in a mount namespace and folders of its own, and virsh beside it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Finished, Mounted, Store, VMINFOD, run, until};

/// Where libvirtd looks for what it needs; each is a folder of ours in its namespace.
const FOLDERS: [&str; 5] = [
    "etc/libvirt",
    "run/libvirt",
    "var/lib/libvirt",
    "var/cache/libvirt",
    "var/log/libvirt",
];

/// Starts libvirtd where the folders below `$1` are in the places of the host's.
const START: &str = include_str!("libvirtd.sh");

/// How its QEMU driver is set up.
const QEMU_CONF: &str = include_str!("qemu.conf");

/// A host with a libvirt.
pub struct Host {
    dir: TempDir,
    libvirtd: Option<Child>,
    /// Where its domains are mounted.
    pub store: Store,
}

impl Host {
    /// One whose libvirtd does not run.
    pub fn stopped() -> Host {
        let dir = tempfile::tempdir().unwrap();
        for folder in FOLDERS {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let config = |name: &str, text: &str| {
            fs::write(dir.path().join("etc/libvirt").join(name), text).unwrap();
        };
        config("qemu.conf", QEMU_CONF);
        let log = dir.path().join("libvirtd.log");
        let log = format!(
            "log_level = 3\nlog_outputs = \"3:file:{}\"\n",
            log.display()
        );
        config("libvirtd.conf", &log);
        Host {
            dir,
            libvirtd: None,
            store: Store::new(0),
        }
    }

    /// One with a libvirtd.
    pub fn start() -> Host {
        let mut host = Host::stopped();
        host.start_libvirtd();
        host
    }

    /// Where its folders are.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(below)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/libvirt/libvirt-sock")
    }

    /// Starts libvirtd and waits until it answers.
    #[track_caller]
    pub fn start_libvirtd(&mut self) {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            START,
            "bash",
        ]);
        command.arg(self.dir.path());
        let output = fs::File::create(self.path("libvirtd.out")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut libvirtd = command.spawn().unwrap();
        until("libvirtd answers", || {
            if let Some(status) = libvirtd.try_wait().unwrap() {
                let log = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
                panic!(
                    "libvirtd ended ({status}): {}{}",
                    log("libvirtd.out"),
                    log("libvirtd.log")
                );
            }
            UnixStream::connect(self.socket()).ok()
        });
        self.libvirtd = Some(libvirtd);
    }

    /// The process id of libvirtd.
    pub fn libvirtd(&self) -> Pid {
        Pid::from_raw(self.libvirtd.as_ref().expect("libvirtd runs").id() as i32)
    }

    /// Kills libvirtd, as a crash does. Its domains go on.
    pub fn kill_libvirtd(&mut self) {
        if let Some(mut libvirtd) = self.libvirtd.take() {
            libvirtd.kill().unwrap();
            libvirtd.wait().unwrap();
        }
    }

    /// How its QEMU driver is reached.
    pub fn qemu(&self) -> String {
        format!("qemu:///system?socket={}", self.socket().display())
    }

    /// How its test driver is reached.
    pub fn test(&self) -> String {
        format!("test+unix:///default?socket={}", self.socket().display())
    }

    /// Runs virsh against a driver.
    pub fn virsh_at(&self, uri: &str, args: &[&str]) -> Finished {
        run(Command::new("virsh").args(["-q", "-c", uri]).args(args))
    }

    /// Runs virsh against QEMU, and gives what it printed.
    #[track_caller]
    pub fn virsh(&self, args: &[&str]) -> String {
        self.virsh_at(&self.qemu(), args).succeeded()
    }

    /// Defines a domain of QEMU that boots into its BIOS and stays there, and returns its uuid.
    #[track_caller]
    pub fn define(&self, name: &str, devices: &str) -> String {
        self.define_at(&self.qemu(), "qemu", name, devices)
    }

    /// The same at any driver.
    #[track_caller]
    pub fn define_at(&self, uri: &str, kind: &str, name: &str, devices: &str) -> String {
        let xml = format!(
            "<domain type='{kind}'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
             <os><type>hvm</type></os><devices>{devices}</devices></domain>"
        );
        let file = self.path(format!("{name}.xml"));
        fs::write(&file, xml).unwrap();
        let file = file.to_str().unwrap();
        self.virsh_at(uri, &["define", file]).succeeded();
        let uuid = self.virsh_at(uri, &["domuuid", name]).succeeded();
        uuid.trim().to_owned()
    }

    /// Makes a disk and returns its path, and how a domain is given it.
    #[track_caller]
    pub fn disk(&self, size: &str) -> (String, String) {
        let path = self.path("disk.qcow2").to_str().unwrap().to_owned();
        run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", &path, size]))
            .succeeded();
        let device = format!(
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/>\
             <target dev='vda' bus='virtio'/></disk>"
        );
        (path, device)
    }

    /// The process that runs a domain.
    #[track_caller]
    pub fn qemu_pid(&self, name: &str) -> Pid {
        let file = self.path(format!("run/libvirt/qemu/{name}.pid"));
        let pid = fs::read_to_string(file).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap())
    }

    /// Waits until libvirtd has ended its thread for the QEMU of a domain that was stopped. What that thread still says
    /// of the end of this QEMU, libvirt 9.0 takes for the end of the next one, and kills it: 1 start in 120 or so, when
    /// both cores are busy and it follows in the same microseconds.
    #[track_caller]
    pub fn until_let_go(&self, name: &str) {
        let thread = format!("vm-{name}\n");
        let tasks = format!("/proc/{}/task", self.libvirtd());
        until("libvirtd has let go of a domain", || {
            let mut tasks = fs::read_dir(&tasks).unwrap().flatten();
            // A thread that has ended meanwhile has no name.
            tasks
                .all(|task| {
                    fs::read_to_string(task.path().join("comm")).unwrap_or_default() != thread
                })
                .then_some(())
        });
    }

    /// Mounts its domains of QEMU.
    #[track_caller]
    pub fn mount(&self, options: &str) -> Mounted<'_> {
        self.mount_at(&self.qemu(), options)
    }

    /// Mounts the domains of a driver.
    #[track_caller]
    pub fn mount_at(&self, uri: &str, options: &str) -> Mounted<'_> {
        mount(
            &self.store,
            uri,
            &format!("libvirt_root={},{options}", self.dir.path().display()),
        )
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_libvirtd();
        let run = self.path("run/libvirt/qemu");
        for entry in fs::read_dir(run).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "pid")
                && let Ok(pid) = fs::read_to_string(&path)
                && let Ok(pid) = pid.trim().parse()
            {
                // One that has ended since is no matter.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// Mounts the domains of a libvirt.
#[track_caller]
pub fn mount<'a>(store: &'a Store, uri: &str, options: &str) -> Mounted<'a> {
    let mut command = Command::new(VMINFOD);
    command.args(["mount", "--foreground", "--tell-ready", "--source"]);
    command.arg(format!("libvirt:{uri}"));
    command.args(["-o", options]).arg(store.mountpoint());
    Mounted::start(store, command)
}

impl Mounted<'_> {
    /// Waits until a property of a VM is so.
    #[track_caller]
    pub fn until(&self, uuid: &str, property: &str, value: impl Into<Value>) {
        let value = value.into();
        self.until_vm(uuid, &format!("{property} is {value}"), |vm| {
            vm[property] == value
        });
    }

    /// Waits until something holds for a VM.
    #[track_caller]
    pub fn until_vm(&self, uuid: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + super::PATIENCE;
        loop {
            // A VM that has gone is no VM for which it holds.
            if let Ok(text) = fs::read_to_string(self.path(uuid).join("vm.json")) {
                last = serde_json::from_str(&text).unwrap();
                if holds(&last) {
                    return;
                }
            }
            let now = std::time::Instant::now();
            assert!(now < deadline, "still waiting: {what}; the VM is {last:#}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}
