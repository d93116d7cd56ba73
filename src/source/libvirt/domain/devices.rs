//! The devices of a domain: nics, disks, its display.

use std::collections::BTreeMap;

use roxmltree::Node;
use serde_json::{Value, json};

use super::{child, children, quotient};
use crate::vm::Object;

/// The network interfaces, in the order of the XML, which is how the guest finds them. They are called
/// net0, net1, … as on SmartOS: the names that libvirt gives (`vnet3`) are others at each start.
pub(super) fn nics(devices: Option<Node<'_, '_>>, addresses: &[(String, String)]) -> Vec<Value> {
    let interfaces = devices.into_iter().flat_map(|it| children(it, "interface"));
    let nic = |(number, nic): (usize, Node<'_, '_>)| {
        let attribute = |element, name| child(nic, element)?.attribute(name);
        let mut object = json!({"interface": format!("net{number}")});
        let mut put = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                object[name] = value.into();
            }
        };
        let mac = attribute("mac", "address");
        put("mac", mac);
        put("type", kind(nic));
        put("model", attribute("model", "type"));
        put("network", attribute("source", "network"));
        put("bridge", attribute("source", "bridge"));
        put("device", attribute("target", "dev"));
        put("link", Some(attribute("link", "state").unwrap_or("up")));
        let known: Vec<&str> = (addresses.iter())
            .filter(|(of, _)| mac.is_some_and(|mac| mac.eq_ignore_ascii_case(of)))
            .map(|(_, address)| address.as_str())
            .collect();
        put("ip", known.first().copied());
        if !known.is_empty() {
            object["ips"] = json!(known);
        }
        let number = |text: Option<&str>| text?.parse::<u64>().ok();
        if let Some(mtu) = number(attribute("mtu", "size")) {
            object["mtu"] = mtu.into();
        }
        if let Some(vlan) = child(nic, "vlan").and_then(|vlan| child(vlan, "tag"))
            && let Some(id) = number(vlan.attribute("id"))
        {
            object["vlan_id"] = id.into();
        }
        if let Some(order) = number(attribute("boot", "order")) {
            object["boot_order"] = order.into();
        }
        object
    };
    interfaces.enumerate().map(nic).collect()
}

/// What an interface is connected to. While it runs, libvirt shows what it has made of a network that is forwarded to a
/// bridge or device of the host, with the network beside it.
pub(in super::super) fn kind<'a>(interface: Node<'a, '_>) -> Option<&'a str> {
    let source = child(interface, "source");
    match source.is_some_and(|source| source.has_attribute("network")) {
        true => Some("network"),
        false => interface.attribute("type"),
    }
}

/// A disk, and what else is made of it.
pub(super) struct Disk {
    pub(super) object: Object,
    /// It is the one that the domain boots from.
    pub(super) boot: bool,
    /// In bytes, if libvirt knows it.
    pub(super) capacity: Option<u64>,
}

pub(super) fn disks(
    domain: Node<'_, '_>,
    devices: Option<Node<'_, '_>>,
    stats: &BTreeMap<String, Value>,
) -> Vec<Disk> {
    let mut disks: Vec<Disk> = (devices.into_iter())
        .flat_map(|devices| children(devices, "disk"))
        .map(|node| disk(node, stats))
        .collect();
    if let Some(first) = boots_first(domain, &disks) {
        disks[first].boot = true;
        disks[first].object.insert("boot".to_owned(), true.into());
    }
    disks
}

fn disk(node: Node<'_, '_>, stats: &BTreeMap<String, Value>) -> Disk {
    let attribute = |element, name| child(node, element)?.attribute(name);
    let target = attribute("target", "dev");
    let mut object = Object::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    };
    put("name", target.map(Value::from));
    put(
        "path",
        child(node, "source").and_then(path).map(Value::from),
    );
    put("model", attribute("target", "bus").map(Value::from));
    put(
        "media",
        Some(node.attribute("device").unwrap_or("disk").into()),
    );
    put("format", attribute("driver", "type").map(Value::from));
    let order = attribute("boot", "order").and_then(|order| order.parse::<u64>().ok());
    put("boot_order", order.map(Value::from));
    put("readonly", child(node, "readonly").map(|_| true.into()));
    put(
        "serial",
        child(node, "serial").and_then(|serial| Some(serial.text()?.into())),
    );
    let capacity = target.and_then(|target| capacity(target, stats));
    put("size", capacity.map(|bytes| quotient(bytes, 20)));
    Disk {
        object,
        boot: false,
        capacity,
    }
}

/// Where a disk's bytes are: a file, a device, `pool/volume`, or `protocol:name`.
fn path(source: Node<'_, '_>) -> Option<String> {
    let attribute = |name| source.attribute(name).map(str::to_owned);
    let joined = |first, between, second| {
        Some(format!(
            "{}{between}{}",
            source.attribute(first)?,
            source.attribute(second)?
        ))
    };
    attribute("file")
        .or_else(|| attribute("dev"))
        .or_else(|| attribute("dir"))
        .or_else(|| joined("pool", "/", "volume"))
        .or_else(|| joined("protocol", ":", "name"))
}

fn capacity(target: &str, stats: &BTreeMap<String, Value>) -> Option<u64> {
    let count = stats.get("block.count")?.as_u64()?;
    let block = (0..count).find(|block| {
        stats
            .get(&format!("block.{block}.name"))
            .is_some_and(|it| it == target)
    })?;
    stats.get(&format!("block.{block}.capacity"))?.as_u64()
}

/// The disk that is booted from: the first in the order of the devices, else the first of the kind
/// that `<os>` names first, else the first that is no removable medium.
fn boots_first(domain: Node<'_, '_>, disks: &[Disk]) -> Option<usize> {
    let order = |disk: &Disk| disk.object.get("boot_order").and_then(Value::as_u64);
    let ordered = (0..disks.len()).filter_map(|at| Some((order(&disks[at])?, at)));
    if let Some((_, first)) = ordered.min() {
        return Some(first);
    }
    let of_media = |media: &str| disks.iter().position(|disk| disk.object["media"] == media);
    let os = child(domain, "os");
    let boots = os.into_iter().flat_map(|os| children(os, "boot"));
    let named = boots.filter_map(|boot| match boot.attribute("dev")? {
        "hd" => of_media("disk"),
        "cdrom" => of_media("cdrom"),
        "fd" => of_media("floppy"),
        _ => None,
    });
    named.chain(of_media("disk")).next()
}

/// The port of the VNC display, while there is one.
pub(super) fn vnc_port(devices: Option<Node<'_, '_>>) -> Option<Value> {
    let graphics = children(devices?, "graphics").find(|it| it.attribute("type") == Some("vnc"))?;
    // A stopped domain whose port is chosen at its start has -1.
    let port: u16 = graphics.attribute("port")?.parse().ok()?;
    (port > 0).then(|| port.into())
}
