use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, json};

use super::*;
use crate::source::zones::units::MIB;
use crate::source::zones::xml::Conversion;

const KVM: &str = include_str!("../../../../../tests/data/zones/kvm-disk-sort.xml");
const MINIMAL: &str = include_str!("../../../../../tests/data/zones/minimal-joyent.xml");

/// A zone with what no table knows, in places where things are changed.
const STRANGE: &str = r#"<?xml version="1.0"?>
<!-- before -->
<zone name='z' zonepath="/zones/z" autoboot="true"
      brand="joyent" strange="&lt;kept&gt;">
	<attr name="hostname" type="string" value='old' note="kept"/>
	<!-- kept --><attr name="unknown" value="kept"/>
	<rctl name="zone.cpu-cap">
		<rctl-value priv="basic" limit="7" action="deny"/>
		<rctl-value priv="privileged" limit="100" action="deny"/>
	</rctl>
	<network physical="net0" mac-addr="aa" allowed-address="kept">
		<net-attr name="ip" value="1.1.1.1"/>
		<net-attr name="mystery" value="kept"/>
	</network>
	<filesystem directory="/opt" special="/x" type="lofs"><fsoption name="ro"/></filesystem>
	<security-flags default="kept"/>
</zone>
<!-- after -->
"#;

fn vm(text: &str) -> Object {
    xml::parse(text.as_bytes()).unwrap().object
}

/// The file after these members of the VM were changed; null removes.
fn changed(text: &str, members: Value) -> String {
    let (old, mut new) = (vm(text), vm(text));
    for (member, value) in members.as_object().unwrap() {
        match value {
            Value::Null => new.remove(member),
            value => new.insert(member.clone(), value.clone()),
        };
    }
    String::from_utf8(edit(text.as_bytes(), &old, &new).unwrap()).unwrap()
}

#[track_caller]
fn check_replaced(text: &str, members: Value, from: &str, to: &str) {
    assert_eq!(text.matches(from).count(), 1);
    assert_eq!(changed(text, members), text.replace(from, to));
}

#[test]
fn an_edit_without_a_difference_gives_the_same_bytes() {
    for text in [KVM, MINIMAL, STRANGE] {
        assert_eq!(changed(text, json!({})), text);
    }
}

#[test]
fn a_value_is_changed_where_it_stands() {
    check_replaced(
        KVM,
        json!({"hostname": "a<b>\"&'\n"}),
        "value=\"kvm7\"",
        "value=\"a&lt;b&gt;&quot;&amp;&apos;&#10;\"",
    );
    check_replaced(KVM, json!({"alias": "kvm8"}), "a3ZtNw==", "a3ZtOA==");
    check_replaced(KVM, json!({"max_lwps": 7}), "limit=\"2000\"", "limit=\"7\"");
    check_replaced(STRANGE, json!({"autoboot": false}), "\"true\"", "\"false\"");
    check_replaced(STRANGE, json!({"hostname": "it's"}), "'old'", "'it&apos;s'");
    check_replaced(
        STRANGE,
        json!({"cpu_cap": 50}),
        "limit=\"100\"",
        "limit=\"50\"",
    );
    check_replaced(
        STRANGE,
        json!({"limit_priv": "default"}),
        "&lt;kept&gt;\"",
        "&lt;kept&gt;\" limitpriv=\"default\"",
    );
}

#[test]
fn the_autoboot_of_a_kvm_zone_is_an_attr_and_its_own_stays_false() {
    let after = changed(KVM, json!({"autoboot": true}));
    assert_eq!(
        after,
        KVM.replace(
            "name=\"vm-autoboot\" type=\"string\" value=\"false\"",
            "name=\"vm-autoboot\" type=\"string\" value=\"true\""
        )
    );
}

#[test]
fn what_is_removed_takes_its_line_along() {
    check_replaced(
        KVM,
        json!({"hostname": null}),
        "  <attr name=\"hostname\" type=\"string\" value=\"kvm7\"/>\n",
        "",
    );
    check_replaced(
        STRANGE,
        json!({"cpu_cap": 0}),
        "\t\t<rctl-value priv=\"privileged\" limit=\"100\" action=\"deny\"/>\n",
        "",
    );
    check_replaced(
        KVM,
        json!({"cpu_shares": null}),
        "  <rctl name=\"zone.cpu-shares\">\n    <rctl-value priv=\"privileged\" limit=\"100\" action=\"none\"/>\n  </rctl>\n",
        "",
    );
}

