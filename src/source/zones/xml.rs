//! A zone's XML file, as zonecfg writes it, read into the members of the VM object.
//!
//! Pure: it gets bytes and gives members. A value that cannot be converted is left out and
//! named in [`Zone::warnings`]; the rest of the zone is still shown. The file is refused as a
//! whole only when it is not the XML of a zone.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::Value;

use super::units::{self, MIB};
use crate::vm::Object;

/// What the XML says about a zone.
#[derive(Debug, Default)]
pub struct Zone {
    /// The members of the VM object that come from here. `zonename` and `brand` are always there.
    pub object: Object,
    /// The attribute `transition`, from which `state` is computed.
    pub transition: Option<String>,
    /// Whether the zone says that it is being provisioned.
    pub provisioning: bool,
    /// Whether the zone says that its provisioning failed.
    pub failed: bool,
    /// The properties whose values were left out, and why.
    pub warnings: Vec<String>,
}

/// Why a file is not the XML of a zone. The text goes after the file's name.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    /// Binary content.
    #[error("not UTF-8: {0}")]
    NotUtf8(#[from] std::str::Utf8Error),
    /// Entities can make a small file grow without bounds; no zone needs any.
    #[error("its DOCTYPE declares entities or elements; only a reference to the DTD is accepted")]
    Declarations,
    /// It ends too early, or is something else.
    #[error("not XML: {0}")]
    Syntax(#[from] roxmltree::Error),
    /// Its root element is another one.
    #[error("its root is <{0}> and not <zone>")]
    NotAZone(String),
    /// The zone lacks what every zone has.
    #[error("its <zone> has no {0}")]
    Lacks(&'static str),
}

/// How the text of an XML attribute becomes a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conversion {
    Text,
    Base64,
    Bool,
    Number,
    Mebibytes,
    List,
    Numbers,
}
use Conversion::{Base64, Bool, List, Mebibytes, Number, Numbers, Text};

/// The name in the XML, the property, and the conversion between them.
pub(super) type Row = (&'static str, &'static str, Conversion);

/// XML attributes of `<zone>`. `zonepath`, `ip-type` and `debugid` are not read from here.
pub(super) const ZONE: &[Row] = &[
    ("name", "zonename", Text),
    ("brand", "brand", Text),
    ("autoboot", "autoboot", Bool),
    ("limitpriv", "limit_priv", Text),
    ("fs-allowed", "fs_allowed", Text),
];

/// `<attr name="…" value="…"/>`.
pub(super) const ATTRS: &[Row] = &[
    ("alias", "alias", Base64),
    ("app-svc-dependent", "app_svc_dependent", Bool),
    ("archive-on-delete", "archive_on_delete", Bool),
    ("bhyve-extra-opts", "bhyve_extra_opts", Text),
    ("billing-id", "billing_id", Text),
    ("boot", "boot", Text),
    ("bootrom", "bootrom", Text),
    ("com1", "com1", Text),
    ("com2", "com2", Text),
    ("cpu-type", "cpu_type", Text),
    ("create-timestamp", "create_timestamp", Text),
    ("dataset-uuid", "image_uuid", Text),
    ("disk-driver", "disk_driver", Text),
    ("dns-domain", "dns_domain", Text),
    ("do-not-inventory", "do_not_inventory", Bool),
    ("docker", "docker", Bool),
    ("firewall-enabled", "firewall_enabled", Bool),
    ("flexible-disk-size", "flexible_disk_size", Number),
    ("hostname", "hostname", Text),
    ("init-name", "init_name", Text),
    (
        "internal-metadata-namespaces",
        "internal_metadata_namespaces",
        List,
    ),
    ("kernel-version", "kernel_version", Text),
    ("maintain-resolvers", "maintain_resolvers", Bool),
    ("nic-driver", "nic_driver", Text),
    ("owner-uuid", "owner_uuid", Text),
    ("package-name", "package_name", Text),
    ("package-version", "package_version", Text),
    ("qemu-extra-opts", "qemu_extra_opts", Base64),
    ("qemu-opts", "qemu_opts", Base64),
    ("ram", "ram", Number),
    ("resolvers", "resolvers", List),
    ("restart-init", "restart_init", Bool),
    ("spice-opts", "spice_opts", Base64),
    ("spice-password", "spice_password", Base64),
    ("spice-port", "spice_port", Number),
    ("tmpfs", "tmpfs", Number),
    ("vcpus", "vcpus", Number),
    ("vga", "vga", Text),
    ("virtio-txburst", "virtio_txburst", Number),
    ("virtio-txtimer", "virtio_txtimer", Number),
    ("vm-version", "v", Number),
    ("vnc-password", "vnc_password", Base64),
    ("vnc-port", "vnc_port", Number),
    ("zlog-max-size", "zlog_max_size", Number),
    ("zlog-mode", "zlog_mode", Text),
    ("zlog-name", "zlog_name", Text),
];

/// `<rctl name="…"><rctl-value priv="privileged" limit="…" action="deny"/></rctl>`.
pub(super) const DENYING: &[Row] = &[
    ("zone.cpu-cap", "cpu_cap", Number),
    ("zone.max-locked-memory", "max_locked_memory", Mebibytes),
    ("zone.max-lwps", "max_lwps", Number),
    ("zone.max-msg-ids", "max_msg_ids", Number),
    ("zone.max-physical-memory", "max_physical_memory", Mebibytes),
    ("zone.max-sem-ids", "max_sem_ids", Number),
    ("zone.max-shm-ids", "max_shm_ids", Number),
    ("zone.max-shm-memory", "max_shm_memory", Mebibytes),
    ("zone.max-swap", "max_swap", Mebibytes),
];

/// The same with `action="none"`: shares and priorities deny nothing.
pub(super) const SHARING: &[Row] = &[
    ("zone.cpu-shares", "cpu_shares", Number),
    ("zone.zfs-io-priority", "zfs_io_priority", Number),
];

/// XML attributes of `<network>`.
pub(super) const NETWORK: &[Row] = &[
    ("physical", "interface", Text),
    ("mac-addr", "mac", Text),
    ("vlan-id", "vlan_id", Number),
    ("global-nic", "nic_tag", Text),
];

/// `<net-attr name="…" value="…"/>` in a `<network>`.
pub(super) const NIC: &[Row] = &[
    ("allow_dhcp_spoofing", "allow_dhcp_spoofing", Bool),
    ("allow_ip_spoofing", "allow_ip_spoofing", Bool),
    ("allow_mac_spoofing", "allow_mac_spoofing", Bool),
    ("allow_restricted_traffic", "allow_restricted_traffic", Bool),
    ("allow_unfiltered_promisc", "allow_unfiltered_promisc", Bool),
    ("allowed_dhcp_cids", "allowed_dhcp_cids", List),
    ("allowed_ips", "allowed_ips", List),
    ("blocked_outgoing_ports", "blocked_outgoing_ports", Numbers),
    ("dhcp_server", "dhcp_server", Bool),
    ("gateway", "gateway", Text),
    ("gateways", "gateways", List),
    ("ip", "ip", Text),
    ("ips", "ips", List),
    ("model", "model", Text),
    ("mtu", "mtu", Number),
    ("netmask", "netmask", Text),
    ("network_uuid", "network_uuid", Text),
    ("primary", "primary", Bool),
    ("vrrp_primary_ip", "vrrp_primary_ip", Text),
    ("vrrp_vrid", "vrrp_vrid", Number),
];

/// XML attributes of `<device>`.
pub(super) const DEVICE: &[Row] = &[("match", "path", Text)];

/// `<net-attr …/>` in a `<device>` that is a disk. `size` and `image-name` are out of date
/// wherever they stand.
pub(super) const DISK: &[Row] = &[
    ("boot", "boot", Bool),
    ("guest-block-size", "guest_block_size", Text),
    ("image-size", "image_size", Number),
    ("image-uuid", "image_uuid", Text),
    ("media", "media", Text),
    ("model", "model", Text),
    ("notrim", "notrim", Bool),
    ("pci-slot", "pci_slot", Text),
    ("uuid", "uuid", Text),
];

/// `<net-attr …/>` in a `<device>` that is passed through.
pub(super) const PCI: &[Row] = &[("pci-slot", "pci_slot", Text)];

/// XML attributes of `<filesystem>`.
pub(super) const FILESYSTEM: &[Row] = &[
    ("special", "source", Text),
    ("raw", "raw", Text),
    ("directory", "target", Text),
    ("type", "type", Text),
];

/// A zone has some hundreds of nodes. More in a file of the size that is read at all is no zone,
/// and would cost memory.
const MOST_NODES: u32 = 100_000;

/// Node takes base64 with and without its padding, so both are found in the field.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Reads the XML of a zone.
///
/// # Errors
/// When the bytes are not the XML of a zone.
pub fn parse(bytes: &[u8]) -> Result<Zone, XmlError> {
    let document = document(bytes)?;
    let mut zone = Zone::default();
    zone.read(document.root_element());
    Ok(zone)
}

/// The XML of a zone as a tree, whose root is a `<zone>` with what every zone has.
pub(super) fn document(bytes: &[u8]) -> Result<Document<'_>, XmlError> {
    let text = std::str::from_utf8(bytes)?;
    if declares(text) {
        return Err(XmlError::Declarations);
    }
    let options = ParsingOptions {
        allow_dtd: true,
        nodes_limit: MOST_NODES,
        entity_resolver: None,
    };
    let document = Document::parse_with_options(text, options)?;
    let root = document.root_element();
    if root.tag_name().name() != "zone" {
        return Err(XmlError::NotAZone(root.tag_name().name().to_owned()));
    }
    for required in ["name", "brand"] {
        if root.attribute(required).is_none_or(str::is_empty) {
            return Err(XmlError::Lacks(required));
        }
    }
    Ok(document)
}

