//! The one table of a VM's properties.
//!
//! It owns what is known of each property: its name and place in the object, the kind and unit of
//! its value, the part of the store it is read from, and for which brands it can be set. Readers,
//! writers and the file tree ask it instead of knowing properties by themselves. The rows are in
//! `property/table.rs`.
//!
//! Invariants: names are unique in their table; whatever can be changed on a VM has a brand in
//! [`Property::update`]; what is not in the table is no member of a VM object that we build.
//!
//! It does not convert values (the sources do) and does not check them (payloads do). `type` is
//! no property: it is [`zone_type`] of the brand.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::Object;

mod table;

pub use table::TABLE;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// The member's name in the object, and the name of its file.
    pub name: &'static str,
    /// What values it has.
    pub kind: Kind,
    /// What its numbers count, or how its text is written.
    pub unit: Unit,
    /// Where it is read from; for what is computed, the part that decides it.
    pub part: Part,
    /// The brands for which it can be given when the VM (or the nic, disk, …) is created.
    pub create: Brands,
    /// The brands for which it can be changed later. For a [`Kind::Map`] that is done entry by
    /// entry, for [`Kind::Objects`] element by element, by verbs such as `set_tags` and `add_nics`.
    pub update: Brands,
    /// Whether an empty value or null removes it. Otherwise it can only be given another value.
    pub removable: bool,
    /// Whether it may be shown only to those who may read secrets.
    pub secret: bool,
}

impl Property {
    /// Whether it can be changed on an existing VM of this brand.
    pub fn settable(&self, brand: &str) -> bool {
        self.update.contains(brand)
    }
}

/// What values a property has.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text.
    String,
    /// `true` or `false`.
    Bool,
    /// A JSON number.
    Number,
    /// A list of scalars.
    List,
    /// A flat object whose keys the user chooses, as in tags.
    Map,
    /// A list of objects, whose members have a table of their own.
    Objects(&'static [Property]),
}

/// What a number counts, or how a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain number or text.
    None,
    /// 2^20 bytes.
    MiB,
    /// 2^30 bytes, fractions allowed.
    GiB,
    /// Bytes.
    Bytes,
    /// Hundredths of one CPU.
    Percent,
    /// A duration.
    Nanoseconds,
    /// Milliseconds since 1970.
    EpochMilliseconds,
    /// ISO 8601 text in UTC with milliseconds: `2018-04-11T17:20:56.000Z`.
    Timestamp,
}

/// Which part of a zone store a property is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The zone's XML.
    Zone,
    /// `config/metadata.json`.
    Metadata,
    /// `config/tags.json`.
    Tags,
    /// `config/routes.json`.
    Routes,
    /// `lastexited`.
    LastExited,
    /// Its datasets: ZFS or the file provider.
    Datasets,
    /// Its runtime state: `zoneadm` and the kernel, or the file provider.
    Runtime,
    /// The host's `.sysinfo.json`.
    Sysinfo,
}

impl Part {
    /// All of them, in their order.
    pub const ALL: [Part; 8] = [
        Part::Zone,
        Part::Metadata,
        Part::Tags,
        Part::Routes,
        Part::LastExited,
        Part::Datasets,
        Part::Runtime,
        Part::Sysinfo,
    ];

    /// The word used in extended attributes for a domain of a libvirt: its XML, or what libvirt says beside it.
    pub fn of_domain(self) -> &'static str {
        match self {
            Part::Zone | Part::Metadata | Part::Tags | Part::Routes => "xml",
            Part::Datasets | Part::Runtime | Part::LastExited | Part::Sysinfo => "libvirt",
        }
    }

    /// The word used in extended attributes and in `.status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Zone => "xml",
            Part::Metadata => "metadata",
            Part::Tags => "tags",
            Part::Routes => "routes",
            Part::LastExited => "lastexited",
            Part::Datasets => "datasets",
            Part::Runtime => "runtime",
            Part::Sysinfo => "sysinfo",
        }
    }
}

