//! `vminfod-libvirt`: what `vminfod` asks of libvirt. The daemon starts it and speaks with it over its standard
//! input and output ([`vminfod::source::libvirt::wire`]); a call to libvirt that hangs, hangs only here.
//!
//! It is a program of its own also because whatever is linked to libvirt does not start where that is missing.

use std::io::{BufRead, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use vminfod::source::libvirt::wire::Request;

use engine::{Engine, Message, Options};
use load::{Context, Loaders};
use watch::{Places, Watch};

mod engine;
mod link;
mod load;
mod poll;
mod watch;

/// How many domains are read at the same time.
const LOADERS: usize = 4;

#[derive(Parser)]
#[command(
    version,
    about = "Reads the domains of a libvirt for vminfod, which starts it"
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
    virt::event::event_register_default_impl()?;
    thread::Builder::new().name("events".into()).spawn(|| {
        loop {
            if let Err(error) = virt::event::event_run_default_impl() {
                eprintln!("libvirt's events: {error}");
                std::process::exit(1);
            }
        }
    })?;
    let (inbox, messages) = mpsc::channel();
    thread::Builder::new().name("stdin".into()).spawn({
        let inbox = inbox.clone();
        move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                match Request::decode(&line) {
                    Some(request) if inbox.send(Message::Request(request)).is_ok() => {}
                    Some(_) => break,
                    None => eprintln!("a request that is not understood: {line}"),
                }
            }
            // The daemon has ended. Others of our threads may hang; nothing is lost with them.
            std::process::exit(0);
        }
    })?;
    let places = Places::of(&args.uri, &args.root);
    let context = Context {
        config: places.as_ref().map(|places| places.config.clone()),
        run: places.as_ref().map(|places| places.run.clone()),
        deadline,
    };
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
    Ok(Engine::new(options, out, inbox, loaders, watch).run(&messages)?)
}
