//! What payloads, files, full objects and verbs make of the domains of a libvirt.

use proptest::prelude::*;
use serde_json::{Value, json};
use vminfod::source::libvirt::domain::{self, Facts};
use vminfod::vm::files::Rendered;
use vminfod::vm::payload::{
    InvalidKind, Wanted, can_create, create_domain, full, of_file, prepared, revert, update, wanted,
};
use vminfod::vm::property;
use vminfod::vm::verb::{Kind, Verb, accepted};
use vminfod::vm::{Object, name};

const XML: &str = "<domain type='kvm'><name>web</name>\
    <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid><title>Web</title>\
    <memory unit='MiB'>2048</memory><currentMemory unit='MiB'>1024</currentMemory>\
    <vcpu current='2'>4</vcpu>\
    <cputune><shares>1024</shares><global_period>100000</global_period>\
    <global_quota>150000</global_quota></cputune><os><type>hvm</type></os>\
    <metadata><v:vm xmlns:v='urn:vminfod:vm'><v:tag name='role'>web</v:tag>\
    <v:tag name='tier' type='number'>1</v:tag></v:vm></metadata><devices>\
    <disk type='file' device='disk'><driver type='qcow2'/><source file='/images/web.qcow2'/>\
    <target dev='vda' bus='virtio'/></disk>\
    <disk type='file' device='cdrom'><driver type='raw'/><source file='/iso/a.iso'/>\
    <target dev='sda' bus='sata'/><readonly/></disk>\
    <disk type='file' device='cdrom'><driver type='raw'/><target dev='sdb' bus='sata'/><readonly/></disk>\
    <disk type='volume' device='disk'><driver type='raw'/><source pool='data' volume='x'/>\
    <target dev='vdc' bus='virtio'/><serial>abc</serial></disk>\
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default' \
    bridge='virbr0'/><model type='virtio'/></interface>\
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/>\
    <model type='e1000'/><link state='down'/></interface>\
    <interface type='user'><mac address='52:54:00:00:00:03'/></interface>\
    <graphics type='vnc' port='5900'/></devices></domain>";

/// A running domain that has one of everything.
fn vm() -> Object {
    let mut facts = Facts {
        xml: XML.to_owned(),
        state: (1, 1),
        persistent: true,
        pid: Some(7),
        booted: Some(1_523_467_148_120),
        ..Facts::default()
    };
    for (block, (disk, bytes)) in [("vda", 20u64 << 30), ("sda", 700 << 20), ("vdc", 1_000_448)]
        .into_iter()
        .enumerate()
    {
        facts
            .stats
            .insert(format!("block.{block}.name"), json!(disk));
        let capacity = format!("block.{block}.capacity");
        facts.stats.insert(capacity, json!(bytes));
    }
    facts.stats.insert("block.count".to_owned(), json!(3));
    domain::object(&facts).unwrap()
}

/// The same in another state.
fn vm_in(state: &str) -> Object {
    let mut vm = vm();
    vm.insert("state".into(), json!(state));
    vm.insert("zone_state".into(), json!(state));
    vm
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

fn updated(vm: &Object, payload: Value) -> Object {
    match update(vm, &object(payload.clone())) {
        Ok(target) => target,
        Err(error) => panic!("{payload}: {error}"),
    }
}

fn path(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// What is wanted of a target, in words.
fn words(vm: &Object, target: &Object) -> Vec<String> {
    wanted(vm, target).iter().map(Wanted::to_string).collect()
}

fn disk<'a>(vm: &'a Object, name: &str) -> &'a Value {
    let disks = vm["disks"].as_array().unwrap();
    disks.iter().find(|disk| disk["name"] == name).unwrap()
}

#[test]
fn a_full_object_written_back_changes_nothing() {
    let vm = vm();
    assert_eq!(full(&vm, &vm).as_ref(), Ok(&vm));
    assert_eq!(update(&vm, &Object::new()).as_ref(), Ok(&vm));
    let mut beside = vm.clone();
    beside.insert("affect".into(), json!("live"));
    beside.insert("if_generation".into(), json!(7));
    assert_eq!(full(&vm, &beside).as_ref(), Ok(&vm));
    assert_eq!(updated(&vm, json!({"affect": "live"})), vm);
}

#[test]
fn every_file_can_be_written_back_and_changes_nothing() {
    let vm = vm();
    let rendered = Rendered::new(&vm);
    let mut written = Vec::new();
    for file in rendered.files().iter() {
        let mut names = vec![file.name(rendered.json()).into_owned()];
        let mut parent = file.parent;
        while let Some(dir) = rendered.file(parent) {
            names.insert(0, dir.name(rendered.json()).into_owned());
            parent = dir.parent;
        }
        if file.is_dir() || !file.settable || names == ["vm.json"] {
            continue;
        }
        let path: Vec<String> = names
            .iter()
            .map(|it| name::decode(it).into_owned())
            .collect();
        let mut text = Vec::new();
        file.text(rendered.json(), &mut text);
        let text = String::from_utf8(text).unwrap();
        let text = text.strip_suffix('\n').unwrap_or(&text);
        assert_eq!(
            of_file(&vm, &path, text).as_ref(),
            Ok(&vm),
            "{path:?} {text:?}"
        );
        assert_eq!(can_create(&vm, &path), Ok(()));
        written.push(path.join("/"));
    }
    written.sort();
    assert_eq!(
        written,
        [
            "alias",
            "autoboot",
            "cpu_cap",
            "cpu_shares",
            "disks/sda/path",
            "disks/sda/size",
            "disks/vda/path",
            "disks/vda/size",
            "disks/vdc/path",
            "disks/vdc/size",
            "max_physical_memory",
            "max_vcpus",
            "nics/net0/bridge",
            "nics/net0/link",
            "nics/net0/network",
            "nics/net1/bridge",
            "nics/net1/link",
            "nics/net2/link",
            "quota",
            "ram",
            "tags/role",
            "tags/tier",
            "vcpus"
        ]
    );
}

