//! How long the daemon takes from its start to the complete tree, beside reading all files of its store with cat(1),
//! and the memory a VM costs then and after somebody has looked at every file.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::mounts::Store;
use crate::report::Report;
use crate::turns::{self, Subject};
use crate::{Failure, Size};

/// What must hold for a store.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    /// Seconds from the start to the complete tree.
    pub seconds: f64,
    /// KiB of memory a VM.
    pub memory: f64,
    /// Times the time that cat(1) takes.
    pub cat: Option<f64>,
    /// Whether somebody looks at every file.
    pub walked: bool,
}

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

/// The paths of all files below a directory, each ended by a NUL.
fn files(dir: &Path, list: &mut Vec<u8>) -> Result<(), Failure> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files(&entry.path(), list)?;
        } else {
            list.extend_from_slice(entry.path().as_os_str().as_bytes());
            list.push(0);
        }
    }
    Ok(())
}

/// Measures and reports.
pub fn run(report: &mut Report, size: Size, store: &Store<'_>, bars: Bars) -> Result<(), Failure> {
    let (rounds, _) = size.of((5, 0), (3, 0));
    let vms = store.vms;
    let list = store.beside("files");
    let mut names = Vec::new();
    files(&store.root(), &mut names)?;
    fs::write(&list, names)?;
    let cat = || {
        let mut command = Command::new("xargs");
        command.args(["-0", "cat"]);
        command.stdin(File::open(&list)?).stdout(Stdio::null());
        turns::seconds(|| match command.status()?.success() {
            true => Ok(()),
            false => Err("xargs -0 cat failed".into()),
        })
    };
    let start = || Ok(store.mount()?.took.as_secs_f64());
    let taken = turns::take(
        rounds,
        vec![Subject::new("vminfod", start), Subject::new("cat", cat)],
    )?;
    report.section(format!(
        "Start until the tree is complete, {vms} VMs, s: {rounds} rounds"
    ));
    let work = "start";
    taken.compare(report, work, "vminfod", "cat");
    taken.picture(report, &format!("start with {vms} VMs"), "vminfod", "cat");
    let what = format!("start with {vms} zones");
    if let Some(taken) = taken.of("vminfod") {
        report.at_most(bars.seconds, " s", &what, taken.sample().median());
    }
    if let Some(cat) = bars.cat {
        let limited = " × reading their files with cat";
        report.at_most(cat, limited, &what, taken.median("vminfod", "cat"));
    }

    let daemon = store.mount()?;
    let a_vm = |bytes: u64| bytes as f64 / vms as f64 / 1024.0;
    report.section(format!("Memory a VM with {vms} VMs, KiB"));
    let loaded = daemon.resident()?;
    let objects = daemon.status()?["memory"]["vms"].as_u64().unwrap_or(0);
    let text = fs::metadata(daemon.path("vms.json"))?.len();
    report.line("its object as JSON", format!("{:.2}", a_vm(text)));
    report.line("resident after the start", format!("{:.2}", a_vm(loaded)));
    report.line(
        "of it its JSON and the table of its files",
        format!("{:.2}", a_vm(objects)),
    );
    let what = format!("memory at {vms} VMs");
    report.at_most(bars.memory, " KiB a VM", &what, a_vm(loaded));
    if bars.walked {
        let files = walk(&daemon.path(""))?;
        let walked = a_vm(daemon.resident()?);
        report.line(
            format!("resident after a walk over {files} files"),
            format!("{walked:.2}"),
        );
        let what = format!("memory at {vms} VMs, all files held by the kernel");
        report.at_most(16.0, " KiB a VM", &what, walked);
    }
    Ok(())
}
