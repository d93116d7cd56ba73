//! The nics and disks of a domain: what a new one needs and is given, and what can be changed.

use serde_json::Value;

use super::super::draft::{Draft, Purpose, objects};
use super::super::elements::{ident_of, is_named, members, new_mac, text};
use super::super::value::mac;
use super::super::{Invalid, InvalidKind};
use crate::vm::Object;
use crate::vm::property::LIBVIRT;

/// What QEMU's own nics begin with.
const QEMU: [u8; 3] = [0x52, 0x54, 0x00];

/// The buses on which disks are, with what the names of their disks begin with.
pub(super) const BUSES: [(&str, &str); 8] = [
    ("virtio", "vd"),
    ("scsi", "sd"),
    ("sata", "sd"),
    ("usb", "sd"),
    ("sd", "sd"),
    ("ide", "hd"),
    ("fdc", "fd"),
    ("xen", "xvd"),
];

/// Whether a disk can be called this.
pub(super) fn is_name(text: &str) -> bool {
    let letters = ["vd", "sd", "hd", "fd", "xvd"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    letters.is_some_and(|letters| {
        (1..4).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_lowercase())
    })
}

/// The bus of a new disk: the one it names, or the usual one for its media.
pub(in super::super) fn bus(disk: &Object) -> &str {
    match (text(disk, "model"), text(disk, "media")) {
        ("", "cdrom") => "sata",
        ("", "floppy") => "fdc",
        // A virtio disk is none that SCSI commands can be sent to.
        ("", "lun") => "scsi",
        ("", _) => "virtio",
        (model, _) => model,
    }
}

/// The first name for a disk on this bus that is not taken: vda to vdz, vdaa and so on.
pub(in super::super) fn free_name(bus: &str, taken: impl Fn(&str) -> bool) -> String {
    let known = BUSES.iter().find(|(known, _)| *known == bus);
    let prefix = known.map_or("vd", |(_, prefix)| prefix);
    let mut number = 0u32;
    loop {
        let name = format!("{prefix}{}", letters(number));
        if !taken(&name) {
            return name;
        }
        number += 1;
    }
}

fn letters(number: u32) -> String {
    let last = char::from(b'a' + (number % 26) as u8);
    match number / 26 {
        0 => last.to_string(),
        before => format!("{}{last}", letters(before - 1)),
    }
}

/// A mac that nobody has.
pub(in super::super) fn free_mac(taken: impl Fn(&str) -> bool) -> String {
    new_mac(&QEMU, taken)
}

/// Whether a disk is one whose medium can be taken out.
fn is_drive(disk: &Object) -> bool {
    matches!(text(disk, "media"), "cdrom" | "floppy")
}

/// Whether a member of a new device can be given at all.
pub(in super::super) fn can_be_given(list: &str, named: &str, member: &str) -> Result<(), Invalid> {
    if (list, member) == ("disks", "size") {
        let reason =
            "vminfod makes no volumes; make one with virsh vol-create-as and give its path";
        return Err(InvalidKind::Fixed.refuse(format!("{named}.size"), reason));
    }
    Ok(())
}

/// Whether a member of a device, which can be set on others, only tells what libvirt has made of it: the
/// bridge of a network.
pub(in super::super) fn is_found_out(list: &str, device: &Object, member: &str) -> bool {
    list == "nics" && matches!(member, "network" | "bridge") && text(device, "type") != member
}

/// Whether a device as it is can be given this value instead of another one.
pub(in super::super) fn can_become(
    list: &str,
    named: &str,
    device: &Object,
    member: &str,
    value: Option<&Value>,
) -> Result<(), Invalid> {
    let refuse =
        |kind: InvalidKind, reason: String| Err(kind.refuse(format!("{named}.{member}"), reason));
    match (list, member) {
        ("disks", "path") if !is_drive(device) => {
            let reason = "only a drive's medium can be changed; remove the disk and add another";
            refuse(InvalidKind::Fixed, reason.to_owned())
        }
        ("disks", "size") => {
            let media = text(device, "media");
            if media != "disk" {
                return refuse(
                    InvalidKind::Fixed,
                    format!("only a disk can grow, no {media}"),
                );
            }
            let known = device.get("size").and_then(Value::as_f64);
            match (known, value.and_then(Value::as_f64)) {
                (Some(old), Some(new)) if new < old => {
                    let reason = format!("smaller than it is, {old} MiB; disks only grow: {new}");
                    refuse(InvalidKind::Value, reason)
                }
                (Some(_), _) => Ok(()),
                (None, _) => {
                    let reason = "it is not known, so that nobody can tell whether the disk grows";
                    refuse(InvalidKind::State, reason.to_owned())
                }
            }
        }
        _ if is_found_out(list, device, member) => {
            let reason = format!(
                "only of a nic of the type {member}, and this one's is {}",
                text(device, "type")
            );
            refuse(InvalidKind::Fixed, reason)
        }
        _ => Ok(()),
    }
}

