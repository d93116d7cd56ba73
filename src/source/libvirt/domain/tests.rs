use serde_json::json;

use super::*;

const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

/// A domain of OpenStack under KVM, as libvirt shows it while it runs.
const NOVA: &str = r#"<domain type='kvm' id='3'>
  <name>instance-0000002a</name>
  <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
  <title>web &amp; more</title>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="26.2.1"/>
      <nova:name>web-1</nova:name>
      <nova:creationTime>2024-05-01 10:00:00</nova:creationTime>
      <nova:flavor name="m1.small">
        <nova:memory>2048</nova:memory>
        <nova:disk>20</nova:disk>
        <nova:swap>0</nova:swap>
        <nova:ephemeral>0</nova:ephemeral>
        <nova:vcpus>2</nova:vcpus>
      </nova:flavor>
      <nova:owner>
        <nova:user uuid="u-1">alice</nova:user>
        <nova:project uuid="p-1">shop</nova:project>
      </nova:owner>
      <nova:root type="image" uuid="i-1"/>
    </nova:instance>
    <v:vm xmlns:v="urn:vminfod:vm">
      <v:tag name="role">web</v:tag>
      <v:tag name="replicas" type="number">3</v:tag>
      <v:tag name="canary" type="boolean">true</v:tag>
      <v:tag name="odd" type="number">many</v:tag>
      <v:customer_metadata name="user-script">#!/bin/sh
echo a &lt;b</v:customer_metadata>
    </v:vm>
  </metadata>
  <memory unit='GiB'>4</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <cputune>
    <shares>2048</shares>
    <period>100000</period>
    <quota>75000</quota>
  </cputune>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='vms/web-1_disk'/>
      <target dev='vda' bus='virtio'/>
      <serial>abc</serial>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source pool='data' volume='web-1'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='fa:16:3e:00:00:01'/>
      <source bridge='br-int'/>
      <target dev='tap1'/>
      <model type='virtio'/>
      <mtu size='1450'/>
      <vlan><tag id='42'/></vlan>
    </interface>
    <interface type='network'>
      <mac address='fa:16:3e:00:00:02'/>
      <source network='default' bridge='virbr0'/>
      <link state='down'/>
    </interface>
    <graphics type='spice' port='5901'/>
    <graphics type='vnc' port='5900' autoport='yes'/>
  </devices>
</domain>
"#;

fn facts(xml: &str) -> Facts {
    Facts {
        xml: xml.to_owned(),
        state: (1, 1),
        ..Facts::default()
    }
}

/// A domain that has what every domain has, and this.
fn domain(inside: &str) -> Facts {
    facts(&format!(
        "<domain type='qemu'><name>web</name><uuid>{UUID}</uuid>{inside}</domain>"
    ))
}

fn made(facts: &Facts) -> Value {
    object(facts).unwrap().into()
}

#[test]
fn the_xml_says_whose_it_is() {
    let whose = |xml| super::whose(xml).map(|it| (it.name, it.run));
    let runs = "<domain type='kvm' id='3'><name> a &lt; b</name></domain>";
    assert_eq!(whose(runs), Some((" a < b".to_owned(), Some(3))));
    let stopped = "<domain type='kvm'><name>web</name></domain>";
    assert_eq!(whose(stopped), Some(("web".to_owned(), None)));
    assert_eq!(whose("<domain"), None);
    assert_eq!(whose("<domain/>"), None);
}

