//! The numbers that the README claims, measured in one run: `mount-scripts/bench` builds what is
//! compared and starts it. Prints each number with its spread, and ends with an error if one of them
//! missed its bar.
//!
//! All loops are in this process, so that nothing is measured but the system calls. Each section
//! starts daemons of its own on sample stores in a tmpfs below the folder for temporary files.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

mod burst;
mod events;
mod latency;
mod load;
mod mounts;
mod reads;
mod report;
mod writes;
mod zfs;

use mounts::{Scratch, Store};
use report::Report;

/// Why a bench ends without a number.
type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
#[command(about = "Measures what the README claims; mount-scripts/bench starts it")]
struct Args {
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// libfuse3's example, built with direct I/O
    #[arg(long, value_name = "PROGRAM")]
    hello: PathBuf,
    /// Only these sections: reads, load, latency, burst, writes, zfs
    #[arg(value_name = "SECTION",
        value_parser = ["reads", "load", "latency", "burst", "writes", "zfs"])]
    sections: Vec<String>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Full,
    Quick,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let size = if args.quick { Size::Quick } else { Size::Full };
    let mut report = Report::default();
    if let Err(error) = run(&args, size, &mut report) {
        eprintln!("bench: {error}");
        return ExitCode::from(2);
    }
    println!();
    for missed in report.missed() {
        println!("MISSED {missed}");
    }
    if report.missed().is_empty() {
        println!("all bars held");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(args: &Args, size: Size, report: &mut Report) -> Result<(), Failure> {
    let wanted =
        |section: &str| args.sections.is_empty() || args.sections.iter().any(|one| one == section);
    println!("{}", mounts::machine()?);
    let scratch = Scratch::mount()?;
    if wanted("reads") {
        reads::run(report, size, &scratch, &args.hello)?;
    }
    if ["load", "latency", "burst", "writes"]
        .into_iter()
        .any(wanted)
    {
        let small = Store::new(&scratch, "small", 100)?;
        let large = Store::new(&scratch, "large", 10_000)?;
        if wanted("load") {
            load::run(report, size, &large)?;
        }
        if wanted("latency") {
            latency::run(report, size, &[&small, &large])?;
        }
        if wanted("burst") {
            burst::run(report, size, &large)?;
        }
        if wanted("writes") {
            writes::run(report, size, &large)?;
        }
    }
    if wanted("zfs") {
        zfs::run(report, size, &Store::new(&scratch, "zfs", 100)?)?;
    }
    Ok(())
}
