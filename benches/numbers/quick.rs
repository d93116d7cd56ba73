//! What does not depend on the machine: messages for each operation, bytes for each VM, and how the cost of a change
//! grows with the number of VMs. What was reached is written down here; it must not get worse.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::events::{Events, shown};
use crate::messages::Messages;
use crate::mounts::{Daemon, WRITABLE, Zone};
use crate::reads::Target;
use crate::report::{Report, Sample};
use crate::{Failure, Stores};

/// Messages that a directory costs find(1) when nothing is cached; its files cost none.
const COLD_A_DIRECTORY: f64 = 2.01;
/// Bytes of a VM's JSON and the table of its files. The text itself is 2.5 KB.
const OBJECT: f64 = 4_500.0;
/// Bytes that a VM adds to the daemon's resident memory.
const RESIDENT: f64 = 7_500.0;
/// The time the daemon works for a change with many VMs, over that with few.
const GROWTH: f64 = 1.6;
/// Messages that a change costs of which only a reader of `events` hears: his READ, and for whoever watches that file
/// by inotify a truncate of it, which the kernel makes a GETATTR, a GETXATTR and a SETATTR. Now and then there is one
/// GETATTR more.
const A_CHANGE: f64 = 4.1;

const FEW: usize = 100;
const MANY: usize = 2_000;

/// Measures and judges.
pub fn run(report: &mut Report, stores: &Stores<'_>) -> Result<(), Failure> {
    let (few, many) = (stores.of(FEW)?, stores.of(MANY)?);
    let (few, many) = (few.mount()?, many.mount()?);
    memory(report, &few, &many)?;
    operations(report, &few)?;
    changes(report, &few, &many)
}

fn memory(report: &mut Report, few: &Daemon<'_>, many: &Daemon<'_>) -> Result<(), Failure> {
    report.section("Bytes");
    let between = |few: u64, many: u64| (many.saturating_sub(few)) as f64 / (MANY - FEW) as f64;
    let objects = |daemon: &Daemon<'_>| -> Result<u64, Failure> {
        Ok(daemon.status()?["memory"]["vms"]
            .as_u64()
            .ok_or("no memory in .status")?)
    };
    let object = between(objects(few)?, objects(many)?);
    report.at_most(OBJECT, " bytes", "JSON and files of a VM", object);
    let resident = between(few.resident()?, many.resident()?);
    report.at_most(RESIDENT, " bytes", "resident memory of a VM", resident);
    Ok(())
}

/// Lists all below a directory, as find(1) does: symbolic links and attributes are not looked at. How many directories
/// there are.
fn walk(dir: &Path) -> Result<u64, Failure> {
    let mut count = 1;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += walk(&entry.path())?;
        }
    }
    Ok(count)
}

fn operations(report: &mut Report, daemon: &Daemon<'_>) -> Result<(), Failure> {
    report.section("Messages");
    let zones = daemon.zones()?;
    let vm = &zones.first().ok_or("the sample has no ordinary VM")?.uuid;
    for (name, root) in daemon.mounts() {
        // Nobody has looked at anything yet.
        let mut directories = 0;
        let sent = Messages::of(daemon, || {
            directories = walk(&root)?;
            Ok(())
        })?;
        report.line(
            format!("cold find over {directories} directories, {name} mount"),
            &sent,
        );
        let what = format!("cold find, {name} mount");
        let a_dir = sent.total() as f64 / directories as f64;
        report.at_most(COLD_A_DIRECTORY, " messages a directory", &what, a_dir);
        let (state, brand) = (format!("{vm}/state"), format!("{vm}/brand"));
        let state = Target::new(name, root.join(state))?;
        let brand = Target::new(name, root.join(brand))?;
        let mut judge =
            |what: &str, count: i64, kinds: &[&str], act: &dyn Fn() -> Result<(), Failure>| {
                // What it leaves in the kernel's caches is there then. The first READDIR makes the next stat of its
                // directory a GETATTR.
                act()?;
                act()?;
                let sent = Messages::of(daemon, act)?;
                let wanted = match kinds {
                    [] => "none".to_owned(),
                    kinds => format!("{count} each of {}", kinds.join(", ")),
                };
                let what = format!("{what}, {name} mount");
                report.judge(&what, &wanted, &sent, sent.are(count, kinds));
                Ok::<(), Failure>(())
            };
        // In the mount that never changes a file, all comes out of the kernel's caches.
        let [read, pread]: [&[&str]; 2] = match name {
            WRITABLE => [&["open", "read", "release"], &["read"]],
            _ => [&[], &[]],
        };
        judge("100 open+read+close", 100, read, &|| {
            state.read(100).map(drop)
        })?;
        judge("100 stat", 0, &[], &|| brand.stat(100).map(drop))?;
        judge("ls again", 0, &[], &|| {
            fs::read_dir(&root)?.for_each(drop);
            Ok(())
        })?;
        judge("find again", 0, &[], &|| walk(&root.join(vm)).map(drop))?;
        let held = Messages::of(daemon, || state.pread(100).map(drop))?;
        let expected = match pread {
            [] => held.are(0, &[]),
            _ => held.total() == 102,
        };
        let what = format!("100 pread of an open file, {name} mount");
        let limit = if pread.is_empty() {
            "none"
        } else {
            "100 read, 1 open, 1 release"
        };
        report.judge(&what, limit, &held, expected);
    }
    Ok(())
}

