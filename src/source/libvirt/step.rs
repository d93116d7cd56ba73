//! The calls that change a domain, as the daemon asks the program `vminfod-libvirt` for them.
//!
//! A change is a list of steps, which are done one after the other; the first that fails ends it. Each step is one
//! call of libvirt's, or as few as it takes: where libvirt wants others for the running domain than for its definition,
//! or the way depends on what the driver can do. A step says what is to be, never what it was.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::vm::Object;
pub use crate::vm::drift::Affect;

/// One change of a domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The title, which is the alias; none removes it.
    Title {
        /// The text.
        title: Option<String>,
        /// Where.
        affect: Affect,
    },
    /// All tags and all metadata.
    Metadata {
        /// All tags.
        tags: Object,
        /// All customer_metadata.
        customer_metadata: Object,
        /// Where.
        affect: Affect,
    },
    /// Whether it starts with the host.
    Autostart {
        /// Whether it does.
        on: bool,
    },
    /// The memory the guest has: a balloon asks a running one for the rest.
    Memory {
        /// In KiB.
        kib: u64,
        /// Where.
        affect: Affect,
    },
    /// The most memory it can have, of the definition only.
    MaxMemory {
        /// In KiB.
        kib: u64,
    },
    /// The number of CPUs.
    Vcpus {
        /// How many.
        count: u32,
        /// Where.
        affect: Affect,
    },
    /// The most CPUs it can have, of the definition only.
    MaxVcpus {
        /// How many.
        count: u32,
    },
    /// Its weight against other domains.
    CpuShares {
        /// libvirt's `cpu_shares`.
        shares: u64,
        /// Where.
        affect: Affect,
    },
    /// What it may use of all CPUs.
    CpuCap {
        /// In percent of one CPU; none is no limit.
        percent: Option<u64>,
        /// Where.
        affect: Affect,
    },
    /// A new nic.
    AttachNic {
        /// As in a VM object: `mac`, `type`, `model`, `network`, `bridge`, `link`, `mtu`.
        nic: Object,
        /// Where.
        affect: Affect,
    },
    /// A nic goes.
    DetachNic {
        /// Its mac.
        mac: String,
        /// Where.
        affect: Affect,
    },
    /// A nic gets other values.
    UpdateNic {
        /// Its mac.
        mac: String,
        /// `link`, `network`, `bridge`; null removes.
        changes: Object,
        /// Where.
        affect: Affect,
    },
    /// A new disk.
    AttachDisk {
        /// As in a VM object: `name`, `path`, `model`, `media`, `format`, `readonly`, `serial`.
        disk: Object,
        /// Where.
        affect: Affect,
    },
    /// A disk goes; what is on it stays.
    DetachDisk {
        /// Its target: `vdb`.
        name: String,
        /// Where.
        affect: Affect,
    },
    /// A drive gets another medium.
    Media {
        /// Its target: `sda`.
        name: String,
        /// The medium; none ejects it.
        path: Option<String>,
        /// Where.
        affect: Affect,
    },
    /// A disk grows, whether the domain runs or not.
    Resize {
        /// Its target: `vda`.
        name: String,
        /// The size it gets.
        bytes: u64,
    },
    /// virDomainCreate.
    Start,
    /// virDomainShutdown: the guest is asked.
    Shutdown,
    /// virDomainDestroy: it is ended at once.
    Destroy,
    /// virDomainReboot: the guest is asked.
    Reboot,
    /// virDomainReset, at once.
    Reset,
    /// virDomainSuspend.
    Suspend,
    /// virDomainResume.
    Resume,
    /// virDomainUndefineFlags, with its saved state, its snapshots' and checkpoints' metadata and its NVRAM. Its disks
    /// stay.
    Undefine,
}

impl Step {
    /// Whether libvirt is asked for each configuration by itself, since a device is another in each.
    pub fn is_of_one(&self) -> bool {
        matches!(
            self,
            Step::DetachNic { .. }
                | Step::UpdateNic { .. }
                | Step::DetachDisk { .. }
                | Step::Media { .. }
        )
    }

    /// The same step for another configuration. Those that know of none stay as they are.
    pub fn with(mut self, new: Affect) -> Step {
        match &mut self {
            Step::Title { affect, .. }
            | Step::Metadata { affect, .. }
            | Step::Memory { affect, .. }
            | Step::Vcpus { affect, .. }
            | Step::CpuShares { affect, .. }
            | Step::CpuCap { affect, .. }
            | Step::AttachNic { affect, .. }
            | Step::DetachNic { affect, .. }
            | Step::UpdateNic { affect, .. }
            | Step::AttachDisk { affect, .. }
            | Step::DetachDisk { affect, .. }
            | Step::Media { affect, .. } => *affect = new,
            _ => {}
        }
        self
    }
}

/// What it is called when it is said what was applied, by the names of properties and verbs.
impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, affect) = match self {
            Step::Title { affect, .. } => ("alias".to_owned(), Some(affect)),
            Step::Metadata { affect, .. } => {
                ("tags and customer_metadata".to_owned(), Some(affect))
            }
            Step::Autostart { .. } => ("autoboot".to_owned(), None),
            Step::Memory { affect, .. } => ("ram".to_owned(), Some(affect)),
            Step::MaxMemory { .. } => ("max_physical_memory".to_owned(), None),
            Step::Vcpus { affect, .. } => ("vcpus".to_owned(), Some(affect)),
            Step::MaxVcpus { .. } => ("max_vcpus".to_owned(), None),
            Step::CpuShares { affect, .. } => ("cpu_shares".to_owned(), Some(affect)),
            Step::CpuCap { affect, .. } => ("cpu_cap".to_owned(), Some(affect)),
            Step::AttachNic { nic, affect } => {
                let mac = nic.get("mac").and_then(|mac| mac.as_str());
                (
                    format!("nics[{}] added", mac.unwrap_or("new")),
                    Some(affect),
                )
            }
            Step::DetachNic { mac, affect } => (format!("nics[{mac}] removed"), Some(affect)),
            Step::UpdateNic { mac, affect, .. } => (format!("nics[{mac}]"), Some(affect)),
            Step::AttachDisk { disk, affect } => {
                let name = disk.get("name").and_then(|name| name.as_str());
                (
                    format!("disks[{}] added", name.unwrap_or("new")),
                    Some(affect),
                )
            }
            Step::DetachDisk { name, affect } => (format!("disks[{name}] removed"), Some(affect)),
            Step::Media { name, affect, .. } => (format!("disks[{name}].path"), Some(affect)),
            Step::Resize { name, .. } => (format!("disks[{name}].size"), None),
            Step::Start => ("start".to_owned(), None),
            Step::Shutdown => ("shutdown".to_owned(), None),
            Step::Destroy => ("destroy".to_owned(), None),
            Step::Reboot => ("reboot".to_owned(), None),
            Step::Reset => ("reset".to_owned(), None),
            Step::Suspend => ("suspend".to_owned(), None),
            Step::Resume => ("resume".to_owned(), None),
            Step::Undefine => ("undefine".to_owned(), None),
        };
        out.write_str(&name)?;
        match affect {
            Some(Affect::Live) => out.write_str(" (live)"),
            Some(Affect::Config) => out.write_str(" (config)"),
            Some(Affect::Both) | None => Ok(()),
        }
    }
}
