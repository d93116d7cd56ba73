//! `vminfo`: what vminfod knows, on the command line. Parses arguments, asks the mounted tree, maps
//! the result to an exit code; the work is done in [`vminfod::client`].

// What users and sources give is an error, never a panic.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::Value;
use vminfod::client::event::Format;
use vminfod::client::output::{print, print_json};
use vminfod::client::stream::{Shown, Start};
use vminfod::client::wait::{Condition, Outcome, Term, wait};
use vminfod::client::{Error, Mount, VmName, status, usage};

const ABOUT_ALL: &str = "\
Shows what vminfod knows about the VMs of this host.

Everything is read from the mounted tree, so what you may see is what you may read there. `vminfo \
ping` and `vminfo status` work for everybody; the VMs themselves carry passwords and are shown to \
root, and to the group given to `vminfod mount -o group=`.";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or wrong usage (the usage is then on standard output)
  `vminfo wait` has its own: 0 met, 1 timed out, 2 wrong usage or no vminfod to ask

Environment:
  VMINFOD_MOUNT  where the VMs are mounted, unless --mount says so [default: /vms]

Examples:
  vminfo ping && echo up
  vminfo vm 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 | jq .nics
  vminfo --mount /tmp/vms events";

const PING_EXAMPLE: &str = "\
Example:
  $ vminfo ping
  pong";

const STATUS_EXAMPLE: &str = "\
Examples:
  vminfo status                    what people look at
  vminfo status -f                 everything
  vminfo status -jf | jq .fswatcher";

const VMS_EXAMPLE: &str = "\
Example:
  vminfo vms | jq -r '.[] | select(.state == \"running\") | .alias'";

const VM_EXAMPLE: &str = "\
Example:
  $ vminfo vm 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 | jq -r .state
  running";

const EVENTS_EXAMPLE: &str = "\
A line has the time, the first part of the uuid, the alias (a dash if there is none) and what \
happened. A VM that changed has a line for each of its properties that did.

A `gap` line says that events were lost because this reader was too slow; what follows goes on \
with the oldest that vminfod still has.

Examples:
  $ vminfo events
  [17:20:09.634Z] c4103a37 foo modify: quota changed :: 10 -> 20
  $ vminfo events -j --since 4711 | jq --unbuffered -r '.uuid + \" \" + .type'";

const WAIT_EXAMPLE: &str = "\
EXPR is one of
  PROPERTY=TEXT      the value is this text; strings are compared as they are, all else as JSON,
                     and a property that the VM does not have is empty
  PROPERTY!=TEXT     it is not
  PROPERTY=~REGEX    the regular expression matches somewhere in it, in capitals or not
  deleted            the VM does not exist (alone, without other expressions)

PROPERTY may lead into lists and objects as in nics.0.ip, tags.role or nics.*.ip, where one of the \
nics is enough; a name with a dot in it is put into brackets: customer_metadata[user.script].

The wait ends when all expressions held at one moment since it began. A VM that does not exist is \
waited for.

Exit codes:
  0  met
  1  not met within the time of -t
  2  wrong usage, or vminfod could not be asked

Examples:
  vminfo wait c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e state=running 'nics.*.ip=~^10\\.' -t 60
  vminfo wait c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e deleted";

/// Shows what vminfod knows about the VMs of this host
#[derive(Debug, Parser)]
#[command(name = "vminfo", version, long_about = ABOUT_ALL, after_long_help = EXIT_CODES)]
struct Arguments {
    /// Where the VMs are mounted [default: $VMINFOD_MOUNT, else /vms]
    #[arg(long, global = true, value_name = "DIR")]
    mount: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask whether vminfod is there
    #[command(after_long_help = PING_EXAMPLE)]
    Ping,

    /// Show vminfod's own health
    #[command(after_long_help = STATUS_EXAMPLE)]
    Status {
        /// Print JSON
        #[arg(short)]
        json: bool,

        /// Print all of it: also what the watchers and the latest scans did
        #[arg(short)]
        full: bool,
    },

    /// Print all VMs as a JSON array
    #[command(after_long_help = VMS_EXAMPLE)]
    Vms,

    /// Print one VM as a JSON object
    #[command(after_long_help = VM_EXAMPLE)]
    Vm {
        /// Which VM
        #[arg(value_name = "UUID|ZONENAME")]
        name: VmName,
    },

