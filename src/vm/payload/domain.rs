//! What is so only of the domains of a libvirt: the values that libvirt takes, and what hangs together.
//!
//! A domain has no limits that follow from its memory, as zones have, but a number of CPUs and an amount
//! of memory up to which it can be given more while it runs. Its `quota` is the size of the disk that it
//! boots from, so that the two are one.

use serde_json::{Number, Value};

use super::draft::{Draft, objects};
use super::elements::{ident_of, text};
use super::value::{self, is_absolute, mac, same};
use super::{Invalid, InvalidKind};
use crate::vm::property::LIBVIRT;

mod devices;

pub(super) use devices::{
    anew, bus, can_be_given, can_be_made, can_become, complete_nic, free_mac, free_name,
    is_found_out,
};

/// Mebibytes in a gibibyte.
const MIB_IN_GIB: f64 = 1024.0;

/// In how many parts a mebibyte can be had: QEMU counts in blocks of 512 bytes, and rounds the rest.
const BLOCKS: f64 = 2048.0;

/// Whether a value is one that this property of a domain can have. An error says what it must be.
pub(super) fn check(list: &str, property: &str, given: &Value) -> Result<(), String> {
    match given {
        Value::String(text) => check_text(list, property, text),
        Value::Number(number) if property == "mtu" => {
            match number
                .as_f64()
                .is_some_and(|mtu| (68.0..=65535.0).contains(&mtu))
            {
                true => Ok(()),
                false => Err("not from 68 to 65535".to_owned()),
            }
        }
        Value::Number(number) if property == "quota" => {
            match number
                .as_f64()
                .is_some_and(|gib| (gib * MIB_IN_GIB * BLOCKS).fract() == 0.0)
            {
                true => value::check(list, property, given),
                false => Err("not a multiple of 512 bytes".to_owned()),
            }
        }
        given => value::check(list, property, given),
    }
}

fn check_text(list: &str, property: &str, text: &str) -> Result<(), String> {
    let is_word = |also: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    let (good, wanted) = match (list, property) {
        ("nics", "mac") => (mac(text).is_some(), "not the mac of a nic"),
        ("nics", "type") => (
            matches!(text, "network" | "bridge" | "user"),
            "not network, bridge or user",
        ),
        ("nics", "link") => (matches!(text, "up" | "down"), "not up or down"),
        ("nics", "model") => (
            is_word("-_"),
            "not the name of a model, such as virtio or e1000",
        ),
        ("nics", "bridge") => (
            text.len() < 16 && !text.contains(|c: char| c == '/' || c.is_whitespace()),
            "not the name of a bridge",
        ),
        ("nics", "network") => (!text.contains('/'), "not the name of a network"),
        ("disks", "name") => (
            devices::is_name(text),
            "not the name of a disk, such as vda, sda, hda or fda",
        ),
        ("disks", "model") => (
            devices::BUSES.iter().any(|(bus, _)| *bus == text),
            "not virtio, scsi, sata, ide, usb, fdc, sd or xen",
        ),
        ("disks", "media") => (
            matches!(text, "disk" | "cdrom" | "floppy" | "lun"),
            "not disk, cdrom, floppy or lun",
        ),
        ("disks", "format") => (
            is_word("-_"),
            "not the name of a format, such as raw or qcow2",
        ),
        ("disks", "path") => (is_absolute(text), "not an absolute path"),
        ("disks", "serial") => (
            is_word("_. +-"),
            "has others than the characters A-Z a-z 0-9 _ . + - and space",
        ),
        _ => (true, ""),
    };
    match good {
        true => Ok(()),
        false => Err(wanted.to_owned()),
    }
}

impl Draft {
    /// Brings together what hangs together in a domain. What was given is refused where it does not
    /// fit; what was not given follows.
    pub(super) fn settle_domain(&mut self) -> Result<(), Invalid> {
        self.keep_below("ram", "max_physical_memory")?;
        self.keep_below("vcpus", "max_vcpus")?;
        self.settle_quota()?;
        self.number_nics();
        Ok(())
    }