#[test]
fn files_set_and_remove() {
    let vm = vm();
    let write = |parts: &[&str], text| of_file(&vm, &path(parts), text).unwrap();
    assert_eq!(write(&["alias"], " front ")["alias"], "front");
    assert_eq!(write(&["alias"], "")["alias"], "web");
    assert_eq!(write(&["cpu_cap"], "0").get("cpu_cap"), None);
    assert_eq!(write(&["autoboot"], "true")["autoboot"], true);
    assert_eq!(
        write(&["nics", "net1", "link"], "up")["nics"][1]["link"],
        "up"
    );
    assert_eq!(
        write(&["nics", "net1", "bridge"], "br1")["nics"][1]["bridge"],
        "br1"
    );
    assert_eq!(write(&["tags", "tier"], "")["tags"], json!({"role": "web"}));
    let ejected = write(&["disks", "sda", "path"], "");
    assert_eq!(words(&vm, &ejected), ["disks[sda].path removed"]);
    let inserted = write(&["disks", "sdb", "path"], "/iso/b.iso");
    assert_eq!(words(&vm, &inserted), [r#"disks[sdb].path = "/iso/b.iso""#]);
    assert_eq!(can_create(&vm, &path(&["disks", "sdb", "path"])), Ok(()));
}

#[test]
fn the_quota_is_the_size_of_the_disk_that_is_booted_from() {
    let vm = vm();
    let both = ["disks[vda].size = 30720", "quota = 30"];
    for payload in [
        json!({"quota": 30}),
        json!({"update_disks": [{"name": "vda", "size": 30720}]}),
        json!({"update_disks": {"path": "/images/web.qcow2", "size": "30720"}}),
        json!({"quota": 30, "update_disks": [{"name": "vda", "size": 30720}]}),
    ] {
        assert_eq!(words(&vm, &updated(&vm, payload)), both);
    }
    let target = of_file(&vm, &path(&["disks", "vda", "size"]), "30720").unwrap();
    assert_eq!(words(&vm, &target), both);
    for (name, value) in [("quota", json!(30)), ("disks", json!([]))] {
        let mut document = vm.clone();
        document.insert(name.into(), value);
        if name == "disks" {
            document.insert("disks".into(), vm["disks"].clone());
            document["disks"][0]["size"] = json!(30720);
        }
        assert_eq!(words(&vm, &full(&vm, &document).unwrap()), both);
    }
    assert_eq!(
        updated(&vm, json!({"quota": 20.5}))["disks"][0]["size"],
        20992
    );
    // A fraction of a MiB, in whole blocks.
    let odd = 20.0 + 512.0 / f64::from(1 << 30);
    let target = updated(&vm, json!({"quota": odd}));
    assert_eq!(target["disks"][0]["size"].as_f64(), Some(odd * 1024.0));
    let mut document = vm.clone();
    document.shift_remove("quota");
    assert_eq!(full(&vm, &document).as_ref(), Ok(&vm));
    // Another disk has nothing to do with it.
    let target = updated(&vm, json!({"update_disks": [{"name": "vdc", "size": 2}]}));
    assert_eq!(words(&vm, &target), ["disks[vdc].size = 2"]);
}

#[test]
fn memory_and_cpus_stay_below_what_there_can_be() {
    let vm = vm();
    let target = updated(&vm, json!({"max_physical_memory": 512, "max_vcpus": 1}));
    assert_eq!((&target["ram"], &target["vcpus"]), (&json!(512), &json!(1)));
    let target = updated(&vm, json!({"ram": 4096, "max_physical_memory": 8192}));
    assert_eq!(
        words(&vm, &target),
        ["max_physical_memory = 8192", "ram = 4096"]
    );
    // What is odd already may stay.
    let mut odd = vm.clone();
    odd.insert("ram".into(), json!(0.5));
    odd.insert("vcpus".into(), json!(9));
    assert_eq!(updated(&odd, json!({"ram": "0.5", "alias": "Web"})), odd);
}

#[test]
fn what_is_not_acceptable_is_refused_whole_and_named() {
    use InvalidKind::{Fixed, State, Unknown, Value as Bad};
    let running = vm();
    let mut bare = vm();
    bare["disks"] = json!([]);
    bare.shift_remove("quota");
    let mut unknown = vm();
    unknown["disks"][0]
        .as_object_mut()
        .unwrap()
        .shift_remove("size");
    unknown.shift_remove("quota");
    let mut from_drive = vm();
    from_drive["disks"][0]
        .as_object_mut()
        .unwrap()
        .shift_remove("boot");
    from_drive["disks"][1]["boot"] = json!(true);
    for (vm, payload, kind, message) in [
        (
            &running,
            json!({"quota": ""}),
            Bad,
            "quota: cannot be removed: it is the size of the disk that is booted from",
        ),
        (
            &running,
            json!({"quota": 0}),
            Bad,
            "quota: cannot be removed: it is the size of the disk that is booted from",
        ),
        (
            &running,
            json!({"quota": 10}),
            Bad,
            "quota: smaller than vda is, 20 GiB; disks only grow: 10",
        ),
        (
            &running,
            json!({"quota": 20.1}),
            Bad,
            "quota: not a whole number of bytes: 20.1",
        ),
        (
            &running,
            json!({"quota": 20.0 + 1.0 / f64::from(1 << 30)}),
            Bad,
            "quota: not a multiple of 512 bytes: 20.000000000931323",
        ),
        (
            &running,
            json!({"quota": 30, "update_disks": [{"name": "vda", "size": 20480}]}),
            Bad,
            "quota: the size of vda, which is to be 20 GiB; give one of the two: 30",
        ),
        (
            &bare,
            json!({"quota": 30}),
            Bad,
            "quota: the domain has no disk that it boots from",
        ),
        (
            &unknown,
            json!({"quota": 30}),
            Bad,
            "quota: the size of vda, which it is, is not known",
        ),
        (
            &from_drive,
            json!({"quota": 30}),
            Bad,
            "quota: the domain boots from sda, which is no disk",
        ),
        (
            &unknown,
            json!({"update_disks": [{"name": "vda", "size": 5}]}),
            State,
            "disks[vda].size: it is not known, so that nobody can tell whether the disk grows",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "vda", "size": 10240}]}),
            Bad,
            "disks[vda].size: smaller than it is, 20480 MiB; disks only grow: 10240",
        ),
        (
            &running,
            json!({"update_disks": [
            {"name": "vda", "size": 10240, "dangerous_allow_shrink": true}]}),
            Bad,
            "disks[vda].size: smaller than it is, 20480 MiB; disks only grow: 10240",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "sda", "size": 10240}]}),
            Fixed,
            "disks[sda].size: only a disk can grow, no cdrom",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "vda", "path": "/x"}]}),
            Fixed,
            "disks[vda].path: only a drive's medium can be changed; remove the disk and add another",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "vda", "path": null}]}),
            Fixed,
            "disks[vda].path: only a drive's medium can be changed; remove the disk and add another",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "sda", "path": "b.iso"}]}),
            Bad,
            "disks[sda].path: not an absolute path: \"b.iso\"",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "vda", "model": "scsi"}]}),
            Fixed,
            "disks[vda].model: cannot be changed on a libvirt domain",
        ),
        (
            &running,
            json!({"update_disks": [{"size": 1}]}),
            Bad,
            "update_disks: an element has neither name nor path",
        ),
        (
            &running,
            json!({"update_disks": [{"name": "vdz", "size": 1}]}),
            Unknown,
            "disks[vdz]: there is none",
        ),
        (
            &running,
            json!({"remove_disks": ["/nowhere"]}),
            Unknown,
            "disks[/nowhere]: there is none, or several",
        ),
        (
            &running,
            json!({"remove_disks": ["vda"], "update_disks": [
            {"path": "/images/web.qcow2", "size": 30720}]}),
            Bad,
            "remove_disks: /images/web.qcow2 is also to be set or updated",
        ),
        (
            &running,
            json!({"add_disks": [{"size": 10}]}),
            Fixed,
            "disks[new].size: vminfod makes no volumes; make one with virsh vol-create-as and give \
             its path",
        ),
        (
            &running,
            json!({"add_disks": [{}]}),
            Bad,
            "disks[new].path: missing; make a volume with virsh vol-create-as and give its path",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/images/web.qcow2"}]}),
            Bad,
            "disks[/images/web.qcow2].path: vda has it already",
        ),
        (
            &running,
            json!({"add_disks": [{"name": "vda", "path": "/x"}]}),
            Bad,
            "disks[vda]: there is one already; use update_disks",
        ),
        (
            &running,
            json!({"add_disks": [{"name": "disk1", "path": "/x"}]}),
            Bad,
            "disks[disk1].name: not the name of a disk, such as vda, sda, hda or fda: \"disk1\"",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "model": "ahci"}]}),
            Bad,
            "disks[/x].model: not virtio, scsi, sata, ide, usb, fdc, sd or xen: \"ahci\"",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "model": "fdc"}]}),
            Bad,
            "disks[/x].model: only floppies are on fdc, and no others: fdc",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "media": "tape"}]}),
            Bad,
            "disks[/x].media: not disk, cdrom, floppy or lun: \"tape\"",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "boot": true}]}),
            Fixed,
            "disks[/x].boot: can only be given when the domain is made",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "media": "cdrom", "readonly": false}]}),
            Bad,
            "disks[/x].readonly: a cdrom can only be read: false",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "serial": "a/b"}]}),
            Bad,
            "disks[/x].serial: has others than the characters A-Z a-z 0-9 _ . + - and space: \"a/b\"",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "compression": "lz4"}]}),
            Fixed,
            "disks[/x].compression: cannot be given to a libvirt domain",
        ),
        (
            &running,
            json!({"add_disks": [{"path": "/x", "nocreate": true}]}),
            Unknown,
            "disks[/x].nocreate: no such property",
        ),
        (
            &running,
            json!({"add_nics": [{}]}),
            Bad,
            "nics[new]: not connected; give the network of libvirt, the bridge of its host, or the \
             type user",
        ),
        (
            &running,
            json!({"add_nics": [{"network": "a", "bridge": "b"}]}),
            Bad,
            "nics[new]: both network and bridge are given; give one of them",
        ),
        (
            &running,
            json!({"add_nics": [{"type": "bridge"}]}),
            Bad,
            "nics[new].bridge: missing; the type bridge needs it",
        ),
        (
            &running,
            json!({"add_nics": [{"type": "user", "network": "a"}]}),
            Bad,
            "nics[new].type: not with a network: user",
        ),
        (
            &running,
            json!({"add_nics": [{"type": "direct"}]}),
            Bad,
            "nics[new].type: not network, bridge or user: \"direct\"",
        ),
        (
            &running,
            json!({"add_nics": [{"network": "default", "mac": "52:54:0:0:0:1"}]}),
            Bad,
            "nics[52:54:00:00:00:01]: there is one already; use update_nics",
        ),
        (
            &running,
            json!({"add_nics": [{"nic_tag": "admin"}]}),
            Fixed,
            "nics[new].nic_tag: cannot be given to a libvirt domain",
        ),
        (
            &running,
            json!({"add_nics": [{"network": "a", "mtu": 9}]}),
            Bad,
            "nics[new].mtu: not from 68 to 65535: 9",
        ),
        (
            &running,
            json!({"update_nics": [{"mac": "52:54:00:00:00:01", "link": "off"}]}),
            Bad,
            "nics[52:54:00:00:00:01].link: not up or down: \"off\"",
        ),
        (
            &running,
            json!({"update_nics": [{"mac": "52:54:00:00:00:01", "bridge": "br9"}]}),
            Fixed,
            "nics[52:54:00:00:00:01].bridge: only of a nic of the type bridge, and this one's is network",
        ),
        (
            &running,
            json!({"update_nics": [{"mac": "52:54:00:00:00:01", "network": ""}]}),
            Bad,
            "nics[52:54:00:00:00:01].network: cannot be removed",
        ),
        (
            &running,
            json!({"update_nics": [{"mac": "52:54:00:00:00:01", "ip": "10.0.0.1"}]}),
            Fixed,
            "nics[52:54:00:00:00:01].ip: cannot be changed on a libvirt domain",
        ),
        (
            &running,
            json!({"ram": 4096}),
            Bad,
            "ram: above max_physical_memory, which is 2048; raise that too: it takes effect at the \
             next start: 4096",
        ),
        (
            &running,
            json!({"ram": 1024, "max_physical_memory": 512}),
            Bad,
            "ram: above max_physical_memory, which is 512: 1024",
        ),
        (
            &running,
            json!({"vcpus": 5}),
            Bad,
            "vcpus: above max_vcpus, which is 4; raise that too: it takes effect at the next start: 5",
        ),
        (
            &running,
            json!({"vcpus": 2, "max_vcpus": 1}),
            Bad,
            "vcpus: above max_vcpus, which is 1: 2",
        ),
        (
            &running,
            json!({"max_vcpus": 0}),
            Bad,
            "max_vcpus: not at least 1: 0",
        ),
        (&running, json!({"ram": ""}), Bad, "ram: cannot be removed"),
        (
            &running,
            json!({"cpu_cap": 0.5}),
            Bad,
            "cpu_cap: not a whole number: 0.5",
        ),
        (
            &running,
            json!({"alias": "a\nb"}),
            Bad,
            "alias: not one line of plain text: \"a\\nb\"",
        ),
        (
            &running,
            json!({"set_tags": {"a\u{1}": "x"}}),
            Bad,
            "tags.a\\u{1}: has a character that XML, in which libvirt keeps it, cannot hold",
        ),
        (
            &running,
            json!({"set_customer_metadata": {"script": "\u{ffff}"}}),
            Bad,
            "customer_metadata.script: has a character that XML, in which libvirt keeps it, cannot hold",
        ),
        (
            &running,
            json!({"set_routes": {"a": "b"}}),
            Fixed,
            "set_routes: not for this brand",
        ),
        (
            &running,
            json!({"vnc_port": 5901}),
            Fixed,
            "vnc_port: cannot be changed on a libvirt domain",
        ),
        (
            &running,
            json!({"zonename": "x"}),
            Fixed,
            "zonename: cannot be changed on a libvirt domain",
        ),
        (
            &running,
            json!({"hostname": "x"}),
            Fixed,
            "hostname: cannot be changed on a libvirt domain",
        ),
        (
            &running,
            json!({"nonsense": "x"}),
            Unknown,
            "nonsense: no such property",
        ),
    ] {
        let error = update(vm, &object(payload.clone())).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (kind, message),
            "{payload}"
        );
    }
    let zone = object(json!({"brand": "joyent", "uuid": "u"}));
    let error = update(&zone, &object(json!({"affect": "live"}))).unwrap_err();
    assert_eq!(error.message, "affect: no such property");
}

