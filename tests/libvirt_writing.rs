//! Writing to the domains of a real libvirt with QEMU. virsh is the other side: what is written to the mount, virsh
//! shows.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use support::libvirt::Host;
use support::{Mounted, VMADM, run, until};

mod support;

const OPTIONS: &str = "private,rescan=3600,libvirt_poll=3600";

const MAC: &str = "52:54:00:00:00:01";

/// A nic of QEMU's own network.
const NIC: &str =
    "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>";

/// What `virsh dumpxml` says of a domain: as it runs, or with `--inactive` as it is defined.
#[track_caller]
fn xml(host: &Host, args: &[&str]) -> String {
    host.virsh(&[&["dumpxml"], args].concat())
}

/// Writes to a file of a VM, which works.
#[track_caller]
fn write(mounted: &Mounted<'_>, uuid: &str, file: &str, text: &str) {
    let path = mounted.path(uuid).join(file);
    if let Err(error) = fs::write(&path, text) {
        let why = mounted.read(format!("{uuid}/last_error"));
        panic!("{file} = {text}: {error}; {why}");
    }
}

/// Writes to a file of a VM, which is refused; returns why.
#[track_caller]
fn refused(mounted: &Mounted<'_>, uuid: &str, file: &str, text: &str, errno: Errno) -> String {
    let path = mounted.path(uuid).join(file);
    let error = fs::write(&path, text).unwrap_err();
    let why = mounted.read(format!("{uuid}/last_error"));
    assert_eq!(error.raw_os_error(), Some(errno as i32), "{why}");
    why
}

#[track_caller]
fn payload(mounted: &Mounted<'_>, uuid: &str, payload: &Value) {
    write(mounted, uuid, "vm.json", &payload.to_string());
}

/// The entries of a VM's `.drift`.
#[track_caller]
fn drift(mounted: &Mounted<'_>, uuid: &str) -> Value {
    let text = mounted.read(format!("{uuid}/.drift"));
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    Value::from(lines.collect::<Vec<Value>>())
}

#[test]
fn what_is_written_of_a_stopped_domain_virsh_shows() {
    let host = Host::start();
    let uuid = host.define("web", NIC);
    let mounted = host.mount(OPTIONS);
    let shows = |args: &[&str], what: &str| {
        let shown = host.virsh(args);
        assert!(shown.contains(what), "{args:?} without {what}: {shown}");
    };

    write(&mounted, &uuid, "alias", "Web & <Mail>\n");
    assert_eq!(mounted.read(format!("{uuid}/alias")), "Web & <Mail>\n");
    shows(&["desc", "--title", "web"], "Web & <Mail>");
    write(&mounted, &uuid, "alias", "\n");
    assert_eq!(mounted.read(format!("{uuid}/alias")), "web\n");
    assert!(!xml(&host, &["web"]).contains("<title>"));

    write(&mounted, &uuid, "autoboot", "true\n");
    shows(&["dominfo", "web"], "Autostart:      enable");
    write(&mounted, &uuid, "autoboot", "false\n");
    shows(&["dominfo", "web"], "Autostart:      disable");

    let why = refused(&mounted, &uuid, "ram", "96\n", Errno::EINVAL);
    assert!(why.contains("max_physical_memory"), "{why}");
    payload(
        &mounted,
        &uuid,
        &json!({"ram": 96, "max_physical_memory": 128}),
    );
    shows(&["dominfo", "web"], "Max memory:     131072 KiB");
    shows(&["dominfo", "web"], "Used memory:    98304 KiB");
    write(&mounted, &uuid, "max_physical_memory", "64\n");
    assert_eq!(mounted.read(format!("{uuid}/ram")), "64\n");

    payload(&mounted, &uuid, &json!({"vcpus": 2, "max_vcpus": 4}));
    shows(&["vcpucount", "web"], "maximum      config         4");
    shows(&["vcpucount", "web"], "current      config         2");
    write(&mounted, &uuid, "vcpus", "3\n");
    shows(&["vcpucount", "web"], "current      config         3");

    payload(&mounted, &uuid, &json!({"cpu_shares": 512, "cpu_cap": 150}));
    shows(&["schedinfo", "web"], "cpu_shares     : 512");
    assert_eq!(mounted.read(format!("{uuid}/cpu_cap")), "150\n");
    write(&mounted, &uuid, "cpu_cap", "\n");
    assert!(!mounted.path(&uuid).join("cpu_cap").exists());
    assert!(!xml(&host, &["web"]).contains("quota"));

    write(&mounted, &uuid, "tags/role", "db & \"cache\"\n");
    write(
        &mounted,
        &uuid,
        "customer_metadata/user-script",
        "#!/bin/sh\necho \"<hello>\"\ttab\r\n",
    );
    let metadata = || host.virsh(&["metadata", "web", "urn:vminfod:vm"]);
    assert!(metadata().contains("db &amp; \"cache\""), "{}", metadata());
    assert_eq!(
        mounted.read(format!("{uuid}/customer_metadata/user-script")),
        "#!/bin/sh\necho \"<hello>\"\ttab\r\n"
    );
    payload(
        &mounted,
        &uuid,
        &json!({"set_tags": {"replicas": 3, "live": true}, "remove_tags": ["role"]}),
    );
    let tags = mounted.json(format!("{uuid}/vm.json"))["tags"].clone();
    assert_eq!(tags, json!({"replicas": 3, "live": true}));
    let bad = json!({"set_tags": {"bad": "a\u{1}b"}}).to_string();
    let why = refused(&mounted, &uuid, "vm.json", &bad, Errno::EINVAL);
    assert!(why.contains("tags.bad"), "{why}");
    payload(
        &mounted,
        &uuid,
        &json!({"remove_tags": ["replicas", "live"], "remove_customer_metadata": ["user-script"]}),
    );
    assert!(!xml(&host, &["web"]).contains("urn:vminfod:vm"));

    // What was written through us is no news for anybody else, and nothing was missed.
    assert_eq!(mounted.status()["missed"], json!({}));
}

