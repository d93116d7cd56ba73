//! What announces that something changed: inotify and fanotify on the folders of a zone store.
//!
//! Folders are watched, never files: a file that does not exist yet, is replaced by rename, or is
//! deleted and written again needs nothing special. The folders are the few that all zones share
//! and the parents of those ([`SHARED`]), and for each zone `zones/<zone>` and its `config`.
//!
//! The shared folders are watched by inotify, which keeps events in order. Those of zones can be more than the
//! whole user may have inotify watches, and the order of events does not matter in them: there [`fanotify`]
//! comes first. Where that is not permitted, or a filesystem does not do it, inotify; what that
//! cannot take either is polled.
//!
//! - Whoever is about to read calls [`Watch::shared`] or [`Watch::zone`] first. Adding a watch
//!   again is cheap (2 µs) and has no effect if the folder is still the same, so this is also how
//!   watches follow folders that come, go, or are replaced: their parent announces that, the zone
//!   is read again, and that sets the watch. For the same reason an event of a watch that is not
//!   on record yet can be ignored: the reading it would ask for has not begun.
//! - What cannot be watched is polled: [`Watch::zone`] says so. The inotify limits are a matter of the
//!   whole user, so this is not an error; [`Watch::status`] says which one to raise.
//! - The thread `watch` reads the events and turns them into [`Signal`]s. It touches no file. No
//!   lock is held during a system call that may block.
//!
//! A filesystem that is mounted over a watched folder announces nothing; that is found when the
//! zone is read the next time, at the latest by the rescan.
//!
//! nix's thin binding is used rather than the notify crate: that always asks for IN_OPEN, so that
//! each file we read would come back as an event, and searches all its watches when one goes.

use std::collections::HashMap;
use std::io::{PipeWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::faults::Faults;
use super::load::Store;
use fanotify::{Fanotify, FolderHash};
use listener::Listener;

mod fanotify;
mod listener;

/// What may be used to watch the folders of zones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watcher {
    /// fanotify; where that cannot be used, inotify.
    #[default]
    Auto,
    /// Only inotify.
    Inotify,
}

/// The name of a zone, shared by all who speak of it.
pub(super) type Name = Arc<str>;

/// What the thread `watch` says.
#[derive(Debug)]
pub(super) enum Notice {
    /// These may have changed.
    Signals(Vec<Signal>),
    /// All that was announced before the call of [`Watch::drain`] has been said.
    Drained,
}

/// Something may have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// The zone of this name, if there is one.
    Zone(Name, Urgency),
    /// The index or `.sysinfo.json`.
    Host(Urgency),
    /// A folder that all zones share was replaced.
    Everything,
    /// Events were lost.
    Lost(String),
}

/// How soon it is worth looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// At once: the file was closed or renamed into place, so it is whole.
    Whole,
    /// At once.
    Now,
    /// Somebody is writing: what is there now is probably half of it, and closing the file will be
    /// announced too.
    Soon,
}

/// Whether changes of something will be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    /// Yes.
    Watched,
    /// No, or not all: look from time to time.
    Polled,
}

/// What is announced. Not IN_OPEN and IN_ACCESS, or our own reads would come back; IN_ATTRIB,
/// since `touch` and `chmod` change what is shown.
const CONTENTS: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(NAMES)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_ATTRIB);

/// What is announced of a folder of which only the names matter.
const NAMES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// The folders that all zones share, and what their files mean.
const SHARED: [(&str, Meaning); 10] = [
    ("", Meaning::Above(&["etc", "zones", "var", "tmp"])),
    ("etc", Meaning::Above(&["zones"])),
    ("etc/zones", Meaning::Configuration),
    ("zones", Meaning::ZoneNames),
    ("var", Meaning::Above(&["db", "run"])),
    ("var/db", Meaning::Above(&["datasets"])),
    ("var/db/datasets", Meaning::ZoneFiles),
    ("var/run", Meaning::Above(&["zones"])),
    ("var/run/zones", Meaning::ZoneFiles),
    ("tmp", Meaning::Sysinfo),
];

