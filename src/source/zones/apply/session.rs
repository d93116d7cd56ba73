//! A VM whose lock is held: how it is read afresh, and who does things to its datasets.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use uuid::Uuid;

use super::datasets::Step;
use super::lock::Lock;
use super::zfs::Commands;
use super::{Applier, Progress, Runtimes, failed, place, records};
use crate::source::zones::command::Runner;
use crate::source::zones::datasets::{self, Table};
use crate::source::zones::index::Entry;
use crate::source::zones::load::{self, DatasetsOf, JSON_LIMIT, RuntimeOf, XML_LIMIT};
use crate::source::zones::{config, files, zoneadm};
use crate::source::{Extent, Failed, FailedKind, Loaded};
use crate::vm::Object;

/// How long taking back what was done may take when the time of the change is over.
pub(super) const UNDO: Duration = Duration::from_secs(5);

/// Where the datasets of a VM on ZFS come from when it is read.
pub(super) enum Datasets {
    /// ZFS is asked.
    Asked,
    /// It has been asked since the last change of them.
    Known(Table),
    /// They are left out.
    LeftOut,
}

/// One change of one VM, from the taking of its lock to its release.
pub(super) struct Session<'a> {
    pub(super) applier: &'a Applier,
    pub(super) uuid: Uuid,
    pub(super) deadline: Instant,
    extent: Extent,
    reading: Reading,
    // Released last.
    _lock: Lock,
}

/// A VM as it was read, and what its datasets are made of.
struct Reading {
    entry: Entry,
    vm: Object,
    table: Table,
}

/// Where the datasets come from for a reading of this extent.
fn datasets_for(extent: Extent) -> Datasets {
    match extent {
        Extent::Whole => Datasets::Asked,
        Extent::Files => Datasets::LeftOut,
    }
}

fn of_zfs(table: &Result<Table, String>) -> DatasetsOf<'_> {
    DatasetsOf::Zfs(table.as_ref().map_err(Clone::clone))
}

impl Applier {
    /// The line of a VM in the index.
    pub(super) fn entry(&self, uuid: Uuid) -> Result<Entry, Failed> {
        let zones = self
            .listed
            .zones(&self.store.index(), || self.store.read_index())
            .map_err(|reason| failed(FailedKind::Source, &reason))?;
        if let Some(entry) = zones.entry(&uuid) {
            return Ok(entry.clone());
        }
        match &zones.broken {
            None => Err(failed(
                FailedKind::Gone,
                &format!("{uuid}: no such VM in etc/zones/index"),
            )),
            Some(reason) => {
                let reason = format!("etc/zones/index: {reason}; repair it, then try again");
                Err(failed(FailedKind::Source, &reason))
            }
        }
    }

    fn read(&self, uuid: Uuid, datasets: Datasets, deadline: Instant) -> Result<Reading, Failed> {
        let entry = self.entry(uuid)?;
        let table = match (self.zfs.is_some(), datasets) {
            (true, Datasets::Known(table)) => Ok(table),
            (true, Datasets::LeftOut) => {
                let loaded = self.load(&entry, DatasetsOf::LeftOut, deadline);
                return self.reading(entry, loaded, Ok(Table::default()));
            }
            (_, _) => self.read_own_datasets(self.commands(deadline).as_ref(), &entry),
        };
        let loaded = self.load(&entry, of_zfs(&table), deadline);
        self.reading(entry, loaded, table)
    }

    fn reading(
        &self,
        entry: Entry,
        loaded: Loaded,
        table: Result<Table, String>,
    ) -> Result<Reading, Failed> {
        match (loaded.failed.as_slice(), table) {
            ([], Ok(table)) => {
                if let Some(root) = table.mounted_at(&entry.zonepath) {
                    let root = root.to_owned();
                    self.roots.lock().insert(entry.zonename.clone(), root);
                }
                Ok(Reading {
                    entry,
                    vm: loaded.vm.object(),
                    table,
                })
            }
            _ => Err(unreadable(&loaded)),
        }
    }