/// The property that holds a libvirt domain's XML, and which only such VMs have.
pub const DOMAIN_XML: &str = "domain.xml";

/// What [`brand`] calls all domains of a libvirt.
pub const LIBVIRT: &str = "libvirt";

/// The brand that decides what can be set. The domains of a libvirt have brands as zones have them, `kvm` among
/// them, but what can be set is that of libvirt.
pub fn brand(vm: &Object) -> Option<&str> {
    match vm.contains_key(DOMAIN_XML) {
        true => Some(LIBVIRT),
        false => vm.get("brand").and_then(Value::as_str),
    }
}

/// A set of brands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brands(u8);

impl Brands {
    /// No brand.
    pub const NONE: Brands = Brands(0);
    /// SmartOS zones.
    pub const JOYENT: Brands = Brands(1);
    /// SmartOS zones without services.
    pub const JOYENT_MINIMAL: Brands = Brands(1 << 1);
    /// SmartOS zones that build images.
    pub const BUILDER: Brands = Brands(1 << 2);
    /// Linux zones.
    pub const LX: Brands = Brands(1 << 3);
    /// Hardware VMs under KVM.
    pub const KVM: Brands = Brands(1 << 4);
    /// Hardware VMs under bhyve.
    pub const BHYVE: Brands = Brands(1 << 5);
    /// Every brand of SmartOS.
    pub const ALL: Brands = Brands((1 << 6) - 1);
    /// The domains of a libvirt, whatever hypervisor runs them.
    pub const LIBVIRT: Brands = Brands(1 << 6);
    /// The brands that run a guest's own kernel.
    pub const HVM: Brands = Brands::KVM.with(Brands::BHYVE);
    /// The brands that run on the host's kernel.
    pub const ZONES: Brands = Brands(Brands::ALL.0 & !Brands::HVM.0);

    /// The brands that are in either set.
    pub const fn with(self, other: Brands) -> Brands {
        Brands(self.0 | other.0)
    }

    /// Whether the brand of this name is in the set. An unknown brand counts as joyent.
    pub fn contains(self, brand: &str) -> bool {
        self.0 & Brands::named(brand).0 != 0
    }

    fn named(brand: &str) -> Brands {
        match brand {
            "joyent-minimal" => Brands::JOYENT_MINIMAL,
            "builder" => Brands::BUILDER,
            "lx" => Brands::LX,
            "kvm" => Brands::KVM,
            "bhyve" => Brands::BHYVE,
            LIBVIRT => Brands::LIBVIRT,
            _ => Brands::JOYENT,
        }
    }
}

/// Whether VMs of this brand run a kernel of their own.
pub fn hvm(brand: &str) -> bool {
    Brands::HVM.contains(brand) || matches!(brand, "hvf" | "qemu" | "test" | "xen")
}

/// What `vmadm list` calls the brand in its TYPE column.
pub fn zone_type(brand: &str) -> &'static str {
    match brand {
        "lx" => "LX",
        "kvm" => "KVM",
        "bhyve" => "BHYV",
        "lxc" => "LXC",
        "qemu" => "QEMU",
        "test" => "TEST",
        "xen" => "XEN",
        _ => "OS",
    }
}

/// Where each name stands in [`TABLE`].
static POSITIONS: LazyLock<HashMap<&'static str, usize>> = LazyLock::new(|| {
    let rows = TABLE.iter().enumerate();
    rows.map(|(position, property)| (property.name, position))
        .collect()
});

/// The row of a VM's property; `None` if there is no such property.
pub fn property(name: &str) -> Option<&'static Property> {
    position(name).map(|position| &TABLE[position])
}

/// Where a property stands in [`TABLE`].
pub fn position(name: &str) -> Option<usize> {
    POSITIONS.get(name).copied()
}

