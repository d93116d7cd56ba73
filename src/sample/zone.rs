//! One invented zone: everything a zone store holds about it, as documents ready to be written.
//!
//! A zone depends on the seed and on its number, not on how many zones there are. No clock is
//! read: [`NOW`] is a moment in the past that never moves.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::config;
use super::host::{Host, Package, mac};
use super::kind::Brand::{self, Bhyve, Builder, Joyent, JoyentMinimal, Kvm, Lx};
use super::kind::{Odd, Phase, ROUND};
use super::random::Random;
use super::xml::Xml;

/// The moment at which every sample store was written: 2026-01-01, in seconds since 1970.
pub(super) const NOW: u64 = 1_767_225_600;

const DAY: u64 = 86_400;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A zone's documents. A `None` is a file that is not there.
pub(super) struct Zone {
    pub(super) name: String,
    /// The state in the index, which knows nothing of running zones.
    pub(super) installed: &'static str,
    pub(super) xml: String,
    pub(super) metadata: Value,
    pub(super) tags: Value,
    pub(super) routes: Option<Value>,
    pub(super) datasets: Value,
    pub(super) runtime: Option<Value>,
    pub(super) last_exited: Option<LastExited>,
    /// When its configuration was written, in seconds since 1970.
    pub(super) modified: u64,
}

/// How the init process of a zone ended.
pub(super) struct LastExited {
    /// In seconds since 1970.
    pub(super) at: u64,
    /// As wait(2) gives it; -1 where it is not known.
    pub(super) status: i32,
}

/// A zone while it is being invented.
struct Draft<'a> {
    host: &'a Host,
    random: Random,
    number: u64,
    odd: Option<Odd>,
    brand: Brand,
    phase: Phase,
    package: Package,
    name: String,
    role: &'static str,
    created: u64,
    xml: Xml,
    datasets: Map<String, Value>,
}

/// Invents the zone of this number.
pub(super) fn invent(host: &Host, seed: u64, number: usize, odd: Option<Odd>) -> Zone {
    let (brand, _) = ROUND[number % ROUND.len()];
    let number = number as u64;
    let mut random = Random::new(seed, number + 1);
    let name = random.uuid().to_string();
    let package = random.pick_skewed(&Package::ALL);
    let phase = Phase::draw(&mut random, odd);
    let role = random.pick(&ROLES);
    let created = NOW - DAY - random.below(3 * 365 * DAY);
    let xml = open(&name, brand, phase);
    let mut draft = Draft {
        host,
        random,
        number,
        odd,
        brand,
        phase,
        package,
        name,
        role,
        created,
        xml,
        datasets: Map::new(),
    };
    draft.limits();
    draft.identity();
    draft.phase();
    draft.brand();
    draft.nics();
    draft.root_dataset();
    draft.delegated_dataset();
    draft.filesystems();
    draft.disks();
    draft.finish()
}

const ROLES: [&str; 12] = [
    "web", "api", "db", "cache", "queue", "worker", "build", "proxy", "dns", "mail", "log", "dev",
];

/// The zone's element with the attributes that zonecfg itself understands.
fn open(name: &str, brand: Brand, phase: Phase) -> Xml {
    // A kvm zone never boots by itself: vm-autoboot says whether its guest does.
    let autoboot = if phase == Phase::Running && brand != Kvm {
        "true"
    } else {
        "false"
    };
    let privileges = match brand {
        Kvm | Bhyve => "default,-file_link_any,-net_access,-proc_fork,-proc_info,-proc_session",
        Builder => "default,sys_fs_import",
        Joyent | JoyentMinimal | Lx => "default",
    };
    Xml::zone(&[
        ("name", name),
        ("zonepath", &format!("/zones/{name}")),
        ("autoboot", autoboot),
        ("brand", brand.name()),
        ("ip-type", "exclusive"),
        ("limitpriv", privileges),
    ])
}

