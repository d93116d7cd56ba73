//! What is kept in a domain's `<metadata>`: tags and customer_metadata under a namespace of our own, and
//! what OpenStack's nova wrote.
//!
//! ```xml
//! <vminfod:vm xmlns:vminfod="urn:vminfod:vm">
//!   <vminfod:tag name="role">web</vminfod:tag>
//!   <vminfod:tag name="replicas" type="number">3</vminfod:tag>
//!   <vminfod:customer_metadata name="user-script">#!/bin/sh</vminfod:customer_metadata>
//! </vminfod:vm>
//! ```

use roxmltree::Node;
use serde_json::Value;

use super::{child, text};
use crate::source::libvirt::device::Xml;
use crate::vm::Object;

/// What libvirt writes in front of the names of our elements.
pub const KEY: &str = "vminfod";

/// Our namespace.
pub const NAMESPACE: &str = "urn:vminfod:vm";

/// Nova's namespace, without its version.
const NOVA: &str = "http://openstack.org/xmlns/libvirt/nova/";

/// What is under our own namespace.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) tags: Object,
    pub(super) customer_metadata: Object,
}

pub(super) fn own(metadata: Option<Node<'_, '_>>) -> Own {
    let mut own = Own::default();
    let Some(vm) = elements(metadata).find(|node| node.tag_name().namespace() == Some(NAMESPACE))
    else {
        return own;
    };
    for entry in elements(Some(vm)) {
        let map = match entry.tag_name().name() {
            "tag" => &mut own.tags,
            "customer_metadata" => &mut own.customer_metadata,
            _ => continue,
        };
        let Some(name) = entry.attribute("name") else {
            continue;
        };
        // Text that has been split by a comment or a CDATA section is one.
        let text: String = (entry.children().filter(Node::is_text))
            .filter_map(|node| node.text())
            .collect();
        map.insert(name.to_owned(), typed(entry.attribute("type"), text));
    }
    own
}

/// Tags and customer_metadata as the element that virDomainSetMetadata is given, which puts it into our namespace
/// itself. None if there is nothing to keep.
pub fn element(tags: &Object, customer_metadata: &Object) -> Option<String> {
    written("", &[], Some(tags), Some(customer_metadata))
}

/// The same as it is within the XML of a domain.
pub(in crate::source::libvirt) fn within_domain(
    tags: Option<&Object>,
    customer_metadata: Option<&Object>,
) -> Option<String> {
    let namespace = [("xmlns:vminfod", Some(NAMESPACE))];
    written("vminfod:", &namespace, tags, customer_metadata)
}

fn written(
    prefix: &str,
    attributes: &[(&str, Option<&str>)],
    tags: Option<&Object>,
    customer_metadata: Option<&Object>,
) -> Option<String> {
    let kinds = [("tag", tags), ("customer_metadata", customer_metadata)];
    let entries: Vec<_> = (kinds.into_iter())
        .flat_map(|(kind, all)| {
            all.into_iter()
                .flatten()
                .map(move |(name, it)| (kind, name, it))
        })
        .filter(|(_, _, value)| !value.is_null())
        .collect();
    if entries.is_empty() {
        return None;
    }
    let mut xml = Xml::default();
    let root = format!("{prefix}vm");
    xml.open(&root, attributes);
    for (kind, name, value) in entries {
        let (marked, text) = match value {
            Value::String(text) => (None, text.clone()),
            Value::Number(number) => (Some("number"), number.to_string()),
            Value::Bool(value) => (Some("boolean"), value.to_string()),
            other => (None, other.to_string()),
        };
        let attributes = [("name", Some(name.as_str())), ("type", marked)];
        xml.element(&format!("{prefix}{kind}"), &attributes, &text);
    }
    xml.close(&root);
    Some(xml.text)
}

/// A value of the type it is marked with; text, if it is none of that type.
fn typed(kind: Option<&str>, text: String) -> Value {
    let value = match kind {
        Some("number" | "boolean") => serde_json::from_str(text.trim()).ok(),
        _ => None,
    };
    let value = value.filter(|value: &Value| value.is_number() || value.is_boolean());
    value.unwrap_or_else(|| text.into())
}

/// What nova says of its instance; none if it says nothing.
pub(super) fn nova(metadata: Option<Node<'_, '_>>) -> Option<Object> {
    let is_nova = |node: &Node<'_, '_>| {
        (node.tag_name().namespace()).is_some_and(|namespace| namespace.starts_with(NOVA))
    };
    let instance = elements(metadata).find(is_nova)?;
    let mut nova = Object::new();
    let mut put = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            nova.insert(name.to_owned(), value.into());
        }
    };
    put("name", text(instance, "name"));
    put("creation_time", text(instance, "creationTime"));
    let package = child(instance, "package");
    put(
        "package_version",
        package.and_then(|package| package.attribute("version")),
    );
    let flavor = child(instance, "flavor");
    put("flavor", flavor.and_then(|flavor| flavor.attribute("name")));
    for (name, element) in [
        ("flavor_memory", "memory"),
        ("flavor_disk", "disk"),
        ("flavor_swap", "swap"),
        ("flavor_ephemeral", "ephemeral"),
        ("flavor_vcpus", "vcpus"),
    ] {
        put(name, flavor.and_then(|flavor| text(flavor, element)));
    }
    let owner = child(instance, "owner");
    for (name, uuid) in [("user", "user_uuid"), ("project", "project_uuid")] {
        put(name, owner.and_then(|owner| text(owner, name)));
        put(
            uuid,
            owner.and_then(|owner| child(owner, name)?.attribute("uuid")),
        );
    }
    let root = child(instance, "root");
    put("root_type", root.and_then(|root| root.attribute("type")));
    put("root_uuid", root.and_then(|root| root.attribute("uuid")));
    Some(nova)
}

fn elements<'a, 'i>(node: Option<Node<'a, 'i>>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.into_iter()
        .flat_map(|node| node.children())
        .filter(Node::is_element)
}
