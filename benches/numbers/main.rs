//! The numbers that the README claims, measured in one run: `mount-scripts/bench` builds what is
//! compared and starts it. Prints each number with its spread, writes all of them as Markdown and as a picture, and
//! ends with an error if one of them missed its bar.
//!
//! But for the tools, all loops are in this process, so that nothing is measured but the system calls. Each section
//! starts daemons of its own on sample stores in a tmpfs below the folder for temporary files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use clap::Parser;

mod blocked;
mod burst;
mod changing;
mod events;
mod latency;
mod libvirt;
mod libvirtd;
mod load;
mod messages;
mod mounts;
mod output;
mod quick;
mod reads;
mod report;
mod rivals;
mod scale;
mod serve;
mod tools;
mod tree;
mod turns;
mod writes;
mod zfs;

use load::Bars;
use mounts::{Scratch, Store};
use report::Report;
use tree::Tree;

/// Why a bench ends without a number.
type Failure = Box<dyn std::error::Error>;

const SECTIONS: [&str; 10] = [
    "reads", "tools", "load", "latency", "burst", "writes", "zfs", "blocked", "scale", "libvirt",
];

#[derive(Parser)]
#[command(about = "Measures what the README claims; mount-scripts/bench starts it")]
struct Args {
    /// Fewer rounds and VMs, to see that it works: the numbers are not to be trusted
    #[arg(long)]
    short: bool,
    /// Writes results.md and results.svg into this folder
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// The folder of libfuse3's examples
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// A further option of all mounts, such as max_watches=100000 where others need some of the host's
    #[arg(short = 'o', value_name = "OPTION")]
    options: Option<String>,
    /// Only these sections, or quick: only what does not depend on the machine
    #[arg(value_name = "SECTION", value_parser = SECTIONS.into_iter().chain(["quick"]).collect::<Vec<_>>())]
    sections: Vec<String>,
    /// Is a daemon that can be broken, on this store and this folder
    #[arg(long, hide = true, num_args = 2)]
    serve: Vec<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Full,
    Short,
}

impl Size {
    /// Rounds and repetitions within each, or other numbers of the kind.
    fn of(self, full: (usize, usize), short: (usize, usize)) -> (usize, usize) {
        match self {
            Size::Full => full,
            Size::Short => short,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let done = match &args.serve[..] {
        [root, mountpoint] => return ended(serve::serve(root.clone(), mountpoint.clone())),
        _ => run(&args, &mut report),
    };
    if let Err(error) = done {
        return ended(Err(error));
    }
    println!();
    for bar in report.missed() {
        println!("NOT HELD {}: {}, {}", bar.what, bar.measured, bar.limit);
    }
    if report.missed().next().is_none() {
        println!("all bars held");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn ended(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}

/// The stores that several sections use, each made when it is first wanted.
struct Stores<'a> {
    scratch: &'a Scratch,
    made: RefCell<BTreeMap<usize, Rc<Store<'a>>>>,
}

impl<'a> Stores<'a> {
    /// The one with so many VMs.
    fn of(&self, vms: usize) -> Result<Rc<Store<'a>>, Failure> {
        if let Some(store) = self.made.borrow().get(&vms) {
            return Ok(store.clone());
        }
        let store = Rc::new(Store::new(self.scratch, &vms.to_string(), vms)?);
        self.made.borrow_mut().insert(vms, store.clone());
        Ok(store)
    }
}

fn run(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let size = if args.short { Size::Short } else { Size::Full };
    let began = Instant::now();
    let machine = mounts::machine()?;
    println!("{machine}");
    let scratch = Scratch::mount(args.options.clone())?;
    let stores = Stores {
        scratch: &scratch,
        made: RefCell::default(),
    };
    if args.sections == ["quick"] {
        return quick::run(report, &stores);
    }
    let programs = args
        .programs
        .as_deref()
        .ok_or("--programs is missing: start this by mount-scripts/bench")?;
    for section in SECTIONS {
        if args.sections.is_empty() || args.sections.iter().any(|one| one == section) {
            let began = Instant::now();
            // What cannot be measured is a bar that is not held; the other sections are measured all the same.
            if let Err(error) = measure(section, report, size, &scratch, &stores, programs) {
                report.holds(&format!("section {section}"), false, error);
            }
            println!("  ({section} took {:.0} s)", began.elapsed().as_secs_f64());
        }
    }
    if let Some(folder) = &args.write {
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let mut run = format!("{machine}; {minutes:.0} minutes");
        if let Some(options) = &args.options {
            run.push_str(&format!("; mounted with `-o {options}`"));
        }
        fs::write(folder.join("results.md"), output::markdown(report, &run))?;
        fs::write(folder.join("results.svg"), output::picture(report))?;
    }
    Ok(())
}

fn measure<'a>(
    section: &str,
    report: &mut Report,
    size: Size,
    scratch: &'a Scratch,
    stores: &Stores<'a>,
    programs: &Path,
) -> Result<(), Failure> {
    let (large, huge) = size.of((10_000, 100_000), (1_000, 3_000));
    let small = stores.of(100)?;
    match section {
        "reads" => reads::run(report, size, scratch, &small, programs),
        "tools" => {
            for vms in [10, 1_000, large] {
                tools::run(report, &Tree::new(&*stores.of(vms)?, tools::WALKED)?)?;
            }
            let store = stores.of(1_000)?;
            tools::beside_changes(report, size, &Tree::new(&store, tools::WALKED)?)
        }
        "load" => {
            let bars = Bars {
                seconds: 2.0,
                memory: 16.0,
                cat: None,
                walked: true,
            };
            load::run(report, size, &*stores.of(large)?, bars)?;
            let bars = Bars {
                seconds: 10.0,
                memory: 8.0,
                cat: Some(2.0),
                walked: false,
            };
            load::run(report, size, &*stores.of(huge)?, bars)
        }
        "latency" => {
            let (large, huge) = (stores.of(large)?, stores.of(huge)?);
            latency::run(report, size, &[&small, &large, &huge])
        }
        "burst" => burst::run(report, size, &*stores.of(large)?),
        "writes" => writes::run(report, size, &*stores.of(large)?),
        "zfs" => zfs::run(report, size, &Store::new(scratch, "zfs", 100)?),
        "blocked" => {
            let free = Store::new(scratch, "free", 100)?;
            blocked::run(report, size, &Store::new(scratch, "blocked", 100)?, &free)
        }
        "scale" => {
            let (walked, _) = size.of((5_000, 0), (300, 0));
            let store = stores.of(huge)?;
            let tree = Tree::new(&store, walked)?;
            scale::run(report, size, &tree)?;
            tools::run(report, &tree)
        }
        "libvirt" => libvirt::run(report, size, scratch),
        _ => Ok(()),
    }
}