    /// A VM as far as it has to be known to remove it: whether it runs, and its datasets. Those are the
    /// ones that are its own by their names if its XML does not say.
    fn read_to_delete(&self, uuid: Uuid, deadline: Instant) -> Result<Reading, Failed> {
        let entry = self.entry(uuid)?;
        let refuse = |reason: String| {
            let reason = format!("{uuid} cannot be deleted: {reason}");
            failed(FailedKind::Source, &reason)
        };
        let listed = self.store.volumes(&entry.zonename);
        let known = listed.clone().unwrap_or_default();
        let zfs = self.commands(deadline);
        let mut table = self.read_datasets(zfs.as_ref(), &entry, &known);
        let mut disks = Vec::new();
        if let (Some(commands), Ok(found), Err(_)) = (&zfs, &table, listed)
            && let Some(root) = found.mounted_at(&entry.zonepath)
        {
            let volumes = commands.volumes_beside(root).map_err(refuse)?;
            table = self.read_datasets(zfs.as_ref(), &entry, &volumes);
            let path = |volume| json!({"path": format!("{}{volume}", datasets::ZVOL)});
            disks = volumes.iter().map(path).collect();
        }
        let loaded = self.load(&entry, of_zfs(&table), deadline);
        let mut vm = loaded.vm.object();
        let table = table.map_err(refuse)?;
        if !vm.contains_key("zone_state") {
            return Err(unreadable(&loaded));
        }
        if !disks.is_empty() {
            vm.insert("disks".to_owned(), Value::from(disks));
        }
        datasets::describe(&mut vm, &entry.zonepath, &table);
        Ok(Reading { entry, vm, table })
    }

    /// The datasets of a zone, of which these are volumes of its disks.
    fn read_datasets(
        &self,
        zfs: Option<&Commands<'_>>,
        entry: &Entry,
        volumes: &[String],
    ) -> Result<Table, String> {
        let zonename = &entry.zonename;
        match zfs {
            None => {
                let records = self.read_records(zonename)?.unwrap_or_default();
                let path = self.store.datasets(zonename);
                datasets::table(records).map_err(|error| self.store.name(&path, &error))
            }
            Some(zfs) => {
                let root = self.roots.lock().get(zonename).cloned();
                zfs.read(zonename, &entry.zonepath, volumes, root)
            }
        }
    }

    /// The datasets of a zone, with the volumes that its XML names.
    pub(super) fn read_own_datasets(
        &self,
        zfs: Option<&Commands<'_>>,
        entry: &Entry,
    ) -> Result<Table, String> {
        // The file provider's records are of all volumes.
        let volumes = match zfs {
            Some(_) => self.store.volumes(&entry.zonename)?,
            None => Vec::new(),
        };
        self.read_datasets(zfs, entry, &volumes)
    }

    fn load(&self, entry: &Entry, datasets: DatasetsOf<'_>, deadline: Instant) -> Loaded {
        let runtime = self.read_runtime(&entry.zonename, deadline);
        let sysinfo = self.store.read_sysinfo();
        load::load(&self.store, entry, datasets, runtime, &sysinfo)
    }

    /// The file provider's datasets of a zone, as they stand in its file.
    pub(super) fn read_records(&self, zonename: &str) -> Result<Option<Object>, String> {
        let path = self.store.datasets(zonename);
        let file = self.store.read(&path, JSON_LIMIT, config::object)?;
        Ok(file.map(|(_, records)| records))
    }

    fn read_runtime(&self, zonename: &str, deadline: Instant) -> RuntimeOf {
        let Runtimes::Zoneadm(options) = &self.runtime else {
            return RuntimeOf::Files;
        };
        let zoneadm = Runner::new(&options.zoneadm, options.deadline, &self.cancel);
        let kstat = Runner::new(&options.kstat, options.deadline, &self.cancel);
        let left = left(deadline);
        let answer = zoneadm::read_one(&zoneadm, &kstat, left, zonename);
        RuntimeOf::Zoneadm(answer.map_err(|error| error.to_string()))
    }

