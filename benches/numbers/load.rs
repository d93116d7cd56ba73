//! How long the daemon takes from its start to the complete tree, and the memory a VM costs then
//! and after somebody has looked at every file.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::mounts::Store;
use crate::report::{Report, Sample};
use crate::{Failure, Size};

/// Lists everything below a directory with its attributes, as find(1) with a test on size does, and
/// counts it. Symbolic links are not followed.
fn walk(dir: &Path) -> Result<u64, Failure> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        count += 1;
        if found.is_dir() {
            count += walk(&entry.path())?;
        }
    }
    Ok(count)
}

/// Measures and reports.
pub fn run(report: &mut Report, size: Size, store: &Store<'_>) -> Result<(), Failure> {
    let turns = match size {
        Size::Full => 7,
        Size::Quick => 3,
    };
    let vms = store.vms;
    let mut seconds = Vec::new();
    for _ in 0..turns {
        seconds.push(store.mount()?.took.as_secs_f64());
    }
    report.section(format!(
        "start to the complete tree with {vms} VMs: {turns} rounds, s"
    ));
    let seconds = Sample::new(seconds);
    report.line("start to mounted", seconds.spread(2));
    report.at_most(2.0, " s", "start to mounted, median", seconds.median());

    let daemon = store.mount()?;
    let a_vm = |bytes: u64| bytes as f64 / vms as f64 / 1024.0;
    report.section(format!("memory a VM with {vms} VMs, KiB"));
    let loaded = daemon.resident()?;
    let objects = daemon.status()?["memory"]["vms"].as_u64().unwrap_or(0);
    report.line(
        "of it objects, JSON and files",
        format!("{:.2}", a_vm(objects)),
    );
    report.at_most(16.0, " KiB", "resident after the start", a_vm(loaded));
    let began = Instant::now();
    let files = walk(&daemon.path(""))?;
    report.line(
        "a walk over everything",
        format!("{files} files in {:.1} s", began.elapsed().as_secs_f64()),
    );
    report.at_most(
        16.0,
        " KiB",
        "resident after the walk",
        a_vm(daemon.resident()?),
    );
    Ok(())
}