#[test]
fn what_is_new_follows_its_kind_and_is_indented_like_it() {
    let unknown = "<attr name=\"unknown\" value=\"kept\"/>";
    check_replaced(
        STRANGE,
        json!({"dns_domain": "local"}),
        unknown,
        &format!("{unknown}<attr name=\"dns-domain\" type=\"string\" value=\"local\"/>"),
    );
    let autoboot = "  <attr name=\"vm-autoboot\" type=\"string\" value=\"false\"/>\n";
    check_replaced(
        KVM,
        json!({"dns_domain": "local"}),
        autoboot,
        &format!("{autoboot}  <attr name=\"dns-domain\" type=\"string\" value=\"local\"/>\n"),
    );
    check_replaced(
        STRANGE,
        json!({"max_lwps": 5}),
        "\t</rctl>\n",
        "\t</rctl>\n\t<rctl name=\"zone.max-lwps\">\n\
         \t\t<rctl-value priv=\"privileged\" limit=\"5\" action=\"deny\"/>\n\t</rctl>\n",
    );
}

#[test]
fn a_zone_on_one_line_stays_on_it() {
    let text = r#"<zone name="z" brand="lx"><attr name="ram" value="1"/></zone>"#;
    assert_eq!(
        changed(
            text,
            json!({"vcpus": 2, "nics": [{"mac": "aa", "ip": "1.1.1.1"}]})
        ),
        r#"<zone name="z" brand="lx"><attr name="ram" value="1"/><attr name="vcpus" type="string" value="2"/><network mac-addr="aa"><net-attr name="ip" value="1.1.1.1"/></network></zone>"#
    );
}

#[test]
fn a_zone_without_elements_gets_its_first_ones() {
    let after = changed(MINIMAL, json!({"hostname": "a", "max_lwps": 5, "ram": 7}));
    let expected = MINIMAL.replace(
        "debugid=\"169\"/>",
        "debugid=\"169\">\n  <attr name=\"hostname\" type=\"string\" value=\"a\"/>\n  \
         <attr name=\"ram\" type=\"string\" value=\"7\"/>\n  <rctl name=\"zone.max-lwps\">\n    \
         <rctl-value priv=\"privileged\" limit=\"5\" action=\"deny\"/>\n  </rctl>\n</zone>",
    );
    assert_eq!(after, expected);
    for text in [
        "<zone name=\"z\" brand=\"lx\"></zone>",
        "<zone name=\"z\" brand=\"lx\">\n</zone>",
        "<zone name=\"z\" brand=\"lx\" />",
        "<zone name=\"z\" brand=\"lx\"\n>\n <!-- c -->\n</zone\n>",
    ] {
        let after = changed(text, json!({"hostname": "a"}));
        assert_eq!(vm(&after)["hostname"], "a", "{after}");
    }
}

#[test]
fn elements_are_told_apart_by_their_keys() {
    let nic = json!({"interface": "net0", "mac": "aa", "ip": "2.2.2.2", "primary": true});
    let after = changed(
        STRANGE,
        json!({"nics": [nic, {"interface": "net1", "mac": "bb"}]}),
    );
    assert_eq!(
        after,
        STRANGE.replace(
            "value=\"1.1.1.1\"/>\n\t\t<net-attr name=\"mystery\" value=\"kept\"/>\n\t</network>",
            "value=\"2.2.2.2\"/>\n\t\t<net-attr name=\"mystery\" value=\"kept\"/>\n\
             \t\t<net-attr name=\"primary\" value=\"true\"/>\n\t</network>\n\
             \t<network physical=\"net1\" mac-addr=\"bb\"/>"
        )
    );
    let removed = changed(STRANGE, json!({"nics": []}));
    assert!(!removed.contains("<network"));
    assert!(removed.contains("security-flags"));
}

#[test]
fn options_of_a_filesystem_are_replaced() {
    let mut filesystem = vm(STRANGE)["filesystems"][0].clone();
    filesystem["options"] = json!(["rw", "a&b"]);
    check_replaced(
        STRANGE,
        json!({"filesystems": [filesystem]}),
        "<fsoption name=\"ro\"/>",
        "<fsoption name=\"rw\"/><fsoption name=\"a&amp;b\"/>",
    );
}