impl Zone {
    fn read(&mut self, root: Node<'_, '_>) {
        self.object
            .insert("firewall_enabled".to_owned(), Value::Bool(false));
        self.object
            .insert("resolvers".to_owned(), Value::Array(vec![]));
        for &row in ZONE {
            if let Some(text) = root.attribute(row.0) {
                self.top_level(row, text);
            }
        }
        let (mut nics, mut disks, mut pci_devices) = (vec![], vec![], vec![]);
        let (mut filesystems, mut datasets) = (vec![], Vec::<Value>::new());
        for node in root.children().filter(Node::is_element) {
            match node.tag_name().name() {
                "attr" => self.attr(node),
                "rctl" => self.rctl(node),
                "network" => nics.push(self.element(node, NETWORK, NIC)),
                "device" if is_passed_through(node) => {
                    pci_devices.push(self.element(node, DEVICE, PCI));
                }
                "device" => disks.push(self.element(node, DEVICE, DISK)),
                "filesystem" => filesystems.push(self.filesystem(node)),
                "dataset" => datasets.extend(node.attribute("name").map(Value::from)),
                _ => {}
            }
        }
        nics.sort_by_key(|nic| order(text_of(nic, "interface"), "t"));
        disks.sort_by_key(|disk| order(text_of(disk, "path"), "disk"));
        self.object.insert("nics".to_owned(), nics.into());
        for (property, list) in [
            ("disks", Value::from(disks)),
            ("pci_devices", pci_devices.into()),
            ("filesystems", filesystems.into()),
            ("datasets", datasets.into()),
        ] {
            if list != Value::Array(vec![]) {
                self.object.insert(property.to_owned(), list);
            }
        }
    }

