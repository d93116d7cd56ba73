//! The rows of the property table.
//!
//! Their order is the order of a VM object's members: first what SmartOS's loader takes from the
//! zone's XML, in its order, then runtime, exit, host, metadata and datasets, and at the end what
//! is computed from all of these. In the tables of nics, disks and the like, `create` means: given
//! with the new element.
//!
//! The members that identify an element (`mac`, `path`, `target`, the `name` of a domain's disk) have
//! no brand to update them: an element with another one is another element. (The `path` of a domain's
//! drive is its medium, and identifies nothing.) Neither has a nic's `interface`, the name by which
//! the guest knows it. `limit_priv` and `fs_allowed` are lists to those who set them, but the
//! object holds the text that stands in the XML, joined by commas.

use super::Brands;
use super::DOMAIN_XML;
use super::Kind::{self, *};
use super::Part::{self, *};
use super::Property;
use super::Unit::{self, *};
use crate::vm::drift::DRIFT;

const NONE: Brands = Brands::NONE;
const ALL: Brands = Brands::ALL;
const ZONES: Brands = Brands::ZONES;
const LX: Brands = Brands::LX;
const HVM: Brands = Brands::HVM;
const KVM: Brands = Brands::KVM;
const BHYVE: Brands = Brands::BHYVE;
const NOT_BHYVE: Brands = ZONES.with(KVM);
const DOMAINS: Brands = Brands::LIBVIRT;
/// Zones and domains.
const EVERY: Brands = ALL.with(DOMAINS);
/// What runs a kernel of its own, as zones of SmartOS or as domains.
const GUESTS: Brands = HVM.with(DOMAINS);
/// Those whose disks can grow.
const GROWING: Brands = BHYVE.with(DOMAINS);
/// The brands that run docker containers.
const DOCKER: Brands = LX.with(Brands::JOYENT_MINIMAL);

/// One row, as wide as a line: a property that cannot be removed and is no secret.
const fn row(
    name: &'static str,
    kind: Kind,
    unit: Unit,
    part: Part,
    create: Brands,
    update: Brands,
) -> Property {
    Property {
        name,
        kind,
        unit,
        part,
        create,
        update,
        removable: false,
        secret: false,
    }
}

impl Property {
    /// The same property, which an empty value removes.
    const fn optional(self) -> Property {
        Property {
            removable: true,
            ..self
        }
    }

    /// The same property, a secret.
    const fn secret(self) -> Property {
        Property {
            secret: true,
            ..self
        }
    }
}

