//! `vminfod-libvirt`: what `vminfod` asks of libvirt. The daemon starts it and speaks with it over its standard
//! input and output ([`vminfod::source::libvirt::wire`]); a call to libvirt that hangs, hangs only here.
//!
//! It is a program of its own also because whatever is linked to libvirt does not start where that is missing.

// What users and sources give is an error, never a panic.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::io::{BufRead, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use vminfod::source::libvirt::wire::Request;

use change::Changes;
use engine::{Engine, Message, Options};
use load::{Busy, Context, Loaders};
use watch::{Places, Watch};

mod change;
mod engine;
mod known;
mod link;
mod load;
mod poll;
mod steps;
mod watch;

/// How long changes that are being made are waited for when the daemon has ended.
const LAST_CHANGES: Duration = Duration::from_secs(30);

/// How many domains are read at the same time.
const LOADERS: usize = 4;

#[derive(Parser)]
#[command(
    version,
    about = "Reads and changes the domains of a libvirt for vminfod, which starts it"
)]
struct Args {
    /// The libvirt, such as qemu:///system
    uri: String,
    /// Where etc/libvirt, run/libvirt and var/lib/libvirt of its host are found
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Seconds from one listing to the next
    #[arg(long, default_value_t = 300.0)]
    rescan: f64,
    /// Seconds from one poll of statistics to the next
    #[arg(long, default_value_t = 10.0)]
    poll: f64,
    /// After so many seconds without an answer a domain is stale
    #[arg(long, default_value_t = 5.0)]
    deadline: f64,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let seconds = Duration::try_from_secs_f64;
    let deadline = seconds(args.deadline)?;
    // libvirt would write each error to standard error by itself.
    virt::error::clear_error_callback();
    let events = link::events::register()?;
    thread::Builder::new().name("events".into()).spawn(|| {
        loop {
            if let Err(error) = events.turn() {
                eprintln!("libvirt's events: {error}");
                std::process::exit(1);
            }
        }
    })?;
    let (inbox, messages) = mpsc::channel();
    let places = Places::of(&args.uri, &args.root);
    let context = Context {
        config: places.as_ref().map(|places| places.config.clone()),
        run: places.as_ref().map(|places| places.run.clone()),
        deadline,
        busy: Busy::Skip,
    };
    // What is answered to a change has to be all there, and a change may wait.
    let patient = Context {
        busy: Busy::Wait,
        ..context.clone()
    };
    let changes = Changes::new(args.uri.clone(), patient, inbox.clone());
    thread::Builder::new().name("stdin".into()).spawn({
        let (inbox, changes) = (inbox.clone(), changes.clone());
        move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let Some(request) = Request::decode(&line) else {
                    // What it holds may be secret.
                    let length = line.len();
                    eprintln!("a request of {length} bytes is not understood; is vminfod of another version?");
                    continue;
                };
                if inbox.send(Message::Request(request)).is_err() {
                    break;
                }
            }
            // The daemon has ended. What it began is ended, so that nothing is left halfway; threads that read may
            // hang, and nothing is lost with them.
            changes.end(LAST_CHANGES);
            std::process::exit(0);
        }
    })?;
    let watch = match places {
        Some(places) => Watch::start(places, inbox.clone())
            .inspect_err(|error| eprintln!("inotify: {error}"))
            .ok(),
        None => None,
    };
    let loaders = Loaders::start(LOADERS, context, inbox.clone())?;
    let options = Options {
        uri: args.uri,
        rescan: seconds(args.rescan)?,
        poll: seconds(args.poll)?,
        deadline,
    };
    let out = BufWriter::with_capacity(1 << 20, std::io::stdout());
    let engine = Engine::new(options, out, inbox, loaders, changes.clone(), watch);
    let ended = engine.run(&messages);
    // It ends when the daemon does not listen any more.
    changes.end(LAST_CHANGES);
    Ok(ended?)
}