/// Gives a new nic of a VM what it needs and was not given.
pub(in super::super) fn complete_nic(
    vm: &Object,
    named: &str,
    nic: &mut Object,
) -> Result<(), Invalid> {
    // As it is shown of a nic of a network that runs.
    if text(nic, "type") == "network" && nic.contains_key("network") {
        nic.shift_remove("bridge");
    }
    let (network, bridge) = (nic.contains_key("network"), nic.contains_key("bridge"));
    let kind = match (text(nic, "type"), network, bridge) {
        (_, true, true) => {
            let reason = "both network and bridge are given; give one of them";
            return Err(InvalidKind::Value.refuse(named, reason));
        }
        ("" | "network", true, false) => "network",
        ("" | "bridge", false, true) => "bridge",
        ("user", false, false) => "user",
        ("", false, false) => {
            let reason = "not connected; give the network of libvirt, the bridge of its host, or \
                          the type user";
            return Err(InvalidKind::Value.refuse(named, reason));
        }
        (kind, false, false) => {
            let reason = format!("missing; the type {kind} needs it");
            return Err(InvalidKind::Value.refuse(format!("{named}.{kind}"), reason));
        }
        (kind, is_network, _) => {
            let given = if is_network { "network" } else { "bridge" };
            let reason = format!("not with a {given}: {kind}");
            return Err(InvalidKind::Value.refuse(format!("{named}.type"), reason));
        }
    };
    let mac = match nic.get("mac").and_then(Value::as_str) {
        Some(given) => mac(given).unwrap_or_else(|| given.to_owned()),
        None => free_mac(|mac| objects(vm, "nics").any(|nic| is_named("nics", nic, mac))),
    };
    nic.insert("type".to_owned(), Value::from(kind));
    nic.insert("mac".to_owned(), Value::from(mac));
    default(nic, "model", "virtio");
    default(nic, "link", "up");
    Ok(())
}

impl Draft {
    /// Gives a new disk what it needs and was not given.
    pub(in super::super) fn complete_domain_disk(
        &self,
        named: &str,
        disk: &mut Object,
    ) -> Result<(), Invalid> {
        let refuse = |kind: InvalidKind, member: &str, reason: String| {
            Err(kind.refuse(format!("{named}.{member}"), reason))
        };
        default(disk, "media", "disk");
        let bus = bus(disk).to_owned();
        if (bus == "fdc") != (text(disk, "media") == "floppy") {
            let reason = format!("only floppies are on fdc, and no others: {bus}");
            return refuse(InvalidKind::Value, "model", reason);
        }
        if !disk.contains_key("path") && !is_drive(disk) {
            let reason = "missing; make a volume with virsh vol-create-as and give its path";
            return refuse(InvalidKind::Value, "path", reason.to_owned());
        }
        let same = objects(&self.target, "disks")
            .find(|other| disk.contains_key("path") && other.get("path") == disk.get("path"));
        // Many drives may have one medium: they only read it.
        if let Some(other) = same.filter(|_| !is_drive(disk)) {
            let reason = format!(
                "{} has it already",
                ident_of("disks", other).unwrap_or("a disk")
            );
            return refuse(InvalidKind::Value, "path", reason);
        }
        // What is false is not shown.
        for flag in ["boot", "readonly"] {
            if disk.get(flag).is_some_and(|flag| *flag == false) {
                if flag == "readonly" && text(disk, "media") == "cdrom" {
                    let reason = "a cdrom can only be read: false";
                    return refuse(InvalidKind::Value, flag, reason.to_owned());
                }
                disk.shift_remove(flag);
            }
        }
        if text(disk, "media") == "cdrom" {
            disk.insert("readonly".to_owned(), Value::Bool(true));
        }
        if disk.contains_key("boot") && self.purpose == Purpose::Update {
            let reason = "can only be given when the domain is made";
            return refuse(InvalidKind::Fixed, "boot", reason.to_owned());
        }
        if !disk.contains_key("name") {
            let taken = |name: &str| {
                objects(&self.target, "disks").any(|other| is_named("disks", other, name))
            };
            disk.insert("name".to_owned(), Value::from(free_name(&bus, taken)));
        }
        default(disk, "format", "raw");
        disk.insert("model".to_owned(), Value::from(bus));
        Ok(())
    }
}

fn default(device: &mut Object, member: &str, value: &str) {
    if !device.contains_key(member) {
        device.insert(member.to_owned(), Value::from(value));
    }
}

/// Whether a device of a VM is one that a payload can add.
pub(in super::super) fn can_be_made(list: &str, device: Option<&Value>) -> bool {
    let kind = device.and_then(|device| device.get("type"));
    let kind = kind.and_then(Value::as_str).unwrap_or_default();
    list != "nics" || matches!(kind, "network" | "bridge" | "user")
}

/// A device that was removed, as it is to be added again: without what is found out about it.
pub(in super::super) fn anew(list: &str, device: &Object) -> Object {
    let is_kept = |member: &str| {
        let mut rows = members(list).iter();
        rows.any(|row| row.name == member && row.create.contains(LIBVIRT))
            && !is_found_out(list, device, member)
            && (list, member) != ("disks", "boot")
    };
    let kept = device.iter().filter(|(member, _)| is_kept(member));
    kept.map(|(member, value)| (member.clone(), value.clone()))
        .collect()
}