#[test]
fn a_running_domain_is_changed_as_it_runs_and_as_it_is_defined() {
    let host = Host::start();
    let uuid = host.define("web", NIC);
    host.virsh(&["start", "web"]);
    let mounted = host.mount(OPTIONS);
    assert_eq!(mounted.read(format!("{uuid}/.drift")), "");
    write(&mounted, &uuid, "alias", "www\n");
    write(&mounted, &uuid, "tags/role", "web\n");
    for args in [&["web"][..], &["web", "--inactive"]] {
        let xml = xml(&host, args);
        assert!(xml.contains("<title>www</title>"), "{args:?}: {xml}");
        assert!(xml.contains(">web</vminfod:tag>"), "{args:?}: {xml}");
    }
    assert_eq!(mounted.read(format!("{uuid}/.drift")), "");

    // What virsh changes in one of them is named.
    host.virsh(&["desc", "--title", "web", "--config", "next"]);
    host.virsh(&["setmem", "web", "32M", "--config"]);
    mounted.until_vm(&uuid, "the drift is there", |vm| {
        vm["drift"].as_array().is_some_and(|all| all.len() == 2)
    });
    assert_eq!(
        drift(&mounted, &uuid),
        json!([
            {"property": "alias", "live": "www", "config": "next"},
            {"property": "ram", "live": 64, "config": 32},
        ])
    );
    // A change of one property leaves the rest of the drift, and a full object does too.
    write(&mounted, &uuid, "tags/role", "mail\n");
    let mut whole = mounted.json(format!("{uuid}/vm.json"));
    whole["tags"]["site"] = "a".into();
    write(&mounted, &uuid, "vm.json", &whole.to_string());
    assert_eq!(drift(&mounted, &uuid).as_array().unwrap().len(), 2);
    // The value that one of them has already is given to the other.
    write(&mounted, &uuid, "alias", "www\n");
    write(&mounted, &uuid, "ram", "64\n");
    assert_eq!(drift(&mounted, &uuid), json!([]));

    // One of them alone.
    payload(
        &mounted,
        &uuid,
        &json!({"alias": "soon", "affect": "config"}),
    );
    assert_eq!(mounted.read(format!("{uuid}/alias")), "www\n");
    assert_eq!(
        drift(&mounted, &uuid),
        json!([{"property": "alias", "live": "www", "config": "soon"}])
    );
    assert!(xml(&host, &["web", "--inactive"]).contains("<title>soon</title>"));
    payload(&mounted, &uuid, &json!({"alias": "now", "affect": "live"}));
    assert!(xml(&host, &["web"]).contains("<title>now</title>"));
    let why = refused(
        &mounted,
        &uuid,
        "max_physical_memory",
        "128\n",
        Errno::EBUSY,
    );
    assert!(why.contains("affect"), "{why}");
    payload(
        &mounted,
        &uuid,
        &json!({"max_physical_memory": 128, "max_vcpus": 2, "vcpus": 2, "affect": "config"}),
    );
    assert!(
        host.virsh(&["vcpucount", "web"])
            .contains("current      config         2")
    );
    // And the next start has it.
    write(&mounted, &uuid, "ctl", "stop force\n");
    assert!(!mounted.path(&uuid).join(".drift").exists());
    assert_eq!(mounted.read(format!("{uuid}/alias")), "soon\n");
    assert_eq!(mounted.read(format!("{uuid}/max_physical_memory")), "128\n");
}

