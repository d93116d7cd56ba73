//! Every domain event of libvirt, made to happen by virsh or by a guest: it is heard, and what it changes is shown by
//! events alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use support::libvirt::{Host, mount};
use support::{Mounted, Store, run, until};

mod support;

const BY_VIRSH: [&str; 10] = [
    "lifecycle",
    "reboot",
    "graphics",
    "tunable",
    "device-added",
    "device-removed",
    "job-completed",
    "migration-iteration",
    "metadata-change",
    "control-error",
];

const BY_A_GUEST: [&str; 7] = [
    "rtc-change",
    "watchdog",
    "balloon-change",
    "agent-lifecycle",
    "pm-suspend",
    "pm-wakeup",
    "pm-suspend-disk",
];

const OF_DISKS: [&str; 7] = [
    "io-error",
    "io-error-reason",
    "block-threshold",
    "block-job",
    "block-job-2",
    "disk-change",
    "tray-change",
];

const OF_MEMORY: [&str; 2] = ["memory-device-size-change", "device-removal-failed"];

/// What no test makes happen, and why.
const NOT_HERE: [(&str, &str); 1] = [(
    "memory-failure",
    "QEMU tells of it when the host's kernel reports broken memory to a guest that runs in KVM",
)];

#[test]
fn what_virsh_does_to_a_domain_is_heard() {
    let host = Host::start();
    let screen = host.path("screen");
    let graphics = format!("<graphics type='vnc' socket='{}'/>", screen.display());
    let (_, disk) = host.disk("16M");
    let uuid = host.define_deaf("web", &format!("{disk}{graphics}"));
    let mounted = mount_by_events_alone(&host);
    let is = |property: &str, value: Value| mounted.until(&uuid, property, value);
    host.virsh(&["start", "web"]);
    is("state", json!("running"));

    host.virsh(&["desc", "web", "--live", "--title", "--new-desc", "later"]);
    is("alias", json!("later"));

    host.virsh(&[
        "blkdeviotune",
        "web",
        "vda",
        "--live",
        "--total-iops-sec",
        "1000",
    ]);
    until_in_xml(&mounted, &uuid, "<total_iops_sec>1000");

    let nic = host.path("nic.xml");
    let mac = "52:54:00:00:00:01";
    let xml = format!("<interface type='user'><mac address='{mac}'/></interface>");
    fs::write(&nic, xml).unwrap();
    let nic = nic.to_str().unwrap();
    host.virsh(&["attach-device", "web", nic, "--live"]);
    mounted.until_vm(&uuid, "a nic is plugged in", |vm| {
        vm["nics"][0]["mac"] == mac
    });
    // It goes with the reset, since nobody lets it go before; other ways to ask for that wait for an answer.
    host.virsh(&["detach-device-alias", "web", "net0", "--live"]);
    host.virsh(&["reset", "web"]);
    is("nics", json!([]));

    let mut viewer = UnixStream::connect(&screen).unwrap();
    let mut version = [0; 12];
    viewer.read_exact(&mut version).unwrap();
    assert_eq!(&version[..3], b"RFB");
    drop(viewer);

    host.virsh(&["managedsave", "web"]);
    is("exit_reason", json!("saved"));
    is("managed_save", json!(true));
    host.virsh(&["start", "web"]);
    is("state_reason", json!("restored"));
    is("managed_save", json!(false));

    // libvirt gives up a QEMU that answers with more than 10 MB.
    let much = "xp /2200000xb 0";
    let answer = host.virsh_at(
        &host.qemu(),
        &["qemu-monitor-command", "web", "--hmp", much],
    );
    assert_ne!(answer.code, Some(0));
    host.virsh(&["destroy", "web"]);
    is("exit_reason", json!("destroyed"));
    all_heard(&mounted, &uuid, &BY_VIRSH);
}