#[derive(Clone, Copy)]
enum Meaning {
    /// Holds other shared folders of these names.
    Above(&'static [&'static str]),
    /// `index`, and `<zone>.xml`.
    Configuration,
    /// A folder for each zone.
    ZoneNames,
    /// `<zone>.json`.
    ZoneFiles,
    /// `.sysinfo.json`.
    Sysinfo,
}

/// What stands for a watched folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Id {
    Inotify(WatchDescriptor),
    Fanotify(FolderHash),
}

/// Something that happened, whoever said it.
struct Event<'a> {
    watch: Id,
    mask: AddWatchFlags,
    name: Option<&'a str>,
}

/// The two folders of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folder {
    Zone,
    Config,
}

/// The watches of a zone store. Dropping it ends its thread.
pub(super) struct Watch {
    store: Store,
    /// `None`: the limit on instances is reached, and everything is polled.
    inotify: Result<Arc<Inotify>, Errno>,
    /// `None`: it is not to be used.
    fanotify: Result<Arc<Fanotify>, Option<Errno>>,
    max_watches: usize,
    records: Arc<Mutex<Records>>,
    waker: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// Which watch stands for what.
#[derive(Default)]
struct Records {
    shared: [Option<WatchDescriptor>; SHARED.len()],
    shared_refused: Option<Errno>,
    zones: HashMap<Name, [Option<Id>; 2]>,
    owners: HashMap<Id, (Name, Folder)>,
    /// How many of these are inotify's.
    by_inotify: usize,
    /// The zones that are polled, and why.
    polled: HashMap<Name, Errno>,
}

impl Watch {
    /// Starts the thread; nothing is watched yet. inotify will watch at most `max_watches`.
    pub(super) fn start(
        store: Store,
        watcher: Watcher,
        max_watches: usize,
        faults: Arc<Faults>,
        tell: impl Fn(Notice) + Send + 'static,
    ) -> std::io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map(Arc::new);
        let fanotify = match watcher {
            Watcher::Auto => Fanotify::new().map(Arc::new).map_err(Some),
            Watcher::Inotify => Err(None),
        };
        let records = Arc::new(Mutex::new(Records::default()));
        let (wake, waker) = std::io::pipe()?;
        let listener = Listener {
            inotify: inotify.clone().ok(),
            fanotify: fanotify.clone().ok(),
            records: Arc::clone(&records),
            faults,
            tell,
            wake,
        };
        let thread = thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || listener.run())?;
        Ok(Watch {
            store,
            inotify,
            fanotify,
            max_watches,
            records,
            waker: Some(waker),
            thread: Some(thread),
        })
    }

    /// Watches the folders that all zones share, as far as they exist.
    pub(super) fn shared(&self) -> Coverage {
        let mut refused = None;
        for (number, (path, meaning)) in SHARED.iter().enumerate() {
            let mask = match meaning {
                Meaning::Above(_) => NAMES,
                _ => CONTENTS,
            };
            let before = self.records.lock().shared[number];
            let added = self.add(&self.store.root().join(path), mask, before.is_some());
            let mut records = self.records.lock();
            records.shared[number] = match added {
                Ok(watch) => watch,
                Err(errno) => {
                    refused = Some(errno);
                    None
                }
            };
            // Two of the paths may lead to one folder, or to that of a zone.
            let stale = before.filter(|old| {
                !records.shared.contains(&Some(*old))
                    && !records.owners.contains_key(&Id::Inotify(*old))
            });
            drop(records);
            self.remove(stale.map(Id::Inotify));
        }
        self.records.lock().shared_refused = refused;
        match refused {
            None => Coverage::Watched,
            Some(_) => Coverage::Polled,
        }
    }

    /// Watches the folders of a zone, as far as they exist.
    pub(super) fn zone(&self, name: &Name) -> Coverage {
        let config = self.store.config_dir(name);
        let mut refused = self.records.lock().shared_refused;
        if let Some(folder) = config.parent() {
            refused = refused.or(self.folder(name, Folder::Zone, folder).err());
        }
        refused = refused.or(self.folder(name, Folder::Config, &config).err());
        match refused {
            None => {
                self.records.lock().polled.remove(name);
                Coverage::Watched
            }
            Some(errno) => {
                self.records.lock().polled.insert(Arc::clone(name), errno);
                Coverage::Polled
            }
        }
    }

    /// Stops watching a zone.
    pub(super) fn forget(&self, name: &str) {
        let mut records = self.records.lock();
        records.polled.remove(name);
        let watches = records.zones.remove(name).unwrap_or_default();
        for watch in watches.iter().flatten() {
            records.disown(*watch);
        }
        drop(records);
        watches.into_iter().for_each(|watch| self.remove(watch));
    }

    /// Asks the thread to read all that has been announced until now, then to say so.
    pub(super) fn drain(&self) {
        if let Some(mut waker) = self.waker.as_ref() {
            // The pipe cannot be full: there is one request for each scan.
            let _ = waker.write_all(b"d");
        }
    }

    /// How many zones are polled.
    pub(super) fn polled(&self) -> usize {
        self.records.lock().polled.len()
    }

    /// What to do so that everything can be watched; `None` if it is.
    pub(super) fn hint(&self) -> Option<String> {
        let records = self.records.lock();
        let limit = match &self.inotify {
            Err(_) => "fs.inotify.max_user_instances",
            Ok(_) => {
                let errno = records.shared_refused;
                let errno = errno.or(records.polled.values().next().copied())?;
                if errno != Errno::ENOSPC {
                    return Some(format!(
                        "{} zones are polled: {}",
                        records.polled.len(),
                        errno.desc()
                    ));
                }
                "fs.inotify.max_user_watches"
            }
        };
        let polled = records.polled.len();
        drop(records);
        let missing = match limit {
            "fs.inotify.max_user_watches" => 2 * polled as u64 + SHARED.len() as u64,
            _ => 1,
        };
        let file = Path::new("/proc/sys").join(limit.replace('.', "/"));
        let now = std::fs::read_to_string(file).ok();
        let now = now
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let enough = (now + missing).next_power_of_two();
        Some(format!(
            "{polled} zones are polled, since the limit of inotify is reached: raise it with \
             `sysctl -w {limit}={enough}` (now {now}){}",
            self.refusal()
        ))
    }

    /// Why fanotify, which has no limit, is not used.
    fn refusal(&self) -> String {
        match &self.fanotify {
            Ok(_) => "; this filesystem does not do fanotify, which has no limit".to_owned(),
            Err(None) => "; fanotify has no limit, but is not to be used".to_owned(),
            Err(Some(Errno::EPERM)) => {
                "; fanotify has no limit, but takes CAP_SYS_ADMIN: run as root".to_owned()
            }
            Err(Some(errno)) => {
                format!(
                    "; fanotify has no limit, but cannot be used: {}",
                    errno.desc()
                )
            }
        }
    }

    /// For `.status`: how many watches are wanted, how many there are, what is polled and why.
    pub(super) fn status(&self) -> Value {
        let hint = self.hint();
        let records = self.records.lock();
        let shared = records.shared.iter().flatten().count();
        json!({
            "wanted": SHARED.len() + 2 * records.zones.len().max(records.polled.len()),
            "active": shared + records.owners.len(),
            "inotify": shared + records.by_inotify,
            "fanotify": records.owners.len() - records.by_inotify,
            "polled": records.polled.len(),
            "hint": hint,
        })
    }

    fn folder(&self, name: &Name, folder: Folder, path: &Path) -> Result<(), Errno> {
        let spot = folder as usize;
        let before = self
            .records
            .lock()
            .zones
            .get(name)
            .and_then(|zone| zone[spot]);
        let added = self.add_any(path, before);
        let mut records = self.records.lock();
        let (watch, outcome) = match added {
            Ok(Some(watch)) => match records.owners.get(&watch) {
                // One folder, two names: its events go to the zone that had it first.
                Some((owner, kind)) if owner != name || *kind != folder => {
                    (None, Err(Errno::EEXIST))
                }
                Some(_) => (Some(watch), Ok(())),
                None => {
                    records.own(watch, Arc::clone(name), folder);
                    (Some(watch), Ok(()))
                }
            },
            Ok(None) => (None, Ok(())),
            Err(errno) => (None, Err(errno)),
        };
        match records.zones.get_mut(name) {
            Some(zone) => zone[spot] = watch,
            None => {
                let mut zone = [None; 2];
                zone[spot] = watch;
                records.zones.insert(Arc::clone(name), zone);
            }
        }
        let stale = before.filter(|old| Some(*old) != watch);
        if let Some(old) = stale {
            records.disown(old);
        }
        let is_shared =
            |id: &Id| (records.shared.iter().flatten()).any(|one| Id::Inotify(*one) == *id);
        let stale = stale.filter(|old| !is_shared(old));
        drop(records);
        self.remove(stale);
        outcome
    }

    /// Watches a zone's folder, by what can.
    fn add_any(&self, path: &Path, before: Option<Id>) -> Result<Option<Id>, Errno> {
        if let Ok(fanotify) = &self.fanotify
            && let Ok(marked) = fanotify.mark(path, CONTENTS)
        {
            return Ok(marked.map(Id::Fanotify));
        }
        let has_one = matches!(before, Some(Id::Inotify(_)));
        let added = self.add(path, CONTENTS, has_one)?;
        Ok(added.map(Id::Inotify))
    }

    /// Adds an inotify watch; `None` if there is no such folder. Its parent will tell when it comes.
    fn add(
        &self,
        path: &Path,
        mask: AddWatchFlags,
        has_one: bool,
    ) -> Result<Option<WatchDescriptor>, Errno> {
        let inotify = self.inotify.as_ref().map_err(|errno| *errno)?;
        if !has_one && self.records.lock().count() >= self.max_watches {
            return Err(Errno::ENOSPC);
        }
        // Two paths may lead to one folder: what is asked for it only ever grows.
        let mask = mask
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::from_bits_retain(nix::libc::IN_MASK_ADD);
        match inotify.add_watch(path, mask) {
            Ok(watch) => Ok(Some(watch)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Removes a watch. It may be gone already, with its folder. A mark stays, for it could only be removed
    /// by a path, which may lead elsewhere or hang; its events are nobody's.
    fn remove(&self, watch: Option<Id>) {
        if let (Some(Id::Inotify(watch)), Ok(inotify)) = (watch, &self.inotify) {
            let _ = inotify.rm_watch(watch);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.waker = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by its hook.
            let _ = thread.join();
        }
    }
}

impl Records {
    /// How many inotify watches there are.
    fn count(&self) -> usize {
        self.by_inotify + self.shared.iter().flatten().count()
    }

    fn own(&mut self, watch: Id, zone: Name, folder: Folder) {
        if self.owners.insert(watch, (zone, folder)).is_none() {
            self.by_inotify += usize::from(matches!(watch, Id::Inotify(_)));
        }
    }

    fn disown(&mut self, watch: Id) {
        if self.owners.remove(&watch).is_some() {
            self.by_inotify -= usize::from(matches!(watch, Id::Inotify(_)));
        }
    }

    /// What an event says. Names that nobody reads (temporary and backup files) say nothing.
    fn translate(&mut self, event: &Event<'_>, signals: &mut Vec<Signal>) {
        let Event { watch, mask, name } = *event;
        for (number, (_, meaning)) in SHARED.iter().enumerate() {
            if self.shared[number].map(Id::Inotify) != Some(watch) {
                continue;
            }
            if mask.contains(AddWatchFlags::IN_IGNORED) {
                self.shared[number] = None;
            }
            signals.extend(shared_signal(*meaning, mask, name));
        }
        let Some((zone, folder)) = self.owners.get(&watch).cloned() else {
            return;
        };
        let last = match watch {
            Id::Inotify(_) => AddWatchFlags::IN_IGNORED,
            Id::Fanotify(_) => AddWatchFlags::IN_DELETE_SELF,
        };
        if mask.contains(last) {
            self.disown(watch);
            if let Some(watches) = self.zones.get_mut(&zone) {
                let spot = &mut watches[folder as usize];
                *spot = spot.filter(|own| *own != watch);
            }
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            return;
        }
        let read = match (folder, name) {
            (_, None) => is_self(mask),
            (Folder::Zone, Some(name)) => matches!(name, "config" | "lastexited"),
            (Folder::Config, Some(name)) => {
                matches!(name, "metadata.json" | "tags.json" | "routes.json")
            }
        };
        if read {
            signals.push(Signal::Zone(zone, urgency(mask)));
        }
    }
}

fn shared_signal(meaning: Meaning, mask: AddWatchFlags, name: Option<&str>) -> Option<Signal> {
    let Some(name) = name else {
        return is_self(mask).then_some(Signal::Everything);
    };
    let zone = |name: &str| Signal::Zone(Name::from(name), urgency(mask));
    match meaning {
        Meaning::Above(names) => names.contains(&name).then_some(Signal::Everything),
        Meaning::Configuration if name == "index" => Some(Signal::Host(urgency(mask))),
        Meaning::Configuration => name.strip_suffix(".xml").map(zone),
        Meaning::ZoneNames => Some(zone(name)),
        Meaning::ZoneFiles => name.strip_suffix(".json").map(zone),
        Meaning::Sysinfo => (name == ".sysinfo.json").then(|| Signal::Host(urgency(mask))),
    }
}

/// Whether the event says that the watched folder itself has gone. Less IN_IGNORED, which follows
/// also when we removed the watch, and IN_ATTRIB, which precedes.
fn is_self(mask: AddWatchFlags) -> bool {
    mask.intersects(
        AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT,
    )
}

fn urgency(mask: AddWatchFlags) -> Urgency {
    if mask.intersects(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO) {
        Urgency::Whole
    } else if mask.contains(AddWatchFlags::IN_MODIFY)
        || mask.contains(AddWatchFlags::IN_CREATE) && !mask.contains(AddWatchFlags::IN_ISDIR)
    {
        // A file that was just created is empty, but for a link, which nobody will close.
        Urgency::Soon
    } else {
        Urgency::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE;

    #[test]
    fn names_that_nobody_reads_announce_nothing() {
        let cases = [
            (Meaning::Configuration, "a.xml~"),
            (Meaning::Configuration, ".a.xml.swp"),
            (Meaning::Configuration, "index.tmp"),
            (Meaning::ZoneFiles, "a.json.new"),
            (Meaning::Sysinfo, "sysinfo.json"),
            (Meaning::Above(&["zones"]), "passwd"),
        ];
        for (meaning, name) in cases {
            assert_eq!(shared_signal(meaning, CLOSED, Some(name)), None, "{name}");
        }
    }

    #[test]
    fn a_shared_file_is_announced_by_the_zone_it_names() {
        let signal = |meaning, name| shared_signal(meaning, CLOSED, Some(name));
        let zone = Some(Signal::Zone(Name::from("a"), Urgency::Whole));
        assert_eq!(signal(Meaning::Configuration, "a.xml"), zone);
        assert_eq!(signal(Meaning::ZoneFiles, "a.json"), zone);
        assert_eq!(
            signal(Meaning::Configuration, "index"),
            Some(Signal::Host(Urgency::Whole))
        );
        assert_eq!(
            signal(Meaning::Above(&["zones"]), "zones"),
            Some(Signal::Everything)
        );
    }

    #[test]
    fn only_what_will_be_closed_can_wait() {
        assert_eq!(urgency(AddWatchFlags::IN_MODIFY), Urgency::Soon);
        assert_eq!(urgency(AddWatchFlags::IN_CREATE), Urgency::Soon);
        assert_eq!(
            urgency(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ISDIR),
            Urgency::Now
        );
        assert_eq!(urgency(AddWatchFlags::IN_DELETE), Urgency::Now);
        assert_eq!(urgency(AddWatchFlags::IN_MOVED_TO), Urgency::Whole);
    }
}