/// Brings the members of a VM object, and those of its nics, disks and the like, into the order of
/// their tables. Members that no table knows come last, by name. The entries of maps stay as they
/// are: their order is the user's.
pub fn sort(object: &mut Object) {
    sort_members(object, position);
    for (name, value) in object {
        let Some(Kind::Objects(members)) = property(name).map(|property| property.kind) else {
            continue;
        };
        for element in value.as_array_mut().into_iter().flatten() {
            if let Some(element) = element.as_object_mut() {
                sort_members(element, |name| {
                    members.iter().position(|member| member.name == name)
                });
            }
        }
    }
}

/// Sorts one object's members by their position, and those without one after them by name.
fn sort_members(object: &mut Object, position: impl Fn(&str) -> Option<usize>) {
    let mut members: Vec<(usize, String, Value)> = std::mem::take(object)
        .into_iter()
        .map(|(name, value)| (position(&name).unwrap_or(usize::MAX), name, value))
        .collect();
    members.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    object.extend(members.into_iter().map(|(_, name, value)| (name, value)));
}

/// Whether an entry of a map is shown only to those who may read secrets: everything in a secret
/// map, and the passwords that guests are given as `customer_metadata`, whose keys end in `_pw`.
pub fn is_secret_entry(map: &str, key: &str) -> bool {
    property(map).is_some_and(|property| property.secret)
        || (map == "customer_metadata" && key.ends_with("_pw"))
}