    fn attr(&mut self, node: Node<'_, '_>) {
        let (Some(name), Some(text)) = (node.attribute("name"), node.attribute("value")) else {
            return;
        };
        match name {
            "transition" => self.transition = Some(text.to_owned()),
            "provisioning" => self.provisioning = text == "true",
            "failed" => self.failed |= text == "true",
            // A kvm zone's own autoboot stays false: another daemon boots such VMs.
            "vm-autoboot" if self.object.get("brand").is_some_and(|brand| brand == "kvm") => {
                self.top_level(("vm-autoboot", "autoboot", Bool), text);
            }
            _ => {
                if let Some(row) = find(ATTRS, name) {
                    self.top_level(row, text);
                }
            }
        }
    }

    fn rctl(&mut self, node: Node<'_, '_>) {
        let name = node.attribute("name").unwrap_or("");
        let (row, action) = match (find(DENYING, name), find(SHARING, name)) {
            (Some(row), _) => (row, "deny"),
            (None, Some(row)) => (row, "none"),
            (None, None) => return,
        };
        let limit = elements(node, "rctl-value")
            .find(|value| {
                value.attribute("priv") == Some("privileged")
                    && value.attribute("action") == Some(action)
            })
            .and_then(|value| value.attribute("limit"));
        if let Some(limit) = limit {
            self.top_level(row, limit);
        }
    }

