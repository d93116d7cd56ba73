//! Real ZFS, for one change: reads the datasets of one VM and runs the commands that change them.
//!
//! The watcher's tables are not looked at: they may be older than the lock. What is read is put into
//! them, so that it need not be read again to be shown. Only what a VM can have
//! is asked for, so it costs the same however many datasets there are: its root dataset where it was
//! the last time, the volumes of its disks, and all below these. If the root dataset is not known, each
//! pool is asked for one of the zone's name, and only when none of them is mounted at its zonepath
//! for all its filesystems. Each pool is asked by a command of its own, so that one that hangs keeps
//! nobody from finding a VM in another.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::datasets::{MADE, Operation, Step};
use super::failed;
use crate::source::zones::command::{self, Cancel, Finished, Runner};
use crate::source::zones::datasets::Table;
use crate::source::zones::zfs::{self, Untold, Watched, ZfsOptions};
use crate::source::{Failed, FailedKind};

/// Under this tag a dataset's snapshot is held, as vmadm does it.
const TAG: &str = "do_not_destroy";

/// For how long, and how often, a dataset that is busy is tried again: zfs-fuse gives nobody a dataset for himself that
/// somebody lists at that moment.
const BUSY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(20));

/// The commands, and what this release of them knows.
#[derive(Debug)]
pub(super) struct Zfs {
    options: ZfsOptions,
    watched: Watched,
    columns: OnceLock<String>,
}

/// The commands for one change, with its deadline. One that hangs keeps only this change from
/// starting others. Who watches the datasets is told what was read when these are dropped.
pub(super) struct Commands<'a> {
    shared: &'a Zfs,
    zfs: Runner,
    zpool: Runner,
    cancel: &'a Cancel,
    deadline: Instant,
    untold: RefCell<Vec<Untold>>,
}

/// How the root dataset of a zone is looked for.
#[derive(Clone, Copy)]
enum Search {
    /// By the zone's name.
    Named,
    /// By where it is mounted.
    Mounted,
}

impl Zfs {
    pub(super) fn new(options: ZfsOptions, watched: Watched) -> Zfs {
        Zfs {
            options,
            watched,
            columns: OnceLock::new(),
        }
    }

    pub(super) fn commands<'a>(&'a self, cancel: &'a Cancel, deadline: Instant) -> Commands<'a> {
        let runner = |program| Runner::new(program, self.options.deadline, cancel);
        Commands {
            shared: self,
            zfs: runner(&self.options.zfs),
            zpool: runner(&self.options.zpool),
            cancel,
            deadline,
            untold: RefCell::default(),
        }
    }

    /// How often the watcher asks where nothing is announced.
    pub(super) fn poll(&self) -> Duration {
        self.options.poll
    }
}