#[test]
fn what_xml_can_hold_may_be_a_tag() {
    let text = "a\n\tb\r\u{7f}\u{85}\u{10ffff}";
    let target = updated(
        &vm(),
        json!({"set_tags": {"k": text}, "remove_tags": ["tier"]}),
    );
    assert_eq!(target["tags"], json!({"role": "web", "k": text}));
}

#[test]
fn new_nics_are_given_what_they_lack() {
    let vm = vm();
    let target = updated(
        &vm,
        json!({"remove_nics": ["52:54:00:00:00:01"], "add_nics": [
            {"network": "default"},
            {"bridge": "br0", "mac": "52:54:0:0:0:9", "model": "e1000", "link": "down", "mtu": 1450},
            {"type": "user"},
        ]}),
    );
    let nics = target["nics"].as_array().unwrap();
    let interfaces: Vec<&Value> = nics.iter().map(|nic| &nic["interface"]).collect();
    assert_eq!(interfaces, ["net0", "net1", "net2", "net3", "net4"]);
    assert!(nics[2]["mac"].as_str().unwrap().starts_with("52:54:00:"));
    assert_eq!(
        nics[3],
        json!({"interface": "net3", "mac": "52:54:00:00:00:09", "type": "bridge", "bridge": "br0",
            "model": "e1000", "link": "down", "mtu": 1450})
    );
    assert_eq!(
        (&nics[2]["type"], &nics[2]["model"], &nics[2]["link"]),
        (&json!("network"), &json!("virtio"), &json!("up"))
    );
    // The last one goes, and the list stays.
    let macs = [
        "52:54:00:00:00:01",
        "52:54:00:00:00:02",
        "52:54:00:00:00:03",
    ];
    assert_eq!(
        updated(&vm, json!({"remove_nics": macs}))["nics"],
        json!([])
    );
}