#[test]
fn the_verbs_of_ctl_do_what_virsh_does() {
    let host = Host::start();
    let uuid = host.define("web", "");
    let mounted = host.mount(OPTIONS);
    let ctl = |verb: &str| write(&mounted, &uuid, "ctl", verb);
    let is = |state: &str, virsh: &str| {
        assert_eq!(mounted.read(format!("{uuid}/state")), format!("{state}\n"));
        assert_eq!(host.virsh(&["domstate", "web"]).trim(), virsh);
    };
    let accepts = || mounted.read(format!("{uuid}/ctl"));
    assert!(
        accepts().lines().any(|verb| verb == "start"),
        "{}",
        accepts()
    );
    ctl("start\n");
    is("running", "running");
    ctl("start\n");
    assert!(
        accepts().lines().any(|verb| verb == "suspend"),
        "{}",
        accepts()
    );
    ctl("suspend\n");
    is("paused", "paused");
    ctl("suspend");
    assert!(
        accepts().lines().any(|verb| verb == "resume"),
        "{}",
        accepts()
    );
    refused(&mounted, &uuid, "ctl", "start", Errno::EBUSY);
    ctl("resume\n");
    is("running", "running");
    let pid = host.qemu_pid("web");
    ctl("reboot force\n");
    let first = mounted.read(format!("{uuid}/reboot_timestamp"));
    ctl("reset\n");
    assert_ne!(mounted.read(format!("{uuid}/reboot_timestamp")), first);
    is("running", "running");
    assert_eq!(host.qemu_pid("web"), pid);
    // In virsh this pulls the plug, and so it does here.
    ctl("destroy\n");
    is("stopped", "shut off");
    host.until_let_go("web");
    ctl("create\n");
    is("running", "running");
    // A BIOS does not shut down when it is asked.
    ctl("stop 1\n");
    is("stopped", "shut off");
    ctl("stop\n");
    let why = refused(&mounted, &uuid, "ctl", "suspend", Errno::EBUSY);
    assert!(why.contains("stopped"), "{why}");
    for (verb, errno) in [
        ("kill", Errno::EPERM),
        ("snapshot a", Errno::EPERM),
        ("fly", Errno::EINVAL),
    ] {
        refused(&mounted, &uuid, "ctl", verb, errno);
    }
    ctl("sync\n");
    write(&mounted, &uuid, "alias", "www\n");
    ctl("revert\n");
    assert_eq!(mounted.read(format!("{uuid}/alias")), "web\n");
    run(Command::new(VMADM)
        .args(["start", &uuid])
        .env("VMINFOD_MOUNT", mounted.path("")))
    .succeeded();
    is("running", "running");
    ctl("delete\n");
    assert!(!mounted.path(&uuid).exists());
    assert_eq!(host.virsh(&["list", "--all", "--name"]).trim(), "");
}