#[test]
fn a_domain_has_the_properties_that_its_xml_says() {
    let mut facts = facts(NOVA);
    facts.autostart = true;
    facts.persistent = true;
    facts.pid = Some(4711);
    facts.booted = Some(1_523_467_148_120);
    facts.modified = Some(1_523_467_100);
    facts.stats = BTreeMap::from([
        ("block.count".to_owned(), json!(2)),
        ("block.0.name".to_owned(), json!("vdb")),
        ("block.0.capacity".to_owned(), json!(1_610_612_736u64)),
        ("block.1.name".to_owned(), json!("vda")),
        ("block.1.capacity".to_owned(), json!(21_474_836_480u64)),
    ]);
    facts.addresses = vec![
        ("FA:16:3E:00:00:02".to_owned(), "192.168.122.7".to_owned()),
        ("fa:16:3e:00:00:02".to_owned(), "fd00::7".to_owned()),
    ];
    let vm = made(&facts);
    assert_eq!(
        vm,
        json!({
            "zonename": "instance-0000002a",
            "autoboot": true,
            "brand": "kvm",
            "cpu_shares": 2048,
            "cpu_cap": 150,
            "max_physical_memory": 4096,
            "alias": "web & more",
            "ram": 2048,
            "vcpus": 2,
            "max_vcpus": 4,
            "vnc_port": 5900,
            "disks": [
                {"name": "sda", "media": "cdrom", "model": "sata", "format": "raw", "readonly": true},
                {"name": "vda", "path": "rbd:vms/web-1_disk", "boot": true, "model": "virtio", "media": "disk",
                 "size": 20480, "format": "raw", "serial": "abc"},
                {"name": "vdb", "path": "data/web-1", "model": "virtio", "media": "disk", "size": 1536,
                 "format": "qcow2"},
            ],
            "nics": [
                {"interface": "net0", "mac": "fa:16:3e:00:00:01", "vlan_id": 42, "model": "virtio", "mtu": 1450,
                 "type": "bridge", "bridge": "br-int", "device": "tap1", "link": "up"},
                {"interface": "net1", "mac": "fa:16:3e:00:00:02", "ip": "192.168.122.7",
                 "ips": ["192.168.122.7", "fd00::7"], "type": "network", "network": "default",
                 "bridge": "virbr0", "link": "down"},
            ],
            "hvm": true,
            "persistent": true,
            "managed_save": false,
            "uuid": UUID,
            "pid": 4711,
            "boot_timestamp": "2018-04-11T17:19:08.120Z",
            "customer_metadata": {"user-script": "#!/bin/sh\necho a <b"},
            "tags": {"role": "web", "replicas": 3, "canary": true, "odd": "many"},
            "nova": {
                "name": "web-1", "creation_time": "2024-05-01 10:00:00", "package_version": "26.2.1",
                "flavor": "m1.small", "flavor_memory": "2048", "flavor_disk": "20", "flavor_swap": "0",
                "flavor_ephemeral": "0", "flavor_vcpus": "2", "user": "alice", "user_uuid": "u-1",
                "project": "shop", "project_uuid": "p-1", "root_type": "image", "root_uuid": "i-1",
            },
            "quota": 20,
            "snapshots": [],
            "last_modified": "2018-04-11T17:18:20.000Z",
            "zone_state": "running",
            "state": "running",
            "state_reason": "booted",
            "domain.xml": NOVA.trim_end(),
        })
    );
}

#[test]
fn every_property_of_a_domain_is_in_the_table() {
    let vm = object(&facts(NOVA)).unwrap();
    for (name, value) in &vm {
        let row = property::property(name).unwrap_or_else(|| panic!("{name} has no row"));
        if let property::Kind::Objects(columns) = row.kind {
            for member in value
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|it| it.as_object().unwrap())
            {
                let known = columns.iter().any(|column| column.name == member.0);
                assert!(known, "{name}.*.{} has no row", member.0);
            }
        }
    }
}