    /// A domain has no more than the most it can have.
    fn keep_below(&mut self, name: &'static str, limit: &'static str) -> Result<(), Invalid> {
        if !self.said.contains(name) && !self.said.contains(limit) {
            return Ok(());
        }
        let Some((now, most)) = self.number(name).zip(self.number(limit)) else {
            return Ok(());
        };
        if now > most && self.said.contains(name) {
            let more = match self.said.contains(limit) {
                true => "",
                false => "; raise that too: it takes effect at the next start",
            };
            let reason = format!("above {limit}, which is {most}{more}: {now}");
            return Err(InvalidKind::Value.refuse(name, reason));
        }
        if now > most {
            self.follow(name, most);
        }
        Ok(())
    }

    /// The quota is the size of the disk that is booted from, whichever of the two was given.
    fn settle_quota(&mut self) -> Result<(), Invalid> {
        let said = self.said.contains("quota");
        let boots = objects(&self.target, "disks")
            .find(|disk| disk.get("boot").is_some_and(|it| *it == true));
        let disk = boots.map(|disk| {
            let size = disk.get("size").and_then(Value::as_f64);
            let name = ident_of("disks", disk).unwrap_or_default().to_owned();
            (name, size, text(disk, "media") == "disk")
        });
        let Some((name, Some(size), true)) = disk else {
            let (now, was) = (self.target.get("quota"), self.before.get("quota"));
            let is_same = now.zip(was).is_some_and(|(now, was)| same(now, was));
            if !said || is_same {
                return Ok(());
            }
            let reason = match disk {
                None => "the domain has no disk that it boots from".to_owned(),
                Some((name, _, false)) => format!("the domain boots from {name}, which is no disk"),
                Some((name, ..)) => format!("the size of {name}, which it is, is not known"),
            };
            return Err(InvalidKind::Value.refuse("quota", reason));
        };
        let Some(quota) = self.number("quota").filter(|_| said) else {
            if self.sized.contains(&name) {
                self.put("quota", Some(number(size / MIB_IN_GIB)));
            }
            return Ok(());
        };
        let wanted = quota * MIB_IN_GIB;
        if self.sized.contains(&name) && wanted != size {
            let reason = format!(
                "the size of {name}, which is to be {} GiB; give one of the two: {quota}",
                size / MIB_IN_GIB
            );
            return Err(InvalidKind::Value.refuse("quota", reason));
        }
        if wanted < size {
            let reason = format!(
                "smaller than {name} is, {} GiB; disks only grow: {quota}",
                size / MIB_IN_GIB
            );
            return Err(InvalidKind::Value.refuse("quota", reason));
        }
        if wanted > size {
            self.edit("disks", |disks| {
                for disk in disks.iter_mut().filter_map(Value::as_object_mut) {
                    if ident_of("disks", disk) == Some(&name) {
                        disk.insert("size".to_owned(), number(wanted));
                    }
                }
            });
        }
        Ok(())
    }

    /// The nics are called by their order.
    fn number_nics(&mut self) {
        if self.target.get("nics") == self.before.get("nics") {
            return;
        }
        self.edit("nics", |nics| {
            for (number, nic) in nics.iter_mut().filter_map(Value::as_object_mut).enumerate() {
                let interface = Value::from(format!("net{number}"));
                nic.insert("interface".to_owned(), interface);
            }
        });
    }

    /// Notes which disk was given a size.
    pub(super) fn note_size(&mut self, member: &str, disk: &str) {
        if member == "size" {
            self.sized.insert(disk.to_owned());
        }
    }
}

/// A number, whole if it is.
fn number(number: f64) -> Value {
    match number.fract() == 0.0 {
        true => Value::from(number as i64),
        false => Number::from_f64(number).map_or(Value::Null, Value::Number),
    }
}

/// Whether a member of a document for this brand says which of a domain's two configurations is meant,
/// and is no property.
pub(super) fn is_beside(brand: &str, name: &str) -> bool {
    name == "affect" && brand == LIBVIRT
}