/// Whether what is at a path within a VM is shown only to those who may read secrets.
pub fn is_secret(path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    let Some(property) = property(first) else {
        return false;
    };
    let Some(last) = rest.last() else {
        return property.secret;
    };
    property.secret
        || match property.kind {
            Kind::Objects(columns) => columns
                .iter()
                .any(|column| column.name == last && column.secret),
            _ => is_secret_entry(first, last),
        }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The properties that SmartOS knows and a VM object does not have.
    const LEFT_OUT: &[(&str, &str)] = &[
        (
            "a verb of a payload",
            "add_disks add_filesystems add_nics add_pci_devices create_only delegate_dataset \
             mdata_exec_timeout nowait remove_customer_metadata remove_disks remove_filesystems \
             remove_internal_metadata remove_nics remove_pci_devices remove_routes remove_tags \
             set_customer_metadata set_internal_metadata set_routes set_tags update_disks \
             update_filesystems update_nics update_pci_devices zone_dataset_uuid \
             disks.*.dangerous_allow_shrink disks.*.nocreate",
        ),
        (
            "deprecated, another property has its value",
            "dataset_uuid default_gateway zfs_storage_pool_name disks.*.image_name",
        ),
        (
            "ignored when the XML is read",
            "allowed_address debug_id ip_type disks.*.zonexml_size",
        ),
        (
            "internal: shown as part of state, or as autoboot",
            "failed provisioning transition vm_autoboot",
        ),
        ("computed when it is asked for", "type"),
        ("shown on each disk", "missing"),
    ];

    /// Every other property that SmartOS knows.
    const KNOWN: &str = "
        alias app_svc_dependent archive_on_delete autoboot bhyve_extra_opts billing_id boot
        boot_timestamp bootrom brand com1 com2 cpu_cap cpu_shares cpu_type create_timestamp
        customer_metadata datacenter_name datasets disk_driver disks disks.*.block_size
        disks.*.boot disks.*.compression disks.*.guest_block_size disks.*.image_size
        disks.*.image_uuid disks.*.media disks.*.model disks.*.notrim disks.*.path
        disks.*.pci_slot disks.*.refreservation disks.*.size disks.*.uuid disks.*.zfs_filesystem
        disks.*.zpool dns_domain do_not_inventory docker exit_status exit_timestamp filesystems
        filesystems.*.options filesystems.*.raw filesystems.*.source filesystems.*.target
        filesystems.*.type firewall_enabled flexible_disk_size free_space fs_allowed headnode_id
        hostname image_uuid indestructible_delegated indestructible_zoneroot init_name
        init_restarts internal_metadata internal_metadata_namespaces kernel_version last_modified
        limit_priv maintain_resolvers max_locked_memory max_lwps max_msg_ids max_physical_memory
        max_sem_ids max_shm_ids max_shm_memory max_swap nic_driver nics nics.*.allow_dhcp_spoofing
        nics.*.allow_ip_spoofing nics.*.allow_mac_spoofing nics.*.allow_restricted_traffic
        nics.*.allow_unfiltered_promisc nics.*.allowed_dhcp_cids nics.*.allowed_ips
        nics.*.blocked_outgoing_ports nics.*.dhcp_server nics.*.gateway nics.*.gateways
        nics.*.interface nics.*.ip nics.*.ips nics.*.mac nics.*.model nics.*.mtu nics.*.netmask
        nics.*.network_uuid nics.*.nic_tag nics.*.primary nics.*.vlan_id nics.*.vrrp_primary_ip
        nics.*.vrrp_vrid owner_uuid package_name package_version pci_devices pci_devices.*.path
        pci_devices.*.pci_slot pid platform_buildstamp qemu_extra_opts qemu_opts quota ram
        resolvers restart_init routes server_uuid snapshots spice_opts spice_password spice_port
        state tags tmpfs transition_expire transition_to uuid v vcpus vga virtio_txburst
        virtio_txtimer vnc_password vnc_port zfs_data_compression zfs_data_recsize zfs_filesystem
        zfs_filesystem_limit zfs_io_priority zfs_root_compression zfs_root_recsize
        zfs_snapshot_limit zlog_max_size zlog_mode zlog_name zonename zonepath zpool";

    /// The properties that SmartOS's table of properties lacks and its VM objects have.
    const BEYOND: &str = "disks.*.missing hvm snapshots.*.created_at snapshots.*.name
        snapshots.*.size zone_state zoneid";

    /// The properties that only the domains of a libvirt have.
    const LIBVIRT_ONLY: &str = "domain.xml drift drift.*.property drift.*.live drift.*.config exit_reason managed_save
        max_vcpus nova persistent reboot_timestamp state_reason
        disks.*.boot_order disks.*.format disks.*.name disks.*.readonly disks.*.serial nics.*.boot_order
        nics.*.bridge nics.*.device nics.*.link nics.*.network nics.*.type snapshots.*.state";

    fn all_names() -> Vec<String> {
        let mut names = Vec::new();
        for property in TABLE {
            names.push(property.name.to_owned());
            if let Kind::Objects(members) = property.kind {
                names.extend(
                    members
                        .iter()
                        .map(|m| format!("{}.*.{}", property.name, m.name)),
                );
            }
        }
        names
    }

    #[test]
    fn the_table_has_every_property_of_smartos_and_no_name_twice() {
        let names = all_names();
        let set: HashSet<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(set.len(), names.len());
        let expected: HashSet<&str> = [KNOWN, BEYOND, LIBVIRT_ONLY]
            .iter()
            .flat_map(|list| list.split_whitespace())
            .collect();
        assert_eq!(set, expected);
    }

    #[test]
    fn what_is_left_out_is_left_out_for_one_reason() {
        let names = all_names();
        let mut seen = HashSet::new();
        for (reason, list) in LEFT_OUT {
            for name in list.split_whitespace() {
                assert!(seen.insert(name), "{name} is named twice");
                assert!(!names.iter().any(|known| known == name), "{name}: {reason}");
            }
        }
        assert_eq!(KNOWN.split_whitespace().count() + seen.len(), 187);
    }

    #[test]
    fn a_name_leads_to_its_row() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(position(row.name), Some(index));
            assert_eq!(property(row.name).map(|found| found.name), Some(row.name));
        }
        assert!(property("set_tags").is_none());
        assert!(property("").is_none());
    }

    #[test]
    fn what_is_removable_can_be_set() {
        let members = TABLE
            .iter()
            .filter_map(|property| match property.kind {
                Kind::Objects(members) => Some(members),
                _ => None,
            })
            .flatten();
        for row in TABLE.iter().chain(members) {
            assert!(
                !row.removable || row.update != Brands::NONE,
                "{}: removable, but nothing may change it",
                row.name
            );
        }
    }

    #[test]
    fn passwords_and_internal_metadata_are_the_secrets() {
        let secrets: Vec<&str> = TABLE
            .iter()
            .filter(|property| property.secret)
            .map(|property| property.name)
            .collect();
        assert_eq!(
            secrets,
            [
                "vnc_password",
                "spice_password",
                "internal_metadata",
                "drift",
                DOMAIN_XML
            ]
        );
        assert!(is_secret_entry("internal_metadata", "anything"));
        assert!(is_secret_entry("customer_metadata", "root_pw"));
        assert!(!is_secret_entry("customer_metadata", "root_password"));
        assert!(!is_secret_entry("tags", "root_pw"));
    }

    #[test]
    fn whether_a_property_can_be_set_depends_on_the_brand() {
        let settable = |name, brand| property(name).is_some_and(|row| row.settable(brand));
        assert!(settable("vcpus", "kvm"));
        assert!(settable("vcpus", "bhyve"));
        assert!(!settable("vcpus", "joyent"));
        assert!(settable("fs_allowed", "builder"));
        assert!(!settable("fs_allowed", "kvm"));
        assert!(settable("docker", "joyent-minimal"));
        assert!(!settable("docker", "joyent"));
        assert!(settable("package_name", "kvm"));
        assert!(!settable("package_name", "bhyve"));
        assert!(!settable("image_uuid", "joyent"));
        assert!(settable("tags", "lx"));
    }

    #[test]
    fn an_unknown_brand_counts_as_joyent() {
        for row in TABLE {
            assert_eq!(row.settable("sparse"), row.settable("joyent"));
        }
        assert!(!hvm("sparse"));
        assert_eq!(zone_type("sparse"), "OS");
    }

    #[test]
    fn kvm_and_bhyve_are_hardware_vms() {
        let brands = ["joyent", "joyent-minimal", "builder", "lx", "kvm", "bhyve"];
        assert_eq!(
            brands.map(zone_type),
            ["OS", "OS", "OS", "LX", "KVM", "BHYV"]
        );
        assert_eq!(
            brands.map(hvm),
            brands.map(|brand| Brands::HVM.contains(brand))
        );
        assert_eq!(brands.map(hvm), [false, false, false, false, true, true]);
    }

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn sorting_follows_the_tables_and_puts_unknown_members_last() {
        let mut vm = object(json!({
            "zebra": 1, "state": "running", "ant": 2, "tags": {"b": 1, "a": 2},
            "nics": [{"primary": true, "odd": 0, "mac": "m", "interface": "net0"}, null],
            "disks": "none", "zonename": "z",
        }));
        sort(&mut vm);
        assert_eq!(
            serde_json::to_string(&vm).unwrap(),
            r#"{"zonename":"z","disks":"none","nics":[{"interface":"net0","mac":"m","primary":true,"odd":0},null],"tags":{"b":1,"a":2},"state":"running","ant":2,"zebra":1}"#
        );
    }

    proptest! {
        #[test]
        fn sorting_loses_nothing_and_does_not_depend_on_the_order_before(
            members in prop::collection::hash_map(
                prop_oneof![
                    prop::sample::select(TABLE).prop_map(|property| property.name.to_owned()),
                    "[a-z]{1,8}",
                ],
                any::<u8>(),
                0..20,
            )
        ) {
            let forwards: Object = members.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let mut sorted = forwards.clone();
            sort(&mut sorted);
            prop_assert_eq!(&sorted, &forwards);
            let mut backwards: Object = forwards.into_iter().rev().collect();
            sort(&mut backwards);
            prop_assert!(sorted.iter().eq(backwards.iter()));
        }
    }
}