#[test]
fn new_disks_are_given_what_they_lack() {
    let vm = vm();
    let target = updated(
        &vm,
        json!({"add_disks": [
            {"path": "/x"}, {"path": "/y"}, {"media": "cdrom"}, {"media": "floppy", "path": "/f"},
            {"path": "/z", "model": "ide", "format": "qcow2", "readonly": true, "serial": "s 1"},
            {"path": "/dev/sdq", "media": "lun"}, {"path": "/u", "name": "sdx", "model": "usb"},
            {"path": "/w", "readonly": false, "boot": false},
        ]}),
    );
    let disks = target["disks"].as_array().unwrap();
    assert_eq!(
        disks[4..],
        [
            json!({"name": "vdb", "path": "/x", "model": "virtio", "media": "disk", "format": "raw"}),
            json!({"name": "vdd", "path": "/y", "model": "virtio", "media": "disk", "format": "raw"}),
            json!({"name": "sdc", "model": "sata", "media": "cdrom", "format": "raw",
                "readonly": true}),
            json!({"name": "fda", "path": "/f", "model": "fdc", "media": "floppy", "format": "raw"}),
            json!({"name": "hda", "path": "/z", "model": "ide", "media": "disk", "format": "qcow2",
                "readonly": true, "serial": "s 1"}),
            json!({"name": "sdd", "path": "/dev/sdq", "model": "scsi", "media": "lun",
                "format": "raw"}),
            json!({"name": "sdx", "path": "/u", "model": "usb", "media": "disk", "format": "raw"}),
            json!({"name": "vde", "path": "/w", "model": "virtio", "media": "disk",
                "format": "raw"}),
        ]
    );
    // What the source finds out about a disk does not matter, and neither does a nic's place.
    let mut shown = target.clone();
    shown["disks"][4]["size"] = json!(5);
    shown["disks"][4]["boot_order"] = json!(5);
    assert!(wanted(&vm, &target).iter().all(|one| one.holds(&shown)));
    let removed = updated(
        &vm,
        json!({"remove_disks": ["vdc", "/iso/a.iso", {"name": "sdb"}]}),
    );
    assert_eq!(
        words(&vm, &removed),
        [
            "disks[sda] removed",
            "disks[sdb] removed",
            "disks[vdc] removed"
        ]
    );
}

