//! The XML that libvirt is given for what a VM object says: devices, and whole domains ([`domain`]). Pure.
//!
//! A device that exists is changed by editing the element that libvirt shows of it, so that whatever else is said of
//! it there stays. Text of users is only ever written by `Xml`, which escapes it.

use std::fmt::Write;
use std::ops::Range;

use roxmltree::{Document, Node};
use serde_json::Value;

use super::domain::{child, devices::kind};
use crate::vm::Object;

mod define;

pub use define::{CAP_PERIOD, cap_quota, domain};

/// Where the bytes of a disk are, as far as libvirt can be asked for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or device of libvirt's host.
    Path(String),
    /// A volume of a storage pool.
    Volume {
        /// The name of the pool.
        pool: String,
        /// The name of the volume in it.
        volume: String,
    },
}

/// A new nic as an `<interface>`, of the members `mac`, `type`, `model`, `network`, `bridge`, `link` and `mtu`.
pub fn nic(nic: &Object) -> String {
    let get = |name: &str| nic.get(name).and_then(Value::as_str);
    let mut xml = Xml::default();
    let (kind, source) = connected_to(get("network"), get("bridge"));
    xml.open("interface", &[("type", Some(kind))]);
    if let Some(mac) = get("mac") {
        xml.empty("mac", &[("address", Some(mac))]);
    }
    xml.raw(&source);
    if let Some(model) = get("model") {
        xml.empty("model", &[("type", Some(model))]);
    }
    if let Some(mtu) = nic.get("mtu").and_then(Value::as_u64) {
        xml.empty("mtu", &[("size", Some(&mtu.to_string()))]);
    }
    if get("link") == Some("down") {
        xml.raw(&link("down"));
    }
    xml.close("interface");
    xml.text
}

/// A new disk as a `<disk>`, of the members `name`, `path`, `model`, `media`, `format`, `readonly` and `serial`.
pub fn disk(disk: &Object) -> String {
    bootable(disk, false)
}

/// The same; the guest may be booted from it first.
fn bootable(disk: &Object, first: bool) -> String {
    let get = |name: &str| disk.get(name).and_then(Value::as_str);
    let mut xml = Xml::default();
    let (kind, source) = get("path").map_or(("file", String::new()), medium);
    let media = get("media").unwrap_or("disk");
    xml.open("disk", &[("type", Some(kind)), ("device", Some(media))]);
    // libvirt does not look into images for their format: a guest could write another there.
    let format = get("format").unwrap_or("raw");
    xml.empty("driver", &[("type", Some(format))]);
    xml.raw(&source);
    xml.empty("target", &[("dev", get("name")), ("bus", get("model"))]);
    if disk.get("readonly").and_then(Value::as_bool) == Some(true) {
        xml.empty("readonly", &[]);
    }
    if let Some(serial) = get("serial") {
        xml.element("serial", &[], serial);
    }
    if first {
        xml.empty("boot", &[("order", Some("1"))]);
    }
    xml.close("disk");
    xml.text
}

/// The `<interface>` with this mac, out of the XML of a domain. None if there is none.
///
/// # Errors
/// When the XML cannot be read.
pub fn find_nic(domain: &str, mac: &str) -> Result<Option<String>, String> {
    find(domain, "interface", |nic| {
        attribute(nic, "mac", "address").is_some_and(|it| it.eq_ignore_ascii_case(mac))
    })
}

/// The `<disk>` with this target, out of the XML of a domain. None if there is none.
///
/// # Errors
/// When the XML cannot be read.
pub fn find_disk(domain: &str, name: &str) -> Result<Option<String>, String> {
    find(domain, "disk", |disk| {
        attribute(disk, "target", "dev") == Some(name)
    })
}

/// An `<interface>` with other values of `link`, `network` and `bridge`; null removes.
///
/// # Errors
/// When the XML cannot be read.
pub fn with_nic(interface: &str, changes: &Object) -> Result<String, String> {
    edit(interface, |nic, edits| {
        let state = changes.get("link").map(|state| state.as_str());
        if let Some(state) = state {
            edits.replace(nic, "link", state.map(link).unwrap_or_default());
        }
        let wanted = |name: &str| changes.get(name).and_then(Value::as_str);
        let (network, bridge) = (wanted("network"), wanted("bridge"));
        // What it is connected to is its type. A network has a bridge too, and is none for that.
        let now = kind(nic).unwrap_or_default();
        let is_cut = changes.get(now).is_some_and(Value::is_null);
        if network.is_none() && bridge.is_none() && !is_cut {
            return;
        }
        let (kind, source) = connected_to(network, bridge);
        edits.attribute(nic, "type", kind);
        edits.replace(nic, "source", source);
    })
}

/// A `<disk>` with another medium; none ejects it.
///
/// # Errors
/// When the XML cannot be read.
pub fn with_medium(disk: &str, path: Option<&str>) -> Result<String, String> {
    edit(disk, |disk, edits| {
        let (kind, source) = path.map_or(("file", String::new()), medium);
        edits.attribute(disk, "type", kind);
        edits.replace(disk, "source", source);
        // It belongs to the medium that was in it.
        edits.replace(disk, "backingStore", String::new());
    })
}