impl Commands<'_> {
    /// The datasets of the VM of this name, mounted at `zonepath`, with these volumes. `root` is
    /// where its root dataset may be.
    pub(super) fn read(
        &self,
        zonename: &str,
        zonepath: &str,
        volumes: &[String],
        root: Option<String>,
    ) -> Result<Table, String> {
        let asked: BTreeSet<String> = volumes.iter().cloned().chain(root).collect();
        let mut table = self.get(&self.zfs, &asked)?;
        if table.mounted_at(zonepath).is_some() {
            return Ok(table);
        }
        let listed = self.zpool(&["list", "-H", "-o", "name"])?;
        let listed = String::from_utf8_lossy(&listed);
        let mut pools: Vec<&str> = listed.lines().collect();
        // Where its disks are it probably is too.
        let has_disk = |pool: &str| volumes.iter().any(|volume| is_in(volume, pool));
        pools.sort_by_key(|pool| !has_disk(pool));
        let mut failure = None;
        for search in [Search::Named, Search::Mounted] {
            for pool in &pools {
                match self.find(search, pool, zonename, zonepath) {
                    Ok(found) => {
                        for (name, dataset) in found.iter() {
                            table.replace(name, dataset.clone());
                        }
                    }
                    Err(reason) => failure = Some(reason),
                }
                if table.mounted_at(zonepath).is_some() {
                    return Ok(table);
                }
            }
        }
        // It may be in the pool that does not answer.
        failure.map_or(Ok(table), Err)
    }

    /// Looks for the root dataset of a zone in one pool.
    fn find(
        &self,
        search: Search,
        pool: &str,
        zonename: &str,
        zonepath: &str,
    ) -> Result<Table, String> {
        // One that was killed is not started again, but other pools may answer.
        let zfs = self.runner();
        let name = match search {
            Search::Named => Some(format!("{pool}/{zonename}")),
            Search::Mounted => {
                let arguments = [
                    "list",
                    "-H",
                    "-r",
                    "-t",
                    "filesystem",
                    "-o",
                    "name,mountpoint",
                    pool,
                ];
                let listed = run(&zfs, self.patience(), &arguments)
                    .and_then(Finished::success)
                    .map_err(|error| error.to_string())?;
                String::from_utf8_lossy(&listed)
                    .lines()
                    .filter_map(|line| line.split_once('\t'))
                    .find(|(_, mountpoint)| *mountpoint == zonepath)
                    .map(|(name, _)| name.to_owned())
            }
        };
        self.get(&zfs, &name.into_iter().collect())
    }

    /// The volumes that are the disks of a zone by their names, which begin like that of its root dataset.
    pub(super) fn volumes_beside(&self, root: &str) -> Result<Vec<String>, String> {
        let pool = root.split('/').next().unwrap_or(root);
        let listed = self.success(&["list", "-H", "-r", "-t", "volume", "-o", "name", pool])?;
        let is_disk = |name: &&str| {
            let number = (name.strip_prefix(root)).and_then(|rest| rest.strip_prefix("-disk"));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let listed = String::from_utf8_lossy(&listed);
        Ok(listed.lines().filter(is_disk).map(str::to_owned).collect())
    }

    /// These datasets with all below them, as far as they are there.
    fn get(&self, zfs: &Runner, asked: &BTreeSet<String>) -> Result<Table, String> {
        // One whose parent is asked for is among its children.
        let is_outermost = |name: &&String| !asked.iter().any(|other| is_in(name, other));
        let outermost: Vec<&str> = (asked.iter())
            .filter(is_outermost)
            .map(String::as_str)
            .collect();
        if outermost.is_empty() {
            return Ok(Table::default());
        }
        let columns = self.columns()?;
        let mut arguments = vec!["get", "-Hp", "-r", "-o", "name,property,value", columns];
        arguments.extend(&outermost);
        let watched = &self.shared.watched;
        let since = watched.readings();
        let finished = run(zfs, self.patience(), &arguments).map_err(|error| error.to_string())?;
        if finished.status.success() || only_missing(&finished) {
            let table = zfs::table(&finished.stdout, &outermost)
                .map_err(|garbage| format!("zfs get -r {}: {garbage}", outermost.join(" ")))?;
            let untold = watched.adopt(&table, &outermost, since);
            self.untold.borrow_mut().extend(untold);
            return Ok(table);
        }
        Err(complaint(finished))
    }

    /// When a command that only asks is given up: half of the time is left for what follows.
    fn patience(&self) -> Instant {
        let now = Instant::now();
        let half = self.deadline.saturating_duration_since(now) / 2;
        now + half.min(self.shared.options.deadline)
    }

    fn runner(&self) -> Runner {
        let options = &self.shared.options;
        Runner::new(&options.zfs, options.deadline, self.cancel)
    }

    /// Whether there is such a dataset or snapshot.
    pub(super) fn exists(&self, name: &str) -> Result<bool, Failed> {
        let arguments = ["list", "-H", "-o", "name", name];
        let finished = self.run(&arguments).map_err(source)?;
        match finished.status.success() {
            true => Ok(true),
            false if only_missing(&finished) => Ok(false),
            false => Err(source(complaint(finished))),
        }
    }

    /// Whether there is such a dataset, made by the change with this mark.
    pub(super) fn is_made_by(&self, name: &str, mark: &str) -> Result<bool, Failed> {
        // A dataset below one of ours inherits the mark, which does not count.
        let arguments = ["get", "-H", "-s", "local", "-o", "value", MADE, name];
        let finished = self.run(&arguments).map_err(source)?;
        match finished.status.success() {
            true => Ok(finished.stdout.trim_ascii() == mark.as_bytes()),
            false if only_missing(&finished) => Ok(false),
            false => Err(source(complaint(finished))),
        }
    }

    /// The filesystems and volumes of a pool that are clones, each with its origin.
    pub(super) fn clones(&self, pool: &str) -> Result<Vec<(String, String)>, Failed> {
        let types = "filesystem,volume";
        let arguments = ["list", "-H", "-r", "-t", types, "-o", "name,origin", pool];
        let listed = self.success(&arguments).map_err(source)?;
        let lines = String::from_utf8_lossy(&listed);
        let pairs = lines.lines().filter_map(|line| line.split_once('\t'));
        let clones = pairs.filter(|(_, origin)| *origin != "-");
        Ok(clones
            .map(|(name, origin)| (name.to_owned(), origin.to_owned()))
            .collect())
    }

    /// Does a step.
    pub(super) fn apply(&self, step: &Step) -> Result<(), Failed> {
        let name = step.dataset.as_str();
        match &step.operation {
            Operation::Create { properties, origin } => {
                self.create(name, properties, origin.as_deref())
            }
            Operation::Set { property, value } => {
                self.done(&["set", &format!("{property}={value}"), name])
            }
            Operation::Snapshot => self.done(&["snapshot", name]),
            Operation::Hold => self.done(&["hold", TAG, name]),
            Operation::Release => self.done(&["release", TAG, name]),
            Operation::Rollback => self.done_when_free(&["rollback", "-r", name]),
            Operation::Destroy => self.done_when_free(&["destroy", "-r", name]),
            Operation::DestroyAlone => self.done_when_free(&["destroy", name]),
        }
    }

    fn create(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
        origin: Option<&str>,
    ) -> Result<(), Failed> {
        let size = properties.get("volsize").map(String::as_str);
        let options: Vec<String> = (properties.iter())
            .filter(|(property, _)| {
                // A new volume has its size by another option, a clone the block size of its origin.
                match property.as_str() {
                    "volsize" => false,
                    "volblocksize" => origin.is_none(),
                    _ => true,
                }
            })
            .map(|(property, value)| format!("{property}={value}"))
            .collect();
        let mut arguments = match origin {
            Some(_) => vec!["clone"],
            None => vec!["create"],
        };
        if let (Some(size), None) = (size, origin) {
            arguments.extend(["-V", size]);
        }
        for option in &options {
            arguments.extend(["-o", option.as_str()]);
        }
        arguments.extend(origin);
        arguments.push(name);
        self.done(&arguments)?;
        match (size, origin) {
            // A clone is as large as its origin. It may only grow.
            (Some(size), Some(_)) => self
                .done(&["set", &format!("volsize={size}"), name])
                .inspect_err(|_| {
                    // It was made here and nobody names it yet.
                    let _ = self.done(&["destroy", name]);
                }),
            _ => Ok(()),
        }
    }

    fn columns(&self) -> Result<&str, String> {
        if let Some(columns) = self.shared.columns.get() {
            return Ok(columns);
        }
        let columns = zfs::known_columns(&self.shared.options, self.cancel)
            .map_err(|error| error.to_string())?;
        Ok(self.shared.columns.get_or_init(|| columns))
    }

    fn done(&self, arguments: &[&str]) -> Result<(), Failed> {
        self.success(arguments).map(|_| ()).map_err(source)
    }

    /// Does what needs a dataset for itself.
    fn done_when_free(&self, arguments: &[&str]) -> Result<(), Failed> {
        let until = self.deadline.min(Instant::now() + BUSY.0);
        loop {
            match self.done(arguments) {
                Err(failed)
                    if failed.reason.contains("dataset is busy") && Instant::now() < until =>
                {
                    thread::sleep(BUSY.1);
                }
                result => return result,
            }
        }
    }

    fn success(&self, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let finished = self.run(arguments)?;
        finished.success().map_err(|error| error.to_string())
    }

    fn zpool(&self, arguments: &[&str]) -> Result<Vec<u8>, String> {
        run(&self.zpool, self.deadline, arguments)
            .and_then(Finished::success)
            .map_err(|error| error.to_string())
    }

    fn run(&self, arguments: &[&str]) -> Result<Finished, String> {
        run(&self.zfs, self.deadline, arguments).map_err(|error| error.to_string())
    }
}

