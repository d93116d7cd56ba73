//! What announces that something changed: inotify on the folders of a zone store.
//!
//! Folders are watched, never files: a file that does not exist yet, is replaced by rename, or is
//! deleted and written again needs nothing special. The folders are the few that all zones share
//! and the parents of those ([`SHARED`]), and for each zone `zones/<zone>` and its `config`.
//!
//! - Whoever is about to read calls [`Watch::shared`] or [`Watch::zone`] first. Adding a watch
//!   again is cheap (2 µs) and has no effect if the folder is still the same, so this is also how
//!   watches follow folders that come, go, or are replaced: their parent announces that, the zone
//!   is read again, and that sets the watch. For the same reason an event of a watch that is not
//!   on record yet can be ignored: the reading it would ask for has not begun.
//! - What cannot be watched is polled: [`Watch::zone`] says so, and [`Watch::has_changed`] looks.
//!   The inotify limits are a matter of the whole user, so this is not an error; [`Watch::status`]
//!   says which one to raise.
//! - The thread `watch` reads the events and turns them into [`Signal`]s. It touches no file. No
//!   lock is held during a system call that may block.
//!
//! A file system that is mounted over a watched folder announces nothing; that is found when the
//! zone is read the next time, at the latest by the rescan.
//!
//! nix's thin binding is used rather than the notify crate: that always asks for IN_OPEN, so that
//! each file we read would come back as an event, and searches all its watches when one goes.

use std::collections::HashMap;
use std::hash::Hasher;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::faults::Faults;
use super::load::Store;

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
    zones: HashMap<Name, [Option<WatchDescriptor>; 2]>,
    owners: HashMap<WatchDescriptor, (Name, Folder)>,
    /// The zones that are polled: why, and what their files looked like when last read.
    polled: HashMap<Name, (Errno, u64)>,
}

