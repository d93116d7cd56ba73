//! The VM object: pure, no IO.
//!
//! An [`Object`] is what a source builds and what users see as JSON, with the property names of
//! SmartOS. A [`Vm`] is one version of it, rendered: its JSON text and its files, which are spans of
//! that text. [`property`] is the one table of properties, [`diff`] names what changed between two
//! objects.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use uuid::Uuid;

use files::{File, FileId, Files, Rendered};

pub mod diff;
pub mod drift;
pub mod files;
pub mod name;
pub mod payload;
pub mod property;
pub mod render;
pub mod state;
pub mod verb;

/// A VM as a JSON object. The order of its members is the order of the property table.
pub type Object = Map<String, Value>;

/// A moment in nanoseconds since 1970, as file times are kept.
pub type Nanos = u64;

/// A system time as nanoseconds; times before 1970 are 0.
pub fn nanos(time: SystemTime) -> Nanos {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// Nanoseconds as a system time.
pub fn system_time(nanos: Nanos) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

/// The time, as it tells what was before what: it never goes back, and no two moments have the same, also
/// when somebody turns the clock back.
pub fn now() -> SystemTime {
    static LAST: AtomicU64 = AtomicU64::new(0);
    system_time(next(&LAST, nanos(SystemTime::now())))
}

fn next(last: &AtomicU64, clock: Nanos) -> Nanos {
    let after = |last: Nanos| clock.max(last + 1);
    // The closure always gives a value.
    let (Ok(before) | Err(before)) =
        last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
            Some(after(last))
        });
    after(before)
}

/// One version of a VM, complete and immutable but for the time it was last seen to be true.
#[derive(Debug)]
pub struct Vm {
    /// Its uuid, which names its directory.
    pub uuid: Uuid,
    /// Its zonename, or the domain's name.
    pub zonename: Arc<str>,
    /// Its object as text.
    pub rendered: Rendered,
    /// The sequence number of the change that made this version; the number before
    /// the first event as loaded at the start.
    pub generation: u64,
    /// The sequence number of the change that created the VM: one that was deleted and created
    /// again is another.
    pub born: u64,
    /// What found this version: `event`, `write` or `scan`.
    pub via: &'static str,
    /// Why it may no longer be true, if it may not.
    pub stale: Option<Arc<str>>,
    /// The time that files have which did not change since the VM was loaded: its last_modified.
    base_mtime: Nanos,
    /// The files and directories that changed since, with when, in the order of their numbers.
    mtimes: Box<[(FileId, Nanos)]>,
    /// When a source last said that this is so.
    observed: AtomicU64,
}

/// How a version of a VM came to be.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The sequence number of the change.
    pub generation: u64,
    /// When it is published; later than every earlier publication.
    pub published: Nanos,
    /// When the source was read.
    pub observed: Nanos,
    /// What made us look.
    pub via: &'static str,
    /// Why it may not be wholly true.
    pub stale: Option<Arc<str>>,
}

impl Vm {
    /// A version of a VM. Files that are as they were in `old` keep their times; with no `old`, all
    /// have the VM's last_modified.
    pub fn new(
        uuid: Uuid,
        zonename: &str,
        rendered: Rendered,
        origin: Origin,
        old: Option<&Vm>,
    ) -> Vm {
        let base_mtime = match old {
            Some(old) => old.base_mtime,
            None => last_modified(&rendered).unwrap_or(origin.published),
        };
        let mut vm = Vm {
            uuid,
            zonename: zonename.into(),
            rendered,
            generation: origin.generation,
            born: old.map_or(origin.generation, |old| old.born),
            via: origin.via,
            stale: origin.stale,
            base_mtime,
            mtimes: Box::default(),
            observed: AtomicU64::new(origin.observed),
        };
        if let Some(old) = old {
            vm.mtimes = mtimes_since(old, &vm, origin.published);
        }
        vm
    }

    /// The same version, now stale for this reason, or no longer stale.
    pub fn with_stale(&self, stale: Option<Arc<str>>) -> Vm {
        Vm {
            uuid: self.uuid,
            zonename: self.zonename.clone(),
            rendered: self.rendered.clone(),
            generation: self.generation,
            born: self.born,
            via: self.via,
            stale,
            base_mtime: self.base_mtime,
            mtimes: self.mtimes.clone(),
            observed: AtomicU64::new(self.observed()),
        }
    }