#[test]
fn after_z_come_two_letters() {
    let mut vm = vm();
    let name = |number: u8| format!("vd{}", char::from(b'a' + number));
    let disks: Vec<Value> = (0..26)
        .map(|it| json!({"name": name(it), "path": format!("/{it}")}))
        .collect();
    vm["disks"] = json!(disks);
    let target = updated(&vm, json!({"add_disks": [{"path": "/x"}, {"path": "/y"}]}));
    assert_eq!(
        (&target["disks"][26]["name"], &target["disks"][27]["name"]),
        (&json!("vdaa"), &json!("vdab"))
    );
}

#[test]
fn a_full_object_adds_changes_and_removes_devices() {
    let vm = vm();
    let mut document = vm.clone();
    document["disks"] = json!([
        {"path": "/images/web.qcow2", "size": 20480},
        {"name": "sda", "media": "cdrom"},
        {"name": "sdb", "path": "/iso/b.iso"},
        {"path": "/x", "size": 77},
    ]);
    document["nics"] = json!([{"mac": "52:54:00:00:00:02", "link": "up", "bridge": "br0"}]);
    let target = full(&vm, &document).unwrap();
    let mut words = words(&vm, &target);
    words.sort();
    assert_eq!(
        words,
        [
            "disks[sda].path removed",
            r#"disks[sdb].path = "/iso/b.iso""#,
            "disks[vdb] added",
            "disks[vdc] removed",
            "nics[52:54:00:00:00:01] removed",
            r#"nics[52:54:00:00:00:02].link = "up""#,
            "nics[52:54:00:00:00:03] removed",
        ]
    );
    assert_eq!(disk(&target, "vda"), disk(&vm, "vda"));
    // The bridge of a network is shown while the domain runs, and only then.
    let mut stopped = vm.clone();
    let nic = stopped["nics"][0].as_object_mut().unwrap();
    nic.shift_remove("bridge");
    assert_eq!(full(&stopped, &vm).as_ref(), Ok(&stopped));
    stopped["nics"].as_array_mut().unwrap().remove(0);
    let again = full(&stopped, &vm).unwrap();
    assert_eq!(again["nics"][2]["network"], "default");
    assert_eq!(again["nics"][2].get("bridge"), None);
    document["disks"] = json!([{"name": "vda"}]);
    let error = full(&vm, &document).unwrap_err();
    assert!(
        error.message.starts_with("disks[vda].path: only a drive's"),
        "{error}"
    );
    document.shift_remove("disks");
    let error = full(&vm, &document).unwrap_err();
    assert!(error.message.starts_with("disks: missing"), "{error}");
}

#[test]
fn a_change_can_be_undone_but_disks_stay_as_large_as_they_are() {
    let vm = vm();
    let payload = json!({"alias": "x", "set_tags": {"a": "b"}, "add_disks": [{"path": "/x"}],
        "add_nics": [{"network": "n"}], "update_disks": [{"name": "sda", "path": null}], "cpu_cap": 0});
    let target = updated(&vm, payload);
    assert_eq!(revert(&target, &vm, &target).unwrap(), vm);
    let target = updated(
        &vm,
        json!({"remove_disks": ["vdc"], "remove_nics": ["52:54:00:00:00:01"]}),
    );
    let undone = revert(&target, &vm, &target).unwrap();
    assert_eq!(
        disk(&undone, "vdc"),
        &json!({"name": "vdc", "path": "data/x", "model": "virtio", "media": "disk", "format": "raw",
            "serial": "abc"})
    );
    assert_eq!(
        undone["nics"][2],
        json!({"interface": "net2", "mac": "52:54:00:00:00:01", "type": "network", "model": "virtio",
            "network": "default", "link": "up"})
    );
    let mut direct = vm.clone();
    let kind = direct["nics"].as_array_mut().unwrap();
    kind[0]["type"] = "direct".into();
    kind[0].as_object_mut().unwrap().shift_remove("network");
    let mac = kind[0]["mac"].clone();
    let target = updated(&direct, json!({"remove_nics": [mac]}));
    let error = revert(&target, &direct, &target).unwrap_err();
    assert!(error.message.contains("none of this type"), "{error}");
    let grown = updated(&vm, json!({"quota": 30}));
    let error = revert(&grown, &vm, &grown).unwrap_err();
    assert_eq!(
        error.message,
        "disks[vda].size: a disk cannot be made smaller again"
    );
}

