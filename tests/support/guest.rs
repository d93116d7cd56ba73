//! A guest that follows: Debian's kernel with one small program, `tests/data/guest/init.c`.
//!
//! It powers off when its power button is pressed, gives memory back to the balloon, lets go of nics and disks that
//! are unplugged, and uses CPUs that are plugged in. A domain of [`Host::define`] has only its BIOS and does nothing of
//! that.
//!
//! Two things are libvirt's and QEMU's, whatever the guest is: QEMU without KVM destroys its own memory when a CPU is
//! unplugged from a guest that lets go of it, so no test may; and a domain without `<acpi/>`, such as that of
//! [`Host::define`], refuses at once to plug anything but CPUs in or out.
//!
//! It is made once, below cargo's folder for the tests' files, and kept there: whoever comes first downloads the
//! kernel's package, without installing it, and the others wait.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::libvirt::Host;
use super::run;

/// The package that depends on the kernel. The kernel for clouds is the smallest that Debian has.
const PACKAGE: &str = "linux-image-cloud-amd64";

const INIT: &str = include_str!("../data/guest/init.c");

/// What the guest needs of the kernel's modules, each after those that it needs itself.
const DRIVERS: [&str; 14] = [
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_balloon",
    "drivers/virtio/virtio_mem",
    "drivers/char/virtio_console",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// What the guest says on its console when it follows.
const READY: &str = "guest: ready";

/// How long the guest may take to boot: it is emulated, beside all other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// The memory of a guest in MiB. The kernel needs about 80 of them.
pub const MEMORY: u64 = 160;

/// What a domain boots.
pub struct Guest {
    /// The path of the kernel.
    pub kernel: PathBuf,
    /// The path of its initramfs.
    pub initrd: PathBuf,
}

impl Guest {
    /// The guest, which is made if there is none yet.
    #[track_caller]
    pub fn made() -> Guest {
        let files = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // A guest that is made of something else has another name.
        let mut hasher = DefaultHasher::new();
        (PACKAGE, INIT, DRIVERS).hash(&mut hasher);
        let folder = files.join(format!("guest-{:016x}", hasher.finish()));
        let lock = File::create(files.join("guest.lock")).unwrap();
        lock.lock().unwrap();
        if !folder.exists() {
            // What fails half-way is removed; what is there is whole.
            let making = tempfile::tempdir_in(files).unwrap();
            make(making.path());
            fs::rename(making.path().join("guest"), &folder).unwrap();
        }
        Guest {
            kernel: folder.join("kernel"),
            initrd: folder.join("initrd"),
        }
    }
}

/// Makes `guest` in a folder, and leaves there what it was made of.
#[track_caller]
fn make(folder: &Path) {
    let at = |below: &str| folder.join(below);
    download(folder);
    let modules = only_one_in(&at("package/lib/modules")).join("kernel");
    fs::write(at("init.c"), INIT).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"]);
    gcc.args(["-o", "init", "init.c"]).current_dir(folder);
    run(&mut gcc).succeeded();

    let mut archive = Archive::default();
    for name in ["dev", "sys", "drivers"] {
        archive.add(name, 0o040_755, b"");
    }
    archive.add("init", 0o100_755, &fs::read(at("init")).unwrap());
    for (number, driver) in DRIVERS.iter().enumerate() {
        let module = fs::read(modules.join(format!("{driver}.ko"))).unwrap();
        let name = driver.rsplit('/').next().unwrap();
        archive.add(
            &format!("drivers/{number:02}-{name}.ko"),
            0o100_644,
            &module,
        );
    }
    fs::create_dir(at("guest")).unwrap();
    fs::write(at("guest/initrd"), archive.end()).unwrap();
    let kernel = fs::read_dir(at("package/boot")).unwrap().flatten();
    let kernel = kernel.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("vmlinuz-")
    });
    fs::rename(kernel.unwrap(), at("guest/kernel")).unwrap();
}

/// Unpacks the kernel's package into `package` in a folder.
#[track_caller]
fn download(folder: &Path) {
    // apt's own user may not write into the folder, and warns.
    const DOWNLOAD: &str = r#"
        get() {
            image=$(apt-cache depends "$1" | sed -n 's/^ *Depends: //p') && [ -n "$image" ] &&
                apt-get -q -o APT::Sandbox::User=root download "$image"
        }
        # What apt knows may be nothing yet, or name a package that a later one has replaced.
        get "$1" || { apt-get -q update && get "$1"; } || exit
        dpkg-deb -x linux-image-*.deb package
    "#;
    let mut bash = Command::new("bash");
    bash.args(["-c", DOWNLOAD, "bash", PACKAGE]);
    run(bash.current_dir(folder)).succeeded();
}

