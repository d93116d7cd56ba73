//! What the zones of one sample host share: owners, images, networks, packages.

use serde_json::{Value, json};
use uuid::Uuid;

use super::random::Random;

/// A host, invented from the seed alone.
pub(super) struct Host {
    uuid: Uuid,
    headnode: Uuid,
    pub(super) owners: Vec<Uuid>,
    pub(super) images: Vec<Uuid>,
    /// A zone's first nic is in the first network, its second in the second.
    pub(super) networks: [Network; 3],
}

/// A network of up to a million addresses, so that no two zones of any store share one.
pub(super) struct Network {
    pub(super) tag: &'static str,
    pub(super) vlan: Option<&'static str>,
    pub(super) uuid: Uuid,
    /// The second byte of its first address.
    base: u64,
}

/// A size that zones are sold in.
#[derive(Clone, Copy)]
pub(super) struct Package {
    pub(super) name: &'static str,
    /// MiB.
    pub(super) ram: u64,
    /// GiB.
    pub(super) quota: u64,
    pub(super) vcpus: u64,
}

impl Host {
    /// The host of this seed.
    pub(super) fn invent(seed: u64) -> Self {
        // Zones have the streams from 1 on.
        let mut random = Random::new(seed, 0);
        Host {
            uuid: random.uuid(),
            headnode: random.uuid(),
            owners: (0..36).map(|_| random.uuid()).collect(),
            images: (0..14).map(|_| random.uuid()).collect(),
            networks: [
                Network {
                    tag: "internal",
                    vlan: None,
                    uuid: random.uuid(),
                    base: 0,
                },
                Network {
                    tag: "external",
                    vlan: Some("103"),
                    uuid: random.uuid(),
                    base: 16,
                },
                Network {
                    tag: "storage",
                    vlan: Some("3008"),
                    uuid: random.uuid(),
                    base: 32,
                },
            ],
        }
    }

    /// The part of `sysinfo` that VMs show.
    pub(super) fn sysinfo(&self) -> Value {
        json!({
            "Live Image": "20251218T001245Z",
            "System Type": "SunOS",
            "Hostname": "sample",
            "UUID": self.uuid.to_string(),
            "Datacenter Name": "sample-1",
            "Headnode ID": self.headnode.to_string(),
        })
    }
}

impl Network {
    /// The address of the zone of this number.
    pub(super) fn address(&self, number: u64) -> String {
        // The first addresses are for gateways and name servers.
        let host = number + 16;
        let second = self.base + (host >> 16);
        format!("10.{second}.{}.{}", (host >> 8) & 0xff, host & 0xff)
    }

    /// The address of its router.
    pub(super) fn gateway(&self) -> String {
        format!("10.{}.0.1", self.base)
    }
}

impl Package {
    /// All packages, the most popular first.
    pub(super) const ALL: [Package; 6] = [
        Package::new("small-1g", 1024, 25, 1),
        Package::new("small-512m", 512, 10, 1),
        Package::new("medium-4g", 4096, 50, 2),
        Package::new("medium-8g", 8192, 100, 4),
        Package::new("large-16g", 16_384, 400, 8),
        Package::new("large-64g", 65_536, 1600, 16),
    ];

    const fn new(name: &'static str, ram: u64, quota: u64, vcpus: u64) -> Self {
        Package {
            name,
            ram,
            quota,
            vcpus,
        }
    }
}

/// The hardware address of the nic of this number; no two numbers below 2^24 share one.
pub(super) fn mac(number: u64) -> String {
    // An odd factor permutes the numbers below 2^24, so that neighbours look unlike.
    let scattered = number.wrapping_mul(0x9e_3779) & 0xff_ffff;
    let (a, b, c) = (scattered >> 16, (scattered >> 8) & 0xff, scattered & 0xff);
    format!("90:b8:d0:{a:02x}:{b:02x}:{c:02x}")
}
