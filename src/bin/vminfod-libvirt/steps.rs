//! What one change does, step by step, and which of libvirt's refusals means what.

use std::path::Path;

use serde_json::Value;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{Domain, SchedBandwidth, SchedulerInfo};
use virt::error::{Error, ErrorNumber};
use virt::storage_vol::StorageVol;
use virt::sys;
use vminfod::source::libvirt::device::{self, Place};
use vminfod::source::libvirt::domain::metadata;
use vminfod::source::libvirt::step::{Affect, Step};
use vminfod::source::libvirt::wire::Answer;
use vminfod::source::{Accepted, Failed, FailedKind};
use vminfod::vm::Object;

use crate::link;
use crate::load::{Before, Context, Rebooted, Seen, hangs, is, look};
use refusal::{kind, kind_of_definition, knows_no_such_flags};

mod refusal;

/// What all flags for it mean to virDomainUndefineFlags, from those of QEMU's driver to those that all know.
const UNDEFINE: [sys::virDomainUndefineFlagsValues; 3] = [
    ALL_STATE | sys::VIR_DOMAIN_UNDEFINE_NVRAM | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA,
    ALL_STATE,
    0,
];
const ALL_STATE: sys::virDomainUndefineFlagsValues =
    sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;

/// One change of a domain.
pub struct Work<'a> {
    connect: &'a Connect,
    uuid: Uuid,
    context: &'a Context,
    rebooted: Option<Rebooted>,
}

/// Why a step fails.
enum Refused {
    /// libvirt says so.
    Libvirt(Error),
    /// We do.
    Invalid(String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Libvirt(error)
    }
}

/// What has still to come true when a step is done, as it is read afterwards.
enum Follows {
    /// Nothing.
    Nothing,
    /// The guest decides.
    Guest,
    /// This property has this value, or the guest has yet to follow.
    Property(&'static str, f64),
    /// The domain has stopped, or the guest has yet to follow.
    Stop,
}

impl<'a> Work<'a> {
    pub fn new(
        connect: &'a Connect,
        uuid: Uuid,
        context: &'a Context,
        rebooted: Option<Rebooted>,
    ) -> Work<'a> {
        Work {
            connect,
            uuid,
            context,
            rebooted,
        }
    }

    /// Makes the steps and reads the domain.
    pub fn steps(&self, steps: &[Step]) -> Result<Answer, Failed> {
        let mut applied = Vec::new();
        let mut follows = Vec::new();
        if !steps.is_empty() {
            let domain = self.domain()?;
            let name = domain.name().unwrap_or_else(|_| self.uuid.to_string());
            // Only its end does not need an answer of its process.
            if !matches!(steps[0], Step::Destroy)
                && let Some(reason) = hangs(&domain, &name, self.context)
            {
                return Err(failed(FailedKind::Source, &[], reason));
            }
            for step in steps {
                match self.step(&domain, step) {
                    Ok(follow) => follows.push(follow),
                    // It has ended already.
                    Err(Refused::Libvirt(error))
                        if matches!(step, Step::Destroy)
                            && is(&error, ErrorNumber::OperationInvalid)
                            && !domain.is_active().unwrap_or(true) =>
                    {
                        continue;
                    }
                    // A domain that was not defined has gone with its end.
                    Err(Refused::Libvirt(error))
                        if matches!(step, Step::Undefine)
                            && applied.last().is_some_and(|last| last == "destroy")
                            && is(&error, ErrorNumber::NoDomain) => {}
                    Err(Refused::Libvirt(error)) => {
                        let reason = format!("domain {name}: {step}: {}", error.message());
                        return Err(failed(kind(&error, step), &applied, reason));
                    }
                    Err(Refused::Invalid(reason)) => {
                        let reason = format!("domain {name}: {reason}");
                        return Err(failed(FailedKind::Invalid, &applied, reason));
                    }
                }
                applied.push(step.to_string());
            }
        }
        let vm = match self.read(&applied) {
            Err(gone) if gone.kind == FailedKind::Gone && !steps.is_empty() => None,
            vm => Some(vm?),
        };
        // Nothing would ever come of waiting for it to run.
        if matches!(steps.last(), Some(Step::Start))
            && let Some(vm) = &vm
            && vm.get("state").is_some_and(|state| state == "paused")
        {
            let reason = format!(
                "domain {}: it was started and is paused, as one is that was saved while it was paused; resume it",
                vm.get("zonename")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            );
            return Err(failed(FailedKind::Source, &applied, reason));
        }
        let accepted = match follows.iter().all(|follow| follow.is_done(vm.as_ref())) {
            true => Accepted::Done,
            false => Accepted::Asked,
        };
        Ok(Answer { vm, accepted })
    }