#[test]
fn what_is_silent_when_false_is_removed() {
    let text = changed(MINIMAL, json!({"docker": true, "firewall_enabled": true}));
    let after = changed(&text, json!({"docker": false, "firewall_enabled": false}));
    assert!(
        !after.contains("docker") && !after.contains("firewall"),
        "{after}"
    );
    let text = changed(MINIMAL, json!({"restart_init": false}));
    assert!(text.contains("\"restart-init\" type=\"string\" value=\"false\""));
    assert!(!changed(&text, json!({"restart_init": true})).contains("restart"));
}

#[test]
fn a_value_that_xml_cannot_hold_is_refused_by_name() {
    let old = vm(MINIMAL);
    for (property, value, message) in [
        (
            "hostname",
            json!("\u{1}"),
            "hostname holds characters that XML cannot hold",
        ),
        ("hostname", json!(7), "hostname is not text"),
        ("ram", json!("7"), "ram is not a number"),
        ("max_swap", json!(-1), "max_swap is not a number of bytes"),
        ("resolvers", json!(["a,b"]), "resolvers is not text"),
    ] {
        let mut new = old.clone();
        new.insert(property.to_owned(), value);
        let error = edit(MINIMAL.as_bytes(), &old, &new).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_new_zone_is_what_it_was_wanted_to_be() {
    let mut wanted = vm(KVM);
    wanted.insert("zonepath".to_owned(), json!("/zones/x"));
    let text = create("/zones/x", &wanted).unwrap();
    let mut made = xml::parse(&text).unwrap().object;
    made.insert("zonepath".to_owned(), json!("/zones/x"));
    assert_eq!(Value::Object(made), Value::Object(wanted));
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("\" autoboot=\"false\" brand=\"kvm\""),
        "{text}"
    );
}

fn text() -> impl Strategy<Value = Value> {
    "[ -~äß\n\t東]{1,12}".prop_map(Value::from)
}

fn member(row: Row) -> BoxedStrategy<Value> {
    let silent = SILENT.iter().find(|(silent, _)| *silent == row.1);
    match row.2 {
        Conversion::Text | Conversion::Base64 => text().boxed(),
        // One of the two is shown as nothing.
        Conversion::Bool => match silent {
            Some((_, value)) => Just(Value::from(!value)).boxed(),
            None => any::<bool>().prop_map(Value::from).boxed(),
        },
        Conversion::Number => prop_oneof![
            (1_u64..u64::MAX).prop_map(Value::from),
            any::<i64>()
                .prop_filter("a cap of 0 is none", |n| *n != 0)
                .prop_map(Value::from),
            (0.25..1e6_f64).prop_map(|n| json!(n + 0.0625)),
        ]
        .boxed(),
        Conversion::Mebibytes => prop_oneof![
            (1_u64..1 << 40).prop_map(Value::from),
            (1_u64..1 << 40).prop_map(|bytes| crate::source::zones::units::size(bytes, MIB)),
        ]
        .boxed(),
        Conversion::List => {
            proptest::collection::vec("[a-z0-9./&<]{1,6}".prop_map(Value::from), 1..4)
                .prop_map(Value::from)
                .boxed()
        }
        Conversion::Numbers => {
            proptest::collection::vec((1_u64..65536).prop_map(Value::from), 1..4)
                .prop_map(Value::from)
                .boxed()
        }
    }
}

/// Some of these members, with any values.
fn members(rows: Vec<Row>) -> BoxedStrategy<Object> {
    let count = rows.len();
    subsequence(rows, 0..=count)
        .prop_flat_map(|rows| {
            let members: Vec<_> = rows
                .into_iter()
                .map(|row| member(row).prop_map(move |value| (row.1.to_owned(), value)))
                .collect();
            members.prop_map(|members| members.into_iter().collect::<Map<_, _>>())
        })
        .boxed()
}

/// Elements of a list, each with a key of its own, in the order in which they are read.
fn list(kind: &'static Kind, keys: &'static [&'static str]) -> BoxedStrategy<Value> {
    let rows: Vec<Row> = (kind.attributes.iter().chain(kind.net_attrs))
        .copied()
        .filter(|row| row.1 != kind.key.0 && row.1 != "interface" && row.1 != "model")
        .collect();
    subsequence(keys, 0..=keys.len())
        .prop_flat_map(move |keys| {
            let elements: Vec<_> = keys
                .into_iter()
                .map(|key| {
                    members(rows.clone()).prop_map(move |mut element| {
                        element.insert(kind.key.0.to_owned(), json!(key));
                        if kind.property == "nics" {
                            element.insert("interface".to_owned(), json!(format!("net{key}")));
                        }
                        Value::Object(element)
                    })
                })
                .collect();
            elements
        })
        .prop_map(Value::from)
        .boxed()
}

/// Any VM that an XML file may hold.
fn any_vm() -> impl Strategy<Value = Object> {
    let rows: Vec<Row> = (xml::ZONE.iter())
        .chain(xml::ATTRS)
        .chain(xml::DENYING)
        .chain(xml::SHARING)
        .copied()
        .filter(|row| !matches!(row.1, "zonename" | "brand"))
        .collect();
    (
        members(rows),
        list(&NICS, &["1", "2", "3"]),
        list(&DISKS, &["/p/disk0", "/p/disk1", "/p/disk2"]),
        list(&PCI_DEVICES, &["/dev/ppt0", "/dev/ppt1"]),
        list(&FILESYSTEMS, &["/a", "/b"]),
        select(vec!["joyent", "kvm"]),
    )
        .prop_map(|(mut vm, nics, disks, pci, filesystems, brand)| {
            vm.insert("zonename".to_owned(), json!("z"));
            vm.insert("brand".to_owned(), json!(brand));
            // The zone's own is never missing.
            vm.entry("autoboot").or_insert(json!(false));
            vm.entry("firewall_enabled").or_insert(json!(false));
            vm.entry("resolvers").or_insert(json!([]));
            vm.insert("nics".to_owned(), nics);
            for (member, list) in [
                ("disks", disks),
                ("pci_devices", pci),
                ("filesystems", filesystems),
            ] {
                if list != json!([]) {
                    vm.insert(member.to_owned(), list);
                }
            }
            vm
        })
}

/// Lists that are read in the order of the file have no order of their own.
fn unordered(mut vm: Object) -> Value {
    for (member, key) in [("filesystems", "target"), ("pci_devices", "path")] {
        if let Some(list) = vm.get_mut(member).and_then(Value::as_array_mut) {
            list.sort_by_key(|element| element[key].to_string());
        }
    }
    let mut sorted: Vec<_> = vm.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(sorted.into_iter().collect())
}

/// What no table knows, and what nobody may change.
const KEPT: [&str; 4] = [
    "<attr name=\"unknown\" value=\"a &amp; b\" />",
    "<rctl name=\"zone.strange\"><rctl-value priv=\"basic\" limit=\"1\" action=\"deny\"/></rctl>",
    "<!-- a <comment/> -->",
    "<attr name=\"transition\" type='string' value='a:b:1'/>",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_written_is_read_and_what_is_unknown_stays(old in any_vm(), mut new in any_vm()) {
        new.insert("brand".to_owned(), old["brand"].clone());
        let text = String::from_utf8(create("/zones/z", &old).unwrap()).unwrap();
        prop_assert_eq!(unordered(vm(&text)), unordered(old.clone()));
        let close = text.rfind("</zone>").unwrap();
        let text = format!("{}{}{}", &text[..close], KEPT.join("\n"), &text[close..]);
        prop_assert_eq!(unordered(vm(&text)), unordered(old.clone()));
        let same = edit(text.as_bytes(), &old, &old).unwrap();
        prop_assert_eq!(String::from_utf8(same).unwrap(), text.clone());
        let after = String::from_utf8(edit(text.as_bytes(), &old, &new).unwrap()).unwrap();
        prop_assert_eq!(unordered(vm(&after)), unordered(new), "{}", after);
        for kept in KEPT {
            prop_assert!(after.contains(kept), "{}", after);
        }
    }

    #[test]
    fn no_bytes_make_the_editor_panic(bytes in "(<zone name='z' brand='lx'>)?[<>/a-z=\"' \n]{0,60}") {
        let (old, mut new) = (Object::new(), Object::new());
        new.insert("hostname".to_owned(), json!("a"));
        if let Ok(edited) = edit(bytes.as_bytes(), &old, &new) {
            prop_assert!(xml::parse(&edited).is_ok());
        }
    }
}