    fn filesystem(&mut self, node: Node<'_, '_>) -> Object {
        let mut filesystem = Object::new();
        self.attributes(node, FILESYSTEM, &mut filesystem);
        let options: Vec<Value> = elements(node, "fsoption")
            .filter_map(|option| option.attribute("name").map(Value::from))
            .collect();
        if !options.is_empty() {
            filesystem.insert("options".to_owned(), Value::Array(options));
        }
        filesystem
    }

    /// A nic or a device: its XML attributes and its net-attrs.
    fn element(&mut self, node: Node<'_, '_>, rows: &[Row], net_attrs: &[Row]) -> Object {
        let mut members = Object::new();
        self.attributes(node, rows, &mut members);
        for net_attr in elements(node, "net-attr") {
            let row = net_attr
                .attribute("name")
                .and_then(|name| find(net_attrs, name));
            if let (Some(row), Some(text)) = (row, net_attr.attribute("value")) {
                insert(row, text, &mut members, &mut self.warnings);
            }
        }
        members
    }

    fn attributes(&mut self, node: Node<'_, '_>, rows: &[Row], members: &mut Object) {
        for &row in rows {
            if let Some(text) = node.attribute(row.0) {
                insert(row, text, members, &mut self.warnings);
            }
        }
    }

    fn top_level(&mut self, row: Row, text: &str) {
        insert(row, text, &mut self.object, &mut self.warnings);
    }
}

fn insert(
    (_, property, conversion): Row,
    text: &str,
    members: &mut Object,
    warnings: &mut Vec<String>,
) {
    match conversion.value(text) {
        Some(value) => {
            members.insert(property.to_owned(), value);
        }
        // The text itself may be a password.
        None => warnings.push(format!("{property} is not {}", conversion.wants())),
    }
}

impl Conversion {
    fn value(self, text: &str) -> Option<Value> {
        match self {
            Text => Some(Value::from(text)),
            Base64 => {
                let bytes = BASE64.decode(text.trim()).ok()?;
                String::from_utf8(bytes).ok().map(Value::from)
            }
            Bool => match text {
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                _ => None,
            },
            Number => number(text).map(Value::Number),
            Mebibytes => Some(units::size(text.trim().parse().ok()?, MIB)),
            List => Some(parts(text).map(Value::from).collect()),
            Numbers => parts(text)
                .map(|part| number(part).map(Value::Number))
                .collect(),
        }
    }

    pub(super) fn wants(self) -> &'static str {
        match self {
            Text | List => "text",
            Base64 => "the base64 of a text",
            Bool => "true or false",
            Number => "a number",
            Mebibytes => "a number of bytes",
            Numbers => "a list of numbers",
        }
    }
}

/// A JSON number; whole wherever it is one.
fn number(text: &str) -> Option<serde_json::Number> {
    let text = text.trim();
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    text.parse().ok().and_then(serde_json::Number::from_f64)
}

/// What stands between the commas; nothing for an empty text.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(move |_| !text.is_empty())
}

fn find(rows: &[Row], name: &str) -> Option<Row> {
    rows.iter().find(|row| row.0 == name).copied()
}

pub(super) fn elements<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children()
        .filter(move |child| child.has_tag_name(name))
}

pub(super) fn is_passed_through(device: Node<'_, '_>) -> bool {
    elements(device, "net-attr").any(|net_attr| {
        net_attr.attribute("name") == Some("model")
            && net_attr.attribute("value") == Some("passthru")
    })
}

fn text_of<'a>(element: &'a Object, member: &str) -> Option<&'a str> {
    element.get(member).and_then(Value::as_str)
}

/// Where an element stands in its list: by the number after the last `before` in a text of it.
/// Elements without one keep their order, at the end.
pub(super) fn order(text: Option<&str>, before: &str) -> u64 {
    text.and_then(|text| text.rsplit_once(before))
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(u64::MAX)
}