    /// Defines the domain and starts it if it boots by itself.
    pub fn create(&self, mut target: Object) -> Result<Answer, Failed> {
        target.insert("uuid".to_owned(), self.uuid.to_string().into());
        let name = target.get("zonename").and_then(Value::as_str);
        let name = name.unwrap_or_default().to_owned();
        let say = |what: &str| format!("domain {name}: {what}");
        let refuse = |kind, error: Error| failed(kind, &[], say(error.message()));
        let taken = [
            (
                self.connect.lookup_domain_by_uuid(self.uuid),
                format!("there is a domain with the uuid {} already", self.uuid),
            ),
            (
                self.connect.lookup_domain_by_name(&name),
                "there is a domain of this name already".to_owned(),
            ),
        ];
        for (found, reason) in taken {
            match found {
                Ok(_) => return Err(failed(FailedKind::Exists, &[], say(&reason))),
                Err(error) if is(&error, ErrorNumber::NoDomain) => {}
                Err(error) => return Err(refuse(FailedKind::Source, error)),
            }
        }
        let domain = (self.connect.define_domain_xml(&device::domain(&target)))
            .map_err(|error| refuse(kind_of_definition(&error), error))?;
        if target.get("autoboot").and_then(Value::as_bool) == Some(true) {
            if let Err(error) = domain.set_autostart(true) {
                let mut reason = format!("autoboot: {}", error.message());
                let mut applied = Vec::new();
                if let Err(error) = undefine(&domain) {
                    reason = format!("{reason}; and it stays: {}", error.message());
                    applied.push("created".to_owned());
                }
                return Err(failed(FailedKind::Source, &applied, say(&reason)));
            }
            if let Err(error) = domain.create() {
                let reason = say("it was created, but does not start");
                let reason = format!("{reason}: {}", error.message());
                let applied = ["created".to_owned()];
                return Err(failed(FailedKind::Source, &applied, reason));
            }
        }
        let vm = self.read(&["created".to_owned()])?;
        Ok(Answer {
            vm: Some(vm),
            accepted: Accepted::Done,
        })
    }

    fn domain(&self) -> Result<Domain, Failed> {
        self.connect
            .lookup_domain_by_uuid(self.uuid)
            .map_err(|error| self.not_found(&error, &[]))
    }

    fn not_found(&self, error: &Error, applied: &[String]) -> Failed {
        let kind = match is(error, ErrorNumber::NoDomain) {
            true => FailedKind::Gone,
            false => FailedKind::Source,
        };
        let reason = format!("domain {}: {}", self.uuid, error.message());
        failed(kind, applied, reason)
    }

    fn read(&self, applied: &[String]) -> Result<Object, Failed> {
        let before = Before {
            rebooted: self.rebooted,
            ..Before::default()
        };
        match look(self.connect, self.uuid, before, self.context) {
            Ok(Seen::Vm(_, vm, _)) => Ok(vm),
            Ok(Seen::Hangs(reason)) => Err(failed(FailedKind::Source, applied, reason)),
            Ok(Seen::Unplaced(name, reason)) => {
                let reason = format!("domain {name}: {reason}");
                Err(failed(FailedKind::Source, applied, reason))
            }
            Err(error) => Err(self.not_found(&error, applied)),
        }
    }

