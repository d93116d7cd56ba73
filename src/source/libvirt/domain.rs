//! What is read of a domain, as a VM object: pure.
//!
//! [`object`] takes the domain's XML and what libvirt says beside it. docs/libvirt.md has the table
//! of where each property comes from; what libvirt does not say is left out, never guessed.

use std::collections::BTreeMap;

use roxmltree::{Document, Node};
use serde_json::{Number, Value, json};
use uuid::Uuid;

use crate::vm::property::{self, DOMAIN_XML};
use crate::vm::{Object, drift};

pub(super) mod devices;
pub mod metadata;
mod state;

pub use state::state;

/// All that is read of one domain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The XML of the domain as it runs, or as it is defined.
    pub xml: String,
    /// That of its definition, if it runs and has one.
    pub config: Option<String>,
    /// `virDomainState` and the reason that belongs to it.
    pub state: (i32, i32),
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Whether it is defined, and stays when it stops.
    pub persistent: bool,
    /// Whether it has a saved state that the next start continues.
    pub managed_save: bool,
    /// The XML of each of its snapshots.
    pub snapshots: Vec<String>,
    /// Statistics by their names: `balloon.current`, `block.0.capacity`.
    pub stats: BTreeMap<String, Value>,
    /// The addresses that libvirt knows, by mac.
    pub addresses: Vec<(String, String)>,
    /// The process that runs it.
    pub pid: Option<u64>,
    /// When that process started, in milliseconds since 1970.
    pub booted: Option<u64>,
    /// When it last rebooted within that process, in milliseconds since 1970.
    pub rebooted: Option<u64>,
    /// When its definition was last written, in seconds since 1970.
    pub modified: Option<u64>,
}

/// What tells a domain from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Its name.
    pub name: String,
    /// The number of this run of it; none if it does not run.
    pub run: Option<u32>,
}

/// Whose XML it is; none if it is not that of a domain.
pub fn whose(xml: &str) -> Option<Whose> {
    let document = Document::parse(xml).ok()?;
    let domain = document.root_element();
    Some(Whose {
        name: child(domain, "name")?.text()?.to_owned(),
        run: domain.attribute("id").and_then(|id| id.parse().ok()),
    })
}

/// A domain as a VM object, in the order of the property table. If it runs and is defined, the object says too in what
/// its definition differs.
///
/// # Errors
/// When its XML is not that of a domain, or names no uuid.
pub fn object(facts: &Facts) -> Result<Object, String> {
    let live = configuration(facts)?;
    let Some(xml) = &facts.config else {
        return Ok(live);
    };
    // What is known beside the XML is of the domain that runs.
    let config = configuration(&Facts {
        xml: xml.clone(),
        state: facts.state,
        ..Facts::default()
    })?;
    Ok(drift::join(live, &config))
}