    /// Its object as compact JSON.
    pub fn json(&self) -> &str {
        self.rendered.json()
    }

    /// When a source last said that this version is true.
    pub fn observed(&self) -> Nanos {
        self.observed.load(Ordering::Relaxed)
    }

    /// Notes that a source said so again.
    pub fn seen(&self, observed: Nanos) {
        self.observed.fetch_max(observed, Ordering::Relaxed);
    }

    /// All files and directories, in the order of their numbers.
    pub fn files(&self) -> Files<'_> {
        self.rendered.files()
    }

    /// The file with this number.
    pub fn file(&self, id: FileId) -> Option<File> {
        self.rendered.file(id)
    }

    /// Whether a file of another version is in this one: the same number, which is a hash, and the
    /// same name and type.
    pub fn has(&self, file: &File, other: &Vm) -> bool {
        self.file(file.id).is_some_and(|own| {
            own.parent == file.parent
                && own.is_dir() == file.is_dir()
                && own.name(self.json()) == file.name(other.json())
        })
    }

    /// The file of this name in a directory.
    pub fn lookup(&self, dir: FileId, name: &str) -> Option<File> {
        self.rendered.lookup(dir, name)
    }

    /// A file's path within the VM's directory.
    pub fn path(&self, file: &File) -> String {
        let name = file.name(self.json());
        match self.file(file.parent) {
            Some(parent) => format!("{}/{name}", self.path(&parent)),
            None => name.into_owned(),
        }
    }

    /// Whether it is a zone or a domain.
    pub fn kind(&self) -> verb::Kind {
        match self.lookup(FileId::DIR, property::DOMAIN_XML) {
            Some(_) => verb::Kind::Domain,
            None => verb::Kind::Zone,
        }
    }

    /// The text of a top-level scalar, without its newline.
    pub fn text(&self, property: &str) -> Option<String> {
        self.rendered.text(property)
    }

    /// When a file, or anything in a directory, last changed.
    pub fn mtime(&self, id: FileId) -> Nanos {
        match self.mtimes.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(index) => self.mtimes[index].1,
            Err(_) => self.base_mtime,
        }
    }

    /// The time of files that have not changed since the VM was loaded.
    pub fn mtime_at_load(&self) -> Nanos {
        self.base_mtime
    }

    /// Bytes of memory this version holds.
    pub fn memory(&self) -> usize {
        size_of::<Vm>()
            + self.rendered.memory()
            + self.zonename.len()
            + size_of_val::<[(FileId, Nanos)]>(&self.mtimes)
    }
}

/// `last_modified` of a VM as nanoseconds.
fn last_modified(rendered: &Rendered) -> Option<Nanos> {
    humantime::parse_rfc3339(&rendered.text("last_modified")?)
        .ok()
        .map(nanos)
}

/// The times of a new version's files: those that changed, and the directories above them, have
/// `now`; the others what they had.
fn mtimes_since(old: &Vm, new: &Vm, now: Nanos) -> Box<[(FileId, Nanos)]> {
    let mut changed = BTreeSet::new();
    for file in new.files().iter() {
        let same = old.has(&file, new)
            && old
                .file(file.id)
                .is_some_and(|before| file.same(new.json(), &before, old.json()));
        if !same {
            changed.extend([file.id, file.parent]);
        }
    }
    for file in old.files().iter().filter(|file| !new.has(file, old)) {
        changed.insert(file.parent);
    }
    // A directory above a changed one has changed too.
    for mut id in changed.clone() {
        while let Some(file) = new.file(id)
            && changed.insert(file.parent)
        {
            id = file.parent;
        }
    }
    let kept = old.mtimes.iter().filter(|(id, _)| !changed.contains(id));
    let mut mtimes: Vec<_> = kept
        .copied()
        .chain(changed.iter().map(|id| (*id, now)))
        .filter(|(id, _)| *id == FileId::DIR || new.file(*id).is_some())
        .collect();
    mtimes.sort_unstable();
    mtimes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_goes_on_when_the_clock_is_turned_back() {
        let last = AtomicU64::new(0);
        let times = [100, 200, 50, 50, 201, 202, 300].map(|clock| next(&last, clock));
        assert_eq!(times, [100, 200, 201, 202, 203, 204, 300]);
        assert!(now() < now());
    }
}
