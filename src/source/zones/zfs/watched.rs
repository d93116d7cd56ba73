//! The way from who changes datasets to who watches them: what the one has read, the other need not
//! read again.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Reading, Shared, Zfs};
use crate::source::Via;
use crate::source::zones::datasets::Table;

/// The way from who changes datasets to who watches them, while somebody does.
#[derive(Clone, Default)]
pub(in crate::source::zones) struct Watched(Arc<Mutex<Weak<Shared>>>);

/// Datasets that were put into a table. Who watches them is told when this is dropped.
#[must_use = "it is told when this is dropped"]
pub(in crate::source::zones) struct Untold {
    shared: Arc<Shared>,
    names: BTreeSet<String>,
}

impl Drop for Untold {
    fn drop(&mut self) {
        if self.shared.heard.load(Ordering::Acquire) {
            let names = std::mem::take(&mut self.names);
            self.shared.tell_datasets(names, Via::Event);
        }
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Watched")
    }
}

impl Watched {
    /// From now on these are the tables.
    pub(in crate::source::zones) fn by(&self, zfs: &Zfs) {
        *self.0.lock() = Arc::downgrade(&zfs.shared);
    }

    /// How much the tables have been told, for [`Watched::adopt`]; to be asked before reading.
    pub(in crate::source::zones) fn readings(&self) -> u64 {
        let shared = self.0.lock().upgrade();
        shared.map_or(0, |shared| shared.readings.load(Ordering::Acquire))
    }

    /// Puts into the tables what was just read of these subtrees: `table` has them with all below.
    /// Readings of a pool that overlap with this one may be older or newer: where one has ended `since`,
    /// these are only read once more, and where one is under way, it changes nothing of them.
    pub(in crate::source::zones) fn adopt(
        &self,
        table: &Table,
        subtrees: &[&str],
        since: u64,
    ) -> Option<Untold> {
        let shared = self.0.lock().upgrade()?;
        let mut names = BTreeSet::new();
        for subtree in subtrees {
            let pool = subtree.split(['/', '@']).next().unwrap_or(subtree);
            if let Some(Reading { pool, .. }) = shared.pools.read().get(pool) {
                names.extend(pool.adopt(&shared, table, subtree, since));
            }
        }
        Some(Untold { shared, names })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};

    use super::*;
    use crate::source::zones::zfs::{Changed, ZfsOptions, table};

    /// A `zfs` of one pool, `p`, that prints what is in `said`. While there is a file `slow`, it prints
    /// that, tells so by `began`, and ends only when there is a file `go`.
    fn scripted(dir: &Path) -> ZfsOptions {
        let zfs = "[ $# -gt 1 ] || { printf 'type NO -\nmountpoint YES -\nquota YES -\n' >&2; exit 2; }\n\
            for last; do :; done; grep \"^$last\" said\n[ ! -e slow ] || { touch began; until [ -e go ]; do sleep 0.01; done; }";
        let zpool = "[ $1 = list ] || exit 1\necho p";
        for (name, does) in [("zfs", zfs), ("zpool", zpool)] {
            let (source, program) = (dir.join("source"), dir.join(name));
            fs::write(
                &source,
                format!("#!/bin/sh\ncd {}\n{does}\n", dir.display()),
            )
            .unwrap();
            // Another process writes it: a descriptor of ours that a fork still holds open for writing
            // would make the kernel refuse to execute it.
            let mut install = std::process::Command::new("install");
            install.arg("-m755").arg(&source).arg(&program);
            assert!(install.status().unwrap().success());
        }
        ZfsOptions {
            zfs: dir.join("zfs"),
            zpool: dir.join("zpool"),
            poll: Duration::from_secs(3600),
            deadline: Duration::from_secs(60),
        }
    }

    fn said(quota: u32) -> String {
        format!("p\ttype\tfilesystem\np/z\ttype\tfilesystem\np/z\tquota\t{quota}\n")
    }

    fn read(quota: u32) -> Table {
        let text = said(quota).replace("p\ttype\tfilesystem\n", "");
        table(text.as_bytes(), &["p/z"]).unwrap()
    }

    fn quota(zfs: &Zfs) -> String {
        zfs.table("p/z").unwrap().get("p/z").unwrap()["quota"].clone()
    }

    #[track_caller]
    fn until(what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn reads(zfs: &Zfs) -> Value {
        zfs.status()["pools"]["p"]["reads"].clone()
    }

    #[test]
    fn a_reading_that_began_earlier_brings_nothing_back_of_what_was_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        fs::write(file("said"), said(1)).unwrap();
        let (tell, told) = mpsc::channel();
        let zfs = Zfs::start(scripted(dir.path()), move |changed| {
            drop(tell.send(changed))
        })
        .unwrap();
        let watched = Watched::default();
        watched.by(&zfs);
        fs::write(file("slow"), "").unwrap();
        zfs.refresh();
        until("the reading has begun", || file("began").exists());
        let untold = watched.adopt(&read(2), &["p/z"], watched.readings());
        assert_eq!(quota(&zfs), "2");
        // Nobody is told before that is dropped.
        assert!(told.try_recv().is_err());
        drop(untold);
        let Changed::Datasets { names, .. } = told.recv().unwrap() else {
            panic!("not of datasets");
        };
        assert!(names.iter().eq(["p/z"]));
        fs::write(file("said"), said(3)).unwrap();
        fs::remove_file(file("slow")).unwrap();
        fs::write(file("go"), "").unwrap();
        // It was read once more, since somebody else may have changed it meanwhile.
        let Changed::Datasets { names, .. } = told.recv().unwrap() else {
            panic!("not of datasets");
        };
        assert!(names.iter().eq(["p/z"]));
        assert_eq!((quota(&zfs), reads(&zfs)), ("3".to_owned(), json!(2)));
        // Neither does what was read before a reading that has ended.
        drop(watched.adopt(&read(2), &["p/z"], 0));
        assert_eq!(quota(&zfs), "3");
    }
}