    fn step(&self, domain: &Domain, step: &Step) -> Result<Follows, Refused> {
        match step {
            Step::Title { title, affect } => {
                if title.as_ref().is_some_and(|title| title.contains('\0')) {
                    return Err(Refused::Invalid("alias: has a NUL".to_owned()));
                }
                let kind = sys::VIR_DOMAIN_METADATA_TITLE as i32;
                domain.set_metadata(kind, title.as_deref(), None, None, impact(*affect))?;
            }
            Step::Metadata {
                tags,
                customer_metadata,
                affect,
            } => {
                let element = metadata::element(tags, customer_metadata);
                if element.as_ref().is_some_and(|xml| xml.contains('\0')) {
                    let reason = "tags and customer_metadata: have a NUL".to_owned();
                    return Err(Refused::Invalid(reason));
                }
                let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
                let (key, uri) = (Some(metadata::KEY), Some(metadata::NAMESPACE));
                domain.set_metadata(kind, element.as_deref(), key, uri, impact(*affect))?;
            }
            Step::Autostart { on } => domain.set_autostart(*on)?,
            Step::Memory { kib, affect } => {
                domain.set_memory_flags(*kib, impact(*affect))?;
                if affect.live() {
                    return Ok(Follows::Property("ram", *kib as f64 / 1024.0));
                }
            }
            Step::MaxMemory { kib } => {
                let flags = sys::VIR_DOMAIN_MEM_MAXIMUM | sys::VIR_DOMAIN_AFFECT_CONFIG;
                domain.set_memory_flags(*kib, flags)?;
            }
            Step::Vcpus { count, affect } => {
                vcpus(domain, *count, *affect)?;
                if affect.live() {
                    return Ok(Follows::Property("vcpus", f64::from(*count)));
                }
            }
            Step::MaxVcpus { count } => {
                let flags = sys::VIR_DOMAIN_VCPU_MAXIMUM | sys::VIR_DOMAIN_AFFECT_CONFIG;
                domain.set_vcpus_flags(*count, flags)?;
            }
            Step::CpuShares { shares, affect } => {
                let tune = SchedulerInfo {
                    cpu_shares: Some(*shares),
                    ..SchedulerInfo::default()
                };
                domain.set_scheduler_parameters_flags(&tune, impact(*affect))?;
            }
            Step::CpuCap { percent, affect } => {
                if let Some(percent) = percent {
                    domain.set_scheduler_parameters_flags(&cap(*percent), impact(*affect))?;
                    return Ok(Follows::Nothing);
                }
                if affect.live() {
                    let live = sys::VIR_DOMAIN_AFFECT_LIVE;
                    domain.set_scheduler_parameters_flags(&no_cap(-1), live)?;
                }
                if affect.config() {
                    let config = sys::VIR_DOMAIN_AFFECT_CONFIG;
                    domain.set_scheduler_parameters_flags(&no_cap(0), config)?;
                }
            }
            Step::AttachNic { nic, affect } => {
                domain.attach_device_flags(&device::nic(nic), impact(*affect))?;
            }
            Step::AttachDisk { disk, affect } => {
                if let Some(path) = disk.get("path").and_then(Value::as_str) {
                    is_of_host("disks", path)?;
                }
                domain.attach_device_flags(&device::disk(disk), impact(*affect))?;
            }
            Step::DetachNic { mac, affect } => {
                let find = |xml: &str| device::find_nic(xml, mac);
                let what = format!("nics[{mac}]");
                return detach(domain, *affect, &what, find);
            }
            Step::DetachDisk { name, affect } => {
                let find = |xml: &str| device::find_disk(xml, name);
                let what = format!("disks[{name}]");
                return detach(domain, *affect, &what, find);
            }
            Step::UpdateNic {
                mac,
                changes,
                affect,
            } => {
                let what = format!("nics[{mac}]");
                for_each(domain, *affect, &what, |xml, flag| {
                    let Some(nic) = device::find_nic(xml, mac).map_err(Refused::Invalid)? else {
                        return Ok(false);
                    };
                    let nic = device::with_nic(&nic, changes).map_err(Refused::Invalid)?;
                    domain.update_device_flags(&nic, flag)?;
                    Ok(true)
                })?;
            }
            Step::Media { name, path, affect } => {
                let what = format!("disks[{name}]");
                if let Some(path) = path {
                    is_of_host(&what, path)?;
                }
                for_each(domain, *affect, &what, |xml, flag| {
                    let Some(disk) = device::find_disk(xml, name).map_err(Refused::Invalid)? else {
                        return Ok(false);
                    };
                    let disk = device::with_medium(&disk, path.as_deref());
                    domain.update_device_flags(&disk.map_err(Refused::Invalid)?, flag)?;
                    Ok(true)
                })?;
            }
            Step::Resize { name, bytes } => self.resize(domain, name, *bytes)?,
            Step::Start => domain.create()?,
            Step::Shutdown => {
                domain.shutdown()?;
                return Ok(Follows::Stop);
            }
            Step::Destroy => domain.destroy()?,
            Step::Reboot => {
                domain.reboot(0)?;
                return Ok(Follows::Guest);
            }
            Step::Reset => domain.reset()?,
            Step::Suspend => domain.suspend()?,
            Step::Resume => domain.resume()?,
            Step::Undefine => undefine(domain)?,
        }
        Ok(Follows::Nothing)
    }