/// Runs a command within what is left of a change's time.
pub(super) fn run(
    runner: &Runner,
    deadline: Instant,
    arguments: &[&str],
) -> Result<Finished, command::Error> {
    runner.run_within(
        deadline.saturating_duration_since(Instant::now()),
        arguments,
    )
}

fn source(reason: String) -> Failed {
    failed(FailedKind::Source, &reason)
}

/// What a command that failed says of it.
fn complaint(finished: Finished) -> String {
    let error = finished.success().err();
    error.map_or_else(String::new, |error| error.to_string())
}

/// Whether a dataset is below another one.
fn is_in(name: &str, other: &str) -> bool {
    name.strip_prefix(other)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Whether all that a command complains of is that datasets are not there.
fn only_missing(finished: &Finished) -> bool {
    let text = String::from_utf8_lossy(&finished.stderr);
    let mut lines = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .peekable();
    lines.peek().is_some() && lines.all(|line| line.contains("does not exist"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A `zfs` that writes down what it is called with, and does this.
    fn scripted(dir: &Path, does: &str) -> Zfs {
        let (source, program) = (dir.join("source"), dir.join("zfs"));
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> {}/calls\n{does}\n",
            dir.display()
        );
        std::fs::write(&source, text).unwrap();
        // Another process writes it: a descriptor of ours that a fork still holds open for writing
        // would make the kernel refuse to execute it.
        let mut install = std::process::Command::new("install");
        install.arg("-m755").arg(&source).arg(&program);
        assert!(install.status().unwrap().success());
        let options = ZfsOptions {
            zfs: program,
            ..ZfsOptions::default()
        };
        Zfs::new(options, Watched::default())
    }

    fn calls(dir: &Path) -> Vec<String> {
        let calls = std::fs::read_to_string(dir.join("calls")).unwrap();
        calls.lines().map(str::to_owned).collect()
    }

    fn create(properties: &[(&str, &str)], origin: Option<&str>) -> Step {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let operation = Operation::Create {
            properties: properties.iter().map(owned).collect(),
            origin: origin.map(str::to_owned),
        };
        Step::new("disk", "p/z-disk0", operation)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn a_dataset_that_is_being_read_is_destroyed_a_moment_later() {
        let dir = tempfile::tempdir().unwrap();
        let does = "[ $(wc -l < ${0%/*}/calls) -ge 3 ] || { echo dataset is busy >&2; exit 1; }";
        let zfs = scripted(dir.path(), does);
        let cancel = Cancel::never();
        let step = Step::new("disk", "p/z", Operation::DestroyAlone);
        zfs.commands(&cancel, soon()).apply(&step).unwrap();
        assert_eq!(calls(dir.path()), ["destroy p/z"; 3]);
    }

    #[test]
    fn a_volume_is_created_or_cloned_and_then_has_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let zfs = scripted(dir.path(), "exit 0");
        let cancel = Cancel::never();
        let commands = zfs.commands(&cancel, soon());
        let properties = [
            ("volsize", "8192"),
            ("volblocksize", "4096"),
            ("compression", "lz4"),
        ];
        commands.apply(&create(&properties, None)).unwrap();
        commands
            .apply(&create(&properties, Some("p/i@final")))
            .unwrap();
        assert_eq!(
            calls(dir.path()),
            [
                "create -V 8192 -o compression=lz4 -o volblocksize=4096 p/z-disk0",
                "clone -o compression=lz4 p/i@final p/z-disk0",
                "set volsize=8192 p/z-disk0",
            ]
        );
    }

    #[test]
    fn a_clone_that_cannot_have_its_size_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let zfs = scripted(
            dir.path(),
            "[ $1 != set ] || { echo too small >&2; exit 1; }",
        );
        let cancel = Cancel::never();
        let commands = zfs.commands(&cancel, soon());
        let step = create(&[("volsize", "1")], Some("p/i@final"));
        let error = commands.apply(&step).unwrap_err();
        assert!(
            error.reason.ends_with("exit status: 1: too small"),
            "{error}"
        );
        assert_eq!(calls(dir.path()).last().unwrap(), "destroy p/z-disk0");
    }

    #[test]
    fn a_command_that_hangs_is_killed_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let zfs = scripted(dir.path(), "exec sleep 600");
        let cancel = Cancel::never();
        let commands = zfs.commands(&cancel, Instant::now() + Duration::from_millis(100));
        let set = Operation::Set {
            property: "quota".to_owned(),
            value: "1".to_owned(),
        };
        let error = commands.apply(&Step::new("quota", "p/z", set)).unwrap_err();
        assert!(
            error.reason.contains("set quota=1 p/z: no answer within"),
            "{error}"
        );
    }

    #[test]
    fn a_pool_that_hangs_keeps_nobody_from_a_vm_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let does = "case \"$*\" in\n\
             get) echo 'type NO -\nmountpoint YES -' >&2; exit 2 ;;\n\
             *hung*) exec sleep 600 ;;\n\
             *good/z) printf 'good/z\\tmountpoint\\t/zones/z\\n' ;;\n\
             *) exit 1 ;;\nesac";
        let zfs = scripted(dir.path(), does);
        let zpool = dir.path().join("zpool");
        let source = dir.path().join("source");
        std::fs::write(&source, "#!/bin/sh\nprintf 'hung\\ngood\\n'\n").unwrap();
        let mut install = std::process::Command::new("install");
        install.arg("-m755").arg(&source).arg(&zpool);
        assert!(install.status().unwrap().success());
        let options = ZfsOptions {
            zpool,
            deadline: Duration::from_secs(2),
            ..zfs.options
        };
        let zfs = Zfs::new(options, Watched::default());
        let cancel = Cancel::never();
        let read = |zonepath: &str, root: Option<&str>| {
            let root = root.map(str::to_owned);
            zfs.commands(&cancel, soon()).read("z", zonepath, &[], root)
        };
        let table = read("/zones/z", None).unwrap();
        assert_eq!(table.mounted_at("/zones/z"), Some("good/z"));
        // Where it was the last time it is found without asking others.
        let before = calls(dir.path()).len();
        read("/zones/z", Some("good/z")).unwrap();
        assert_eq!(calls(dir.path()).len(), before + 1);
    }

    #[test]
    fn the_disks_of_a_zone_are_found_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let zfs = scripted(
            dir.path(),
            "printf 'p/z-disk0\\np/z-disk12\\np/z-disk1/x\\np/z-diskless\\np/zz-disk0\\np/y\\n'",
        );
        let cancel = Cancel::never();
        let found = zfs.commands(&cancel, soon()).volumes_beside("p/z");
        assert_eq!(found.unwrap(), ["p/z-disk0", "p/z-disk12"]);
        assert_eq!(calls(dir.path()), ["list -H -r -t volume -o name p"]);
    }

    #[test]
    fn only_a_dataset_that_zfs_says_is_not_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = Cancel::never();
        let missing = "cannot open 'p/z': dataset does not exist";
        let zfs = scripted(dir.path(), &format!("echo \"{missing}\" >&2; exit 1"));
        assert!(!zfs.commands(&cancel, soon()).exists("p/z").unwrap());
        let zfs = scripted(dir.path(), "echo pool I/O is suspended >&2; exit 1");
        let error = zfs.commands(&cancel, soon()).exists("p/z").unwrap_err();
        assert!(error.reason.contains("pool I/O is suspended"), "{error}");
        let zfs = scripted(dir.path(), "exit 0");
        assert!(zfs.commands(&cancel, soon()).exists("p/z").unwrap());
    }
}
