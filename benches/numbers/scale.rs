//! What depends on the number of VMs: listing and walking the tree, the document of all VMs, an idle daemon.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::messages::Messages;
use crate::mounts::{READ_ONLY, WRITABLE};
use crate::report::Report;
use crate::tools::{Cache, FIND, FIND_F, GREP, LS};
use crate::tree::{TMPFS, Tree};
use crate::turns::{self, Subject};
use crate::{Failure, Size};

/// Measures and reports.
pub fn run(report: &mut Report, size: Size, tree: &Tree<'_>) -> Result<(), Failure> {
    idle(report, size, tree)?;
    walk(report, tree)?;
    whole(report, tree)
}

/// The share of a core that the daemon takes while nobody asks and nothing changes.
fn idle(report: &mut Report, size: Size, tree: &Tree<'_>) -> Result<(), Failure> {
    let (_, seconds) = size.of((0, 10), (0, 2));
    // What it does after its start is over by then.
    thread::sleep(Duration::from_secs(2));
    let before = tree.daemon.cpu()?;
    thread::sleep(Duration::from_secs(seconds as u64));
    let share = (tree.daemon.cpu()? - before) / seconds as f64;
    report.section(format!("Idle for {seconds} s with {} VMs", tree.vms));
    report.line("share of a core", format!("{:.3} %", share * 100.0));
    let what = format!("idle CPU, {} VMs", tree.vms);
    report.at_most(0.5, " % of a core", &what, share * 100.0);
    Ok(())
}

/// Directories below a VM, itself included.
fn directories(dir: &Path) -> Result<u64, Failure> {
    let mut count = 1;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += directories(&entry.path())?;
        }
    }
    Ok(count)
}

/// Lists the root, and walks through many VMs.
fn walk(report: &mut Report, tree: &Tree<'_>) -> Result<(), Failure> {
    let (vms, walked) = (tree.vms, tree.walked.len());
    let rounds = 5;
    report.section(format!(
        "Walks at {vms} VMs, s: {rounds} rounds; ls of the root, the others over {walked} of the VMs"
    ));
    let warm = |name| Cache::Warm.of(name);
    let cold = |name| Cache::Cold.of(name);
    let listed = LS.turns(tree, 11, walked, &[Cache::Warm])?;
    LS.show(report, &listed);
    for name in tree.ours() {
        let what = format!("warm ls of {vms} VMs, {name} mount");
        report.at_most(1.1, " × tmpfs", &what, listed.median(&warm(name), TMPFS));
        listed.picture(report, &format!("ls of {vms}"), &warm(name), TMPFS);
    }

    let found = FIND.turns(tree, rounds, walked, &[Cache::Cold])?;
    FIND.show(report, &found);
    let mut dirs = 0;
    for uuid in &tree.walked {
        dirs += directories(&tree.copy(uuid))?;
    }
    for (name, root) in tree.daemon.mounts() {
        tree.daemon.forgotten()?;
        let sent = Messages::of(&tree.daemon, || FIND.run(&root, &tree.walked).map(drop))?;
        report.line(
            format!("messages of a cold find, {name} mount, {dirs} directories"),
            &sent,
        );
        let what = format!("cold find at {vms} VMs, {name} mount");
        // find(1) was told the VMs by name instead of finding them in the root: a LOOKUP and a STATFS for each.
        let a_dir = (sent.total() - 2 * walked as i64) as f64 / dirs as f64;
        report.at_most(2.0, " messages a directory", &what, a_dir);
    }
    for name in tree.ours() {
        let what = format!("cold find at {vms} VMs, {name} mount");
        report.at_most(15.0, " × tmpfs", &what, found.median(&cold(name), TMPFS));
        found.picture(report, &format!("find at {vms} VMs"), &cold(name), TMPFS);
    }

    let found = FIND_F.turns(tree, rounds, walked, &[Cache::Warm])?;
    FIND_F.show(report, &found);
    let what = format!("warm find -type f at {vms} VMs, read-only mount");
    let to_tmpfs = found.median(&warm(READ_ONLY), TMPFS);
    report.at_most(2.0, " × tmpfs", &what, to_tmpfs);
    let work = format!("find -type f at {vms} VMs");
    for name in tree.ours() {
        found.picture(report, &work, &warm(name), TMPFS);
    }
    let what = format!("warm grep -r at {vms} VMs, read-only mount");
    let places = tree.places();
    let subjects = places.iter().filter(|(name, _)| *name != WRITABLE);
    let subjects = subjects.map(|(name, root)| {
        Subject::new(Cache::Warm.of(name), move || GREP.run(root, &tree.walked))
    });
    let grepped = turns::take(rounds, subjects.collect())?;
    GREP.show(report, &grepped);
    let to_tmpfs = grepped.median(&warm(READ_ONLY), TMPFS);
    report.at_most(2.0, " × tmpfs", &what, to_tmpfs);
    grepped.picture(
        report,
        &format!("grep -r at {vms} VMs"),
        &warm(READ_ONLY),
        TMPFS,
    );
    Ok(())
}

/// Reads a file to its end; its size.
fn read_whole(path: &Path) -> Result<u64, Failure> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(size),
            len => size += len as u64,
        }
    }
}

/// Reads the document of all VMs.
fn whole(report: &mut Report, tree: &Tree<'_>) -> Result<(), Failure> {
    let copy = tree.copy("vms.json");
    let bytes = fs::copy(tree.daemon.path("vms.json"), &copy)?;
    let places = tree.places();
    let rounds = 7;
    let subjects = places.iter().map(|(name, root)| {
        let path = root.join("vms.json");
        Subject::new(*name, move || {
            turns::seconds(|| read_whole(&path).map(drop))
        })
    });
    let taken = turns::take(rounds, subjects.collect())?;
    fs::write(copy, "")?;
    report.section(format!(
        "vms.json of {} VMs, {:.0} MB, read in pieces of 1 MiB, s: {rounds} rounds",
        tree.vms,
        bytes as f64 / 1e6
    ));
    let work = "vms.json";
    for name in tree.ours() {
        taken.compare(report, work, name, TMPFS);
        taken.picture(report, &format!("{work} of {} VMs", tree.vms), name, TMPFS);
    }
    if let Some(writable) = taken.of(WRITABLE) {
        let rate = bytes as f64 / 1e9 / writable.sample().median();
        let what = format!("vms.json of {} VMs, writable mount", tree.vms);
        report.at_least(1.0, " GB/s", &what, rate);
    }
    let what = format!("vms.json of {} VMs, read-only mount, warm", tree.vms);
    report.at_most(1.3, " × tmpfs", &what, taken.median(READ_ONLY, TMPFS));
    Ok(())
}