#[test]
fn what_is_made_up_is_made_up_once_for_all_views() {
    let live = vm();
    let mut config = vm();
    config["disks"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "vdb", "path": "/b", "media": "disk"}));
    let payload = object(json!({
        "add_nics": [{"network": "a"}, {"network": "b", "mac": ""}],
        "add_disks": [{"path": "/x"}, {"path": "/y", "name": "vdd"}, {"media": "cdrom"}],
    }));
    let document = prepared(&[&live, &config], &payload);
    assert_eq!(prepared(&[&live, &config], &document), document);
    let names: Vec<&Value> = document["add_disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["vde", "vdd", "sdc"]);
    let macs: Vec<&Value> = document["add_nics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["mac"])
        .collect();
    assert_ne!(macs[0], macs[1]);
    let [one, two] = [&live, &config].map(|view| update(view, &document).unwrap());
    for list in ["nics", "disks"] {
        let added = |target: &Object, vm: &Object| {
            let all = target[list].as_array().unwrap();
            all[vm[list].as_array().unwrap().len()..].to_vec()
        };
        assert_eq!(added(&one, &live), added(&two, &config));
    }
    // One that stands for a list of one, and a full object.
    let alone = prepared(&[&live], &object(json!({"add_disks": {"path": "/x"}})));
    assert_eq!(alone["add_disks"]["name"], "vdb");
    let mut whole = live.clone();
    whole["disks"] = json!([{"path": "/b"}, {"path": "/images/web.qcow2"}, {"path": "/new"}]);
    let whole = prepared(&[&live, &config], &whole);
    let names: Vec<&Value> = whole["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["vdb", "vda", "vdd"]);
    // Zones are left alone.
    let zone = object(json!({"brand": "bhyve", "uuid": "u"}));
    assert_eq!(prepared(&[&zone], &payload), payload);
}

#[test]
fn a_create_payload_gets_the_defaults_of_a_domain() {
    let made = |payload: Value| create_domain(&object(payload)).unwrap().target;
    let target = made(json!({
        "brand": "kvm", "uuid": "5c1d4f1e-0000-4000-8000-000000000001", "alias": "web", "ram": 512,
        "disks": [{"media": "cdrom", "path": "/a.iso"}, {"path": "/x"}], "nics": [{"network": "default",
        "mac": "52:54:00:00:00:01"}], "tags": {"a": 1}, "vnc_port": 0,
    }));
    assert_eq!(
        Value::from(target),
        json!({
            "uuid": "5c1d4f1e-0000-4000-8000-000000000001", "zonename": "web", "alias": "web",
            "brand": "kvm", "autoboot": true, "ram": 512, "max_physical_memory": 512, "vcpus": 1,
            "max_vcpus": 1, "hvm": true, "persistent": true, "managed_save": false, "vnc_port": -1,
            "nics": [{"interface": "net0", "mac": "52:54:00:00:00:01", "type": "network",
                "network": "default", "model": "virtio", "link": "up"}],
            "disks": [
                {"name": "sda", "path": "/a.iso", "media": "cdrom", "model": "sata", "format": "raw",
                    "readonly": true},
                {"name": "vda", "path": "/x", "media": "disk", "model": "virtio", "format": "raw",
                    "boot": true},
            ],
            "tags": {"a": 1}, "customer_metadata": {}, "snapshots": [],
        })
    );
    let name = |more: Value| {
        let mut payload = object(json!({"brand": "test", "max_physical_memory": 64}));
        payload.extend(object(more));
        let target = made(Value::from(payload));
        assert_eq!(target["ram"], 64);
        let name = target["zonename"].as_str().unwrap().to_owned();
        (name == target["uuid"], name, target["alias"].clone())
    };
    assert_eq!(
        name(json!({"zonename": "a b", "alias": "c"})),
        (false, "a b".into(), json!("c"))
    );
    assert!(name(json!({"alias": "a/b"})).0);
    let unnamed = name(json!({}));
    assert!(unnamed.0 && unnamed.2 == unnamed.1.as_str());
    let target = made(
        json!({"brand": "qemu", "ram": 1, "max_physical_memory": 2, "vcpus": 2,
        "max_vcpus": 4, "autoboot": false, "cpu_cap": 50, "cpu_shares": 9,
        "disks": [{"path": "/x"}, {"path": "/y", "boot": true}]}),
    );
    assert_eq!(target["disks"][0].get("boot"), None);
    assert_eq!(
        (&target["max_vcpus"], &target["autoboot"]),
        (&json!(4), &json!(false))
    );
}

#[test]
fn a_create_payload_that_is_not_acceptable_is_refused() {
    for (payload, message) in [
        (json!({}), "brand: missing"),
        (
            json!({"brand": "lxc"}),
            "brand: not a type of domain that can be made here, kvm, qemu, test, xen: lxc",
        ),
        (json!({"brand": "kvm"}), "ram: missing; a domain needs it"),
        (
            json!({"brand": "kvm", "uuid": "x"}),
            "uuid: not a uuid: \"x\"",
        ),
        (
            json!({"brand": "kvm", "zonename": "a/b"}),
            "zonename: not the name of a domain: \"a/b\"",
        ),
        (
            json!({"brand": "kvm", "zonename": "a\nb"}),
            "zonename: not the name of a domain: \"a\\nb\"",
        ),
        (
            json!({"brand": "kvm", "zonename": ".."}),
            "zonename: not the name of a domain: \"..\"",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "max_physical_memory": 1}),
            "ram: above max_physical_memory, which is 1: 2",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "vcpus": 2, "max_vcpus": 1}),
            "vcpus: above max_vcpus, which is 1: 2",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "quota": 10}),
            "quota: not of a new domain: it is the size of the disk that is booted from; give disks \
             with its path",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "image_uuid": "x"}),
            "image_uuid: cannot be given to a libvirt domain",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "state": "x"}),
            "state: cannot be given to a libvirt domain",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "delegate_dataset": true}),
            "delegate_dataset: no such property",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "add_disks": []}),
            "add_disks: only for a VM that exists; give disks",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "disks": [{"size": 10}]}),
            "disks[new].size: vminfod makes no volumes; make one with virsh vol-create-as and give \
             its path",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "disks": {}}),
            "disks: not a list of objects",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "tags": []}),
            "tags: not an object",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "disks": [
            {"path": "/a", "boot": true}, {"path": "/b", "boot": true}]}),
            "disks[vdb].boot: disks[vda] is to be booted from already",
        ),
        (
            json!({"brand": "kvm", "ram": 2, "vnc_port": 70000}),
            "vnc_port: not from -1 to 65535: 70000",
        ),
    ] {
        let error = create_domain(&object(payload.clone())).unwrap_err();
        assert_eq!(error.message, message, "{payload}");
    }
}