#[test]
fn a_guest_that_does_not_follow_is_told_as_what_it_is() {
    let host = Host::start();
    let uuid = host.define_deaf("deaf", NIC);
    host.virsh(&["start", "deaf"]);
    let mounted = host.mount("private,confirm_timeout=1,rescan=3600,libvirt_poll=3600");
    for (file, text) in [("ctl", "stop"), ("ctl", "reboot"), ("ram", "32\n")] {
        let why = refused(&mounted, &uuid, file, text, Errno::ETIMEDOUT);
        assert!(
            why.contains("asked; the guest has not followed"),
            "{text}: {why}"
        );
    }
    let why = mounted.read(format!("{uuid}/last_error"));
    assert!(
        why.contains("applied, and stays: ram = 32 (config)"),
        "{why}"
    );
    // What did not need it is done, and what it does not do is not shown.
    assert_eq!(mounted.read(format!("{uuid}/state")), "running\n");
    let ram = mounted.json(format!("{uuid}/vm.json"))["ram"].clone();
    assert_eq!(
        drift(&mounted, &uuid),
        json!([{"property": "ram", "live": ram, "config": 32}])
    );
    drop(mounted);
    // libvirt itself waits five seconds for a device to go.
    let mounted = host.mount("private,confirm_timeout=8,rescan=3600,libvirt_poll=3600");
    let remove = json!({"remove_nics": [MAC]}).to_string();
    let why = refused(&mounted, &uuid, "vm.json", &remove, Errno::ETIMEDOUT);
    assert!(
        why.contains("asked; the guest has not followed"),
        "{remove}: {why}"
    );
    assert!(xml(&host, &["deaf"]).contains(MAC));
    assert!(!xml(&host, &["deaf", "--inactive"]).contains(MAC));
    let entries = drift(&mounted, &uuid);
    let of_nic = |entry: &Value| entry["property"].as_str().unwrap().contains(MAC);
    assert!(entries.as_array().unwrap().iter().any(of_nic), "{entries}");
    // A BIOS lets go of what was unplugged when it is reset.
    write(&mounted, &uuid, "ctl", "reset");
    mounted.until(&uuid, "nics", json!([]));
}

#[test]
fn nics_come_go_and_are_unplugged_at_the_wall() {
    let host = Host::start();
    let uuid = host.define_deaf("web", NIC);
    host.virsh(&["start", "web"]);
    let mounted = host.mount(OPTIONS);
    payload(
        &mounted,
        &uuid,
        &json!({"add_nics": [{"type": "user", "model": "e1000"}]}),
    );
    let nic = mounted.json(format!("{uuid}/vm.json"))["nics"][1].clone();
    let mac = nic["mac"].as_str().unwrap().to_owned();
    assert!(mac.starts_with("52:54:00:"), "{nic}");
    assert_eq!(
        (&nic["interface"], &nic["model"]),
        (&json!("net1"), &json!("e1000"))
    );
    for args in [&["web"][..], &["web", "--inactive"]] {
        assert!(xml(&host, args).contains(&mac), "{args:?}");
    }
    write(&mounted, &uuid, "nics/net0/link", "down\n");
    assert_eq!(mounted.read(format!("{uuid}/nics/net0/link")), "down\n");
    assert!(
        host.virsh(&["domif-getlink", "web", "52:54:00:00:00:01"])
            .contains("down")
    );
    assert!(
        host.virsh(&["domif-getlink", "web", "52:54:00:00:00:01", "--config"])
            .contains("down")
    );
    write(&mounted, &uuid, "nics/net0/link", "up\n");
    assert!(
        host.virsh(&["domif-getlink", "web", "52:54:00:00:00:01"])
            .contains("up")
    );
    assert_eq!(mounted.read(format!("{uuid}/.drift")), "");
    for nic in [
        json!({"model": "virtio"}),
        json!({"type": "user", "mac": "52:54:00:00:00:01"}),
        json!({"network": "default", "bridge": "br0"}),
    ] {
        let add = json!({"add_nics": [nic]}).to_string();
        refused(&mounted, &uuid, "vm.json", &add, Errno::EINVAL);
    }
    // libvirt's own refusal is told as it is.
    let add = json!({"add_nics": [{"network": "nowhere"}]}).to_string();
    let why = refused(&mounted, &uuid, "vm.json", &add, Errno::EINVAL);
    assert!(why.contains("no network with matching name"), "{why}");
    write(&mounted, &uuid, "ctl", "stop force");
    payload(&mounted, &uuid, &json!({"remove_nics": [mac]}));
    assert!(!xml(&host, &["web"]).contains(&mac));
    assert_eq!(
        mounted.json(format!("{uuid}/vm.json"))["nics"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn disks_and_media_come_and_go() {
    let host = Host::start();
    let (_, disk) = host.disk("1G");
    let drive = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let controller = "<controller type='sata' index='0'/>";
    let uuid = host.define_deaf("web", &format!("{disk}{drive}{controller}"));
    host.virsh(&["start", "web"]);
    let mounted = host.mount(OPTIONS);
    let image = |name: &str| {
        let path = host.path(name).to_str().unwrap().to_owned();
        run(Command::new("qemu-img").args(["create", "-q", "-f", "raw", &path, "8M"])).succeeded();
        path
    };
    let (data, medium, other) = (image("data.img"), image("a.iso"), image("b.iso"));
    payload(
        &mounted,
        &uuid,
        &json!({"add_disks": [{"path": data, "serial": "d1"}]}),
    );
    let added = mounted.json(format!("{uuid}/vm.json"))["disks"][1].clone();
    assert_eq!(
        (&added["name"], &added["path"], &added["size"]),
        (&json!("vdb"), &json!(data), &json!(8))
    );
    for args in [&["web"][..], &["web", "--inactive"]] {
        assert!(xml(&host, args).contains(&data), "{args:?}");
    }
    for path in [&medium, &other] {
        write(&mounted, &uuid, "disks/sda/path", path);
        assert!(host.virsh(&["domblklist", "web"]).contains(path.as_str()));
        assert!(
            host.virsh(&["domblklist", "web", "--inactive"])
                .contains(path.as_str())
        );
    }
    write(&mounted, &uuid, "disks/sda/path", "\n");
    assert!(!mounted.path(&uuid).join("disks/sda/path").exists());
    assert!(!host.virsh(&["domblklist", "web"]).contains(other.as_str()));
    refused(&mounted, &uuid, "disks/vda/path", &medium, Errno::EPERM);
    refused(&mounted, &uuid, "disks/vda/model", "sata", Errno::EPERM);
    write(&mounted, &uuid, "ctl", "stop force");
    payload(&mounted, &uuid, &json!({"remove_disks": ["vdb"]}));
    assert!(!xml(&host, &["web"]).contains(&data));
    assert!(PathBuf::from(&data).exists(), "what is on a disk stays");
}

#[test]
fn a_drive_whose_medium_was_not_taken_has_no_size() {
    let host = Host::start();
    let (disk, devices) = host.disk("1G");
    let image = host.path("a.iso").to_str().unwrap().to_owned();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "raw", &image, "8M"])).succeeded();
    let drive = format!(
        "<disk type='file' device='cdrom'><source file='{image}'/><target dev='sda' bus='sata'/><readonly/></disk>\
         <controller type='sata' index='0'/>"
    );
    let uuid = host.define_deaf("web", &format!("{devices}{drive}"));
    host.virsh(&["start", "web"]);
    let mounted = host.mount(OPTIONS);
    assert_eq!(mounted.read(format!("{uuid}/disks/sda/size")), "8\n");
    // The guest writes to it, so nobody else opens it; QEMU has taken the other medium out by then. libvirt's XML has
    // the new path in between.
    refused(&mounted, &uuid, "disks/sda/path", &disk, Errno::EIO);
    assert!(!mounted.path(&uuid).join("disks/sda/size").exists());
    assert_eq!(
        mounted.read(format!("{uuid}/disks/sda/path")),
        format!("{image}\n")
    );
    // What nobody has changed is no wish of who writes a whole object.
    let mut whole = mounted.json(format!("{uuid}/vm.json"));
    whole["alias"] = "other".into();
    write(&mounted, &uuid, "vm.json", &whole.to_string());
}