#[test]
fn what_a_guest_does_is_heard() {
    const SLEEP: &str = "write /sys/power/state mem";
    let host = Host::start();
    let uuid = host.define_guest_with(
        "web",
        "<clock offset='variable' adjustment='0'/>\
         <pm><suspend-to-mem enabled='yes'/><suspend-to-disk enabled='yes'/></pm>",
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <watchdog model='ib700' action='pause'/>",
    );
    let mounted = mount_by_events_alone(&host);
    let is = |property: &str, value: &str| mounted.until(&uuid, property, value);
    host.virsh(&["start", "web"]);
    host.until_ready("web", 1);
    is("state", "running");

    // Number 4 in the CMOS, the hour of the clock, is 3.
    host.guest_does("web", "out 70 304");
    mounted.until_vm(&uuid, "the clock is set", |vm| {
        !vm["domain.xml"]
            .as_str()
            .unwrap()
            .contains("adjustment='0'")
    });

    host.guest_does("web", "hold /dev/vport0p1");
    until_in_xml(&mounted, &uuid, "state='connected'");

    // The watchdog barks after the least time that it knows, which is none.
    host.guest_does("web", "out 443 f");
    is("state_reason", "watchdog");
    host.virsh(&["resume", "web"]);
    is("state", "running");

    host.virsh(&["setmem", "web", "128M", "--live"]);
    mounted.until(&uuid, "ram", 128);

    host.guest_does("web", SLEEP);
    is("state", "suspended");
    host.virsh(&["dompmwakeup", "web"]);
    is("state_reason", "event_wakeup");
    host.until_did("web", SLEEP, 1);

    // Bits 10 to 13 of PM1a_CNT: the sleep S4, now. The kernel itself would first want a swap to save its memory to.
    host.guest_does("web", "out 604 2800");
    is("state", "stopped");
    all_heard(&mounted, &uuid, &BY_A_GUEST);
}

#[test]
fn what_happens_to_disks_is_heard() {
    let mut host = Host::stopped();
    let small = Small::mount(host.path("small"));
    host.start_libvirtd();
    let disk = small.0.join("disk.qcow2");
    let qcow2 = ["create", "-q", "-f", "qcow2"];
    run(Command::new("qemu-img").args(qcow2).arg(&disk).arg("16M")).succeeded();
    let medium = host.path("missing.iso");
    let uuid = host.define_guest(
        "web",
        &format!(
            "<disk type='file'><driver name='qemu' type='qcow2' error_policy='stop'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>\
             <disk type='file' device='cdrom'><source file='{}' startupPolicy='optional'/>\
             <target dev='hdc' bus='ide'/><readonly/></disk>",
            disk.display(),
            medium.display()
        ),
    );
    let mounted = mount_by_events_alone(&host);
    let until_path = |name: &str, path: Option<&Path>| {
        let path = path.map_or(Value::Null, |path| json!(path));
        mounted.until_vm(&uuid, &format!("{name} is {path}"), |vm| {
            let disks = vm["disks"].as_array().unwrap();
            disks
                .iter()
                .any(|disk| disk["name"] == name && disk["path"] == path)
        });
    };
    until_path("hdc", Some(&medium));
    host.virsh(&["start", "web"]);
    host.until_ready("web", 1);
    until_path("hdc", None);

    fs::write(&medium, [0; 4096]).unwrap();
    let change = ["change-media", "web", "hdc", "--live"];
    let insert = ["--insert", "--source", medium.to_str().unwrap()];
    host.virsh(&[&change[..], &insert[..]].concat());
    until_path("hdc", Some(&medium));
    host.virsh(&[&change[..], &["--eject"]].concat());
    until_path("hdc", None);

    host.virsh(&["domblkthreshold", "web", "vda", "1"]);
    host.guest_does("web", "write /dev/vda x");
    mounted.until(&uuid, "state_reason", "io_error");
    small.grow();
    host.virsh(&["resume", "web"]);
    mounted.until(&uuid, "state", "running");
    host.until_did("web", "write /dev/vda x", 1);

    let copy = host.path("copy.qcow2");
    let job = ["--transient-job", "--wait", "--pivot"];
    host.virsh(
        &[
            &["blockcopy", "web", "vda", copy.to_str().unwrap()],
            &job[..],
        ]
        .concat(),
    );
    until_path("vda", Some(&copy));
    all_heard(&mounted, &uuid, &OF_DISKS);
}

