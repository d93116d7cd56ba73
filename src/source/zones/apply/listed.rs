//! Which zones the index lists, for changes of many VMs on a large host.
//!
//! A change needs one line of the index, and reading ten thousand to find it takes longer than the rest of
//! the change. So the index as it was last read is kept, and is used while its file is the same: the same
//! inode, size and times, asked for each time. A file's times are only as fine as the kernel's clock
//! ticks, so one that changed just before it was read is not kept: it may change again unseen.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::source::zones::index::{Entry, Index};

/// After how long a change of a file has a time of its own, with a wide margin: ticks are 10 ms at the most.
const TICK: Duration = Duration::from_millis(100);

/// The index as it was last read.
#[derive(Debug, Default)]
pub(super) struct Listed(Mutex<Option<(Stamp, Arc<Zones>)>>);

/// What an index lists.
#[derive(Debug)]
pub(super) struct Zones {
    entries: HashMap<Uuid, Entry>,
    /// Why the absence of a zone proves nothing.
    pub(super) broken: Option<String>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Listed {
    /// The zones in the index at `path`, which `read` reads if it has changed.
    pub(super) fn zones(
        &self,
        path: &Path,
        read: impl FnOnce() -> Result<Index, String>,
    ) -> Result<Arc<Zones>, String> {
        // Asked for before the file is read: a change in between makes what was read look older, and
        // it is read again.
        let stamp = Stamp::of(path).ok();
        if let (Some(stamp), Some((kept, zones))) = (stamp, &*self.0.lock())
            && *kept == stamp
        {
            return Ok(zones.clone());
        }
        let now = SystemTime::now();
        let index = read()?;
        let zones = Arc::new(Zones {
            entries: (index.entries.into_iter())
                .map(|entry| (entry.uuid, entry))
                .collect(),
            broken: index.broken,
        });
        *self.0.lock() = stamp
            .filter(|stamp| stamp.is_older_than(now))
            .map(|stamp| (stamp, zones.clone()));
        Ok(zones)
    }
}

impl Zones {
    /// The zone of a VM.
    pub(super) fn entry(&self, uuid: &Uuid) -> Option<&Entry> {
        self.entries.get(uuid)
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Stamp> {
        let metadata = path.metadata()?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether the file had last changed long enough before a moment for the next change to show.
    fn is_older_than(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanoseconds).unwrap_or(0),
        );
        now.duration_since(UNIX_EPOCH + changed)
            .is_ok_and(|age| age > TICK)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::source::zones::index;

    /// Reads the index at `path`, and says how often it had to.
    fn listed(listed: &Listed, path: &Path, reads: &mut u32) -> usize {
        let zones = listed.zones(path, || {
            *reads += 1;
            Ok(index::parse(&fs::read(path).unwrap()))
        });
        zones.unwrap().entries.len()
    }

    fn line(number: u8) -> String {
        let uuid = Uuid::from_u128(u128::from(number));
        format!("{uuid}:installed:/zones/{uuid}:{uuid}\n")
    }

    #[test]
    fn an_index_that_is_the_same_is_read_once_and_one_that_is_not_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        fs::write(&path, line(1)).unwrap();
        let (kept, mut reads) = (Listed::default(), 0);
        // It has just changed: how often it is read then is not said, but it is right.
        assert_eq!(listed(&kept, &path, &mut reads), 1);
        std::thread::sleep(2 * TICK);
        listed(&kept, &path, &mut reads);
        let before = reads;
        assert_eq!(listed(&kept, &path, &mut reads), 1);
        assert_eq!(reads, before);
        fs::write(&path, line(1) + &line(2)).unwrap();
        assert_eq!(listed(&kept, &path, &mut reads), 2);
        // Replaced by one of the same size and modification time.
        let modified = path.metadata().unwrap().modified().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, line(1).repeat(2)).unwrap();
        File::options()
            .append(true)
            .open(&other)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(listed(&kept, &path, &mut reads), 1);
    }

    #[test]
    fn an_index_that_changes_all_the_time_is_never_taken_for_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let (kept, mut reads) = (Listed::default(), 0);
        for round in 0..500 {
            // Of the same length, within one tick of the clock.
            let text = match round % 2 {
                0 => line(1) + &line(2),
                _ => line(1) + &line(1),
            };
            fs::write(&path, text).unwrap();
            assert_eq!(listed(&kept, &path, &mut reads), 2 - round % 2);
        }
    }
}