    /// The commands of ZFS for one change; `None` with the file provider.
    pub(super) fn commands(&self, deadline: Instant) -> Option<Commands<'_>> {
        let zfs = self.zfs.as_ref()?;
        Some(zfs.commands(&self.cancel, deadline))
    }

    /// Does these steps to the datasets of a zone; a file that records them has still to be synced. When one fails,
    /// those before it are taken back, as far as that can be done; what could not be taken back is in the error.
    pub(super) fn change_datasets(
        &self,
        zonename: &str,
        steps: &[Step],
        table: &Table,
        deadline: Instant,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failed> {
        if steps.is_empty() {
            return Ok(());
        }
        let Some(zfs) = self.commands(deadline) else {
            let draft = self.draft_records(zonename, steps)?;
            let mut labels = steps.iter().map(|step| step.label.as_str());
            let first = labels.next().unwrap_or("datasets");
            progress.place(first, draft)?;
            progress.applied.extend(labels.map(str::to_owned));
            progress.applied.dedup();
            return Ok(());
        };
        let before = progress.applied.len();
        for (number, step) in steps.iter().enumerate() {
            let Err(mut error) = progress.step(&step.label, || zfs.apply(step)) else {
                continue;
            };
            let mut stayed: Vec<String> = Vec::new();
            // Other commands: one that was killed keeps its own from being started again.
            let undoing = self.commands(deadline.max(Instant::now() + UNDO));
            let zfs = undoing.as_ref().unwrap_or(&zfs);
            for done in steps[..number].iter().rev() {
                let undone = done
                    .undo(table)
                    .is_some_and(|undo| zfs.apply(&undo).is_ok());
                if !undone && !stayed.contains(&done.label) {
                    stayed.insert(0, done.label.clone());
                }
            }
            progress.applied.truncate(before);
            progress.applied.extend(stayed);
            error.applied.clone_from(&progress.applied);
            return Err(error);
        }
        Ok(())
    }

    /// The next content of the file provider's file, on disk beside it.
    pub(super) fn draft_records(
        &self,
        zonename: &str,
        steps: &[Step],
    ) -> Result<place::Draft, Failed> {
        let records = self.read_records(zonename);
        let records = records.map_err(|reason| failed(FailedKind::Source, &reason))?;
        let mut records = records.unwrap_or_default();
        for step in steps {
            records::apply(&mut records, step, now())?;
        }
        let path = self.store.datasets(zonename);
        Ok(place::Draft::write(&path, &pretty(records), 0o644)?)
    }
}

impl<'a> Session<'a> {
    /// Reads the VM under its lock.
    pub(super) fn open(
        applier: &'a Applier,
        uuid: Uuid,
        extent: Extent,
        lock: Lock,
        deadline: Instant,
    ) -> Result<Session<'a>, Failed> {
        Ok(Session {
            applier,
            uuid,
            deadline,
            extent,
            reading: applier.read(uuid, datasets_for(extent), deadline)?,
            _lock: lock,
        })
    }

    /// The same of a VM that cannot be read, to delete it.
    pub(super) fn open_unread(
        applier: &'a Applier,
        uuid: Uuid,
        lock: Lock,
        deadline: Instant,
    ) -> Result<Session<'a>, Failed> {
        Ok(Session {
            applier,
            uuid,
            deadline,
            extent: Extent::Whole,
            reading: applier.read_to_delete(uuid, deadline)?,
            _lock: lock,
        })
    }

    pub(super) fn vm(&self) -> &Object {
        &self.reading.vm
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.reading.entry
    }

    pub(super) fn table(&self) -> &Table {
        &self.reading.table
    }

    pub(super) fn read(&mut self) -> Result<(), Failed> {
        self.read_with(datasets_for(self.extent))
    }

    pub(super) fn read_with(&mut self, datasets: Datasets) -> Result<(), Failed> {
        self.reading = self.applier.read(self.uuid, datasets, self.deadline)?;
        Ok(())
    }

    /// A member that is text.
    pub(super) fn text(&self, member: &str) -> Option<&str> {
        self.vm().get(member).and_then(Value::as_str)
    }

    /// The bytes of its XML.
    pub(super) fn xml(&self) -> Result<Vec<u8>, Failed> {
        let path = self.applier.store.xml(&self.entry().zonename);
        let contents = files::read(&path, XML_LIMIT);
        let contents = contents
            .map_err(|error| failed(FailedKind::Source, &self.applier.store.name(&path, &error)))?;
        Ok(contents.bytes)
    }
}

fn unreadable(loaded: &Loaded) -> Failed {
    let reasons: Vec<&str> = (loaded.failed.iter())
        .map(|failure| failure.reason.as_str())
        .collect();
    let reason = format!("{} cannot be read: {}", loaded.uuid, reasons.join("; "));
    failed(FailedKind::Source, &reason)
}

/// What is left of a change's time.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A file of JSON, as people like to read it.
pub(super) fn pretty(object: Object) -> Vec<u8> {
    format!("{:#}\n", Value::Object(object)).into_bytes()
}