#[test]
fn who_may_only_read_is_told_so_when_he_writes() {
    let host = Host::start();
    let uuid = host.define("web", "");
    let uri = host.qemu().replace("libvirt-sock", "libvirt-sock-ro");
    let mounted = host.mount_at(&uri, OPTIONS);
    for (file, text) in [("alias", "other"), ("ctl", "start")] {
        let why = refused(&mounted, &uuid, file, text, Errno::EPERM);
        assert!(why.contains("read only"), "{why}");
    }
    assert_eq!(mounted.read(format!("{uuid}/alias")), "web\n");
}

#[test]
fn nics_of_one_mac_stay_as_many_as_they_are() {
    let host = Host::start();
    let uuid = host.define("web", &NIC.repeat(2));
    let mounted = host.mount(OPTIONS);
    write(&mounted, &uuid, "alias", "one\n");
    host.virsh(&["start", "web"]);
    mounted.until(&uuid, "state", "running");
    write(&mounted, &uuid, "alias", "two\n");
    for args in [&["web"][..], &["web", "--inactive"]] {
        assert_eq!(xml(&host, args).matches("<interface").count(), 2);
    }
    // Nobody knows which of them is meant.
    refused(&mounted, &uuid, "nics/net1/link", "down\n", Errno::ENOENT);
    let remove = json!({"remove_nics": [MAC]}).to_string();
    refused(&mounted, &uuid, "vm.json", &remove, Errno::ENOENT);
}

