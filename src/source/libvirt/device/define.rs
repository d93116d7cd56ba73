//! The XML of a whole domain.

use serde_json::{Number, Value};

use super::{Xml, bootable, nic};
use crate::source::libvirt::domain::metadata;
use crate::vm::Object;

/// The domain that a VM object asks for, which there is not: a full virtual machine that boots from its disk with
/// `boot`, or from its first. What the object does not say is libvirt's to choose.
pub fn domain(vm: &Object) -> String {
    let get = |name: &str| vm.get(name).and_then(Value::as_str);
    let number = |name: &str| vm.get(name).and_then(Value::as_u64);
    let name = get("zonename").unwrap_or_default();
    let brand = get("brand").unwrap_or("kvm");
    let is_qemu = matches!(brand, "kvm" | "qemu");

    let mut xml = Xml::default();
    xml.open("domain", &[("type", Some(brand))]);
    xml.element("name", &[], name);
    if let Some(uuid) = get("uuid") {
        xml.element("uuid", &[], uuid);
    }
    if let Some(alias) = get("alias").filter(|alias| *alias != name) {
        xml.element("title", &[], alias);
    }
    let map = |name: &str| vm.get(name).and_then(Value::as_object);
    if let Some(own) = metadata::within_domain(map("tags"), map("customer_metadata")) {
        xml.open("metadata", &[]);
        xml.raw(&own);
        xml.close("metadata");
    }
    let size = |name: &str| vm.get(name).and_then(kib);
    let ram = size("ram");
    let kib = [("unit", Some("KiB"))];
    if let Some(most) = size("max_physical_memory").or(ram) {
        xml.element("memory", &kib, &most.to_string());
    }
    if let Some(ram) = ram {
        xml.element("currentMemory", &kib, &ram.to_string());
    }
    let vcpus = number("vcpus");
    if let Some(most) = number("max_vcpus").or(vcpus) {
        let current = vcpus.filter(|vcpus| *vcpus != most);
        let current = current.map(|vcpus| vcpus.to_string());
        xml.element(
            "vcpu",
            &[("current", current.as_deref())],
            &most.to_string(),
        );
    }
    let (shares, cap) = (number("cpu_shares"), number("cpu_cap"));
    if shares.is_some() || cap.is_some() {
        xml.open("cputune", &[]);
        if let Some(shares) = shares {
            xml.element("shares", &[], &shares.to_string());
        }
        if let Some(percent) = cap {
            xml.element("global_period", &[], &CAP_PERIOD.to_string());
            xml.element("global_quota", &[], &cap_quota(percent).to_string());
        }
        xml.close("cputune");
    }

    let disks = objects(vm, "disks");
    let boots = |disk: &&Object| disk.get("boot").and_then(Value::as_bool) == Some(true);
    let first = disks.iter().position(boots);
    xml.open("os", &[]);
    xml.element("type", &[], "hvm");
    if first.is_none() {
        xml.empty("boot", &[("dev", Some("hd"))]);
    }
    xml.close("os");
    if is_qemu {
        xml.raw("<features><acpi/><apic/></features>");
    }
    xml.open("devices", &[]);
    for (at, one) in disks.into_iter().enumerate() {
        xml.raw(&bootable(one, first == Some(at)));
    }
    for one in objects(vm, "nics") {
        xml.raw(&nic(one));
    }
    if is_qemu {
        xml.raw("<serial type='pty'><target port='0'/></serial>");
        xml.raw("<console type='pty'><target type='serial' port='0'/></console>");
        xml.raw("<memballoon model='virtio'/>");
    }
    if let Some(port) = vm.get("vnc_port") {
        let port = port.as_u64().filter(|port| *port > 0);
        let port = port.map(|port| port.to_string());
        let auto = if port.is_some() { "no" } else { "yes" };
        let port = port.as_deref().or(Some("-1"));
        let graphics = [
            ("type", Some("vnc")),
            ("port", port),
            ("autoport", Some(auto)),
        ];
        xml.empty("graphics", &graphics);
    }
    xml.close("devices");
    xml.close("domain");
    xml.text
}

/// The period in which a domain's use of the CPUs is capped, in microseconds.
pub const CAP_PERIOD: u64 = 100_000;

/// How many microseconds a domain may use in each [`CAP_PERIOD`], for a `cpu_cap`.
pub fn cap_quota(percent: u64) -> u64 {
    percent.saturating_mul(CAP_PERIOD / 100)
}

/// A number of MiB, which may have a fraction, in KiB.
fn kib(mib: &Value) -> Option<u64> {
    let whole = mib.as_u64().and_then(|mib| mib.checked_mul(1024));
    whole.or_else(|| Some((mib.as_number().and_then(Number::as_f64)? * 1024.0).round() as u64))
}

fn objects<'a>(vm: &'a Object, name: &str) -> Vec<&'a Object> {
    let all = vm.get(name).and_then(Value::as_array);
    (all.into_iter().flatten())
        .filter_map(Value::as_object)
        .collect()
}
