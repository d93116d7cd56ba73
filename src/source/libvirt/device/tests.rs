use proptest::prelude::*;
use serde_json::json;

use super::super::domain::{Facts, object};
use super::*;

fn map(value: Value) -> Object {
    value.as_object().cloned().unwrap_or_default()
}

/// A domain as it is read back of its XML.
fn read(xml: &str) -> Object {
    let facts = Facts {
        xml: xml.to_owned(),
        state: (5, 0),
        ..Facts::default()
    };
    object(&facts).unwrap()
}

/// A domain with these devices.
fn with(devices: &str) -> String {
    format!(
        "<domain type='qemu'><name>web</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>\
         <devices>{devices}</devices></domain>"
    )
}

/// That an object has all members of another.
#[track_caller]
fn has(whole: &Value, part: &Object) {
    for (name, value) in part {
        assert_eq!(whole.get(name), Some(value), "{name} of {whole:#}");
    }
}

/// All characters that XML can have, and what is special in it more often.
fn text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec!['<', '>', '&', '\'', '"', '\n', '\r', '\t', ' ', ']']);
    let any = any::<char>().prop_filter("XML has it", |character| {
        !matches!(character, '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
    });
    let inside = prop::collection::vec(prop_oneof![special, any], 0..12);
    inside.prop_map(|inside| format!("x{}x", String::from_iter(inside)))
}

fn nics() -> impl Strategy<Value = Object> {
    let source = prop_oneof![
        Just(json!({"type": "user"})),
        text().prop_map(|it| json!({"type": "network", "network": it})),
        text().prop_map(|it| json!({"type": "bridge", "bridge": it})),
    ];
    (source, text(), 68..9000u64, any::<bool>()).prop_map(|(source, model, mtu, up)| {
        let mut nic = map(json!({"mac": "52:54:00:00:00:01", "model": model, "mtu": mtu}));
        nic.insert("link".to_owned(), if up { "up" } else { "down" }.into());
        nic.extend(map(source));
        nic
    })
}

fn disks() -> impl Strategy<Value = Object> {
    let path = prop_oneof![
        text().prop_map(|it| format!("/{it}")),
        text().prop_map(|it| format!("/dev/{it}")),
        text().prop_map(|it| format!("pool/{it}")),
    ];
    (path, text(), any::<bool>()).prop_map(|(path, text, readonly)| {
        let mut disk = map(
            json!({"name": text, "path": path, "model": text, "media": "disk",
            "format": "qcow2", "serial": text}),
        );
        if readonly {
            disk.insert("readonly".to_owned(), true.into());
        }
        disk
    })
}

proptest! {
    #[test]
    fn a_new_nic_is_read_back_as_it_was_asked_for(asked in nics()) {
        let vm = read(&with(&nic(&asked)));
        has(&vm["nics"][0], &asked);
    }

    #[test]
    fn a_new_disk_is_read_back_as_it_was_asked_for(asked in disks()) {
        let vm = read(&with(&disk(&asked)));
        has(&vm["disks"][0], &asked);
    }

    #[test]
    fn a_new_domain_is_read_back_as_it_was_asked_for(
        nic in nics(), disk in disks(), text in text(), kib in 1..u64::from(u32::MAX), vcpus in 1..9u64, cap in 1..9999u64,
    ) {
        let mut disk = disk;
        disk.insert("boot".to_owned(), true.into());
        let ram = kib as f64 / 1024.0;
        let ram = if ram.fract() == 0.0 { json!(kib / 1024) } else { json!(ram) };
        let asked = map(json!({
            "uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f", "zonename": "web", "alias": text, "brand": "kvm",
            "hvm": true, "max_physical_memory": 1 << 30, "ram": ram, "vcpus": vcpus, "max_vcpus": 9,
            "cpu_shares": 7, "cpu_cap": cap, "vnc_port": 5901,
            "tags": {text.as_str(): text.as_str(), "n": 1.5, "b": false}, "customer_metadata": {"a": text.as_str()},
        }));
        let mut whole = asked.clone();
        whole.insert("nics".to_owned(), json!([nic]));
        whole.insert("disks".to_owned(), json!([disk]));
        let vm = Value::from(read(&domain(&whole)));
        has(&vm, &asked);
        has(&vm["nics"][0], &nic);
        has(&vm["disks"][0], &disk);
    }

    #[test]
    fn tags_and_metadata_are_read_back_as_they_were_written(name in text(), value in ".*") {
        let value: String = value.chars().filter(|it| *it >= ' ' && *it < '\u{fffe}').collect();
        let tags = map(json!({name.as_str(): value.as_str(), "number": -3, "text": "3", "yes": true}));
        let element = crate::source::libvirt::domain::metadata::element(&tags, &tags).unwrap();
        let element = element.replacen("<vm>", "<vm xmlns='urn:vminfod:vm'>", 1);
        let vm = read(&with("").replace("<devices>", &format!("<metadata>{element}</metadata><devices>")));
        prop_assert_eq!(&vm["tags"], &Value::from(tags.clone()));
        prop_assert_eq!(&vm["customer_metadata"], &Value::from(tags));
    }
}