#[test]
fn what_happens_to_memory_is_heard() {
    const DIMM: &str =
        "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>";
    let host = Host::start();
    let uuid = host.define_guest_with(
        "web",
        "<maxMemory slots='2' unit='MiB'>1024</maxMemory>\
         <cpu><numa><cell id='0' cpus='0-1' memory='160' unit='MiB'/></numa></cpu>",
        &format!(
            "{DIMM}<memory model='virtio-mem'><target><size unit='MiB'>128</size><node>0</node>\
             <block unit='MiB'>2</block><requested unit='MiB'>0</requested></target></memory>"
        ),
    );
    let mounted = mount_by_events_alone(&host);
    host.virsh(&["start", "web"]);
    host.until_ready("web", 1);
    mounted.until(&uuid, "state", "running");

    let update = [
        "update-memory-device",
        "web",
        "--live",
        "--alias",
        "virtiomem0",
    ];
    host.virsh(&[&update[..], &["--requested-size", "64M"]].concat());
    until_in_xml(&mounted, &uuid, "<current unit='KiB'>65536");

    // The guest refuses to let memory go.
    host.guest_does("web", "write /sys/firmware/acpi/hotplug/memory/enabled 0");
    host.until_did(
        "web",
        "write /sys/firmware/acpi/hotplug/memory/enabled 0",
        1,
    );
    let dimm = host.path("dimm.xml");
    fs::write(&dimm, DIMM).unwrap();
    let dimm = dimm.to_str().unwrap();
    let refused = host.virsh_at(&host.qemu(), &["detach-device", "web", dimm, "--live"]);
    assert!(refused.err.contains("rejected by the guest"), "{refused:?}");
    all_heard(&mounted, &uuid, &OF_MEMORY);
}

#[test]
fn every_event_is_made_to_happen_unless_there_is_a_reason() {
    const SOURCE: &str = include_str!("../src/bin/vminfod-libvirt/link.rs");
    let (_, names) = SOURCE
        .split_once("pub const NAMES: [&str; 30] = [")
        .unwrap();
    let (names, _) = names.split_once("];").unwrap();
    let names: BTreeSet<&str> = names.split('"').skip(1).step_by(2).collect();
    assert_eq!(names.len(), 30);

    let store = Store::new(0);
    let mounted = mount(&store, "test:///default", "private,load_deadline=1");
    let unknown = until("the program tells of itself", || {
        let unknown = &mounted.status()["fswatcher"]["libvirt"]["events_unknown_to_libvirt"];
        Some(unknown.as_array()?.clone())
    });
    let mut covered: BTreeSet<&str> = unknown.iter().filter_map(Value::as_str).collect();
    covered.extend(
        BY_VIRSH
            .iter()
            .chain(&BY_A_GUEST)
            .chain(&OF_DISKS)
            .chain(&OF_MEMORY),
    );
    covered.extend(NOT_HERE.map(|(name, _)| name));
    assert_eq!(covered, names);
}

/// Mounts the domains of a host, where neither polls nor rescans help, nor libvirt's files: they are not where they
/// are looked for.
#[track_caller]
fn mount_by_events_alone(host: &Host) -> Mounted<'_> {
    let nowhere = host.path("nowhere");
    fs::create_dir(&nowhere).unwrap();
    // What was heard is told twice in each deadline.
    let options = format!(
        "private,rescan=3600,libvirt_poll=3600,load_deadline=2,libvirt_root={}",
        nowhere.display()
    );
    mount(&host.store, &host.qemu(), &options)
}

/// Waits until the XML of a domain has this.
#[track_caller]
fn until_in_xml(mounted: &Mounted<'_>, uuid: &str, words: &str) {
    mounted.until_vm(uuid, &format!("{words} is in domain.xml"), |vm| {
        vm["domain.xml"].as_str().unwrap().contains(words)
    });
}

/// Waits until each of these events was heard, and asserts that whatever was shown was shown by events.
#[track_caller]
fn all_heard(mounted: &Mounted<'_>, uuid: &str, names: &[&str]) {
    for name in names {
        until(&format!("{name} is heard"), || {
            mounted.status()["fswatcher"]["libvirt"]["announced"][name].as_u64()
        });
    }
    let status = mounted.status();
    assert_eq!(status["missed"], json!({}));
    assert!(
        status["fswatcher"]["libvirt"]["announced"]["files"].is_null(),
        "{status}"
    );
    for line in mounted.read(".history").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["type"] == "modify" && line["uuid"] == uuid {
            assert_eq!(line["via"], "event", "{line}");
        }
    }
}

/// A filesystem that is full before a disk is, which goes with its value.
struct Small(PathBuf);

impl Small {
    #[track_caller]
    fn mount(at: PathBuf) -> Small {
        fs::create_dir(&at).unwrap();
        let tmpfs = ["-t", "tmpfs", "-o", "size=224K", "small"];
        run(Command::new("mount").args(tmpfs).arg(&at)).succeeded();
        Small(at)
    }

    /// Makes it large enough, also where libvirtd sees it.
    #[track_caller]
    fn grow(&self) {
        run(Command::new("mount")
            .args(["-o", "remount,size=16M"])
            .arg(&self.0))
        .succeeded();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // One that could not be unmounted is no reason to end a test that panics.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