    fn resize(&self, domain: &Domain, name: &str, bytes: u64) -> Result<(), Refused> {
        let grows = |now: u64| match now > bytes {
            true => Err(Refused::Invalid(format!(
                "disks[{name}].size: it has {now} bytes and cannot shrink to {bytes}"
            ))),
            false => Ok(now < bytes),
        };
        if domain.is_active()? {
            if grows(link::capacity(domain, name)?)? {
                domain.block_resize(name, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)?;
            }
            return Ok(());
        }
        let xml = domain.xml_desc(0)?;
        let disk = device::find_disk(&xml, name).map_err(Refused::Invalid)?;
        let disk = disk.ok_or_else(|| missing(&format!("disks[{name}]")))?;
        let volume = match device::place(&disk).map_err(Refused::Invalid)? {
            Some(Place::Path(path)) => self.volume_at(&path)?.ok_or_else(|| {
                Refused::Invalid(format!(
                    "disks[{name}].size: {path} is in no storage pool, so libvirt cannot resize it while the \
                     domain is stopped; start the domain, or define a pool for its folder (virsh pool-define-as)"
                ))
            })?,
            Some(Place::Volume { pool, volume }) => {
                let pool = self.connect.lookup_storage_pool_by_name(&pool)?;
                pool.lookup_storage_vol_by_name(&volume)?
            }
            None => {
                return Err(Refused::Invalid(format!(
                    "disks[{name}].size: libvirt cannot resize such a disk while the domain is stopped"
                )));
            }
        };
        if grows(volume.info()?.capacity)? {
            volume.resize(bytes, 0)?;
        }
        Ok(())
    }