    /// Print changes as they happen
    #[command(after_long_help = EVENTS_EXAMPLE)]
    Events {
        /// Print each event as a line of JSON, with the whole VM
        #[arg(short)]
        json: bool,

        /// Print the whole date and uuid
        #[arg(short)]
        full: bool,

        /// Print also the event that says that the stream is open
        #[arg(short)]
        ready: bool,

        /// Begin with what happened after this sequence number
        #[arg(long, value_name = "SEQ")]
        since: Option<u64>,

        /// Only this VM's; named by uuid, it need not exist yet
        #[arg(value_name = "UUID|ZONENAME")]
        name: Option<VmName>,
    },

    /// Wait until something is true of a VM
    #[command(after_long_help = WAIT_EXAMPLE)]
    Wait {
        /// Which VM
        #[arg(value_name = "UUID|ZONENAME")]
        name: VmName,

        /// What to wait for: property=text, property!=text, property=~regex, or deleted
        #[arg(value_name = "EXPR", required = true)]
        terms: Vec<Term>,

        /// Give up after this many seconds, such as 10 or 0.5; 0 only looks
        #[arg(short, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<Duration>,
    },
}

/// Wrong usage of `wait`, or nothing to wait on: 1 already says that the time was up.
const WAIT_FAILED: u8 = 2;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return say_usage(&error),
    };
    let failed = match arguments.command {
        Command::Wait { .. } => ExitCode::from(WAIT_FAILED),
        _ => ExitCode::FAILURE,
    };
    match run(arguments) {
        Ok(code) => code,
        // The reader has seen enough, as with `| head`.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            failed
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let mount = Mount::find(arguments.mount);
    match arguments.command {
        Command::Ping => {
            mount.status()?;
            print("pong\n")?;
        }
        Command::Status { json, full } => {
            let mut document = mount.status()?;
            if !full {
                document = status::short(&document);
            }
            if json {
                print_json(&Value::Object(document))?;
            } else {
                print(&status::text(&document))?;
            }
        }
        Command::Vms => {
            let vms = mount.vms()?.into_iter().map(Value::Object);
            print_json(&Value::Array(vms.collect()))?;
        }
        Command::Vm { name } => match mount.vm(&name)? {
            Some(vm) => print_json(&Value::Object(vm))?,
            None => return Err(Error::VmNotFound(name.to_string())),
        },
        Command::Events {
            json,
            full,
            ready,
            since,
            name,
        } => {
            let format = match (json, full) {
                (true, _) => Format::Json,
                (false, true) => Format::Full,
                (false, false) => Format::Short,
            };
            let start = since.map_or(Start::Now, Start::After);
            mount.print_events(start, name, Shown { format, ready }, &mut io::stdout())?;
        }
        Command::Wait {
            name,
            terms,
            timeout,
        } => {
            // A deadline that no clock reaches is none.
            let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            let condition = match Condition::new(terms) {
                Ok(condition) => condition,
                Err(contradiction) => {
                    let error =
                        Arguments::command().error(ErrorKind::ArgumentConflict, contradiction);
                    return Ok(say_usage(&error));
                }
            };
            return Ok(match wait(&mount, &name, &condition, deadline)? {
                Outcome::Met => ExitCode::SUCCESS,
                Outcome::TimedOut => ExitCode::FAILURE,
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints help that was asked for, or what was wrong and the usage. Both go to standard output:
/// that is where SmartOS's tool has it.
fn say_usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if asked_for {
        return say(&text, ExitCode::SUCCESS);
    }
    let arguments: Vec<OsString> = env::args_os().collect();
    let answer = usage::answer(error, &Arguments::command(), &arguments);
    let code = match answer.subcommand.as_deref() {
        Some("wait") => ExitCode::from(WAIT_FAILED),
        _ => ExitCode::FAILURE,
    };
    say(&answer.text, code)
}

fn say(text: &str, code: ExitCode) -> ExitCode {
    // Nothing can be said about an output that does not take it.
    let _ = print(text);
    code
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "write a number of seconds, such as 10 or 0.5".to_owned())?;
    if seconds.is_sign_negative() || seconds.is_nan() {
        return Err("a wait cannot end before it begins".to_owned());
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}