#[test]
fn a_payload_that_is_refused_halfway_says_what_was_applied() {
    let host = Host::start();
    let drive = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let uuid = host.define_deaf("web", drive);
    host.virsh(&["start", "web"]);
    let mounted = host.mount(OPTIONS);
    let medium = json!([{"name": "sda", "path": "/nowhere/a.iso"}]);
    let alone = json!({"update_disks": medium}).to_string();
    refused(&mounted, &uuid, "vm.json", &alone, Errno::EINVAL);
    let both = json!({"update_disks": medium, "add_nics": [{"type": "user", "mac": MAC}]});
    let why = refused(&mounted, &uuid, "vm.json", &both.to_string(), Errno::EIO);
    let why: Value = serde_json::from_str(&why).unwrap();
    assert_eq!(why["applied"], json!([format!("nics[{MAC}] added")]));
    let vm = mounted.json(format!("{uuid}/vm.json"));
    assert_eq!(vm["nics"].as_array().unwrap().len(), 1);
    // A full object has the drift in it, whose values are no secrets.
    let mut whole = mounted.json(format!("{uuid}/vm.json"));
    assert!(!whole["drift"].as_array().unwrap().is_empty());
    whole["disks"][0]["path"] = "/nowhere/raw.iso".into();
    let why = refused(
        &mounted,
        &uuid,
        "vm.json",
        &whole.to_string(),
        Errno::EINVAL,
    );
    assert!(why.contains("/nowhere/raw.iso"), "{why}");
}

#[test]
fn a_domain_that_was_saved_while_paused_is_said_to_be_paused_when_it_is_started() {
    let host = Host::start();
    let uuid = host.define("web", "");
    host.virsh(&["start", "web"]);
    host.virsh(&["suspend", "web"]);
    host.virsh(&["managedsave", "web"]);
    let mounted = host.mount(OPTIONS);
    let why = refused(&mounted, &uuid, "ctl", "start", Errno::EIO);
    assert!(why.contains("resume"), "{why}");
    mounted.until(&uuid, "state", "paused");
    write(&mounted, &uuid, "ctl", "resume");
    assert_eq!(host.virsh(&["domstate", "web"]).trim(), "running");
}