const NIC: &str = "<interface type='network'>\n  <mac address='52:54:00:00:00:0A'/>\n  \
    <source network='default' portid='1' bridge='virbr0'/>\n  <target dev='vnet3'/>\n  <model type='virtio'/>\n\
    </interface>";

fn changed(interface: &str, changes: Value) -> Value {
    let edited = with_nic(interface, &map(changes)).unwrap();
    assert!(edited.contains("<target dev='vnet3'/>"), "{edited}");
    Value::from(read(&with(&edited)))["nics"][0].take()
}

#[test]
fn a_nic_is_changed_in_what_is_asked_and_nothing_else() {
    let found = find_nic(&with(NIC), "52:54:00:00:00:0a").unwrap().unwrap();
    assert_eq!(found, NIC);
    assert_eq!(find_nic(&with(NIC), "52:54:00:00:00:0b").unwrap(), None);
    let down = with_nic(NIC, &map(json!({"link": "down"}))).unwrap();
    assert!(down.contains("portid='1'"), "{down}");
    assert_eq!(changed(&down, json!({}))["link"], "down");
    assert_eq!(changed(&down, json!({"link": "up"}))["link"], "up");
    assert_eq!(changed(&down, json!({"link": null}))["link"], "up");
    let other = changed(NIC, json!({"network": "a & 'b'"}));
    assert_eq!(
        (&other["network"], other.get("bridge")),
        (&json!("a & 'b'"), None)
    );
    let bridged = changed(NIC, json!({"network": null, "bridge": "br0"}));
    assert_eq!(
        (&bridged["type"], &bridged["bridge"]),
        (&json!("bridge"), &json!("br0"))
    );
    assert_eq!(bridged.get("network"), None);
    assert_eq!(changed(NIC, json!({"network": null}))["type"], "user");
    // The bridge is the network's.
    assert_eq!(changed(NIC, json!({"bridge": null}))["network"], "default");
}

#[test]
fn a_drive_gets_another_medium_of_whatever_kind() {
    let drive = "<disk type='block' device='cdrom'><driver name='qemu' type='raw'/>\
        <source dev='/dev/sr0' index='2'><x/></source><backingStore/><target dev='sda' bus='sata'/><readonly/></disk>";
    let found = find_disk(&with(drive), "sda").unwrap().unwrap();
    assert_eq!(found, drive);
    assert_eq!(place(&found), Ok(Some(Place::Path("/dev/sr0".to_owned()))));
    let empty = with_medium(drive, None).unwrap();
    assert_eq!(
        empty,
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/>\
         <readonly/></disk>"
    );
    assert_eq!(place(&empty), Ok(None));
    for path in ["/a & b.iso", "/dev/sr1", "pool/a.iso"] {
        for before in [drive, &empty] {
            let vm = read(&with(&with_medium(before, Some(path)).unwrap()));
            assert_eq!(vm["disks"][0]["path"], path);
        }
    }
}

#[test]
fn xml_that_cannot_be_read_is_an_error() {
    assert!(find_nic("<domain>", "").is_err());
    assert!(with_medium("", None).is_err());
}