impl Watch {
    /// Starts the thread; nothing is watched yet. At most `max_watches` will be.
    pub(super) fn start(
        store: Store,
        max_watches: usize,
        faults: Arc<Faults>,
        tell: impl Fn(Notice) + Send + 'static,
    ) -> std::io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map(Arc::new);
        let records = Arc::new(Mutex::new(Records::default()));
        let (wake, waker) = std::io::pipe()?;
        let listener = Listener {
            inotify: inotify.clone().ok(),
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
            let added = self.add(&self.store.root().join(path), mask, before);
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
                !records.shared.contains(&Some(*old)) && !records.owners.contains_key(old)
            });
            drop(records);
            self.remove(stale);
        }
        self.records.lock().shared_refused = refused;
        match refused {
            None => Coverage::Watched,
            Some(_) => Coverage::Polled,
        }
    }

    /// Watches the folders of a zone, as far as they exist. If that is not possible, remembers
    /// what the files of the zone look like now, for [`Watch::has_changed`].
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
                let looks = self.fingerprint(name);
                self.records
                    .lock()
                    .polled
                    .insert(Arc::clone(name), (errno, looks));
                Coverage::Polled
            }
        }
    }

    /// Whether the files of a polled zone look other than when [`Watch::zone`] was last called.
    pub(super) fn has_changed(&self, name: &Name) -> bool {
        let before = self
            .records
            .lock()
            .polled
            .get(name)
            .map(|(_, looks)| *looks);
        before != Some(self.fingerprint(name))
    }

    /// Stops watching a zone.
    pub(super) fn forget(&self, name: &str) {
        let mut records = self.records.lock();
        records.polled.remove(name);
        let watches = records.zones.remove(name).unwrap_or_default();
        for watch in watches.iter().flatten() {
            records.owners.remove(watch);
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
                let errno = errno.or(records.polled.values().next().map(|(errno, _)| *errno))?;
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
             `sysctl -w {limit}={enough}` (now {now})"
        ))
    }

    /// For `.status`: how many watches are wanted, how many there are, what is polled and why.
    pub(super) fn status(&self) -> Value {
        let hint = self.hint();
        let records = self.records.lock();
        let shared = records.shared.iter().flatten().count();
        json!({
            "wanted": SHARED.len() + 2 * records.zones.len().max(records.polled.len()),
            "active": shared + records.owners.len(),
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
        let added = self.add(path, CONTENTS, before);
        let mut records = self.records.lock();
        let (watch, outcome) = match added {
            Ok(Some(watch)) => match records.owners.get(&watch) {
                // One folder, two names: its events go to the zone that had it first.
                Some((owner, kind)) if owner != name || *kind != folder => {
                    (None, Err(Errno::EEXIST))
                }
                Some(_) => (Some(watch), Ok(())),
                None => {
                    records.owners.insert(watch, (Arc::clone(name), folder));
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
        if let Some(old) = &stale {
            records.owners.remove(old);
        }
        let stale = stale.filter(|old| !records.shared.contains(&Some(*old)));
        drop(records);
        self.remove(stale);
        outcome
    }

    /// Adds a watch; `None` if there is no such folder. Its parent will tell when it comes.
    fn add(
        &self,
        path: &Path,
        mask: AddWatchFlags,
        before: Option<WatchDescriptor>,
    ) -> Result<Option<WatchDescriptor>, Errno> {
        let inotify = self.inotify.as_ref().map_err(|errno| *errno)?;
        if before.is_none() && self.records.lock().count() >= self.max_watches {
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

    /// Removes a watch. It may be gone already, with its folder.
    fn remove(&self, watch: Option<WatchDescriptor>) {
        if let (Some(watch), Ok(inotify)) = (watch, &self.inotify) {
            let _ = inotify.rm_watch(watch);
        }
    }

    /// What the files of a zone look like from outside: a hash of their identities, sizes and
    /// times.
    fn fingerprint(&self, name: &str) -> u64 {
        let config = self.store.config_dir(name);
        let paths: [PathBuf; 7] = [
            self.store.xml(name),
            config.join("metadata.json"),
            config.join("tags.json"),
            config.join("routes.json"),
            self.store.lastexited(name),
            self.store.datasets(name),
            self.store.runtime(name),
        ];
        let mut hash = Xxh3::new();
        for path in paths {
            match std::fs::metadata(path) {
                Err(error) => hash.write_i32(error.raw_os_error().unwrap_or(0)),
                Ok(file) => {
                    hash.write_u64(file.dev());
                    hash.write_u64(file.ino());
                    hash.write_u64(file.size());
                    hash.write_i64(file.mtime());
                    hash.write_i64(file.mtime_nsec());
                    hash.write_i64(file.ctime());
                    hash.write_i64(file.ctime_nsec());
                }
            }
        }
        hash.finish()
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
    fn count(&self) -> usize {
        self.owners.len() + self.shared.iter().flatten().count()
    }

    /// What an event says. Names that nobody reads (temporary and backup files) say nothing.
    fn translate(&mut self, event: &InotifyEvent, signals: &mut Vec<Signal>) {
        let mask = event.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            signals.push(Signal::Lost("the inotify queue overflowed".to_owned()));
            return;
        }
        let name = event.name.as_deref().and_then(|name| name.to_str());
        for (number, (_, meaning)) in SHARED.iter().enumerate() {
            if self.shared[number] != Some(event.wd) {
                continue;
            }
            if mask.contains(AddWatchFlags::IN_IGNORED) {
                self.shared[number] = None;
            }
            signals.extend(shared_signal(*meaning, mask, name));
        }
        let Some((zone, folder)) = self.owners.get(&event.wd).cloned() else {
            return;
        };
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.owners.remove(&event.wd);
            if let Some(watches) = self.zones.get_mut(&zone) {
                let spot = &mut watches[folder as usize];
                *spot = spot.filter(|watch| *watch != event.wd);
            }
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

/// What the thread `watch` owns.
struct Listener<T> {
    inotify: Option<Arc<Inotify>>,
    records: Arc<Mutex<Records>>,
    faults: Arc<Faults>,
    tell: T,
    wake: PipeReader,
}

impl<T: Fn(Notice)> Listener<T> {
    /// Runs until the other end of the pipe is closed.
    fn run(mut self) {
        loop {
            let inotify = self.inotify.clone();
            let mut ready = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            if let Some(inotify) = &inotify {
                ready.push(PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    let reason = format!("inotify cannot be waited for: {}", error.desc());
                    (self.tell)(Notice::Signals(vec![Signal::Lost(reason)]));
                    return;
                }
            }
            let woken = ready[0].any() == Some(true);
            let mut requests = 0;
            if woken {
                requests = self.wake.read(&mut [0; 64]).unwrap_or(0);
                if requests == 0 {
                    return;
                }
            }
            if let Some(inotify) = &inotify {
                self.read(inotify);
            }
            (0..requests).for_each(|_| (self.tell)(Notice::Drained));
        }
    }

    /// Reads what the queue holds now.
    fn read(&self, inotify: &Inotify) {
        self.faults.pass("inotify");
        // The queue holds 16,384 events unless the host is told otherwise, and a read takes at
        // least a dozen: an end, so that a storm of events cannot keep a scan from its end.
        for _ in 0..2048 {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            if self.faults.deaf.load(Ordering::Relaxed) {
                continue;
            }
            let mut signals = Vec::new();
            let mut records = self.records.lock();
            for event in &events {
                records.translate(event, &mut signals);
            }
            drop(records);
            signals.dedup();
            if !signals.is_empty() {
                (self.tell)(Notice::Signals(signals));
            }
        }
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