impl Draft<'_> {
    fn limits(&mut self) {
        let memory = (self.package.ram + self.brand.overhead()) * MIB;
        let xml = &mut self.xml;
        xml.share("zone.cpu-shares", self.package.ram / 16);
        xml.share("zone.zfs-io-priority", self.package.ram / 16);
        xml.limit("zone.max-lwps", 4000);
        xml.limit("zone.max-msg-ids", 4096);
        xml.limit("zone.max-sem-ids", 4096);
        xml.limit("zone.max-shm-ids", 4096);
        xml.limit("zone.max-shm-memory", memory);
        xml.limit("zone.max-physical-memory", memory);
        xml.limit("zone.max-locked-memory", memory);
        xml.limit("zone.max-swap", (2 * memory).max(256 * MIB));
        if !self.brand.is_hardware_virtual() {
            xml.limit("zone.cpu-cap", 100 * self.package.vcpus);
        }
    }

    fn identity(&mut self) {
        let owner = self.random.pick_skewed(&self.host.owners).to_string();
        self.xml.attr("vm-version", "1");
        self.xml.attr("create-timestamp", &timestamp(self.created));
        self.xml.attr("owner-uuid", &owner);
        self.xml.attr("billing-id", &owner);
        self.xml.attr("package-name", self.package.name);
        self.xml.attr("package-version", "1.2.0");
        let alias = match self.odd {
            Some(Odd::NoAlias) => None,
            Some(Odd::UnicodeAlias) => Some("büro-東京-01".to_owned()),
            Some(Odd::SharedAlias) => Some("twin".to_owned()),
            _ => Some(format!("{}-{:04}", self.role, self.number)),
        };
        if let Some(alias) = &alias {
            self.xml.encoded_attr("alias", alias);
        }
        let hostname = alias.filter(|alias| alias.is_ascii());
        self.xml
            .attr("hostname", hostname.as_deref().unwrap_or(&self.name));
        self.xml.attr("dns-domain", "local");
        self.xml.attr("resolvers", "10.0.0.2,10.16.0.2");
        if self.random.percent(60) {
            self.xml.attr("firewall-enabled", "true");
        }
        if self.odd == Some(Odd::NotInventoried) {
            self.xml.attr("do-not-inventory", "true");
        }
        if self.random.percent(5) {
            self.xml.attr("archive-on-delete", "true");
        }
    }

    fn phase(&mut self) {
        match self.phase {
            Phase::Failed => self.xml.attr("failed", "true"),
            Phase::Provisioning => self.xml.attr("provisioning", "true"),
            // It expires in the year 2100, so that it never changes by itself.
            Phase::Transition => {
                self.xml
                    .attr("transition", "receiving:stopped:4102444800000");
            }
            Phase::Running | Phase::ShuttingDown | Phase::Stopped | Phase::Incomplete => {}
        }
    }

    fn brand(&mut self) {
        if self.brand.is_hardware_virtual() {
            self.virtual_hardware();
            return;
        }
        let image = self.random.pick_skewed(&self.host.images).to_string();
        self.xml.attr("dataset-uuid", &image);
        self.xml.number_attr("tmpfs", self.package.ram);
        match self.brand {
            Lx => {
                let kernel = self.random.pick(&["3.13.0", "4.3.0", "5.10.0"]);
                self.xml.attr("kernel-version", kernel);
                self.xml.attr("maintain-resolvers", "true");
            }
            Builder => self.xml.attr("internal-metadata-namespaces", "build,sdc"),
            Joyent | JoyentMinimal | Kvm | Bhyve => {}
        }
        if self.odd == Some(Odd::Docker) {
            self.xml.attr("docker", "true");
            self.xml.attr("init-name", "/native/usr/vm/sbin/dockerinit");
            self.xml.attr("restart-init", "false");
            self.xml.attr("zlog-mode", "gt-");
            self.xml.number_attr("zlog-max-size", 50_000_000);
        }
    }

    fn virtual_hardware(&mut self) {
        let autoboot = if self.phase == Phase::Running {
            "true"
        } else {
            "false"
        };
        let xml = &mut self.xml;
        xml.number_attr("ram", self.package.ram);
        xml.number_attr("vcpus", self.package.vcpus);
        if self.brand == Bhyve {
            xml.attr("bootrom", self.random.pick(&["bios", "uefi"]));
            xml.attr("com1", "/dev/zconsole");
            xml.attr("com2", "socket:/tmp/vm.ttyb");
            return;
        }
        xml.attr("vm-autoboot", autoboot);
        xml.attr("cpu-type", self.random.pick(&["host", "qemu64"]));
        xml.attr("vga", "std");
        xml.attr("disk-driver", "virtio");
        xml.attr("nic-driver", "virtio");
        xml.number_attr("vnc-port", 0);
        xml.number_attr("virtio-txtimer", 200_000);
        xml.number_attr("virtio-txburst", 128);
        if self.odd == Some(Odd::VncPassword) {
            xml.encoded_attr("vnc-password", "<s3cret> & \"quoted\"");
            xml.encoded_attr("qemu-extra-opts", "-k de");
        }
    }

    fn nics(&mut self) {
        let count = match self.random.below(10) {
            0..6 => 1,
            6..9 => 2,
            _ => 3,
        };
        for index in 0..count {
            let network = &self.host.networks[index as usize];
            let ip = network.address(self.number);
            let gateway = network.gateway();
            let mut ips = format!("{ip}/12");
            if self.random.percent(15) {
                ips.push_str(",addrconf");
            }
            let mac = mac(self.number * 3 + index);
            let network_uuid = network.uuid.to_string();
            let mut attrs = vec![
                ("gateway", gateway.as_str()),
                ("gateways", &gateway),
                ("netmask", "255.240.0.0"),
                ("ip", &ip),
                ("ips", &ips),
                ("network_uuid", &network_uuid),
            ];
            if index == 0 {
                attrs.push(("primary", "true"));
            }
            if self.brand.is_hardware_virtual() {
                attrs.push(("model", "virtio"));
            }
            if self.role == "proxy" {
                attrs.extend([
                    ("allow_ip_spoofing", "true"),
                    ("allowed_ips", "10.240.0.1/32,10.240.0.2/32"),
                ]);
            }
            if self.role == "mail" {
                attrs.extend([("blocked_outgoing_ports", "25,465"), ("mtu", "1500")]);
            }
            let interface = format!("net{index}");
            let mut attributes = vec![
                ("physical", interface.as_str()),
                ("mac-addr", &mac),
                ("global-nic", network.tag),
            ];
            if let Some(vlan) = network.vlan {
                attributes.push(("vlan-id", vlan));
            }
            self.xml.resource("network", &attributes, &attrs);
        }
    }

    fn root_dataset(&mut self) {
        let name = format!("zones/{}", self.name);
        let quota = match self.brand {
            Bhyve => GIB,
            _ => self.package.quota * GIB,
        };
        let mut root = json!({
            "type": "filesystem",
            "creation": self.created,
            "mountpoint": format!("/{name}"),
            "quota": quota,
            "refquota": if self.brand == Bhyve { quota } else { 0 },
            "recordsize": 131_072,
            "compression": self.random.pick(&["lz4", "lz4", "off"]),
        });
        if self.random.percent(10) {
            root["filesystem_limit"] = json!(100);
            root["snapshot_limit"] = json!(1000);
        }
        self.datasets.insert(name.clone(), root);

        let snapshots = match self.odd {
            Some(Odd::Snapshots) => 3,
            _ if self.random.percent(20) => 1 + self.random.below(3),
            _ => 0,
        };
        for index in 0..snapshots {
            let taken = self.created + (index + 1) * (NOW - self.created) / 5;
            let label = self.random.pick(&["before-upgrade", "nightly", "backup"]);
            let written = self.random.below(512 * MIB);
            self.snapshot(format!("{name}@vmsnap-{label}-{index}"), taken, written, 0);
        }
        if self.odd == Some(Odd::Indestructible) {
            self.snapshot(format!("{name}@indestructible"), self.created, 0, 1);
        }
    }

    fn snapshot(&mut self, name: String, creation: u64, written: u64, holds: u64) {
        let snapshot = json!({
            "type": "snapshot",
            "creation": creation,
            "written": written,
            "used": written / 2,
            "userrefs": holds,
        });
        self.datasets.insert(name, snapshot);
    }

    fn delegated_dataset(&mut self) {
        let wanted = matches!(self.role, "db" | "build") || self.odd == Some(Odd::Indestructible);
        if !wanted || self.brand.is_hardware_virtual() {
            return;
        }
        let name = format!("zones/{}/data", self.name);
        self.xml.dataset(&name);
        let dataset = json!({
            "type": "filesystem",
            "creation": self.created,
            "mountpoint": format!("/{name}"),
            "quota": 0,
            "recordsize": self.random.pick(&[8192, 16_384, 131_072]),
            "compression": "lz4",
        });
        self.datasets.insert(name.clone(), dataset);
        if self.odd == Some(Odd::Indestructible) {
            self.snapshot(format!("{name}@indestructible"), self.created, 0, 1);
        }
    }

    fn filesystems(&mut self) {
        let wanted = self.brand == Builder || self.random.percent(15);
        if !wanted || self.brand.is_hardware_virtual() {
            return;
        }
        let attributes = [
            ("directory", "/opt/shared"),
            ("special", "/zones/shared/opt"),
            ("type", "lofs"),
        ];
        self.xml.filesystem(&attributes, &["ro", "nodevices"]);
    }

    fn disks(&mut self) {
        if !self.brand.is_hardware_virtual() {
            return;
        }
        let image = self.random.pick_skewed(&self.host.images).to_string();
        let mut total = 0;
        for index in 0..1 + self.random.below(2) {
            // Newer zones have their volumes below the root dataset, older ones beside it.
            let volume = match self.brand {
                Bhyve => format!("zones/{}/disk{index}", self.name),
                _ => format!("zones/{}-disk{index}", self.name),
            };
            let size = match index {
                0 => 10 * 1024,
                _ => self.package.quota * 1024,
            };
            let slot = format!("0:4:{index}");
            let image_size = size.to_string();
            let mut attrs = vec![("model", "virtio"), ("media", "disk")];
            match index {
                0 => attrs.extend([
                    ("boot", "true"),
                    ("image-uuid", image.as_str()),
                    ("image-size", &image_size),
                ]),
                _ => attrs.extend([("boot", "false"), ("size", &image_size)]),
            }
            if self.brand == Bhyve {
                attrs.push(("pci-slot", &slot));
            }
            let path = format!("/dev/zvol/rdsk/{volume}");
            self.xml.resource("device", &[("match", &path)], &attrs);
            total += size;
            if index == 0 && self.odd == Some(Odd::MissingVolume) {
                continue;
            }
            let volume_properties = json!({
                "type": "volume",
                "creation": self.created,
                "volsize": size * MIB,
                "volblocksize": if self.brand == Bhyve { 4096 } else { 8192 },
                // A volume reserves more than its size: its metadata needs room too.
                "refreservation": size * MIB + size * MIB / 32 + 4096,
                "compression": self.random.pick(&["lz4", "off"]),
                "usedbysnapshots": 0,
            });
            self.datasets.insert(volume, volume_properties);
        }
        if self.odd == Some(Odd::FlexibleDisk) {
            self.xml
                .number_attr("flexible-disk-size", total + 10 * 1024);
            let attrs = [("model", "passthru"), ("pci-slot", "0:8:0")];
            self.xml
                .resource("device", &[("match", "/dev/ppt0")], &attrs);
        }
    }

    fn finish(mut self) -> Zone {
        let (role, odd) = (self.role, self.odd);
        let metadata = json!({
            "customer_metadata": config::customer_metadata(&mut self.random, role, odd),
            "internal_metadata": config::internal_metadata(&mut self.random, odd),
        });
        let tags = config::tags(&mut self.random, role, odd);
        let routes = config::routes(&mut self.random);
        let modified = self.created + self.random.below(NOW - self.created);
        let runtime = self.runtime(modified);
        let last_exited = (self.phase == Phase::Stopped).then(|| LastExited {
            at: modified + self.random.below(NOW - modified),
            // Ended well, with an error, by SIGTERM, by SIGKILL, nobody knows.
            status: self.random.pick(&[0, 0, 0, 1 << 8, 15, 9, -1]),
        });
        Zone {
            installed: match self.phase {
                Phase::Incomplete => "incomplete",
                _ => "installed",
            },
            xml: self.xml.finish(),
            name: self.name,
            metadata,
            tags,
            routes,
            datasets: Value::Object(self.datasets),
            runtime,
            last_exited,
            modified,
        }
    }

    /// What the kernel knows of a zone that it runs.
    fn runtime(&mut self, modified: u64) -> Option<Value> {
        let state = match self.phase {
            Phase::Running => "running",
            Phase::ShuttingDown => "shutting_down",
            Phase::Stopped
            | Phase::Failed
            | Phase::Provisioning
            | Phase::Transition
            | Phase::Incomplete => return None,
        };
        Some(json!({
            "zoneid": self.number + 1,
            "state": state,
            "init_pid": 5000 + 7 * self.number,
            "init_restarts": if self.random.percent(3) { 1 } else { 0 },
            "boot_time": modified + self.random.below(NOW - modified),
        }))
    }
}

fn timestamp(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_millis(time).to_string()
}