/// Whether the document type has declarations of its own. Only what can precede the root element
/// is looked at: after it there can be no DOCTYPE.
fn declares(text: &str) -> bool {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = if rest.starts_with("<?") {
            "?>"
        } else if rest.starts_with("<!--") {
            "-->"
        } else {
            break;
        };
        match rest.split_once(end) {
            Some((_, after)) => rest = after.trim_start(),
            None => return false,
        }
    }
    let Some(mut doctype) = rest.strip_prefix("<!DOCTYPE") else {
        return false;
    };
    // A bracket in a quoted name opens nothing.
    while let Some(at) = doctype.find(['[', '>', '"', '\'']) {
        match doctype.as_bytes()[at] {
            b'[' => return true,
            b'>' => return false,
            quote => match doctype[at + 1..].split_once(char::from(quote)) {
                Some((_, after)) => doctype = after,
                None => return false,
            },
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A zone of this brand with these elements.
    fn zone(brand: &str, elements: &str) -> Zone {
        let xml = format!(r#"<zone name="z" brand="{brand}">{elements}</zone>"#);
        parse(xml.as_bytes()).unwrap()
    }

    fn attr(name: &str, value: &str) -> Zone {
        zone(
            "joyent",
            &format!(r#"<attr name="{name}" type="string" value="{value}"/>"#),
        )
    }

    fn refused(xml: &str) -> String {
        parse(xml.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_recorded_zones_load_to_the_objects_that_smartos_makes_of_them() {
        for (xml, expected) in [
            (
                include_str!("../../../tests/data/zones/minimal-joyent.xml"),
                include_str!("../../../tests/data/zones/minimal-joyent.json"),
            ),
            (
                include_str!("../../../tests/data/zones/kvm-disk-sort.xml"),
                include_str!("../../../tests/data/zones/kvm-disk-sort.json"),
            ),
        ] {
            let zone = parse(xml.as_bytes()).unwrap();
            assert_eq!(zone.warnings, Vec::<String>::new());
            let mut expected: Object = serde_json::from_str(expected).unwrap();
            // An artefact of the original, whose value is always null.
            expected.remove("device");
            for (member, value) in &expected {
                assert_eq!(zone.object.get(member), Some(value), "{member}");
            }
        }
    }

    #[test]
    fn every_attr_is_converted_as_its_row_says() {
        for &(name, property, conversion) in ATTRS {
            let (text, expected) = match conversion {
                Conversion::Text => ("a &amp; b", json!("a & b")),
                Conversion::Base64 => ("w6TDtgo=", json!("äö\n")),
                Conversion::Bool => ("true", json!(true)),
                Conversion::Number => ("42", json!(42)),
                Conversion::List => ("a,b", json!(["a", "b"])),
                Conversion::Mebibytes | Conversion::Numbers => panic!("no attr is one"),
            };
            let zone = attr(name, text);
            assert_eq!(zone.object.get(property), Some(&expected), "{name}");
            assert_eq!(zone.warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn every_rctl_is_converted_as_its_row_says() {
        for (rows, action, other) in [(DENYING, "deny", "none"), (SHARING, "none", "deny")] {
            for &(name, property, conversion) in rows {
                let zone = zone(
                    "lx",
                    &format!(
                        r#"<rctl name="{name}">
                        <rctl-value priv="privileged" limit="1" action="{other}"/>
                        <rctl-value priv="basic" limit="2" action="{action}"/>
                        <rctl-value priv="privileged" limit="3145728" action="{action}"/>
                    </rctl>"#
                    ),
                );
                let expected = match conversion {
                    Conversion::Mebibytes => json!(3),
                    _ => json!(3_145_728),
                };
                assert_eq!(zone.object.get(property), Some(&expected), "{name}");
            }
        }
    }

    #[test]
    fn defaults_are_shown_where_the_xml_says_nothing() {
        let zone = zone("joyent", "");
        let expected = json!({"firewall_enabled": false, "resolvers": [], "zonename": "z",
            "brand": "joyent", "nics": []});
        assert_eq!(Value::Object(zone.object), expected);
    }

    #[test]
    fn lists_and_base64_may_be_empty_or_unpadded() {
        assert_eq!(attr("resolvers", "").object["resolvers"], json!([]));
        assert_eq!(attr("alias", "a3ZtNw").object["alias"], "kvm7");
        assert_eq!(attr("alias", "").object["alias"], "");
    }

    #[test]
    fn a_value_of_another_type_is_left_out_and_named() {
        for (name, value, warning) in [
            ("vnc-port", "abc", "vnc_port is not a number"),
            ("ram", "", "ram is not a number"),
            ("ram", "inf", "ram is not a number"),
            ("docker", "TRUE", "docker is not true or false"),
            ("alias", "?", "alias is not the base64 of a text"),
            ("alias", "/w==", "alias is not the base64 of a text"),
        ] {
            let zone = attr(name, value);
            assert_eq!(zone.warnings, [warning]);
            assert_eq!(zone.object.get(warning.split(' ').next().unwrap()), None);
        }
    }

    #[test]
    fn an_unusable_firewall_enabled_leaves_the_default() {
        let zone = attr("firewall-enabled", "yes");
        assert_eq!(zone.object["firewall_enabled"], false);
        assert_eq!(zone.warnings.len(), 1);
    }

    #[test]
    fn autoboot_of_kvm_is_an_attr() {
        let elements = r#"<attr name="vm-autoboot" type="string" value="true"/>"#;
        let autoboot = |brand| {
            let xml =
                format!(r#"<zone name="z" brand="{brand}" autoboot="false">{elements}</zone>"#);
            parse(xml.as_bytes()).unwrap().object["autoboot"].clone()
        };
        assert_eq!(autoboot("kvm"), true);
        assert_eq!(autoboot("bhyve"), false);
    }

    #[test]
    fn what_state_is_computed_from_is_no_member() {
        let zone = zone(
            "joyent",
            r#"<attr name="transition" value="a:b:1"/><attr name="provisioning" value="true"/>
               <attr name="failed" value="false"/>"#,
        );
        assert_eq!(zone.transition.as_deref(), Some("a:b:1"));
        assert!(zone.provisioning && !zone.failed);
        assert_eq!(zone.object.len(), 5);
    }

    #[test]
    fn nics_have_all_their_members_and_the_order_of_their_numbers() {
        let zone = zone(
            "joyent",
            r#"<network physical="net10" mac-addr="c"/>
               <network physical="net2" mac-addr="b" vlan-id="5" global-nic="external">
                 <net-attr name="ips" value="10.0.0.2/24,dhcp"/>
                 <net-attr name="blocked_outgoing_ports" value="25,587"/>
                 <net-attr name="primary" value="true"/>
                 <net-attr name="mtu" value="9000"/>
                 <net-attr name="unknown" value="x"/>
               </network>
               <network physical="odd" mac-addr="d"/>"#,
        );
        let expected = json!([
            {"interface": "net2", "mac": "b", "vlan_id": 5, "nic_tag": "external",
             "ips": ["10.0.0.2/24", "dhcp"], "blocked_outgoing_ports": [25, 587],
             "primary": true, "mtu": 9000},
            {"interface": "net10", "mac": "c"},
            {"interface": "odd", "mac": "d"},
        ]);
        assert_eq!(zone.object["nics"], expected);
    }

    #[test]
    fn a_device_that_is_passed_through_is_no_disk() {
        let zone = zone(
            "bhyve",
            r#"<device match="/dev/ppt0">
                 <net-attr name="model" value="passthru"/><net-attr name="pci-slot" value="0:8:0"/>
               </device>
               <device match="/dev/zvol/rdsk/zones/z-disk1"/>
               <device match="/dev/zvol/rdsk/zones/z-disk0">
                 <net-attr name="guest-block-size" value="4096"/>
                 <net-attr name="image-name" value="old"/><net-attr name="size" value="1"/>
                 <net-attr name="image-size" value="10240"/><net-attr name="notrim" value="true"/>
                 <net-attr name="pci-slot" value="0:4:0"/><net-attr name="uuid" value="u"/>
               </device>"#,
        );
        let pci = json!([{"path": "/dev/ppt0", "pci_slot": "0:8:0"}]);
        assert_eq!(zone.object["pci_devices"], pci);
        let disks = json!([
            {"path": "/dev/zvol/rdsk/zones/z-disk0", "guest_block_size": "4096",
             "image_size": 10240, "notrim": true, "pci_slot": "0:4:0", "uuid": "u"},
            {"path": "/dev/zvol/rdsk/zones/z-disk1"},
        ]);
        assert_eq!(zone.object["disks"], disks);
    }

    #[test]
    fn filesystems_and_datasets_are_listed() {
        let zone = zone(
            "joyent",
            r#"<filesystem special="/a" directory="/b" type="lofs">
                 <fsoption name="ro"/><fsoption name="nodevices"/>
               </filesystem>
               <filesystem special="/c" raw="/r" directory="/d" type="ufs"/>
               <dataset name="zones/z/data"/>"#,
        );
        let filesystems = json!([
            {"source": "/a", "target": "/b", "type": "lofs", "options": ["ro", "nodevices"]},
            {"source": "/c", "raw": "/r", "target": "/d", "type": "ufs"},
        ]);
        assert_eq!(zone.object["filesystems"], filesystems);
        assert_eq!(zone.object["datasets"], json!(["zones/z/data"]));
    }

    #[test]
    fn numbers_are_whole_where_they_can_be() {
        for (text, expected) in [
            ("-3", json!(-3)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.5", json!(1.5)),
            (" 7 ", json!(7)),
        ] {
            assert_eq!(number(text).map(Value::Number), Some(expected));
        }
    }

    #[test]
    fn a_file_that_is_no_zone_is_refused_with_the_reason() {
        assert!(refused("").starts_with("not XML: "));
        assert!(refused("<zone name='z' brand='lx'><attr").starts_with("not XML: "));
        assert_eq!(refused("<domain/>"), "its root is <domain> and not <zone>");
        assert_eq!(refused("<zone brand='lx'/>"), "its <zone> has no name");
        assert_eq!(refused("<zone name='z'/>"), "its <zone> has no brand");
        let binary = parse(b"\x7fELF\xff\xfe").unwrap_err().to_string();
        assert!(binary.starts_with("not UTF-8: "));
    }

    #[test]
    fn an_entity_bomb_is_refused_before_it_is_parsed() {
        let bomb = r#"<?xml version="1.0"?><!-- [ -->
            <!DOCTYPE zone SYSTEM "a[b>c" [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>
            <zone name="&b;" brand="lx"/>"#;
        assert_eq!(
            refused(bomb),
            "its DOCTYPE declares entities or elements; only a reference to the DTD is accepted"
        );
    }

    #[test]
    fn brackets_elsewhere_are_no_declarations() {
        for before in [
            "",
            "\u{feff}<!-- <!DOCTYPE z [ -->",
            "<!DOCTYPE zone SYSTEM 'a[b]'>",
        ] {
            let xml = format!("{before}<zone name='[' brand='lx'><!-- [ --></zone>");
            assert_eq!(parse(xml.as_bytes()).unwrap().object["zonename"], "[");
        }
    }

    #[test]
    fn depth_and_numbers_of_elements_are_bounded() {
        let deep = "<zone name='z' brand='lx'>".repeat(50_000);
        assert!(refused(&deep).starts_with("not XML: "));
        let wide = format!(
            "<zone name='z' brand='lx'>{}</zone>",
            "<a/>".repeat(200_000)
        );
        assert_eq!(refused(&wide), "not XML: nodes limit reached");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_text_between_marks_makes_the_reader_panic(
            pieces in proptest::collection::vec(prop_oneof![
                Just("<!DOCTYPE".to_owned()), Just("<?".to_owned()), Just("?>".to_owned()),
                Just("<!--".to_owned()), Just("-->".to_owned()), Just("[".to_owned()),
                Just("'".to_owned()), Just(">".to_owned()), Just(" ".to_owned()), "\\PC{0,3}",
            ], 0..12)
        ) {
            let _ = parse(pieces.concat().as_bytes());
        }

        #[test]
        fn no_value_makes_the_reader_panic(
            name in proptest::sample::select(ATTRS), value in "[a-zA-Z0-9=,.+-]{0,20}"
        ) {
            attr(name.0, &value);
        }

        #[test]
        fn a_file_that_is_cut_off_is_refused(
            end in 0..include_str!("../../../tests/data/zones/kvm-disk-sort.xml").trim_end().len()
        ) {
            let xml = include_str!("../../../tests/data/zones/kvm-disk-sort.xml");
            prop_assert!(parse(&xml.as_bytes()[..end]).is_err());
        }
    }
}