#[test]
fn a_domain_with_nothing_but_a_name_is_a_vm() {
    let vm = made(&domain(""));
    assert_eq!(vm["alias"], "web");
    assert_eq!(vm["brand"], "qemu");
    assert_eq!(vm["nics"], json!([]));
    for absent in [
        "ram", "vcpus", "quota", "vnc_port", "nova", "cpu_cap", "pid",
    ] {
        assert!(vm.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn what_is_no_domain_is_refused() {
    for xml in [
        "",
        "<domain>",
        "<domain/>",
        "<domain><name>a</name><uuid>no</uuid></domain>",
    ] {
        assert!(
            object(&facts(xml)).unwrap_err().starts_with("domain XML: "),
            "{xml}"
        );
    }
}

#[test]
fn each_state_of_libvirt_has_a_word_and_its_reasons_too() {
    let words = |number, reason| {
        let known = state(number, reason);
        (known.state, known.reason)
    };
    assert_eq!(words(1, 0), ("running", None));
    assert_eq!(words(1, 5), ("running", Some("unpaused")));
    assert_eq!(words(2, 0), ("running", None));
    assert_eq!(words(3, 1), ("paused", Some("user")));
    assert_eq!(words(3, 5), ("paused", Some("io_error")));
    assert_eq!(words(4, 1), ("shutting_down", Some("user")));
    assert_eq!(words(5, 1), ("stopped", Some("shutdown")));
    assert_eq!(words(5, 3), ("stopped", Some("crashed")));
    assert_eq!(words(6, 1), ("crashed", Some("panicked")));
    assert_eq!(words(7, 0), ("suspended", None));
    assert_eq!(words(99, 1), ("unknown", None));
    assert_eq!(words(1, 99), ("running", None));
    assert_eq!(words(-1, -1), ("unknown", None));
}

#[test]
fn a_stopped_domain_says_how_it_ended() {
    let mut facts = domain("");
    facts.state = (5, 3);
    assert_eq!(made(&facts)["exit_reason"], "crashed");
    facts.state = (1, 1);
    assert!(made(&facts).get("exit_reason").is_none());
}

#[test]
fn the_cap_is_the_global_quota_or_that_of_each_cpu_times_their_number() {
    let cap = |tune: &str| {
        let xml = format!("<vcpu>4</vcpu><cputune>{tune}</cputune>");
        made(&domain(&xml)).get("cpu_cap").cloned()
    };
    let global = "<global_period>50000</global_period><global_quota>100000</global_quota>";
    assert_eq!(cap(global), Some(json!(200)));
    let each = "<period>100000</period><quota>50000</quota>";
    assert_eq!(cap(each), Some(json!(200)));
    assert_eq!(
        cap(&format!("{each}<global_quota>30000</global_quota>")),
        Some(json!(30))
    );
    assert_eq!(cap("<quota>-1</quota>"), None);
    assert_eq!(cap("<period>0</period><quota>5</quota>"), None);
    assert_eq!(cap(""), None);
}

#[test]
fn memory_is_shown_in_mib_whatever_its_unit() {
    let memory = |text: &str| made(&domain(text))["max_physical_memory"].clone();
    assert_eq!(memory("<memory>65536</memory>"), 64);
    assert_eq!(memory("<memory unit='MiB'>64</memory>"), 64);
    assert_eq!(memory("<memory unit='T'>1</memory>"), 1_048_576);
    assert_eq!(memory("<memory unit='KiB'>512</memory>"), 0.5);
}

#[test]
fn the_balloon_of_a_running_domain_is_its_ram() {
    let mut facts = domain("<memory>131072</memory><currentMemory>131072</currentMemory>");
    facts
        .stats
        .insert("balloon.current".to_owned(), json!(65536));
    assert_eq!(made(&facts)["ram"], 64);
    facts.state = (5, 1);
    assert_eq!(made(&facts)["ram"], 128);
}

#[test]
fn the_disk_that_is_booted_from_gives_the_quota() {
    let disk = |name: &str, media: &str, more: &str| {
        format!("<disk device='{media}'><target dev='{name}'/>{more}</disk>")
    };
    let boots = |os: &str, disks: &[String]| {
        let devices = disks.concat();
        let vm = made(&domain(&format!(
            "<os>{os}</os><devices>{devices}</devices>"
        )));
        let boot = vm["disks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|disk| disk["boot"] == true);
        boot.map(|disk| disk["name"].as_str().unwrap().to_owned())
    };
    let both = [disk("sda", "cdrom", ""), disk("vda", "disk", "")];
    assert_eq!(boots("", &both).as_deref(), Some("vda"));
    assert_eq!(
        boots("<boot dev='cdrom'/><boot dev='hd'/>", &both).as_deref(),
        Some("sda")
    );
    assert_eq!(
        boots("<boot dev='network'/>", &both).as_deref(),
        Some("vda")
    );
    let ordered = [
        disk("vda", "disk", "<boot order='2'/>"),
        disk("vdb", "disk", "<boot order='1'/>"),
    ];
    assert_eq!(boots("", &ordered).as_deref(), Some("vdb"));
    assert_eq!(boots("", &[disk("sda", "cdrom", "")]), None);
}

#[test]
fn snapshots_come_newest_first_and_what_is_none_is_left_out() {
    let snapshot = |name: &str, created: u64| {
        format!(
            "<domainsnapshot><name>{name}</name><state>shutoff</state>\
             <creationTime>{created}</creationTime></domainsnapshot>"
        )
    };
    let mut facts = domain("");
    facts.snapshots = vec![snapshot("a", 10), snapshot("b", 20), "<broken".to_owned()];
    assert_eq!(
        made(&facts)["snapshots"],
        json!([
            {"name": "b", "created_at": "1970-01-01T00:00:20.000Z", "state": "shutoff"},
            {"name": "a", "created_at": "1970-01-01T00:00:10.000Z", "state": "shutoff"},
        ])
    );
}

#[test]
fn a_time_that_no_timestamp_can_name_is_left_out() {
    let snapshot = |created: u64| {
        format!(
            "<domainsnapshot><name>a</name><creationTime>{created}</creationTime></domainsnapshot>"
        )
    };
    let mut facts = domain("");
    facts.snapshots = vec![snapshot(999_999_999_999), snapshot(u64::MAX)];
    facts.modified = Some(u64::MAX);
    let vm = made(&facts);
    assert_eq!(vm["snapshots"], json!([]));
    assert_eq!(vm.get("last_modified"), None);
}

#[test]
fn a_nic_of_a_network_is_one_whatever_libvirt_has_made_of_it() {
    let nic = |kind: &str, of_host: &str| {
        format!(
            "<devices><interface type='{kind}'><mac address='52:54:00:00:00:01'/>\
             <source network='lan'{of_host}/></interface></devices>"
        )
    };
    let defined = made(&domain(&nic("network", "")));
    let running = made(&domain(&nic("bridge", " portid='7' bridge='br0'")));
    assert_eq!(running["nics"][0]["type"], "network");
    assert_eq!(running["nics"][0]["bridge"], "br0");
    let (running, defined) = (running.as_object().unwrap(), defined.as_object().unwrap());
    assert_eq!(drift::join(running.clone(), defined)["drift"], json!([]));
}

#[test]
fn metadata_of_others_is_not_taken_for_ours() {
    let foreign = "<metadata><vm xmlns='urn:other'><tag name='a'>b</tag></vm></metadata>";
    let vm = made(&domain(foreign));
    assert_eq!(vm["tags"], json!({}));
    assert!(vm.get("nova").is_none());
}