    /// The volume that a file or device is; none if it is in no pool that libvirt has.
    fn volume_at(&self, path: &str) -> Result<Option<StorageVol>, Error> {
        let unknown = |error: &Error| {
            is(error, ErrorNumber::NoStorageVolume)
                || is(error, ErrorNumber::NoStoragePool)
                || is(error, ErrorNumber::NoSupport)
        };
        let found = |volume: Result<StorageVol, Error>| match volume {
            Err(error) if unknown(&error) => Ok(None),
            volume => volume.map(Some),
        };
        if let Some(volume) = found(self.connect.lookup_storage_vol_by_path(path))? {
            return Ok(Some(volume));
        }
        // libvirt knows of a new file in a pool only when it has looked.
        let folder = Path::new(path).parent().and_then(Path::to_str);
        let Some(folder) = folder else {
            return Ok(None);
        };
        match self.connect.lookup_storage_pool_by_target_path(folder) {
            Ok(pool) if pool.is_active()? => {
                pool.refresh(0)?;
                found(self.connect.lookup_storage_vol_by_path(path))
            }
            Ok(_) => Ok(None),
            Err(error) if unknown(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Follows {
    fn is_done(&self, vm: Option<&Object>) -> bool {
        let get = |name: &str| vm.and_then(|vm| vm.get(name));
        match self {
            Follows::Nothing => true,
            Follows::Guest => false,
            Follows::Property(name, value) => get(name).and_then(Value::as_f64) == Some(*value),
            Follows::Stop => get("state").is_none_or(|state| state == "stopped"),
        }
    }
}

fn impact(affect: Affect) -> u32 {
    let mut flags = 0;
    if affect.live() {
        flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
    }
    if affect.config() {
        flags |= sys::VIR_DOMAIN_AFFECT_CONFIG;
    }
    flags
}

/// Changes the number of CPUs. That a guest does not let one go in time is no failure: it may yet.
fn vcpus(domain: &Domain, count: u32, affect: Affect) -> Result<(), Error> {
    let result = domain.set_vcpus_flags(count, impact(affect));
    let is_slow = |error: &Error| {
        is(error, ErrorNumber::OperationTimeout) && error.message().contains("unplug")
    };
    match result {
        Err(error) if affect.live() && is_slow(&error) => match affect.config() {
            // libvirt changes the running domain first, and then it stopped.
            true => domain.set_vcpus_flags(count, impact(Affect::Config)),
            false => Ok(()),
        },
        result => result,
    }
}

/// A cap of what all CPUs together may use.
fn cap(percent: u64) -> SchedulerInfo {
    SchedulerInfo {
        global_bw: SchedBandwidth {
            period: Some(device::CAP_PERIOD),
            quota: Some(i64::try_from(device::cap_quota(percent)).unwrap_or(i64::MAX)),
        },
        ..SchedulerInfo::default()
    }
}

/// No cap, of all CPUs or of each: somebody else may have capped those. A running domain is uncapped by -1; in a
/// definition that would stay, and keep it from starting where CPUs cannot be capped, and 0 removes it.
fn no_cap(quota: i64) -> SchedulerInfo {
    let none = || SchedBandwidth {
        period: None,
        quota: Some(quota),
    };
    SchedulerInfo {
        global_bw: none(),
        vcpu_bw: none(),
        ..SchedulerInfo::default()
    }
}

/// Does something with each of the two configurations that are to be changed, given its XML and its flag, the
/// running one first. It says whether it found there what it is about.
fn for_each(
    domain: &Domain,
    affect: Affect,
    what: &str,
    mut change: impl FnMut(&str, u32) -> Result<bool, Refused>,
) -> Result<(), Refused> {
    let mut found = false;
    if affect.live() {
        found |= change(&domain.xml_desc(0)?, sys::VIR_DOMAIN_AFFECT_LIVE)?;
    }
    if affect.config() {
        let xml = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
        found |= change(&xml, sys::VIR_DOMAIN_AFFECT_CONFIG)?;
    }
    match found {
        true => Ok(()),
        false => Err(missing(what)),
    }
}

/// Refuses a path that stands for a disk of the network (`rbd:pool/image`), as undoing its removal would give one: of
/// that more was known than its path says.
fn is_of_host(what: &str, path: &str) -> Result<(), Refused> {
    let first = path.split('/').next().unwrap_or_default();
    match first.contains(':') {
        true => Err(Refused::Invalid(format!(
            "{what}: {path} is a disk of the network; attach it with virsh attach-device"
        ))),
        false => Ok(()),
    }
}

fn missing(what: &str) -> Refused {
    Refused::Invalid(format!("{what}: the domain has no such device"))
}

/// Detaches a device, where there is one.
fn detach(
    domain: &Domain,
    affect: Affect,
    what: &str,
    find: impl Fn(&str) -> Result<Option<String>, String>,
) -> Result<Follows, Refused> {
    for_each(domain, affect, what, |xml, flag| {
        let Some(device) = find(xml).map_err(Refused::Invalid)? else {
            return Ok(false);
        };
        domain.detach_device_flags(&device, flag)?;
        Ok(true)
    })?;
    // libvirt waits some seconds for the guest to let go of it.
    let stays = affect.live() && find(&domain.xml_desc(0)?).is_ok_and(|device| device.is_some());
    Ok(match stays {
        true => Follows::Guest,
        false => Follows::Nothing,
    })
}

fn undefine(domain: &Domain) -> Result<(), Error> {
    let mut result = Ok(());
    for flags in UNDEFINE {
        result = domain.undefine_flags(flags);
        // Nothing but the flags can be wrong of it, in whatever language libvirt says so.
        let refused =
            |error: &Error| knows_no_such_flags(error) || is(error, ErrorNumber::InvalidArg);
        if !result.as_ref().is_err_and(refused) {
            break;
        }
    }
    result
}

fn failed(kind: FailedKind, applied: &[String], reason: String) -> Failed {
    Failed {
        kind,
        applied: applied.to_vec(),
        reason,
    }
}