/// The properties of a VM, in the order of its members.
#[rustfmt::skip]
pub const TABLE: &[Property] = &[
    //   name                          kind    unit         part    create     update
    // The zone's XML.
    row("zonename",                     String, None,        Zone,   EVERY,     NONE),
    row("autoboot",                     Bool,   None,        Zone,   EVERY,     EVERY),
    row("brand",                        String, None,        Zone,   EVERY,     NONE),
    row("limit_priv",                   String, None,        Zone,   ALL,       ALL).optional(),
    row("fs_allowed",                   String, None,        Zone,   ZONES,     ZONES).optional(),
    row("v",                            Number, None,        Zone,   NONE,      NONE),
    row("create_timestamp",             String, Timestamp,   Zone,   NONE,      NONE),
    row("image_uuid",                   String, None,        Zone,   ALL,       NONE),
    row("cpu_shares",                   Number, None,        Zone,   EVERY,     EVERY),
    row("cpu_cap",                      Number, Percent,     Zone,   EVERY,     EVERY).optional(),
    row("max_lwps",                     Number, None,        Zone,   ALL,       ALL),
    row("max_msg_ids",                  Number, None,        Zone,   ALL,       ALL),
    row("max_sem_ids",                  Number, None,        Zone,   ALL,       ALL),
    row("max_shm_ids",                  Number, None,        Zone,   ALL,       ALL),
    row("max_shm_memory",               Number, MiB,         Zone,   ALL,       ALL),
    row("zfs_io_priority",              Number, None,        Zone,   ALL,       ALL),
    row("max_physical_memory",          Number, MiB,         Zone,   EVERY,     EVERY),
    row("max_locked_memory",            Number, MiB,         Zone,   ALL,       ALL),
    row("max_swap",                     Number, MiB,         Zone,   ALL,       ALL),
    row("billing_id",                   String, None,        Zone,   ALL,       ALL).optional(),
    row("owner_uuid",                   String, None,        Zone,   ALL,       ALL).optional(),
    row("package_name",                 String, None,        Zone,   NOT_BHYVE, NOT_BHYVE).optional(),
    row("package_version",              String, None,        Zone,   NOT_BHYVE, NOT_BHYVE).optional(),
    row("hostname",                     String, None,        Zone,   ALL,       ALL).optional(),
    row("dns_domain",                   String, None,        Zone,   ZONES,     ZONES).optional(),
    row("resolvers",                    List,   None,        Zone,   ALL,       ALL).optional(),
    row("maintain_resolvers",           Bool,   None,        Zone,   ZONES,     ZONES).optional(),
    row("alias",                        String, None,        Zone,   EVERY,     EVERY).optional(),
    row("ram",                          Number, MiB,         Zone,   EVERY,     EVERY),
    row("tmpfs",                        Number, MiB,         Zone,   ZONES,     ZONES),
    row("kernel_version",               String, None,        Zone,   LX,        LX).optional(),
    row("init_name",                    String, None,        Zone,   ZONES,     ZONES).optional(),
    row("restart_init",                 Bool,   None,        Zone,   ZONES,     ZONES).optional(),
    row("docker",                       Bool,   None,        Zone,   DOCKER,    DOCKER).optional(),
    row("zlog_max_size",                Number, Bytes,       Zone,   ZONES,     ZONES).optional(),
    row("zlog_mode",                    String, None,        Zone,   NONE,      NONE),
    row("zlog_name",                    String, None,        Zone,   NONE,      NONE),
    row("app_svc_dependent",            Bool,   None,        Zone,   NONE,      NONE),
    row("vcpus",                        Number, None,        Zone,   GUESTS,    GUESTS),
    row("max_vcpus",                    Number, None,        Zone,   DOMAINS,   DOMAINS),
    row("cpu_type",                     String, None,        Zone,   KVM,       KVM).optional(),
    row("vga",                          String, None,        Zone,   KVM,       KVM).optional(),
    row("boot",                         String, None,        Zone,   HVM,       HVM).optional(),
    row("bootrom",                      String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("com1",                         String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("com2",                         String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("bhyve_extra_opts",             String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("qemu_opts",                    String, None,        Zone,   KVM,       KVM).optional(),
    row("qemu_extra_opts",              String, None,        Zone,   KVM,       KVM).optional(),
    row("vnc_port",                     Number, None,        Zone,   GUESTS,    HVM).optional(),
    row("vnc_password",                 String, None,        Zone,   HVM,       HVM).optional().secret(),
    row("spice_port",                   Number, None,        Zone,   KVM,       KVM).optional(),
    row("spice_password",               String, None,        Zone,   KVM,       KVM).optional().secret(),
    row("spice_opts",                   String, None,        Zone,   KVM,       KVM).optional(),
    row("virtio_txtimer",               Number, Nanoseconds, Zone,   KVM,       KVM).optional(),
    row("virtio_txburst",               Number, None,        Zone,   KVM,       KVM).optional(),
    row("disk_driver",                  String, None,        Zone,   HVM,       HVM).optional(),
    row("nic_driver",                   String, None,        Zone,   HVM,       HVM).optional(),
    row("flexible_disk_size",           Number, MiB,         Zone,   BHYVE,     BHYVE).optional(),
    row("firewall_enabled",             Bool,   None,        Zone,   ALL,       ALL),
    row("do_not_inventory",             Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("archive_on_delete",            Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("internal_metadata_namespaces", List,   None,        Zone,   ALL,       ALL).optional(),
    row("disks",                Objects(DISKS), None,        Zone,   GUESTS,    GUESTS),
    row("pci_devices",    Objects(PCI_DEVICES), None,        Zone,   BHYVE,     BHYVE),
    row("filesystems",    Objects(FILESYSTEMS), None,        Zone,   ZONES,     NOT_BHYVE),
    row("nics",                  Objects(NICS), None,        Zone,   EVERY,     EVERY),
    row("hvm",                          Bool,   None,        Zone,   NONE,      NONE),
    row("persistent",                   Bool,   None,        Zone,   NONE,      NONE),
    row("managed_save",                 Bool,   None,        Zone,   NONE,      NONE),

    // The running zone.
    row("uuid",                         String, None,        Runtime, EVERY,    NONE),
    row("zoneid",                       Number, None,        Runtime, NONE,     NONE),
    row("zonepath",                     String, None,        Runtime, NONE,     NONE),
    row("pid",                          Number, None,        Runtime, NONE,     NONE),
    row("init_restarts",                Number, None,        Runtime, NONE,     NONE),
    row("boot_timestamp",               String, Timestamp,   Runtime, NONE,     NONE),
    row("reboot_timestamp",             String, Timestamp,   Runtime, NONE,     NONE),

    // How it last ended.
    row("exit_status",                  Number, None,        LastExited, NONE,  NONE),
    row("exit_timestamp",               String, Timestamp,   LastExited, NONE,  NONE),
    row("exit_reason",                  String, None,        Runtime, NONE,     NONE),

    // Its host.
    row("server_uuid",                  String, None,        Sysinfo, NONE,     NONE),
    row("datacenter_name",              String, None,        Sysinfo, NONE,     NONE),
    row("headnode_id",                  String, None,        Sysinfo, NONE,     NONE),
    row("platform_buildstamp",          String, None,        Sysinfo, NONE,     NONE),

    // What its users keep with it.
    row("customer_metadata",            Map,    None,        Metadata, EVERY,   EVERY),
    row("internal_metadata",            Map,    None,        Metadata, ALL,     ALL).secret(),
    row("routes",                       Map,    None,        Routes, ALL,       ALL),
    row("tags",                         Map,    None,        Tags,   EVERY,     EVERY),
    row("nova",                         Map,    None,        Zone,   NONE,      NONE),

    // Its datasets.
    row("quota",                        Number, GiB,         Datasets, ALL,     EVERY).optional(),
    row("zfs_root_compression",         String, None,        Datasets, ALL,     ALL).optional(),
    row("zfs_root_recsize",             Number, Bytes,       Datasets, ALL,     ALL),
    row("zfs_data_compression",         String, None,        Datasets, ZONES,   ZONES).optional(),
    row("zfs_data_recsize",             Number, Bytes,       Datasets, ZONES,   ZONES),
    row("zfs_filesystem_limit",         Number, None,        Datasets, ALL,     ALL).optional(),
    row("zfs_snapshot_limit",           Number, None,        Datasets, ALL,     ALL).optional(),
    row("zfs_filesystem",               String, None,        Datasets, NONE,    NONE),
    row("zpool",                        String, None,        Datasets, ALL,     NONE),
    // The names of the delegated ones stand in the XML.
    row("datasets",                     List,   None,        Zone,   NONE,      NONE),
    row("indestructible_zoneroot",      Bool,   None,        Datasets, ALL,     ALL).optional(),
    row("indestructible_delegated",     Bool,   None,        Datasets, ALL,     ALL).optional(),
    row("free_space",                   Number, MiB,         Datasets, NONE,    NONE),
    row("snapshots",        Objects(SNAPSHOTS), None,        Datasets, NONE,    NONE),

    // What follows from the above.
    row("last_modified",                String, Timestamp,   Zone,   NONE,      NONE),
    row("zone_state",                   String, None,        Runtime, NONE,     NONE),
    row("state",                        String, None,        Runtime, NONE,     NONE),
    row("state_reason",                 String, None,        Runtime, NONE,     NONE),
    row("transition_to",                String, None,        Zone,   NONE,      NONE),
    row("transition_expire",            Number, EpochMilliseconds, Zone, NONE,  NONE),

    // In what the next start of a running libvirt domain will differ, and the domain as libvirt has it.
    row(DRIFT,                  Objects(DRIFTS), None,        Zone,   NONE,      NONE).secret(),
    row(DOMAIN_XML,                     String, None,        Zone,   NONE,      NONE).secret(),
];

#[rustfmt::skip]
const NICS: &[Property] = &[
    row("interface",                    String, None,        Zone,   ALL,       NONE),
    row("mac",                          String, None,        Zone,   EVERY,     NONE),
    row("vlan_id",                      Number, None,        Zone,   ALL,       ALL).optional(),
    row("nic_tag",                      String, None,        Zone,   ALL,       ALL),
    row("gateway",                      String, None,        Zone,   ALL,       ALL).optional(),
    row("gateways",                     List,   None,        Zone,   ALL,       ALL).optional(),
    row("netmask",                      String, None,        Zone,   ALL,       ALL).optional(),
    row("ip",                           String, None,        Zone,   ALL,       ALL).optional(),
    row("ips",                          List,   None,        Zone,   ALL,       ALL).optional(),
    row("model",                        String, None,        Zone,   GUESTS,    HVM),
    row("network_uuid",                 String, None,        Zone,   ALL,       ALL).optional(),
    row("primary",                      Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("mtu",                          Number, Bytes,       Zone,   EVERY,     ALL).optional(),
    row("vrrp_vrid",                    Number, None,        Zone,   ALL,       ALL).optional(),
    row("vrrp_primary_ip",              String, None,        Zone,   ALL,       ALL).optional(),
    row("allowed_ips",                  List,   None,        Zone,   ALL,       ALL).optional(),
    row("allowed_dhcp_cids",            List,   None,        Zone,   NOT_BHYVE, NOT_BHYVE).optional(),
    row("blocked_outgoing_ports",       List,   None,        Zone,   ALL,       ALL).optional(),
    row("dhcp_server",                  Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("allow_dhcp_spoofing",          Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("allow_ip_spoofing",            Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("allow_mac_spoofing",           Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("allow_restricted_traffic",     Bool,   None,        Zone,   ALL,       ALL).optional(),
    row("allow_unfiltered_promisc",     Bool,   None,        Zone,   HVM,       HVM).optional(),
    row("type",                         String, None,        Zone,   DOMAINS,   NONE),
    row("network",                      String, None,        Zone,   DOMAINS,   DOMAINS),
    row("bridge",                       String, None,        Zone,   DOMAINS,   DOMAINS),
    row("device",                       String, None,        Zone,   NONE,      NONE),
    row("link",                         String, None,        Zone,   DOMAINS,   DOMAINS),
    row("boot_order",                   Number, None,        Zone,   NONE,      NONE),
];

#[rustfmt::skip]
const DISKS: &[Property] = &[
    row("name",                         String, None,        Zone,   DOMAINS,   NONE),
    row("path",                         String, None,        Zone,   GUESTS,    DOMAINS).optional(),
    row("boot",                         Bool,   None,        Zone,   GUESTS,    HVM).optional(),
    row("model",                        String, None,        Zone,   GUESTS,    HVM),
    row("media",                        String, None,        Zone,   GUESTS,    HVM),
    row("image_size",                   Number, MiB,         Zone,   HVM,       NONE),
    row("image_uuid",                   String, None,        Zone,   HVM,       NONE),
    row("pci_slot",                     String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("uuid",                         String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("guest_block_size",             String, None,        Zone,   BHYVE,     BHYVE).optional(),
    row("notrim",                       Bool,   None,        Zone,   BHYVE,     BHYVE).optional(),
    row("zfs_filesystem",               String, None,        Datasets, NONE,    NONE),
    row("zpool",                        String, None,        Datasets, HVM,     NONE),
    row("size",                         Number, MiB,         Datasets, HVM,     GROWING),
    row("compression",                  String, None,        Datasets, HVM,     HVM),
    row("refreservation",               Number, MiB,         Datasets, HVM,     HVM),
    row("block_size",                   Number, Bytes,       Datasets, HVM,     NONE),
    row("missing",                      Bool,   None,        Datasets, NONE,    NONE),
    row("format",                       String, None,        Zone,   DOMAINS,   NONE),
    row("boot_order",                   Number, None,        Zone,   NONE,      NONE),
    row("readonly",                     Bool,   None,        Zone,   DOMAINS,   NONE),
    row("serial",                       String, None,        Zone,   DOMAINS,   NONE),
];

#[rustfmt::skip]
const FILESYSTEMS: &[Property] = &[
    row("source",                       String, None,        Zone,   ZONES,     ZONES),
    row("raw",                          String, None,        Zone,   ZONES,     ZONES).optional(),
    row("target",                       String, None,        Zone,   ZONES,     NONE),
    row("type",                         String, None,        Zone,   ZONES,     ZONES),
    row("options",                      List,   None,        Zone,   ZONES,     ZONES).optional(),
];

#[rustfmt::skip]
const PCI_DEVICES: &[Property] = &[
    row("path",                         String, None,        Zone,   BHYVE,     NONE),
    row("pci_slot",                     String, None,        Zone,   BHYVE,     BHYVE).optional(),
];

#[rustfmt::skip]
const SNAPSHOTS: &[Property] = &[
    row("name",                         String, None,        Datasets, NONE,    NONE),
    row("size",                         Number, MiB,         Datasets, NONE,    NONE),
    row("created_at",                   String, Timestamp,   Datasets, NONE,    NONE),
    row("state",                        String, None,        Datasets, NONE,    NONE),
];

#[rustfmt::skip]
const DRIFTS: &[Property] = &[
    row("property",                     String, None,        Zone,   NONE,      NONE),
    row("live",                         String, None,        Zone,   NONE,      NONE),
    row("config",                       String, None,        Zone,   NONE,      NONE),
];
