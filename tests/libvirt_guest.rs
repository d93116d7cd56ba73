//! The libvirt source with guests that follow what is asked of them. virsh is the other side.

use std::fs;

use serde_json::{Value, json};
use support::guest::MEMORY;
use support::libvirt::Host;

mod support;

const NIC: &str =
    "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>";

/// Neither the rescan nor the poll helps: libvirt or its files have to announce each change.
const ONLY_EVENTS: &str = "private,rescan=3600,libvirt_poll=3600";

#[test]
fn a_guest_that_follows_is_seen_to_follow() {
    let host = Host::start();
    let (_, disk) = host.disk("16M");
    let uuid = host.define_guest("web", &format!("{disk}{NIC}"));
    let mounted = host.mount(ONLY_EVENTS);
    let is = |property: &str, value: Value| mounted.until(&uuid, property, value);
    host.virsh(&["start", "web"]);
    host.until_ready("web", 1);
    is("state", json!("running"));
    is("ram", json!(MEMORY));

    host.virsh(&["setmem", "web", "128M", "--live"]);
    is("ram", json!(128));
    host.virsh(&["setmem", "web", "144M", "--live"]);
    is("ram", json!(144));

    host.virsh(&["setvcpus", "web", "2", "--live"]);
    is("vcpus", json!(2));

    let nic = host.path("nic.xml");
    fs::write(&nic, NIC).unwrap();
    let nic = nic.to_str().unwrap();
    host.virsh(&["detach-device", "web", nic, "--live"]);
    is("nics", json!([]));
    host.virsh(&["attach-device", "web", nic, "--live"]);
    mounted.until_vm(&uuid, "a nic is plugged in", |vm| {
        vm["nics"][0]["mac"] == "52:54:00:00:00:01"
    });
    host.virsh(&["detach-disk", "web", "vda", "--live"]);
    is("disks", json!([]));

    // The guest powers off, and libvirt boots it again in the same process.
    let pid = host.qemu_pid("web");
    host.virsh(&["reboot", "web"]);
    host.until_ready("web", 2);
    assert_eq!(host.qemu_pid("web"), pid);
    is("state", json!("running"));

    host.virsh(&["shutdown", "web"]);
    is("state", json!("stopped"));
    is("exit_reason", json!("shutdown"));
    assert_eq!(mounted.status()["missed"], json!({}));
}

#[test]
fn what_is_asked_of_a_guest_through_the_mount_is_confirmed_when_it_has_followed() {
    let host = Host::start();
    let (disk, device) = host.disk("16M");
    let uuid = host.define_guest("web", &format!("{device}{NIC}"));
    let mounted = host.mount(ONLY_EVENTS);
    let write = |file: &str, text: &str| {
        if let Err(error) = fs::write(mounted.path(&uuid).join(file), text) {
            let why = mounted.read(format!("{uuid}/last_error"));
            panic!("{file} = {text}: {error}; {why}");
        }
    };
    write("ctl", "start");
    host.until_ready("web", 1);

    write("ram", "128\n");
    assert_eq!(mounted.read(format!("{uuid}/ram")), "128\n");
    let stats = host.virsh(&["domstats", "web", "--balloon"]);
    assert!(stats.contains("balloon.current=131072"), "{stats}");
    write("vcpus", "2\n");
    assert!(
        host.virsh(&["vcpucount", "web", "--live", "--current"])
            .contains('2')
    );
    let remove = json!({"remove_nics": ["52:54:00:00:00:01"], "remove_disks": ["vda"]});
    write("vm.json", &remove.to_string());
    for args in [&["dumpxml", "web"][..], &["dumpxml", "web", "--inactive"]] {
        let xml = host.virsh(args);
        assert!(
            !xml.contains("52:54:00:00:00:01") && !xml.contains(&disk),
            "{xml}"
        );
    }
    assert_eq!(mounted.read(format!("{uuid}/.drift")), "");

    // The guest powers off, and libvirt boots it again in the same process.
    let pid = host.qemu_pid("web");
    write("ctl", "reboot");
    assert!(mounted.path(&uuid).join("reboot_timestamp").exists());
    assert_eq!(host.qemu_pid("web"), pid);
    host.until_ready("web", 2);
    write("ctl", "stop");
    assert_eq!(mounted.read(format!("{uuid}/exit_reason")), "shutdown\n");
    assert_eq!(
        host.virsh(&["domstate", "web", "--reason"]).trim(),
        "shut off (shutdown)"
    );
    assert_eq!(mounted.status()["missed"], json!({}));
}

#[test]
fn what_no_guest_follows_is_not_shown_as_done() {
    let host = Host::start();
    let uuid = host.define_deaf("web", NIC);
    let mounted = host.mount(ONLY_EVENTS);
    host.virsh(&["start", "web"]);
    mounted.until(&uuid, "state", "running");
    let nic = host.path("nic.xml");
    fs::write(&nic, NIC).unwrap();

    // virsh says of each that it succeeded.
    host.virsh(&["setmem", "web", "128M", "--live"]);
    host.virsh(&["shutdown", "web"]);
    host.virsh(&["detach-device", "web", nic.to_str().unwrap(), "--live"]);
    // What follows them is shown after them.
    host.virsh(&["desc", "web", "--live", "--title", "--new-desc", "later"]);
    mounted.until(&uuid, "alias", "later");
    let vm = mounted.json(format!("{uuid}/vm.json"));
    assert_eq!(vm["state"], "running");
    assert_eq!(vm["ram"], MEMORY);
    assert_eq!(vm["nics"][0]["mac"], "52:54:00:00:00:01");

    host.virsh(&["reset", "web"]);
    mounted.until(&uuid, "nics", json!([]));
    assert_eq!(mounted.status()["missed"], json!({}));
}