#[test]
fn verbs_are_read_in_the_words_of_virsh_too() {
    let stop = |force, timeout| Verb::Stop { force, timeout };
    for (text, verb) in [
        ("start", Verb::Start),
        ("boot", Verb::Start),
        ("create", Verb::Start),
        ("stop", stop(false, None)),
        ("shutdown", stop(false, None)),
        ("halt", stop(false, None)),
        ("stop 30", stop(false, Some(30))),
        ("stop force", stop(true, None)),
        ("destroy", stop(true, None)),
        ("reboot", Verb::Reboot { force: false }),
        ("reboot force", Verb::Reboot { force: true }),
        ("reset", Verb::Reboot { force: true }),
        ("suspend", Verb::Suspend),
        ("resume", Verb::Resume),
        ("delete", Verb::Delete),
        ("undefine", Verb::Delete),
        ("sync", Verb::Sync),
        ("revert", Verb::Revert),
    ] {
        assert_eq!(
            Verb::parse(Kind::Domain, text).as_ref(),
            Ok(&verb),
            "{text}"
        );
        assert_eq!(Verb::parse(Kind::Domain, &verb.to_string()), Ok(verb));
    }
    for (text, message) in [
        ("", "ctl: no verb; read ctl for those there are"),
        ("fly", "fly: no such verb; read ctl for those there are"),
        (
            "destroy now",
            "destroy: write destroy, which is stop force: \"destroy now\"",
        ),
        (
            "kill 9",
            "kill: a domain has no init to signal; use stop force",
        ),
        (
            "snapshot a",
            "snapshot: snapshots of domains are only shown; use virsh snapshot-create-as",
        ),
        (
            "rollback a",
            "rollback: snapshots of domains are only shown; use virsh snapshot-revert",
        ),
        (
            "delete-snapshot a",
            "delete-snapshot: snapshots of domains are only shown; use virsh snapshot-delete",
        ),
    ] {
        assert_eq!(
            Verb::parse(Kind::Domain, text).unwrap_err().message,
            message
        );
    }
    // For zones these are no words, or others.
    assert_eq!(Verb::parse(Kind::Zone, "destroy"), Ok(Verb::Delete));
    for text in [
        "suspend", "resume", "reset", "shutdown", "undefine", "create",
    ] {
        let error = Verb::parse(Kind::Zone, text).unwrap_err();
        assert!(error.message.contains("no such verb"), "{error}");
    }
    assert_eq!(
        (Kind::of(&vm()), Kind::of(&Object::new())),
        (Kind::Domain, Kind::Zone)
    );
}

const STATES: [&str; 7] = [
    "running",
    "paused",
    "shutting_down",
    "stopped",
    "crashed",
    "suspended",
    "unknown",
];

#[test]
fn a_domain_accepts_what_it_can_do_in_its_state() {
    for state in STATES {
        let vm = vm_in(state);
        for line in accepted(&vm) {
            let verb = Verb::parse(Kind::Domain, &line).unwrap();
            assert_eq!(verb.check(&vm), Ok(()), "{state}: {line}");
            if !matches!(verb, Verb::Sync | Verb::Revert) {
                assert!(!verb.confirmed(&vm, Some(&vm)), "{state}: {line}");
            }
        }
    }
    assert_eq!(
        accepted(&vm_in("paused"))[..3],
        ["resume", "stop", "stop force"]
    );
    for (state, text, message) in [
        ("paused", "start", "start: the domain is paused; resume it"),
        (
            "suspended",
            "start",
            "start: the guest has suspended itself; use virsh dompmwakeup",
        ),
        (
            "suspended",
            "resume",
            "resume: the guest has suspended itself; use virsh dompmwakeup",
        ),
        (
            "shutting_down",
            "start",
            "start: the domain is shutting_down, and not stopped",
        ),
        (
            "stopped",
            "suspend",
            "suspend: the domain is stopped, and not running",
        ),
        (
            "stopped",
            "resume",
            "resume: the domain is stopped, and not paused",
        ),
        (
            "paused",
            "reboot",
            "reboot: the domain is paused, and not running",
        ),
        (
            "crashed",
            "stop",
            "stop: the guest has crashed and cannot be asked; use stop force",
        ),
    ] {
        let verb = Verb::parse(Kind::Domain, text).unwrap();
        let error = verb.check(&vm_in(state)).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (InvalidKind::State, message)
        );
    }
    let running = vm();
    for verb in [
        Verb::Kill("TERM"),
        Verb::Snapshot("a".into()),
        Verb::Rollback("a".into()),
        Verb::DeleteSnapshot("a".into()),
    ] {
        assert_eq!(verb.check(&running).unwrap_err().kind, InvalidKind::Fixed);
    }
    let zone = object(json!({"brand": "joyent", "state": "running"}));
    assert_eq!(
        Verb::Suspend.check(&zone).unwrap_err().message,
        "suspend: only the domains of a libvirt can"
    );
}

#[test]
fn what_was_done_is_seen_by_the_state_or_by_the_domain_being_gone() {
    let (running, paused, stopped) = (vm(), vm_in("paused"), vm_in("stopped"));
    let stop = |force| Verb::Stop {
        force,
        timeout: None,
    };
    assert!(Verb::Start.confirmed(&stopped, Some(&running)));
    assert!(Verb::Resume.confirmed(&paused, Some(&running)));
    assert!(Verb::Suspend.confirmed(&running, Some(&paused)));
    assert!(stop(true).confirmed(&running, Some(&stopped)));
    assert!(!stop(false).confirmed(&running, Some(&paused)));
    let mut transient = running.clone();
    transient.insert("persistent".into(), json!(false));
    assert!(stop(false).confirmed(&transient, None) && !stop(false).confirmed(&running, None));
    assert!(Verb::Delete.confirmed(&running, None) && !Verb::Start.confirmed(&running, None));
    let reboot = Verb::Reboot { force: true };
    assert!(!reboot.confirmed(&running, Some(&running)));
    for (name, value) in [
        ("pid", json!(8)),
        ("boot_timestamp", json!("2024-01-01T00:00:00.000Z")),
        ("reboot_timestamp", json!("2024-01-01T00:00:00.000Z")),
    ] {
        let mut again = running.clone();
        again.insert(name.into(), value);
        assert!(reboot.confirmed(&running, Some(&again)), "{name}");
        // A trace that is not seen any more is none of a reboot.
        assert!(
            !reboot.confirmed(
                &again,
                Some(&{
                    let mut lost = again.clone();
                    lost.shift_remove(name);
                    lost
                })
            ),
            "{name}"
        );
        again.insert("state".into(), json!("stopped"));
        assert!(!reboot.confirmed(&running, Some(&again)));
    }
}

#[test]
fn what_can_be_set_on_domains_is_none_of_the_zones_own() {
    let settable: Vec<&str> = property::TABLE
        .iter()
        .filter(|row| row.settable(property::LIBVIRT))
        .map(|row| row.name)
        .collect();
    assert_eq!(
        settable,
        [
            "autoboot",
            "cpu_shares",
            "cpu_cap",
            "max_physical_memory",
            "alias",
            "ram",
            "vcpus",
            "max_vcpus",
            "disks",
            "nics",
            "customer_metadata",
            "tags",
            "quota"
        ]
    );
}

