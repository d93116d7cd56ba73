//! What payloads, files, full objects and verbs make of VMs: against the VMs of a sample store.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use vminfod::sample;
use vminfod::source::zones::load::{self, DatasetsOf, RuntimeOf, Store};
use vminfod::vm::files::Rendered;
use vminfod::vm::payload::{
    Invalid, InvalidKind, can_create, create, full, of_file, revert, update, wanted,
};
use vminfod::vm::property;
use vminfod::vm::verb::{Kind, Verb, accepted};
use vminfod::vm::{Object, name};

/// The VMs of a store that has one of every odd kind.
static VMS: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    sample::write(dir.path(), &sample::Options { vms: 40, seed: 7 }).unwrap();
    let store = Store::new(dir.path());
    let sysinfo = store.read_sysinfo();
    let index = store.read_index().unwrap();
    let vms: Vec<Object> = index
        .entries
        .iter()
        .map(|entry| {
            let loaded = load::load(&store, entry, DatasetsOf::Files, RuntimeOf::Files, &sysinfo);
            assert!(loaded.failed.is_empty(), "{:?}", loaded.failed);
            loaded.vm.object()
        })
        .collect();
    assert!(vms.len() >= 40);
    vms
});

fn of_brand(brand: &str) -> Object {
    let vm = VMS.iter().find(|vm| vm["brand"] == brand);
    vm.unwrap().clone()
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

/// A small VM, so that a test sees all of it.
fn vm(brand: &str) -> Object {
    let mut vm = object(json!({
        "zonename": "5c1d4f1e-0000-4000-8000-000000000001", "autoboot": true, "brand": brand,
        "cpu_shares": 100, "max_physical_memory": 1024, "max_locked_memory": 1024,
        "max_swap": 2048, "resolvers": ["8.8.8.8"], "firewall_enabled": false,
        "nics": [
            {"interface": "net0", "mac": "92:00:00:00:00:01", "nic_tag": "admin",
                "ip": "10.0.0.1", "netmask": "255.0.0.0", "primary": true},
            {"interface": "net2", "mac": "92:00:00:00:00:03", "nic_tag": "external"},
        ],
        "uuid": "5c1d4f1e-0000-4000-8000-000000000001",
        "customer_metadata": {}, "internal_metadata": {}, "routes": {},
        "tags": {"role": "web", "tier": 1, "live": true},
        "quota": 10, "zfs_filesystem": "zones/5c1d4f1e-0000-4000-8000-000000000001",
        "zpool": "zones", "snapshots": [], "state": "stopped", "zone_state": "installed",
    }));
    if property::hvm(brand) {
        vm.insert("ram".into(), json!(512));
        vm.insert("max_physical_memory".into(), json!(1792));
        vm.insert("max_swap".into(), json!(2048));
        vm.insert(
            "disks".into(),
            json!([
                {"path": "/dev/zvol/rdsk/zones/5c1d4f1e-0000-4000-8000-000000000001-disk0",
                    "model": "virtio", "media": "disk", "boot": true, "size": 1024},
            ]),
        );
        vm.insert("flexible_disk_size".into(), json!(4096));
        vm.insert("free_space".into(), json!(3000));
    } else {
        vm.insert("tmpfs".into(), json!(512));
    }
    property::sort(&mut vm);
    vm
}

fn updated(vm: &Object, payload: Value) -> Object {
    match update(vm, &object(payload.clone())) {
        Ok(target) => target,
        Err(error) => panic!("{payload}: {error}"),
    }
}

fn refused(vm: &Object, payload: Value) -> Invalid {
    update(vm, &object(payload)).unwrap_err()
}

/// The top-level members in which two objects differ.
fn differ(old: &Object, new: &Object) -> Vec<String> {
    let names = old
        .keys()
        .chain(new.keys().filter(|name| !old.contains_key(*name)));
    let names = names.filter(|name| old.get(*name) != new.get(*name));
    names.cloned().collect()
}

fn path(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

#[test]
fn a_full_object_written_back_changes_nothing() {
    for vm in VMS.iter() {
        assert_eq!(full(vm, vm).as_ref(), Ok(vm));
        assert_eq!(update(vm, &Object::new()).as_ref(), Ok(vm));
        let mut turned: Object = vm.clone().into_iter().rev().collect();
        turned.insert("if_generation".into(), json!(7));
        turned.insert("type".into(), json!("OS"));
        assert_eq!(full(vm, &turned).as_ref(), Ok(vm));
    }
}

#[test]
fn a_full_object_changes_exactly_what_differs() {
    for vm in VMS.iter() {
        let mut document = vm.clone();
        document.insert("quota".into(), json!(20));
        document.insert("state".into(), json!("ignored"));
        let target = full(vm, &document).unwrap();
        let expected: &[&str] = if vm["quota"] == 20 { &[] } else { &["quota"] };
        assert_eq!(differ(vm, &target), expected);
    }
}

#[test]
fn what_a_full_object_lacks_is_removed_if_it_can_be() {
    let vm = updated(&vm("joyent"), json!({"alias": "web", "hostname": "web"}));
    let mut document = vm.clone();
    for name in [
        "alias",
        "quota",
        "tags",
        "resolvers",
        "autoboot",
        "cpu_shares",
    ] {
        document.shift_remove(name);
    }
    let target = full(&vm, &document).unwrap();
    let mut names = differ(&vm, &target);
    names.sort();
    assert_eq!(names, ["alias", "quota", "resolvers", "tags"]);
    assert_eq!(
        (&target["resolvers"], &target["tags"]),
        (&json!([]), &json!({}))
    );
    assert_eq!(target["quota"], 0);

    document.shift_remove("nics");
    assert!(
        full(&vm, &document)
            .unwrap_err()
            .message
            .starts_with("nics: missing")
    );
    document.insert("nics".into(), json!([]));
    assert_eq!(full(&vm, &document).unwrap()["nics"], json!([]));
    document.insert("uuid".into(), json!("5c1d4f1e-0000-4000-8000-000000000002"));
    assert!(
        full(&vm, &document)
            .unwrap_err()
            .message
            .starts_with("uuid: another VM's")
    );
}

#[test]
fn the_nics_of_a_full_object_are_compared_by_mac() {
    let vm = vm("joyent");
    let mut document = vm.clone();
    document.insert(
        "nics".into(),
        json!([
            {"mac": "92:0:0:0:0:3", "interface": "net2", "nic_tag": "storage", "primary": true},
            {"nic_tag": "new", "ip": "dhcp", "mac": "92:00:00:00:00:09"},
        ]),
    );
    let target = full(&vm, &document).unwrap();
    assert_eq!(differ(&vm, &target), ["nics"]);
    assert_eq!(
        target["nics"],
        json!([
            {"interface": "net0", "mac": "92:00:00:00:00:09", "nic_tag": "new", "ip": "dhcp",
                "ips": ["dhcp"]},
            {"interface": "net2", "mac": "92:00:00:00:00:03", "nic_tag": "storage", "primary": true},
        ])
    );
}

#[test]
fn an_empty_tag_that_is_written_back_stays() {
    let vm = updated(&vm("joyent"), json!({"set_tags": {"role": ""}}));
    assert_eq!(vm["tags"]["role"], "");
    assert_eq!(full(&vm, &vm).as_ref(), Ok(&vm));
    assert_eq!(of_file(&vm, &path(&["tags", "role"]), "").as_ref(), Ok(&vm));
    let target = updated(&vm, json!({"remove_tags": ["role"]}));
    assert_eq!(target["tags"].get("role"), None);
}

#[test]
fn every_file_of_every_vm_can_be_written_back_and_changes_nothing() {
    let mut written = 0;
    for vm in VMS.iter() {
        let brand = vm["brand"].as_str().unwrap();
        let rendered = Rendered::new(vm);
        for file in rendered
            .files()
            .iter()
            .filter(|file| file.settable && !file.is_dir())
        {
            let mut names = vec![file.name(rendered.json()).into_owned()];
            let mut parent = file.parent;
            while let Some(dir) = rendered.file(parent) {
                names.insert(0, dir.name(rendered.json()).into_owned());
                parent = dir.parent;
            }
            if names == ["vm.json"] {
                continue;
            }
            let path: Vec<String> = names
                .iter()
                .map(|part| name::decode(part).into_owned())
                .collect();
            let mut text = Vec::new();
            file.text(rendered.json(), &mut text);
            let text = String::from_utf8(text).unwrap();
            let text = text.strip_suffix('\n').unwrap_or(&text);
            match of_file(vm, &path, text) {
                Ok(target) => assert_eq!(target, *vm, "{brand} {path:?} {text:?}"),
                Err(error) => panic!("{brand} {path:?} {text:?}: {error}"),
            }
            assert_eq!(can_create(vm, &path), Ok(()));
            written += 1;
        }
    }
    assert!(written > 1000, "{written}");
}

#[test]
fn files_set_and_remove_properties_keys_and_members() {
    let vm = vm("joyent");
    let write = |parts: &[&str], text| of_file(&vm, &path(parts), text);
    assert_eq!(write(&["quota"], "20").unwrap()["quota"], 20);
    assert_eq!(write(&["alias"], "web").unwrap()["alias"], "web");
    assert_eq!(
        write(&["resolvers"], "1.1.1.1\n::1").unwrap()["resolvers"],
        json!(["1.1.1.1", "::1"])
    );
    assert_eq!(write(&["resolvers"], "").unwrap()["resolvers"], json!([]));
    assert_eq!(
        write(&["tags", "role"], "").unwrap()["tags"],
        json!({"tier": 1, "live": true})
    );
    assert_eq!(write(&["tags", "tier"], "2").unwrap()["tags"]["tier"], 2);
    assert_eq!(
        write(&["tags", "tier"], "two").unwrap()["tags"]["tier"],
        "two"
    );
    assert_eq!(
        write(&["tags", "live"], "false").unwrap()["tags"]["live"],
        false
    );
    assert_eq!(write(&["tags", "new"], "2").unwrap()["tags"]["new"], "2");
    assert_eq!(
        write(&["tags", "role"], "").unwrap()["tags"],
        json!({"tier": 1, "live": true})
    );
    let target = write(&["nics", "net0", "ip"], "10.0.0.2").unwrap();
    assert_eq!(target["nics"][0]["ip"], "10.0.0.2");
    let target = write(&["nics", "net0", "ip"], "").unwrap();
    assert_eq!(target["nics"][0].get("ip"), None);

    let kind = |parts: &[&str]| can_create(&vm, &path(parts)).map_err(|error| error.kind);
    assert_eq!(kind(&["hostname"]), Ok(()));
    assert_eq!(kind(&["nics", "net2", "ip"]), Ok(()));
    assert_eq!(kind(&["nics", "net7", "ip"]), Err(InvalidKind::Unknown));
    assert_eq!(kind(&["nics", "net0", "mac"]), Err(InvalidKind::Fixed));
    assert_eq!(kind(&["vcpus"]), Err(InvalidKind::Fixed));
    assert_eq!(kind(&["state"]), Err(InvalidKind::Fixed));
    assert_eq!(kind(&["nonsense"]), Err(InvalidKind::Unknown));
    assert_eq!(kind(&["tags"]), Err(InvalidKind::Value));
    let disk = of_file(
        &self::vm("bhyve"),
        &path(&["disks", "disk0", "size"]),
        "2048",
    )
    .unwrap();
    assert_eq!(
        (&disk["disks"][0]["size"], &disk["free_space"]),
        (&json!(2048), &json!(1976))
    );
}

#[test]
fn what_is_not_acceptable_is_refused_whole_and_named() {
    use InvalidKind::{Fixed, Unknown, Value as Bad};
    let (zone, bhyve) = (vm("joyent"), vm("bhyve"));
    for (vm, payload, kind, begins) in [
        (
            &zone,
            json!({"quota": "x"}),
            Bad,
            "quota: not a number: \"x\"",
        ),
        (
            &zone,
            json!({"quota": -1}),
            Bad,
            "quota: not at least 0: -1",
        ),
        (
            &zone,
            json!({"quota": 0.1}),
            Bad,
            "quota: not a whole number of bytes",
        ),
        (
            &zone,
            json!({"max_physical_memory": u64::MAX}),
            Bad,
            "max_physical_memory: too large a number",
        ),
        (
            &zone,
            json!({"cpu_cap": 1.5}),
            Bad,
            "cpu_cap: not a whole number",
        ),
        (
            &zone,
            json!({"cpu_shares": 0}),
            Bad,
            "cpu_shares: not at least 1",
        ),
        (
            &zone,
            json!({"cpu_shares": null}),
            Bad,
            "cpu_shares: cannot be removed",
        ),
        (
            &zone,
            json!({"autoboot": "yes"}),
            Bad,
            "autoboot: not true or false",
        ),
        (&zone, json!({"alias": "a\nb"}), Bad, "alias: not one line"),
        (&zone, json!({"alias": 7}), Bad, "alias: not a text"),
        (
            &zone,
            json!({"owner_uuid": "me"}),
            Bad,
            "owner_uuid: not a uuid",
        ),
        (
            &zone,
            json!({"resolvers": "8.8.8"}),
            Bad,
            "resolvers: not a list of IP",
        ),
        (
            &zone,
            json!({"max_swap": 100}),
            Bad,
            "max_swap: not at least 256",
        ),
        (
            &zone,
            json!({"max_swap": 512}),
            Bad,
            "max_swap: below max_physical_memory",
        ),
        (
            &zone,
            json!({"max_locked_memory": 2000}),
            Bad,
            "max_locked_memory: above",
        ),
        (
            &zone,
            json!({"state": "running"}),
            Fixed,
            "state: cannot be changed",
        ),
        (
            &zone,
            json!({"uuid": "x"}),
            Fixed,
            "uuid: cannot be changed",
        ),
        (
            &zone,
            json!({"vcpus": 2}),
            Fixed,
            "vcpus: not a property of brand joyent",
        ),
        (
            &zone,
            json!({"quota": 20, "nonsense": 1}),
            Unknown,
            "nonsense: no such property",
        ),
        (
            &zone,
            json!({"nics": []}),
            Bad,
            "nics: cannot be given whole; use add_nics, update_nics or remove_nics",
        ),
        (
            &zone,
            json!({"tags": {}}),
            Bad,
            "tags: cannot be given whole; use set_tags or remove_tags",
        ),
        (&zone, json!({"disks": []}), Fixed, "disks: "),
        (
            &zone,
            json!({"add_disks": [{"size": 1}]}),
            Fixed,
            "add_disks: not for this brand",
        ),
        (
            &zone,
            json!({"add_snapshots": []}),
            Unknown,
            "add_snapshots: no such property",
        ),
        (
            &zone,
            json!({"set_tags": {"": "x"}}),
            Bad,
            "tags: a key is empty",
        ),
        (
            &zone,
            json!({"set_tags": {"a": null}}),
            Bad,
            "tags.a: null is no value; use remove_tags",
        ),
        (
            &zone,
            json!({"set_tags": {"a": []}}),
            Bad,
            "tags.a: not a text",
        ),
        (
            &zone,
            json!({"set_routes": {"10.0.0.0/8": 1}}),
            Bad,
            "routes.10.0.0.0/8: not a text",
        ),
        (
            &zone,
            json!({"set_tags": {"a": 1}, "remove_tags": ["a"]}),
            Bad,
            "remove_tags: a is also",
        ),
        (
            &zone,
            json!({"update_nics": [{"mac": "92:0:0:0:0:9", "ip": "dhcp"}]}),
            Unknown,
            "nics[92:0:0:0:0:9]: there is none",
        ),
        (
            &zone,
            json!({"update_nics": [{"ip": "dhcp"}]}),
            Bad,
            "update_nics: an element has no mac",
        ),
        (
            &zone,
            json!({"update_nics": [{"mac": "92:0:0:0:0:1", "ip": "10.0.0"}]}),
            Bad,
            "nics[92:0:0:0:0:1].ip: not an IPv4 address",
        ),
        (
            &zone,
            json!({"update_nics": [{"mac": "92:0:0:0:0:1", "model": "virtio"}]}),
            Fixed,
            "nics[92:0:0:0:0:1].model: not a property of brand joyent",
        ),
        (
            &zone,
            json!({"add_nics": [{"mac": "92:00:00:00:00:01"}]}),
            Bad,
            "nics[92:00:00:00:00:01]: there is one",
        ),
        (
            &zone,
            json!({"add_nics": [{"interface": "net0"}]}),
            Bad,
            "nics[new].interface: another",
        ),
        (
            &zone,
            json!({"add_filesystems": [{"source": "/a", "type": "lofs"}]}),
            Bad,
            "filesystems[new].target: missing",
        ),
        (
            &zone,
            json!({"zfs_data_compression": "lz4"}),
            Bad,
            "zfs_data_compression: the VM has no",
        ),
        (
            &zone,
            json!({"zfs_root_recsize": 1000}),
            Bad,
            "zfs_root_recsize: not a power of two",
        ),
        (
            &bhyve,
            json!({"vnc_port": 65536}),
            Bad,
            "vnc_port: not from -1 to 65535",
        ),
        (
            &bhyve,
            json!({"max_physical_memory": 600}),
            Bad,
            "max_physical_memory: not at least ram, which is 512",
        ),
        (
            &bhyve,
            json!({"ram": 1024, "max_physical_memory": 1100}),
            Bad,
            "max_physical_memory: not at least ram, which is 1024, and 256 MiB: 1100",
        ),
        (
            &zone,
            json!({"ram": 512, "max_physical_memory": 1024}),
            Bad,
            "ram: the same as max_physical_memory, which is 1024: 512",
        ),
        (
            &zone,
            json!({"zfs_root_compression": "zstd-20"}),
            Bad,
            "zfs_root_compression: not on, off",
        ),
        (
            &zone,
            json!({"zfs_root_compression": "zstd-fast-15"}),
            Bad,
            "zfs_root_compression: not on, off",
        ),
        (
            &bhyve,
            json!({"flexible_disk_size": 1000}),
            Bad,
            "flexible_disk_size: 96 MiB too small",
        ),
        (
            &bhyve,
            json!({"add_disks": [{}]}),
            Bad,
            "disks[new].size: missing",
        ),
        (
            &bhyve,
            json!({"update_disks": [{"path": bhyve["disks"][0]["path"], "size": 512}]}),
            Bad,
            "disks[/dev/zvol/rdsk/zones/5c1d4f1e-0000-4000-8000-000000000001-disk0].size: smaller",
        ),
    ] {
        let error = refused(vm, payload.clone());
        assert!(error.message.starts_with(begins), "{payload}: {error}");
        assert_eq!(error.kind, kind, "{payload}: {error}");
    }
}

#[test]
fn values_are_taken_as_people_give_them() {
    let vm = vm("joyent");
    for (payload, name, expected) in [
        (json!({"quota": "20"}), "quota", json!(20)),
        (json!({"quota": 20.0}), "quota", json!(20)),
        (json!({"quota": 0.5}), "quota", json!(0.5)),
        (json!({"quota": null}), "quota", json!(0)),
        (json!({"autoboot": "false"}), "autoboot", json!(false)),
        (
            json!({"firewall_enabled": true}),
            "firewall_enabled",
            json!(true),
        ),
        (
            json!({"resolvers": "1.1.1.1,9.9.9.9"}),
            "resolvers",
            json!(["1.1.1.1", "9.9.9.9"]),
        ),
        (
            json!({"limit_priv": ["default", "dtrace_user"]}),
            "limit_priv",
            json!("default,dtrace_user"),
        ),
        (json!({"cpu_cap": 0}), "cpu_cap", Value::Null),
        (
            json!({"archive_on_delete": false}),
            "archive_on_delete",
            Value::Null,
        ),
        (
            json!({"archive_on_delete": true}),
            "archive_on_delete",
            json!(true),
        ),
        (json!({"restart_init": true}), "restart_init", Value::Null),
        (
            json!({"restart_init": "false"}),
            "restart_init",
            json!(false),
        ),
        (
            json!({"zfs_root_compression": "off"}),
            "zfs_root_compression",
            Value::Null,
        ),
        (
            json!({"set_tags": {"n": 2, "b": false}, "remove_tags": ["role", "gone"]}),
            "tags",
            json!({"tier": 1, "live": true, "n": 2, "b": false}),
        ),
    ] {
        let target = updated(&vm, payload.clone());
        assert_eq!(
            target.get(name).unwrap_or(&Value::Null),
            &expected,
            "{payload}"
        );
        assert!(
            differ(&vm, &target).iter().all(|differs| differs == name),
            "{payload}"
        );
    }
}

#[test]
fn the_limits_of_memory_follow_each_other() {
    let memory = |vm: &Object, payload| {
        let target = updated(vm, payload);
        [
            "ram",
            "max_physical_memory",
            "max_locked_memory",
            "max_swap",
            "tmpfs",
        ]
        .map(|limit| target.get(limit).and_then(Value::as_i64).unwrap_or(-1))
    };
    let zone = vm("joyent");
    assert_eq!(
        memory(&zone, json!({"max_physical_memory": 512})),
        [-1, 512, 512, 2048, 256]
    );
    assert_eq!(
        memory(&zone, json!({"max_physical_memory": 4096})),
        [-1, 4096, 1024, 4096, 2048]
    );
    assert_eq!(
        memory(&zone, json!({"ram": 2048})),
        [-1, 2048, 2048, 2048, 2048]
    );
    assert_eq!(
        memory(&zone, json!({"ram": 2048, "tmpfs": 7})),
        [-1, 2048, 2048, 2048, 7]
    );
    assert_eq!(
        memory(&vm("bhyve"), json!({"ram": 1024})),
        [1024, 2304, 2304, 2304, -1]
    );
    assert_eq!(
        memory(&vm("kvm"), json!({"ram": 1024})),
        [1024, 2048, 2048, 2048, -1]
    );
}

#[test]
fn memory_that_fits_may_be_given_whole() {
    let zone = updated(
        &vm("joyent"),
        json!({"ram": 512, "max_physical_memory": 512}),
    );
    assert_eq!(zone["max_physical_memory"], 512);
    let guest = updated(&vm("kvm"), json!({"ram": 512, "max_physical_memory": 900}));
    assert_eq!(guest["max_physical_memory"], 900);
}

#[test]
fn compressions_are_those_that_zfs_knows_as_it_shows_them() {
    for name in [
        "on",
        "lz4",
        "lzjb",
        "zle",
        "gzip",
        "gzip-1",
        "gzip-9",
        "zstd",
        "zstd-1",
        "zstd-19",
        "zstd-fast",
        "zstd-fast-2",
        "zstd-fast-10",
        "zstd-fast-20",
        "zstd-fast-100",
        "zstd-fast-500",
        "zstd-fast-1000",
    ] {
        let target = updated(&vm("joyent"), json!({"zfs_root_compression": name}));
        assert_eq!(target["zfs_root_compression"], name);
    }
    let bhyve = vm("bhyve");
    for (given, shown) in [("gzip-6", "gzip"), ("zstd-fast-1", "zstd-fast")] {
        let disk = json!({"path": bhyve["disks"][0]["path"], "compression": given});
        let target = updated(&bhyve, json!({"update_disks": [disk]}));
        assert_eq!(target["disks"][0]["compression"], shown);
        let target = updated(&bhyve, json!({"zfs_root_compression": given}));
        assert_eq!(target["zfs_root_compression"], shown);
    }
}

#[test]
fn what_is_reserved_whole_for_a_disk_grows_with_it() {
    let mut vm = vm("bhyve");
    let path = vm["disks"][0]["path"].clone();
    let reserved = |vm: &Object, changes: Value| {
        let mut disk = object(changes);
        disk.insert("path".into(), path.clone());
        updated(vm, json!({"update_disks": [disk]}))["disks"][0]["refreservation"].clone()
    };
    for (now, changes, then) in [
        (json!(1024), json!({"size": 2048}), json!(2048)),
        (
            json!(1024),
            json!({"size": 2048, "refreservation": 0}),
            json!(0),
        ),
        (
            json!(1024),
            json!({"refreservation": 5, "size": 2048}),
            json!(5),
        ),
        (
            json!(1024),
            json!({"size": 512, "dangerous_allow_shrink": true}),
            json!(512),
        ),
        (json!(1024), json!({"boot": false}), json!(1024)),
        (json!(0), json!({"size": 2048}), json!(0)),
        // As ZFS makes it by itself, with room for what it writes beside: it follows by itself.
        (json!(1060), json!({"size": 2048}), json!(1060)),
    ] {
        vm["disks"][0]["refreservation"] = now;
        assert_eq!(reserved(&vm, changes.clone()), then, "{changes}");
    }
    vm["disks"][0]["refreservation"] = json!(1024);
    let mut document = vm.clone();
    document["disks"][0]["size"] = json!(2048);
    assert_eq!(
        full(&vm, &document).unwrap()["disks"][0]["refreservation"],
        2048
    );
}

/// The addresses of a nic that had some, after changes to it: what differs.
fn addresses(had: Value, changes: Value) -> Result<Value, Invalid> {
    let mut vm = vm("joyent");
    let mut nic = object(json!({"interface": "net0", "mac": "92:00:00:00:00:01"}));
    nic.extend(object(had));
    vm.insert("nics".into(), json!([nic]));
    let mut changes = object(changes);
    changes.insert("mac".into(), json!("92:00:00:00:00:01"));
    let target = update(&vm, &object(json!({"update_nics": [changes]})))?;
    let mut nic = object(target["nics"][0].clone());
    nic.retain(|member, _| !matches!(member.as_str(), "interface" | "mac"));
    Ok(Value::Object(nic))
}

#[test]
fn the_single_and_the_listed_addresses_of_a_nic_follow_each_other() {
    let had =
        json!({"ip": "10.0.0.1", "netmask": "255.0.0.0", "ips": ["10.0.0.1/8", "fd00::1/64"]});
    let gateways = json!({"gateway": "10.0.0.7", "gateways": ["10.0.0.7", "10.0.0.8"]});
    for (had, changes, has) in [
        (
            &had,
            json!({"ips": ["192.0.2.5/24", "10.0.0.1/8"]}),
            json!({"ip": "192.0.2.5", "netmask": "255.255.255.0", "ips": ["192.0.2.5/24", "10.0.0.1/8"]}),
        ),
        (
            &had,
            json!({"ips": "addrconf,dhcp"}),
            json!({"ip": "dhcp", "ips": ["addrconf", "dhcp"]}),
        ),
        (
            &had,
            json!({"ips": ["fd00::2/64"]}),
            json!({"ips": ["fd00::2/64"]}),
        ),
        (&had, json!({"ips": []}), json!({})),
        (
            &had,
            json!({"ip": "10.0.0.2"}),
            json!({"ip": "10.0.0.2", "netmask": "255.0.0.0", "ips": ["10.0.0.2/8", "fd00::1/64"]}),
        ),
        (
            &had,
            json!({"ip": "192.0.2.5", "netmask": "255.255.255.255"}),
            json!({"ip": "192.0.2.5", "netmask": "255.255.255.255", "ips": ["192.0.2.5/32", "fd00::1/64"]}),
        ),
        (
            &had,
            json!({"netmask": "0.0.0.0"}),
            json!({"ip": "10.0.0.1", "netmask": "0.0.0.0", "ips": ["10.0.0.1/0", "fd00::1/64"]}),
        ),
        (
            &had,
            json!({"ip": "dhcp"}),
            json!({"ip": "dhcp", "ips": ["dhcp", "fd00::1/64"]}),
        ),
        (&had, json!({"ip": null}), json!({"ips": ["fd00::1/64"]})),
        // What is as it was was not changed, and follows.
        (
            &had,
            json!({"ip": "10.0.0.1", "ips": ["10.0.0.3/8"]}),
            json!({"ip": "10.0.0.3", "netmask": "255.0.0.0", "ips": ["10.0.0.3/8"]}),
        ),
        (
            &had,
            json!({"nic_tag": "admin", "ip": "10.0.0.1"}),
            json!({"ip": "10.0.0.1", "netmask": "255.0.0.0", "ips": ["10.0.0.1/8", "fd00::1/64"], "nic_tag": "admin"}),
        ),
        (
            &json!({}),
            json!({"ip": "10.0.0.1", "netmask": "255.255.0.0"}),
            json!({"ip": "10.0.0.1", "netmask": "255.255.0.0", "ips": ["10.0.0.1/16"]}),
        ),
        (
            &json!({"ips": ["addrconf"]}),
            json!({"ip": "10.0.0.1", "netmask": "255.0.0.0"}),
            json!({"ip": "10.0.0.1", "netmask": "255.0.0.0", "ips": ["10.0.0.1/8", "addrconf"]}),
        ),
        // One after the other, as files are written.
        (
            &json!({}),
            json!({"ip": "10.0.0.1"}),
            json!({"ip": "10.0.0.1"}),
        ),
        (
            &json!({"ip": "10.0.0.1"}),
            json!({"netmask": "255.0.0.0"}),
            json!({"ip": "10.0.0.1", "netmask": "255.0.0.0", "ips": ["10.0.0.1/8"]}),
        ),
        // An odd one that nobody changes stays odd.
        (
            &json!({"ip": "10.0.0.1", "ips": ["10.0.0.2/8"]}),
            json!({"mtu": 1500}),
            json!({"ip": "10.0.0.1", "ips": ["10.0.0.2/8"], "mtu": 1500}),
        ),
        (
            &gateways,
            json!({"gateways": ["10.0.0.9"]}),
            json!({"gateway": "10.0.0.9", "gateways": ["10.0.0.9"]}),
        ),
        (
            &gateways,
            json!({"gateway": "10.0.0.9"}),
            json!({"gateway": "10.0.0.9", "gateways": ["10.0.0.9", "10.0.0.8"]}),
        ),
        (
            &gateways,
            json!({"gateway": "10.0.0.8"}),
            json!({"gateway": "10.0.0.8", "gateways": ["10.0.0.8"]}),
        ),
        (&gateways, json!({"gateway": ""}), json!({})),
        (&gateways, json!({"gateways": null}), json!({})),
        (
            &json!({}),
            json!({"gateway": "10.0.0.9"}),
            json!({"gateway": "10.0.0.9", "gateways": ["10.0.0.9"]}),
        ),
    ] {
        assert_eq!(
            addresses(had.clone(), changes.clone()),
            Ok(has),
            "{had} {changes}"
        );
    }
}

#[test]
fn addresses_that_contradict_each_other_are_refused() {
    let had =
        json!({"ip": "dhcp", "ips": ["dhcp"], "gateway": "10.0.0.7", "gateways": ["10.0.0.7"]});
    for (changes, begins) in [
        (
            json!({"ips": ["10.0.0.1/8"], "ip": "10.0.0.2"}),
            "nics[92:00:00:00:00:01].ip: ips says \"10.0.0.1\"",
        ),
        (
            json!({"ips": ["10.0.0.1/8"], "netmask": "255.255.0.0"}),
            "nics[92:00:00:00:00:01].netmask: ips says",
        ),
        (
            json!({"ips": ["addrconf"], "ip": "10.0.0.2"}),
            "nics[92:00:00:00:00:01].ip: ips says none",
        ),
        (
            json!({"ip": "10.0.0.2"}),
            "nics[92:00:00:00:00:01].netmask: missing",
        ),
        (
            json!({"netmask": "255.255.0.0"}),
            "nics[92:00:00:00:00:01].netmask: a nic has it only",
        ),
        (
            json!({"gateway": "10.0.0.8", "gateways": ["10.0.0.9"]}),
            "nics[92:00:00:00:00:01].gateway: gateways says",
        ),
    ] {
        let error = addresses(had.clone(), changes.clone()).unwrap_err();
        assert!(error.message.starts_with(begins), "{changes}: {error}");
    }
}

#[test]
fn a_full_object_may_lack_the_addresses_that_follow() {
    let mut vm = vm("joyent");
    vm["nics"][0]["ips"] = json!(["10.0.0.1/8", "fd00::1/64"]);
    vm["nics"][0]["gateway"] = json!("10.0.0.7");
    vm["nics"][0]["gateways"] = json!(["10.0.0.7"]);
    for lacks in [
        &["ip", "netmask", "gateway"][..],
        &["ips", "gateways"],
        &["ips"],
    ] {
        let mut document = vm.clone();
        let nic = document["nics"][0].as_object_mut().unwrap();
        nic.retain(|member, _| !lacks.contains(&member.as_str()));
        assert_eq!(full(&vm, &document).as_ref(), Ok(&vm), "{lacks:?}");
        document["nics"][0]["ip"] = json!("10.0.0.2");
        let target = full(&vm, &document);
        let ips = target.map(|target| target["nics"][0]["ips"].clone());
        assert_eq!(ips, Ok(json!(["10.0.0.2/8", "fd00::1/64"])), "{lacks:?}");
    }
}

#[test]
fn a_new_nic_gets_what_it_lacks_and_the_primary_one_moves() {
    let vm = vm("joyent");
    let target = updated(
        &vm,
        json!({"add_nics": [{"nic_tag": "admin", "primary": true}]}),
    );
    let nics = target["nics"].as_array().unwrap();
    let names: Vec<&Value> = nics.iter().map(|nic| &nic["interface"]).collect();
    assert_eq!(names, ["net0", "net1", "net2"]);
    assert_eq!(nics[0].get("primary"), None);
    assert_eq!(nics[1]["primary"], true);
    assert!(nics[1]["mac"].as_str().unwrap().starts_with("92:"));
    let none = updated(
        &vm,
        json!({"remove_nics": ["92:00:00:00:00:01", "92:0:0:0:0:3"]}),
    );
    assert_eq!(none["nics"], json!([]));
    let first = updated(&none, json!({"add_nics": [{}, {}]}));
    assert_eq!(first["nics"][0]["primary"], true);
    assert_eq!(first["nics"][1].get("primary"), None);
    let model = updated(&self::vm("kvm"), json!({"add_nics": [{}]}));
    assert_eq!(model["nics"][1]["model"], "virtio");
}

#[test]
fn a_new_disk_is_the_next_volume_and_takes_its_room() {
    let vm = vm("bhyve");
    let target = updated(
        &vm,
        json!({"add_disks": [{"size": "1000", "zpool": "fast"}, {"size": 1000}]}),
    );
    assert_eq!(target["free_space"], 1000);
    let disks = target["disks"].as_array().unwrap();
    let paths: Vec<&str> = disks
        .iter()
        .map(|disk| disk["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths[1],
        "/dev/zvol/rdsk/fast/5c1d4f1e-0000-4000-8000-000000000001-disk1"
    );
    assert_eq!(
        paths[2],
        "/dev/zvol/rdsk/zones/5c1d4f1e-0000-4000-8000-000000000001-disk2"
    );
    assert_eq!(disks[1]["zpool"], "fast");
    let cd = updated(
        &vm,
        json!({"add_disks": [
        {"path": "/images/cd.iso", "media": "cdrom", "nocreate": true, "model": "ahci"}]}),
    );
    assert_eq!(
        cd["disks"][1],
        json!({"path": "/images/cd.iso", "model": "ahci", "media": "cdrom"})
    );
    assert!(
        refused(&vm, json!({"add_disks": [{"size": 9000}]}))
            .message
            .starts_with("flexible_disk")
    );
}

#[test]
fn what_is_wanted_holds_for_the_target_and_names_the_property() {
    let vm = vm("bhyve");
    let target = updated(
        &vm,
        json!({
            "quota": 20, "vnc_password": "secret", "set_tags": {"a.b": "c"}, "remove_tags": "role",
            "remove_nics": ["92:00:00:00:00:03"], "add_disks": [{"size": 10}],
            "update_nics": [{"mac": "92:00:00:00:00:01", "ip": "10.0.0.9"}],
        }),
    );
    let all = wanted(&vm, &target);
    let said: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "vnc_password = (secret)",
            "disks[/dev/zvol/rdsk/zones/5c1d4f1e-0000-4000-8000-000000000001-disk1] added",
            "nics[92:00:00:00:00:01].ip = \"10.0.0.9\"",
            "nics[92:00:00:00:00:01].ips = [\"10.0.0.9/8\"]",
            "nics[92:00:00:00:00:03] removed",
            "tags.role removed",
            "tags.a.b = \"c\"",
            "quota = 20",
        ]
    );
    for one in &all {
        assert!(one.holds(&target) && !one.holds(&vm), "{one}");
    }
    let mut shown = target.clone();
    shown["quota"] = json!(20.0);
    shown["disks"][1]["block_size"] = json!(8192);
    assert!(all.iter().all(|one| one.holds(&shown)));
}

#[test]
fn what_was_changed_again_or_destroyed_is_not_reverted() {
    let vm = vm("bhyve");
    let target = updated(&vm, json!({"quota": 20}));
    let other = updated(&target, json!({"quota": 30}));
    let error = revert(&other, &vm, &target).unwrap_err();
    assert_eq!(error.kind, InvalidKind::State);
    assert!(error.message.starts_with("quota: "));
    let other = updated(&target, json!({"alias": "other"}));
    assert_eq!(
        differ(&vm, &revert(&other, &vm, &target).unwrap()),
        ["alias"]
    );
    let target = updated(&vm, json!({"remove_disks": [vm["disks"][0]["path"]]}));
    assert_eq!(
        revert(&target, &vm, &target).unwrap_err().kind,
        InvalidKind::State
    );
}

#[test]
fn a_new_vm_has_all_that_vms_have() {
    for brand in ["joyent", "joyent-minimal", "builder", "lx", "kvm", "bhyve"] {
        let mut payload = object(json!({"brand": brand, "alias": "new", "ram": 512,
            "nics": [{"nic_tag": "admin", "ip": "dhcp"}, {"nic_tag": "admin"}],
            "tags": {"role": "web"}}));
        let hvm = property::hvm(brand);
        if hvm {
            payload.insert("disks".into(), json!([{"image_size": 10}, {"size": 20}]));
        } else {
            assert!(
                create(&payload)
                    .unwrap_err()
                    .message
                    .starts_with("image_uuid: missing")
            );
            payload.insert(
                "image_uuid".into(),
                json!("5c1d4f1e-0000-4000-8000-00000000000a"),
            );
        }
        if brand == "lx" {
            assert!(
                create(&payload)
                    .unwrap_err()
                    .message
                    .starts_with("kernel_version: missing")
            );
            payload.insert("kernel_version".into(), json!("5.10.0"));
        }
        let created = create(&payload).unwrap();
        let target = created.target;
        assert_eq!(target["uuid"], created.uuid.to_string());
        assert_eq!(target["zonename"], target["uuid"]);
        assert_eq!(target["zonepath"], format!("/zones/{}", created.uuid));
        assert_eq!(target["quota"], if brand == "bhyve" { 1 } else { 10 });
        let overhead = match brand {
            "kvm" => 1024,
            "bhyve" => 1280,
            _ => 0,
        };
        assert_eq!(target["max_physical_memory"], 512 + overhead);
        assert_eq!(target.get("tmpfs").is_some(), !hvm);
        assert_eq!(target.get("vcpus").is_some(), hvm);
        assert_eq!(target["nics"][0]["primary"], true);
        assert_eq!(target["nics"][1]["interface"], "net1");
        if hvm {
            assert_eq!(target["disks"][0]["boot"], true);
            assert_eq!(
                target["disks"][1]["zfs_filesystem"],
                format!("zones/{}-disk1", created.uuid)
            );
        }
        let mut sorted = target.clone();
        property::sort(&mut sorted);
        assert_eq!(
            sorted.keys().collect::<Vec<_>>(),
            target.keys().collect::<Vec<_>>()
        );
        assert_eq!(full(&target, &target).as_ref(), Ok(&target));
    }
    for (payload, begins) in [
        (json!({}), "brand: missing"),
        (json!({"brand": "vmware"}), "brand: not one of"),
        (json!({"brand": "kvm", "uuid": "x"}), "uuid: not a uuid"),
        (
            json!({"brand": "kvm", "zonename": "../x"}),
            "zonename: not the name",
        ),
        (
            json!({"brand": "kvm", "state": "running"}),
            "state: cannot be given",
        ),
        (
            json!({"brand": "kvm", "add_nics": []}),
            "add_nics: only for a VM that exists; give nics",
        ),
        (
            json!({"brand": "kvm", "disks": [{}]}),
            "disks[new].size: missing",
        ),
        (
            json!({"brand": "kvm", "nonsense": 1}),
            "nonsense: no such property",
        ),
    ] {
        let error = create(&object(payload)).unwrap_err();
        assert!(error.message.starts_with(begins), "{error}");
    }
}

#[test]
fn verbs_are_read_in_all_their_forms() {
    let stop = |force, timeout| Verb::Stop { force, timeout };
    for (text, verb) in [
        ("start", Verb::Start),
        ("boot\n", Verb::Start),
        (" stop ", stop(false, None)),
        ("halt", stop(false, None)),
        ("stop force", stop(true, None)),
        ("stop -F", stop(true, None)),
        ("stop 30", stop(false, Some(30))),
        ("stop -t 30", stop(false, Some(30))),
        ("reboot force", Verb::Reboot { force: true }),
        ("kill", Verb::Kill("TERM")),
        ("kill -9", Verb::Kill("KILL")),
        ("kill SIGHUP", Verb::Kill("HUP")),
        ("kill -s usr1", Verb::Kill("USR1")),
        ("destroy", Verb::Delete),
        ("snapshot a-1", Verb::Snapshot("a-1".into())),
        ("delete-snapshot a", Verb::DeleteSnapshot("a".into())),
    ] {
        assert_eq!(Verb::parse(Kind::Zone, text).as_ref(), Ok(&verb), "{text}");
        assert_eq!(Verb::parse(Kind::Zone, &verb.to_string()), Ok(verb));
    }
    for text in [
        "",
        "fly",
        "start now",
        "stop soon",
        "kill 99",
        "snapshot",
        "snapshot a/b",
        "snapshot a@b",
        "rollback a b",
    ] {
        assert_eq!(
            Verb::parse(Kind::Zone, text).unwrap_err().kind,
            InvalidKind::Value,
            "{text}"
        );
    }
}

#[test]
fn every_accepted_verb_is_one_that_the_vm_can_do() {
    for vm in VMS.iter() {
        let snapshot = vm["snapshots"]
            .get(0)
            .map_or("x", |snap| snap["name"].as_str().unwrap());
        for line in accepted(vm) {
            let used = if line.starts_with("snapshot") {
                "new"
            } else {
                snapshot
            };
            let text = line.replace("NAME", used).replace(" [SIGNAL]", "");
            assert_eq!(
                Verb::parse(Kind::Zone, &text).unwrap().check(vm),
                Ok(()),
                "{line}"
            );
        }
    }
    let mut vm = of_brand("joyent");
    vm.insert("state".into(), json!("running"));
    vm.insert("zone_state".into(), json!("running"));
    vm.insert("indestructible_zoneroot".into(), json!(true));
    assert_eq!(Verb::Start.check(&vm), Ok(()));
    assert!(!accepted(&vm).contains(&"start".to_owned()));
    assert_eq!(
        Verb::Delete.check(&vm).unwrap_err().kind,
        InvalidKind::State
    );
    let reboot = Verb::Reboot { force: false };
    assert!(!reboot.confirmed(&vm, Some(&vm)));
    let mut again = vm.clone();
    again.insert("zoneid".into(), json!(99_999));
    assert!(reboot.confirmed(&vm, Some(&again)));
    assert!(Verb::Delete.confirmed(&vm, None) && !Verb::Start.confirmed(&vm, None));
    vm.insert("state".into(), json!("failed"));
    vm.insert("zone_state".into(), json!("installed"));
    assert_eq!(Verb::Start.check(&vm).unwrap_err().kind, InvalidKind::State);
    assert_eq!(
        Verb::Kill("TERM").check(&vm).unwrap_err().kind,
        InvalidKind::State
    );
}

/// Payloads of things that every brand has, which do not depend on each other.
fn payload() -> impl Strategy<Value = Object> {
    let scalar = prop_oneof![
        ("cpu_shares|max_lwps|zfs_io_priority", 1..4000u32).prop_map(|(k, v)| (k, json!(v))),
        ("quota|cpu_cap|zfs_snapshot_limit", 0..3u32).prop_map(|(k, v)| (k, json!(v))),
        ("alias|hostname", "[a-z]{0,3}").prop_map(|(k, v)| (k, json!(v))),
        (
            "autoboot|docker|archive_on_delete|do_not_inventory",
            any::<bool>()
        )
            .prop_filter("not of every brand", |(k, _)| k != "docker")
            .prop_map(|(k, v)| (k, json!(v))),
        prop::collection::vec("[1-9]\\.1\\.1\\.1", 0..3)
            .prop_map(|list| ("resolvers".to_owned(), json!(list))),
        (
            "set_tags|set_customer_metadata|set_routes",
            "[ab]",
            "[a-z]{0,2}"
        )
            .prop_map(|(k, key, v)| (k, json!({key: v}))),
        ("remove_internal_metadata", "[ab]|root_pw").prop_map(|(k, key)| (k, json!([key]))),
        (0..2usize).prop_map(|n| ("add_nics".to_owned(), json!(vec![json!({"ip": "dhcp"}); n]))),
    ];
    prop::collection::vec(scalar, 0..6).prop_map(|members| members.into_iter().collect())
}

proptest! {
    #[test]
    fn a_target_shows_what_was_asked_and_can_be_undone(index in 0..40usize, payload in payload()) {
        let vm = &VMS[index];
        let target = updated(vm, Value::Object(payload.clone()));
        // The model: what each member says, read off the target.
        for (name, given) in &payload {
            if let Some(map) = name.strip_prefix("set_") {
                for (key, value) in given.as_object().unwrap() {
                    prop_assert_eq!(&target[map][key], value);
                }
            } else if let Some(map) = name.strip_prefix("remove_") {
                prop_assert!(target[map].get(given[0].as_str().unwrap()).is_none());
            } else if name == "add_nics" {
                let count = |vm: &Object| vm["nics"].as_array().unwrap().len();
                prop_assert_eq!(count(&target), count(vm) + given.as_array().unwrap().len());
            } else {
                let gone = *given == "" || (*given == false && name != "autoboot")
                    || (*given == 0 && name == "cpu_cap");
                match target.get(name) {
                    Some(value) => prop_assert_eq!(value, given),
                    None => prop_assert!(gone || *given == 0, "{} {}", name, given),
                }
            }
        }
        let touched = |name: &String| payload.keys().any(|key| key.ends_with(name.as_str()));
        prop_assert!(differ(vm, &target).iter().all(touched));
        // The same asked again, whole, or as a full object, comes to the same.
        let mut again = payload.clone();
        again.shift_remove("add_nics");
        prop_assert_eq!(&update(&target, &again).unwrap(), &target);
        prop_assert_eq!(&full(vm, &target).unwrap(), &target);
        // What is wanted is what differs.
        let all = wanted(vm, &target);
        prop_assert!(all.iter().all(|one| one.holds(&target) && !one.holds(vm)));
        prop_assert_eq!(all.is_empty(), target == *vm);
        prop_assert_eq!(&revert(&target, vm, &target).unwrap(), vm);
    }

    #[test]
    fn no_document_makes_it_panic(index in 0..40usize, name in "[a-z_]{1,12}", text in ".{0,12}",
        row in 0..property::TABLE.len()) {
        let vm = &VMS[index];
        let row = property::TABLE[row].name;
        for value in [json!(text), json!(null), json!([text]), json!([{name.clone(): text}]),
            json!({name.clone(): text}), json!(1e300), json!(-1), json!([null])] {
            for key in [row.to_owned(), format!("add_{row}"), format!("remove_{row}"),
                format!("update_{row}"), format!("set_{row}"), name.clone()] {
                let document = object(json!({key.clone(): value, "brand": "bhyve"}));
                let _ = create(&document);
                let _ = update(vm, &object(json!({key.clone(): value})));
                let mut whole = vm.clone();
                whole.insert(key, value.clone());
                let _ = full(vm, &whole);
            }
        }
        let _ = Verb::parse(Kind::Zone, &text);
        let _ = of_file(vm, &path(&[row, &name, &text]), &text);
        let _ = of_file(vm, &path(&[row]), &text);
    }
}

#[test]
fn a_new_disk_is_a_volume_of_its_own_vm() {
    let vm = json!({"brand": "bhyve", "uuid": "u", "zonename": "z", "zpool": "zones"});
    let vm = vm.as_object().unwrap();
    let add = |path: &str| {
        let payload = json!({"add_disks": [{"path": path, "size": 10}]});
        update(vm, payload.as_object().unwrap())
    };
    assert!(add("/dev/zvol/rdsk/zones/z-disk3").is_ok());
    assert!(add("/dev/zvol/rdsk/zones/z/disk0").is_ok());
    for other in [
        "/dev/zvol/rdsk/zones/y-disk0",
        "/dev/zvol/rdsk/zones/zz-disk0",
        "/etc/passwd",
    ] {
        let refused = add(other).unwrap_err();
        assert!(refused.message.contains("path"), "{refused}");
    }
}