/// What changes of tags cost the daemon.
struct Changed<'a> {
    daemon: &'a Daemon<'a>,
    zones: Vec<Zone>,
    events: Events,
    /// The CPU time of a change, in each round.
    micros: Vec<f64>,
}

impl<'a> Changed<'a> {
    fn new(daemon: &'a Daemon<'a>) -> Result<Changed<'a>, Failure> {
        Ok(Changed {
            daemon,
            zones: daemon.zones()?,
            events: Events::open(daemon)?,
            micros: Vec::new(),
        })
    }

    /// Changes VMs one after the other, each when the one before it was told.
    fn round(&self, round: u64, count: u64) -> Result<(), Failure> {
        let began = Instant::now();
        for number in 0..count {
            if began.elapsed() > Duration::from_secs(20) {
                return Err(
                    "changes are not announced: is fs.inotify.max_user_watches used up?".into(),
                );
            }
            let value = 1 + round * count + number;
            let zone = &self.zones[(value as usize * 7_919) % self.zones.len()];
            zone.prepare(value)?.commit()?;
            self.events.find(&shown(value))?;
        }
        Ok(())
    }
}

fn changes(report: &mut Report, few: &Daemon<'_>, many: &Daemon<'_>) -> Result<(), Failure> {
    const ROUNDS: u64 = 7;
    const COUNT: u64 = 100;
    let mut subjects = [Changed::new(few)?, Changed::new(many)?];
    for round in 0..=ROUNDS {
        for subject in &mut subjects {
            let before = subject.daemon.cpu()?;
            subject.round(round, COUNT)?;
            let spent = subject.daemon.cpu()? - before;
            // The first one warms up.
            if round > 0 {
                subject.micros.push(spent * 1e6 / COUNT as f64);
            }
        }
    }
    report.section(format!("A change, {ROUNDS} rounds of {COUNT}"));
    let [few, many] = &subjects;
    let growth = many
        .micros
        .iter()
        .zip(&few.micros)
        .map(|(many, few)| many / few);
    let growth = Sample::new(growth);
    for (subject, vms) in [(few, FEW), (many, MANY)] {
        let spent = Sample::new(subject.micros.iter().copied());
        report.line(format!("µs of a core with {vms} VMs"), spent.spread());
    }
    let what = format!("work of the daemon for a change, {MANY} VMs");
    report.at_most(
        GROWTH,
        &format!(" × that with {FEW}"),
        &what,
        growth.median(),
    );
    for subject in &subjects {
        let vms = subject.daemon.status()?["numVms"].as_u64().unwrap_or(0);
        subject.daemon.forgotten()?;
        let sent = Messages::of(subject.daemon, || subject.round(ROUNDS + 1, COUNT))?;
        report.line(format!("messages of {COUNT} changes with {vms} VMs"), &sent);
        let what = format!("a change with {vms} VMs of which nothing is cached");
        let a_change = sent.total() as f64 / COUNT as f64;
        report.at_most(A_CHANGE, " messages", &what, a_change);
    }
    Ok(())
}