/// Payloads that the domain accepts.
fn payload() -> impl Strategy<Value = Object> {
    let member = prop_oneof![
        ("cpu_shares|cpu_cap", 0..400u32)
            .prop_filter("a weight", |(k, v)| k != "cpu_shares" || *v > 0)
            .prop_map(|(k, v)| (k, json!(v))),
        (1..=1024u32).prop_map(|v| ("ram".to_owned(), json!(v))),
        (1024..4096u32).prop_map(|v| ("max_physical_memory".to_owned(), json!(v))),
        (1..=2u32).prop_map(|v| ("vcpus".to_owned(), json!(v.to_string()))),
        (2..9u32).prop_map(|v| ("max_vcpus".to_owned(), json!(v))),
        ("[a-z]{0,3}").prop_map(|v| ("alias".to_owned(), json!(v))),
        any::<bool>().prop_map(|v| ("autoboot".to_owned(), json!(v))),
        (20..40u32).prop_map(|v| ("quota".to_owned(), json!(v))),
        ("set_tags|set_customer_metadata", "[ab]|role", "\\PC{0,3}")
            .prop_map(|(k, key, v)| (k, json!({key: v}))),
        Just(("remove_tags".to_owned(), json!(["tier"]))),
        (1..3usize).prop_map(|n| (
            "add_nics".to_owned(),
            json!(vec![json!({"network": "n"}); n])
        )),
        Just(("remove_nics".to_owned(), json!(["52:54:00:00:00:03"]))),
        ("up|down", "br[0-3]").prop_map(|(link, bridge)| (
            "update_nics".to_owned(),
            json!([{"mac": "52:54:00:00:00:02", "link": link, "bridge": bridge}])
        )),
        (1..3usize).prop_map(|n| {
            let disks: Vec<Value> = (0..n)
                .map(|n| json!({"path": format!("/new{n}")}))
                .collect();
            ("add_disks".to_owned(), json!(disks))
        }),
        ("vdc|data/x").prop_map(|name| ("remove_disks".to_owned(), json!([name]))),
        ("(/[a-z]{1,3})?").prop_map(|medium| (
            "update_disks".to_owned(),
            json!([{"name": "sda", "path": medium}])
        )),
    ];
    prop::collection::vec(member, 0..6).prop_map(|members| members.into_iter().collect())
}

proptest! {
    #[test]
    fn a_target_shows_what_was_asked_and_is_what_is_wanted(payload in payload()) {
        let vm = vm();
        let document = prepared(&[&vm], &payload);
        let target = updated(&vm, Value::Object(document.clone()));
        for (name, given) in &document {
            if let Some(map) = name.strip_prefix("set_") {
                for (key, value) in given.as_object().unwrap() {
                    prop_assert_eq!(&target[map][key], value);
                }
            }
        }
        for (name, is) in [("ram", "ram"), ("quota", "quota"), ("max_vcpus", "max_vcpus")] {
            if let Some(given) = document.get(name) {
                prop_assert_eq!(&target[is], given);
            }
        }
        prop_assert_eq!(disk(&target, "vda")["size"].as_f64(), target["quota"].as_f64().map(|it| it * 1024.0));
        // The same document comes to the same, as a payload, and as the full object that it makes.
        prop_assert_eq!(&update(&vm, &document).unwrap(), &target);
        prop_assert_eq!(&full(&vm, &target).unwrap(), &target);
        prop_assert_eq!(&full(&target, &target).unwrap(), &target);
        let all = wanted(&vm, &target);
        prop_assert!(all.iter().all(|one| one.holds(&target) && !one.holds(&vm)));
        prop_assert_eq!(all.is_empty(), target == vm);
        // A VM that shows all that is wanted wants no more.
        prop_assert!(wanted(&target, &target).is_empty());
    }

    #[test]
    fn a_part_of_a_full_object_changes_that_part(payload in payload(), keep in any::<u32>()) {
        let vm = vm();
        let target = updated(&vm, Value::Object(payload));
        let mut document = vm.clone();
        for (bit, (name, value)) in target.iter().enumerate() {
            if keep >> (bit % 32) & 1 == 1 || matches!(name.as_str(), "disks" | "quota" | "nics") {
                document.insert(name.clone(), value.clone());
            }
        }
        // Not every part is one that fits together, but what is accepted is what it says.
        if let Ok(made) = full(&vm, &document) {
            for (name, value) in &document {
                let follows = matches!(name.as_str(), "ram" | "vcpus");
                prop_assert!(follows || made.get(name) == Some(value), "{}", name);
            }
            prop_assert!(wanted(&vm, &made).iter().all(|one| one.holds(&made)));
        }
    }

    #[test]
    fn no_document_makes_it_panic(name in "[a-z_]{1,12}", text in ".{0,12}",
        row in 0..property::TABLE.len()) {
        let vm = vm();
        let row = property::TABLE[row].name;
        for value in [json!(text), json!(null), json!([text]), json!([{name.clone(): text}]),
            json!({name.clone(): text}), json!(1e300), json!(-1), json!([null]),
            json!([{"name": text, "path": text, "mac": text}])] {
            for key in [row.to_owned(), format!("add_{row}"), format!("remove_{row}"),
                format!("update_{row}"), format!("set_{row}"), name.clone()] {
                let document = object(json!({key.clone(): value, "brand": "kvm", "ram": 5}));
                let _ = create_domain(&document);
                let payload = object(json!({key.clone(): value}));
                let ready = prepared(&[&vm, &vm], &payload);
                prop_assert_eq!(&prepared(&[&vm], &ready), &ready);
                let _ = update(&vm, &ready);
                let mut whole = vm.clone();
                whole.insert(key, value.clone());
                let _ = full(&vm, &prepared(&[&vm], &whole));
            }
        }
        let _ = Verb::parse(Kind::Domain, &text);
        let _ = of_file(&vm, &path(&[row, &name, &text]), &text);
        let _ = of_file(&vm, &path(&[row]), &text);
    }
}