/// Where the bytes of a `<disk>` are. None if it has none, or libvirt cannot be asked for such.
///
/// # Errors
/// When the XML cannot be read.
pub fn place(disk: &str) -> Result<Option<Place>, String> {
    let document = parse(disk)?;
    let Some(source) = child(document.root_element(), "source") else {
        return Ok(None);
    };
    let get = |name| source.attribute(name).map(str::to_owned);
    if let Some(path) = get("file").or_else(|| get("dev")) {
        return Ok(Some(Place::Path(path)));
    }
    let volume = get("pool").zip(get("volume"));
    Ok(volume.map(|(pool, volume)| Place::Volume { pool, volume }))
}

/// The type of an interface and its `<source>`.
fn connected_to(network: Option<&str>, bridge: Option<&str>) -> (&'static str, String) {
    let mut xml = Xml::default();
    let kind = match (network, bridge) {
        (Some(network), _) => {
            xml.empty("source", &[("network", Some(network))]);
            "network"
        }
        (None, Some(bridge)) => {
            xml.empty("source", &[("bridge", Some(bridge))]);
            "bridge"
        }
        (None, None) => "user",
    };
    (kind, xml.text)
}

fn link(state: &str) -> String {
    let mut xml = Xml::default();
    xml.empty("link", &[("state", Some(state))]);
    xml.text
}

/// The type of a disk and its `<source>`: the reverse of how a path is read of a domain.
fn medium(path: &str) -> (&'static str, String) {
    let mut xml = Xml::default();
    let volume = path
        .split_once('/')
        .filter(|(pool, volume)| !pool.is_empty() && !volume.is_empty());
    let kind = match volume {
        Some((pool, volume)) => {
            let source = [("pool", Some(pool)), ("volume", Some(volume))];
            xml.empty("source", &source);
            "volume"
        }
        None if path.starts_with("/dev/") => {
            xml.empty("source", &[("dev", Some(path))]);
            "block"
        }
        None => {
            xml.empty("source", &[("file", Some(path))]);
            "file"
        }
    };
    (kind, xml.text)
}

fn parse(xml: &str) -> Result<Document<'_>, String> {
    Document::parse(xml).map_err(|error| format!("XML of libvirt's: {error}"))
}

fn attribute<'a>(node: Node<'a, '_>, element: &str, name: &str) -> Option<&'a str> {
    child(node, element)?.attribute(name)
}

/// The text of the first such device that is the one.
fn find(
    domain: &str,
    element: &str,
    is: impl Fn(Node<'_, '_>) -> bool,
) -> Result<Option<String>, String> {
    let document = parse(domain)?;
    let devices = child(document.root_element(), "devices");
    let found = (devices.into_iter())
        .flat_map(|devices| devices.children())
        .find(|node| node.has_tag_name(element) && is(*node));
    Ok(found.and_then(|node| Some(domain.get(node.range())?.to_owned())))
}

/// What is to be replaced in a text.
#[derive(Default)]
struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    /// Gives an element another child of a name, or none; what is new comes first in it.
    fn replace(&mut self, node: Node<'_, '_>, name: &str, with: String) {
        if let Some(old) = child(node, name) {
            self.0.push((old.range(), with));
        } else if let Some(first) = node.first_child() {
            let at = first.range().start;
            self.0.push((at..at, with));
        }
    }

    fn attribute(&mut self, node: Node<'_, '_>, name: &str, value: &str) {
        if let Some(old) = node.attribute_node(name) {
            self.0.push((old.range_value(), escaped(value)));
        }
    }
}

fn edit(xml: &str, change: impl Fn(Node<'_, '_>, &mut Edits)) -> Result<String, String> {
    let document = parse(xml)?;
    let mut edits = Edits::default();
    change(document.root_element(), &mut edits);
    // From the end, so that what is before stays where it is.
    edits.0.sort_by_key(|(range, _)| range.start);
    let mut text = xml.to_owned();
    for (range, with) in edits.0.into_iter().rev() {
        text.replace_range(range, &with);
    }
    Ok(text)
}

/// XML being written, without any space between its elements.
#[derive(Default)]
pub(super) struct Xml {
    pub(super) text: String,
}

impl Xml {
    /// Begins an element with those attributes that have a value.
    pub(super) fn open(&mut self, name: &str, attributes: &[(&str, Option<&str>)]) {
        self.start(name, attributes);
        self.raw(">");
    }

    pub(super) fn close(&mut self, name: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.text, "</{name}>");
    }

    pub(super) fn empty(&mut self, name: &str, attributes: &[(&str, Option<&str>)]) {
        self.start(name, attributes);
        self.raw("/>");
    }

    pub(super) fn element(&mut self, name: &str, attributes: &[(&str, Option<&str>)], text: &str) {
        self.open(name, attributes);
        self.raw(&escaped(text));
        self.close(name);
    }

    /// Writes what is XML already.
    pub(super) fn raw(&mut self, xml: &str) {
        self.text.push_str(xml);
    }

    fn start(&mut self, name: &str, attributes: &[(&str, Option<&str>)]) {
        let _ = write!(self.text, "<{name}");
        for (name, value) in attributes {
            if let Some(value) = value {
                let _ = write!(self.text, " {name}='{}'", escaped(value));
            }
        }
    }
}

/// A text as it is written in XML, within an element or an attribute. A parser would make a space of a line's end in
/// an attribute, and drop the carriage return of one anywhere.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            '\r' | '\n' | '\t' => {
                let _ = write!(escaped, "&#{};", character as u32);
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