#[track_caller]
fn only_one_in(folder: &Path) -> PathBuf {
    let mut entries = fs::read_dir(folder).unwrap();
    let only = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none(), "{} has many", folder.display());
    only
}

/// An initramfs: the kernel's `newc` form of cpio.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
}

impl Archive {
    /// Adds a file; the mode says of what kind it is.
    fn add(&mut self, name: &str, mode: usize, data: &[u8]) {
        self.files += 1;
        let header = [
            self.files,
            mode,
            0, // the owner
            0, // the group
            1, // the links
            0, // the time
            data.len(),
            0, // the device, and the one that it is
            0,
            0,
            0,
            name.len() + 1,
            0, // the checksum, which this form does not have
        ];
        self.bytes.extend(b"070701");
        for field in header {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

impl Host {
    /// Defines a domain of QEMU that boots the guest, and returns its uuid. It has [`MEMORY`], and one CPU of two.
    #[track_caller]
    pub fn define_guest(&self, name: &str, devices: &str) -> String {
        self.define_guest_with(name, "", devices)
    }

    /// The same with further elements beside `<devices>`.
    #[track_caller]
    pub fn define_guest_with(&self, name: &str, elements: &str, devices: &str) -> String {
        let Guest { kernel, initrd } = Guest::made();
        let boot = format!(
            "<kernel>{}</kernel><initrd>{}</initrd><cmdline>console=ttyS0 quiet</cmdline>",
            kernel.display(),
            initrd.display()
        );
        let console = format!(
            "<serial type='unix'><source mode='bind' path='{}'/><log file='{}'/></serial>",
            self.commands(name).display(),
            self.console(name).display()
        );
        self.define_acpi(name, &boot, elements, &format!("{console}{devices}"))
    }

    /// Defines the same domain without the guest, and returns its uuid. libvirt and QEMU ask its BIOS for what they ask
    /// a guest for, and it never answers; a reset lets what was unplugged go.
    #[track_caller]
    pub fn define_deaf(&self, name: &str, devices: &str) -> String {
        self.define_acpi(name, "", "", devices)
    }

    #[track_caller]
    fn define_acpi(&self, name: &str, boot: &str, elements: &str, devices: &str) -> String {
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{MEMORY}</memory>\
             <vcpu current='1'>2</vcpu><os><type>hvm</type>{boot}</os>\
             <features><acpi/><apic/></features>{elements}<devices>{devices}</devices></domain>"
        );
        let file = self.path(format!("{name}.xml"));
        fs::write(&file, xml).unwrap();
        self.virsh(&["define", file.to_str().unwrap()]);
        self.virsh(&["domuuid", name]).trim().to_owned()
    }

    /// Waits until a guest follows, in the boot with this number since its domain was started: a reset and a reboot
    /// go on in the same console.
    #[track_caller]
    pub fn until_ready(&self, name: &str, boot: usize) {
        self.until_said(name, READY, boot);
    }

    /// Has a guest do something (`tests/data/guest/init.c` lists what), and returns when it has begun to.
    #[track_caller]
    pub fn guest_does(&self, name: &str, command: &str) {
        let does = format!("guest: does {command}\r");
        let before = self.said(name).matches(&does).count();
        let mut commands = UnixStream::connect(self.commands(name)).unwrap();
        writeln!(commands, "{command}").unwrap();
        // QEMU throws away what it has not read when the connection is closed.
        self.until_said(name, &does, before + 1);
    }

    /// Waits until a guest has done what it was asked to do, so many times since its domain was started.
    #[track_caller]
    pub fn until_did(&self, name: &str, command: &str, times: usize) {
        self.until_said(name, &format!("guest: did {command}\r"), times);
    }

    #[track_caller]
    fn until_said(&self, name: &str, words: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said(name);
            if said.matches(words).count() >= times {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{name} did not say {words:?} {times} times; it said: {said}"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What a guest has said since its domain was started.
    fn said(&self, name: &str) -> String {
        let said = fs::read(self.console(name)).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Where what a guest says is kept.
    fn console(&self, name: &str) -> PathBuf {
        self.path(format!("{name}.console"))
    }

    /// The socket at which a guest's console takes what is typed.
    fn commands(&self, name: &str) -> PathBuf {
        self.path(format!("{name}.commands"))
    }
}