/// One configuration of a domain.
fn configuration(facts: &Facts) -> Result<Object, String> {
    let document = Document::parse(&facts.xml).map_err(|error| format!("domain XML: {error}"))?;
    let domain = document.root_element();
    let uuid = text(domain, "uuid").and_then(|uuid| Uuid::parse_str(uuid).ok());
    let (Some(uuid), Some(name)) = (uuid, text(domain, "name")) else {
        return Err("domain XML: neither uuid nor name".to_owned());
    };

    let mut vm = Object::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            vm.insert(name.to_owned(), value);
        }
    };
    put("uuid", Some(uuid.to_string().into()));
    put("zonename", Some(name.into()));
    put("alias", Some(text(domain, "title").unwrap_or(name).into()));
    let brand = domain.attribute("type").unwrap_or("unknown");
    put("brand", Some(brand.into()));
    let os = child(domain, "os").and_then(|os| text(os, "type"));
    put("hvm", Some((os == Some("hvm")).into()));
    let known = state(facts.state.0, facts.state.1);
    put("state", Some(known.state.into()));
    put("zone_state", Some(known.state.into()));
    put("state_reason", known.reason.map(Value::from));
    let ended = matches!(known.state, "stopped" | "crashed");
    put(
        "exit_reason",
        known.reason.filter(|_| ended).map(Value::from),
    );
    put("autoboot", Some(facts.autostart.into()));
    put("persistent", Some(facts.persistent.into()));
    put("managed_save", Some(facts.managed_save.into()));
    put("pid", facts.pid.map(Value::from));
    put("boot_timestamp", facts.booted.and_then(timestamp));
    put("reboot_timestamp", facts.rebooted.and_then(timestamp));
    put("last_modified", facts.modified.and_then(of_seconds));

    let vcpu = child(domain, "vcpu");
    let most = vcpu.and_then(|vcpu| vcpu.text()?.trim().parse::<u64>().ok());
    let vcpus = (vcpu.and_then(|vcpu| vcpu.attribute("current")))
        .and_then(|current| current.parse().ok())
        .or(most);
    put("vcpus", vcpus.map(Value::from));
    put("max_vcpus", most.map(Value::from));
    let memory = |name| child(domain, name).and_then(memory_mib);
    let running = facts.stats.get("balloon.current").and_then(Value::as_u64);
    let now = running
        .filter(|_| !ended)
        .map(|kib| quotient(kib << 10, 20));
    put(
        "ram",
        now.or_else(|| memory("currentMemory"))
            .or_else(|| memory("memory")),
    );
    put("max_physical_memory", memory("memory"));
    let tune = |name| -> Option<i64> { text(child(domain, "cputune")?, name)?.parse().ok() };
    put("cpu_shares", tune("shares").map(Value::from));
    let cap = percent(tune("global_quota"), tune("global_period"), 1)
        .or_else(|| percent(tune("quota"), tune("period"), vcpus.unwrap_or(1)));
    put("cpu_cap", cap.map(Value::from));

    let devices = child(domain, "devices");
    put(
        "nics",
        Some(devices::nics(devices, &facts.addresses).into()),
    );
    let disks = devices::disks(domain, devices, &facts.stats);
    let boot = disks.iter().find(|disk| disk.boot);
    put(
        "quota",
        boot.and_then(|disk| disk.capacity)
            .map(|bytes| quotient(bytes, 30)),
    );
    let disks: Vec<Value> = disks.into_iter().map(|disk| disk.object.into()).collect();
    put("disks", Some(disks.into()));
    put("vnc_port", devices::vnc_port(devices));
    put("snapshots", Some(snapshots(&facts.snapshots).into()));

    let metadata = child(domain, "metadata");
    let own = metadata::own(metadata);
    put("tags", Some(own.tags.into()));
    put("customer_metadata", Some(own.customer_metadata.into()));
    put("nova", metadata::nova(metadata).map(Value::from));
    put(DOMAIN_XML, Some(facts.xml.trim_end().into()));
    property::sort(&mut vm);
    Ok(vm)
}

/// The snapshots, newest first.
fn snapshots(all: &[String]) -> Vec<Value> {
    let read = |xml: &String| {
        let document = Document::parse(xml).ok()?;
        let snapshot = document.root_element();
        let created: u64 = text(snapshot, "creationTime")?.parse().ok()?;
        let name = text(snapshot, "name")?;
        let mut object = json!({"name": name, "created_at": of_seconds(created)?});
        if let Some(state) = text(snapshot, "state") {
            object["state"] = state.into();
        }
        Some((created, name.to_owned(), object))
    };
    let mut all: Vec<_> = all.iter().filter_map(read).collect();
    all.sort_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
    all.into_iter().map(|(_, _, snapshot)| snapshot).collect()
}

/// The last millisecond that a timestamp can name, since 1970: that of the year 9999.
const LAST: u64 = 253_402_300_799_999;

/// Milliseconds since 1970 as the text of a timestamp.
fn timestamp(millis: u64) -> Option<Value> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis);
    (millis <= LAST).then(|| humantime::format_rfc3339_millis(time).to_string().into())
}

fn of_seconds(seconds: u64) -> Option<Value> {
    timestamp(seconds.checked_mul(1000)?)
}

/// How much of one CPU a quota in a period is, times a number of CPUs. A quota that is not positive
/// is none.
fn percent(quota: Option<i64>, period: Option<i64>, cpus: u64) -> Option<u64> {
    let quota = u64::try_from(quota?).ok().filter(|quota| *quota > 0)?;
    // What libvirt takes where the period is not said.
    let period = period.map_or(Some(100_000), |period| u64::try_from(period).ok())?;
    (quota * cpus * 100 + period / 2).checked_div(period)
}

/// Bytes in units of 2^`shift`: a whole number where that is exact.
fn quotient(bytes: u64, shift: u32) -> Value {
    if bytes.trailing_zeros() >= shift {
        return (bytes >> shift).into();
    }
    let exact = bytes as f64 / (1u64 << shift) as f64;
    Number::from_f64(exact).map_or(Value::Null, Value::Number)
}

/// The text of an element that is a size, in MiB.
fn memory_mib(node: Node<'_, '_>) -> Option<Value> {
    let number: u64 = node.text()?.trim().parse().ok()?;
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    Some(quotient(number.checked_mul(unit)?, 20))
}

pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children()
        .filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The text of a child, where it has some.
fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let text = child(node, name)?.text()?.trim();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;