#[test]
fn a_quota_is_the_size_of_the_disk_that_is_booted_from_and_only_grows() {
    let host = Host::start();
    let (path, disk) = host.disk("1G");
    let uuid = host.define("web", &disk);
    host.virsh(&["start", "web"]);
    let mounted = host.mount(OPTIONS);
    let capacity = || {
        let info = host.virsh(&["domblkinfo", "web", "vda"]);
        let line = info
            .lines()
            .find(|line| line.starts_with("Capacity"))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    write(&mounted, &uuid, "quota", "2\n");
    assert_eq!(mounted.read(format!("{uuid}/quota")), "2\n");
    assert_eq!(mounted.read(format!("{uuid}/disks/vda/size")), "2048\n");
    assert_eq!(capacity(), 2 << 30);
    write(&mounted, &uuid, "disks/vda/size", "2560\n");
    assert_eq!(mounted.read(format!("{uuid}/quota")), "2.5\n");
    for quota in ["1\n", "0\n", "\n"] {
        refused(&mounted, &uuid, "quota", quota, Errno::EINVAL);
    }
    assert_eq!(capacity(), 5 << 29);
    write(&mounted, &uuid, "ctl", "stop force");
    // libvirt cannot resize a file that it knows nothing of.
    let why = refused(&mounted, &uuid, "quota", "3\n", Errno::EINVAL);
    assert!(why.contains(&path) && why.contains("pool"), "{why}");
    assert_eq!(mounted.read(format!("{uuid}/quota")), "2.5\n");
    let folder = host.path("");
    let folder = folder.to_str().unwrap();
    host.virsh(&["pool-define-as", "images", "dir", "--target", folder]);
    host.virsh(&["pool-start", "images"]);
    write(&mounted, &uuid, "quota", "3\n");
    assert_eq!(mounted.read(format!("{uuid}/disks/vda/size")), "3072\n");
    assert_eq!(capacity(), 3 << 30);
}

#[test]
fn a_payload_makes_a_domain_and_delete_removes_it() {
    let host = Host::start();
    let (path, _) = host.disk("1G");
    let mounted = host.mount(OPTIONS);
    let payload = json!({
        "brand": "qemu", "alias": "web", "ram": 64, "max_physical_memory": 128, "vcpus": 1, "max_vcpus": 2,
        "nics": [{"type": "user"}], "disks": [{"path": path, "format": "qcow2"}],
        "tags": {"role": "web", "n": 1}, "customer_metadata": {"user-script": "#!/bin/sh\n<&>"},
    });
    let made = run(Command::new(VMADM)
        .arg("create")
        .env("VMINFOD_MOUNT", mounted.path(""))
        .arg("-f")
        .arg({
            let file = host.path("payload.json");
            fs::write(&file, payload.to_string()).unwrap();
            file
        }));
    let said = format!("{}{}", made.out, made.err);
    made.succeeded();
    let uuid = host.virsh(&["domuuid", "web"]).trim().to_owned();
    assert!(said.contains(&uuid), "{said}");
    let vm = mounted.json(format!("{uuid}/vm.json"));
    assert_eq!(
        (&vm["state"], &vm["autoboot"]),
        (&json!("running"), &json!(true))
    );
    assert_eq!((&vm["tags"], &vm["quota"]), (&payload["tags"], &json!(1)));
    assert_eq!(vm["customer_metadata"], payload["customer_metadata"]);
    assert_eq!(host.virsh(&["domstate", "web"]).trim(), "running");
    assert!(
        host.virsh(&["dominfo", "web"])
            .contains("Max memory:     131072 KiB")
    );
    // There is one of each name and uuid.
    let create = |payload: &Value| {
        let error = fs::write(mounted.path("create"), payload.to_string()).unwrap_err();
        Errno::from_raw(error.raw_os_error().unwrap())
    };
    assert_eq!(create(&payload), Errno::EEXIST);
    let mut twin = payload.clone();
    (twin["uuid"], twin["alias"]) = (uuid.as_str().into(), "other".into());
    assert_eq!(create(&twin), Errno::EEXIST);
    for (member, value) in [
        ("brand", json!("bhyve")),
        ("ram", json!(0)),
        ("quota", json!(10)),
        ("odd", json!(1)),
    ] {
        let mut bad = payload.clone();
        bad["alias"] = "bad".into();
        bad[member] = value;
        let errno = create(&bad);
        assert!(
            matches!(errno, Errno::EINVAL | Errno::EPERM | Errno::ENOENT),
            "{member}: {errno}"
        );
    }
    assert_eq!(host.virsh(&["list", "--all", "--name"]).trim(), "web");
    write(&mounted, &uuid, "ctl", "delete");
    assert!(!mounted.path(&uuid).exists());
    assert_eq!(host.virsh(&["list", "--all", "--name"]).trim(), "");
    assert!(PathBuf::from(&path).exists(), "its disk stays");

    // A saved state and snapshots do not keep a domain from being deleted.
    let uuid = host.define("saved", "");
    mounted.until(&uuid, "state", "stopped");
    host.virsh(&["start", "saved"]);
    host.virsh(&["managedsave", "saved"]);
    mounted.until(&uuid, "managed_save", true);
    write(&mounted, &uuid, "ctl", "delete");
    assert_eq!(host.virsh(&["list", "--all", "--name"]).trim(), "");
    // A transient domain is gone when it is stopped.
    let xml = "<domain type='qemu'><name>passing</name><memory unit='MiB'>64</memory>\
               <os><type>hvm</type></os></domain>";
    let file = host.path("passing.xml");
    fs::write(&file, xml).unwrap();
    host.virsh(&["create", file.to_str().unwrap()]);
    let uuid = host.virsh(&["domuuid", "passing"]).trim().to_owned();
    mounted.until(&uuid, "persistent", false);
    write(&mounted, &uuid, "ctl", "stop force");
    assert!(!mounted.path(&uuid).exists());
}

#[test]
fn a_domain_that_hangs_stops_no_writer_of_another_and_can_be_ended() {
    let host = Host::start();
    let (hung, well) = (host.define("hung", ""), host.define("well", ""));
    host.virsh(&["start", "hung"]);
    host.virsh(&["start", "well"]);
    let mounted = host.mount("private,rescan=3600,libvirt_poll=0.2,load_deadline=0.5");
    kill(host.qemu_pid("hung"), Signal::SIGSTOP).unwrap();
    until("the hung one is stale", || mounted.stale(&hung));
    let why = refused(&mounted, &hung, "alias", "x\n", Errno::EIO);
    assert!(why.contains("hung"), "{why}");
    for number in 0..8 {
        write(&mounted, &well, "alias", &format!("well {number}\n"));
    }
    assert!(xml(&host, &["well"]).contains("<title>well 7</title>"));
    write(&mounted, &hung, "ctl", "stop force");
    assert_eq!(mounted.read(format!("{hung}/state")), "stopped\n");
    assert_eq!(host.virsh(&["domstate", "hung"]).trim(), "shut off");
}

/// Lets threads end that wait for it, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_libvirtd_that_is_killed_again_and_again_loses_no_write_that_succeeded() {
    let mut host = Host::start();
    let uuid = host.define("web", "");
    host.virsh(&["start", "web"]);
    let (uri, store) = (host.qemu(), support::Store::new(0));
    let options = format!("private,libvirt_root={}", host.path("").display());
    let mounted = support::libvirt::mount(&store, &uri, &options);
    let (done, written) = (AtomicBool::new(false), AtomicU32::new(0));
    let file = mounted.path(&uuid).join("alias");
    write(&mounted, &uuid, "alias", "0");
    let rounds =
        10 * std::env::var("VMINFOD_ROUNDS").map_or(1, |times| times.parse::<u32>().unwrap());
    let last = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(mounted.read(format!("{uuid}/state")), "running\n");
            }
        });
        let writer = scope.spawn(|| {
            let (mut sure, mut unsure) = (0, Vec::new());
            for number in 1.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                match fs::write(&file, number.to_string()) {
                    Ok(()) => {
                        sure = number;
                        unsure.clear();
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    // It may have been applied all the same.
                    Err(_) => unsure.push(number),
                }
                let shown: u32 = mounted
                    .read(format!("{uuid}/alias"))
                    .trim()
                    .parse()
                    .unwrap();
                assert!(
                    shown == sure || unsure.contains(&shown),
                    "{shown} is neither {sure} nor {unsure:?}"
                );
            }
            unsure.push(sure);
            unsure
        });
        let ends = Ends(&done);
        for _ in 0..rounds {
            host.kill_libvirtd();
            until("the VM is stale", || mounted.stale(&uuid));
            host.start_libvirtd();
            until("the VM is repaired", || {
                mounted.stale(&uuid).is_none().then_some(())
            });
            let before = written.load(Ordering::Relaxed);
            until("a write succeeds", || {
                assert!(!writer.is_finished(), "who writes has failed");
                (written.load(Ordering::Relaxed) > before).then_some(())
            });
        }
        drop(ends);
        reader.join().unwrap();
        writer.join().unwrap()
    });
    write(&mounted, &uuid, "ctl", "sync");
    let shown = mounted.read(format!("{uuid}/alias"));
    assert!(
        last.iter().any(|number| format!("{number}\n") == shown),
        "{shown} is none of {last:?}"
    );
    for kind in ["--live", "--config"] {
        let title = host.virsh(&["desc", "--title", kind, "web"]);
        assert_eq!(title.trim(), shown.trim(), "{kind}");
    }
    write(&mounted, &uuid, "alias", "the end");
    assert_eq!(host.virsh(&["desc", "--title", "web"]).trim(), "the end");
}

#[test]
fn the_life_of_a_domain_of_the_test_driver_can_be_led_through_the_mount() {
    let host = Host::start();
    let uri = host.test();
    let mounted = host.mount_at(&uri, OPTIONS);
    let uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f";
    let state = || {
        host.virsh_at(&uri, &["domstate", "test"])
            .succeeded()
            .trim()
            .to_owned()
    };
    for (verb, shown) in [
        ("suspend", "paused"),
        ("resume", "running"),
        ("stop", "shut off"),
        ("start", "running"),
        ("destroy", "shut off"),
    ] {
        write(&mounted, uuid, "ctl", verb);
        assert_eq!(state(), shown, "{verb}");
    }
    write(&mounted, uuid, "ram", "1024\n");
    assert!(
        host.virsh_at(&uri, &["dominfo", "test"])
            .succeeded()
            .contains("Used memory:    1048576 KiB")
    );
    write(&mounted, uuid, "ctl", "undefine");
    assert_eq!(
        host.virsh_at(&uri, &["list", "--all", "--name"])
            .succeeded()
            .trim(),
        ""
    );
}
