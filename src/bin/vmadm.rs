//! `vmadm`: the VMs of this host, listed and changed from the command line. Parses arguments, asks
//! the mounted tree, maps the result to an exit code; the work is done in [`vminfod::client`].

// What users and sources give is an error, never a panic.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;
use vminfod::client::change::{Action, Stop};
use vminfod::client::event::Format;
use vminfod::client::expression::Expression;
use vminfod::client::fields::{self, BadKey};
use vminfod::client::input::{Assignment, Input};
use vminfod::client::list::{DEFAULT_ORDER, DEFAULT_SORT, Layout, Listing};
use vminfod::client::lookup::{Count, LookupError, Shown};
use vminfod::client::output::{print, print_json};
use vminfod::client::validate::{BRANDS, Verdict};
use vminfod::client::{Error, Mount, VmName, stream, usage};

use help::*;

#[path = "vmadm/help.rs"]
mod help;

/// Lists and changes the VMs of this host
#[derive(Debug, Parser)]
#[command(name = "vmadm", version, long_about = ABOUT_ALL, after_long_help = EXIT_CODES)]
struct Arguments {
    /// Where the VMs are mounted [default: $VMINFOD_MOUNT, else /vms]
    #[arg(long, global = true, value_name = "DIR")]
    mount: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print VMs as a table
    #[command(after_long_help = LIST)]
    List {
        /// Print no header, and `:` between the values
        #[arg(short)]
        parsable: bool,

        /// Print no header
        #[arg(short = 'H')]
        headless: bool,

        /// The columns
        #[arg(short, value_name = "FIELD,…", default_value = DEFAULT_ORDER)]
        order: String,

        /// What to sort by; `-` before a field sorts the other way round
        #[arg(short, value_name = "FIELD,…", default_value = DEFAULT_SORT, allow_hyphen_values = true)]
        sort: String,

        /// Only VMs of which this is true: field=value or field=~regex
        #[arg(value_name = "FILTER")]
        filters: Vec<Expression>,
    },

    /// Print the uuids of VMs, or the VMs as JSON
    #[command(after_long_help = LOOKUP)]
    Lookup {
        /// Print JSON
        #[arg(short)]
        json: bool,

        /// Fail unless exactly one VM is found
        #[arg(short = '1')]
        one: bool,

        /// With -j: print only these members
        #[arg(short, value_name = "FIELD,…")]
        output: Option<String>,

        /// Only VMs of which this is true: field=value or field=~regex
        #[arg(value_name = "FILTER")]
        filters: Vec<Expression>,
    },

    /// Print one VM as JSON
    #[command(visible_alias = "json", after_long_help = GET)]
    Get(Named),

    /// Make a VM
    #[command(after_long_help = CREATE)]
    Create(Payload),

    /// Change a VM
    #[command(after_long_help = UPDATE)]
    Update {
        #[command(flatten)]
        vm: Named,

        #[command(flatten)]
        payload: Payload,

        /// What to change: property=value; an empty value removes the property
        #[arg(value_name = "PROPERTY=VALUE", conflicts_with = "file")]
        words: Vec<Assignment>,
    },

    /// Remove a VM and its data
    #[command(visible_alias = "destroy", after_long_help = DELETE)]
    Delete(Named),

    /// Boot a VM
    #[command(visible_alias = "boot", after_long_help = START)]
    Start(Named),

    /// Shut a VM down
    #[command(visible_alias = "halt", after_long_help = STOP)]
    Stop {
        #[command(flatten)]
        vm: Named,

        /// Halt it at once
        #[arg(short = 'F', long)]
        force: bool,

        /// Halt it if it is not down after this many seconds
        #[arg(short, long, value_name = "SECONDS", conflicts_with = "force")]
        timeout: Option<u64>,
    },

    /// Stop a VM and boot it again
    #[command(after_long_help = REBOOT)]
    Reboot {
        #[command(flatten)]
        vm: Named,

        /// Halt it at once
        #[arg(short = 'F', long)]
        force: bool,
    },

    /// Send a signal to a VM's init
    #[command(after_long_help = KILL)]
    Kill {
        #[command(flatten)]
        vm: Named,

        /// Which signal; -KILL or -9 will do as well
        #[arg(short, long, value_name = "SIGNAL", default_value = "SIGTERM")]
        signal: String,
    },

    /// Look whether a payload would be accepted, and apply nothing
    #[command(after_long_help = VALIDATE)]
    Validate {
        #[command(subcommand)]
        action: Validate,
    },

    /// Take a snapshot of a VM
    #[command(after_long_help = CREATE_SNAPSHOT)]
    CreateSnapshot(Snapshot),

    /// Take a VM back to a snapshot
    #[command(after_long_help = ROLLBACK_SNAPSHOT)]
    RollbackSnapshot(Snapshot),

    /// Remove a snapshot of a VM
    #[command(after_long_help = DELETE_SNAPSHOT)]
    DeleteSnapshot(Snapshot),

    /// Print changes as they happen
    #[command(after_long_help = EVENTS)]
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

        /// Only this VM's; named by uuid, it need not exist yet
        #[arg(value_name = "UUID|ZONENAME")]
        name: Option<VmName>,
    },

    /// Not possible here: open a VM's console
    #[command(after_long_help = REFUSED)]
    Console(Refused),
    /// Not possible here: ask a VM's hypervisor about it
    #[command(after_long_help = REFUSED)]
    Info(Refused),
    /// Not possible here: send a VM an NMI or take its screenshot
    #[command(after_long_help = REFUSED)]
    Sysrq(Refused),
    /// Not possible here: replace a VM's root by another image
    #[command(after_long_help = REFUSED)]
    Reprovision(Refused),
    /// Not possible here: write a VM to standard output
    #[command(after_long_help = REFUSED)]
    Send(Refused),
    /// Not possible here: read a VM from standard input
    #[command(visible_alias = "recv", after_long_help = REFUSED)]
    Receive(Refused),
    /// Not possible here: install a VM that was received
    #[command(after_long_help = REFUSED)]
    Install(Refused),
}

#[derive(Debug, Args)]
struct Named {
    /// Which VM
    #[arg(value_name = "UUID|ZONENAME")]
    name: VmName,
}

#[derive(Debug, Args)]
struct Payload {
    /// Where the JSON is; without it, or with `-`, on standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Snapshot {
    #[command(flatten)]
    vm: Named,

    /// Which snapshot
    #[arg(value_name = "NAME")]
    snapshot: String,
}

#[derive(Debug, Subcommand)]
enum Validate {
    /// A payload of `vmadm create`
    #[command(after_long_help = VALIDATE)]
    Create(Payload),

    /// A payload of `vmadm update`
    #[command(after_long_help = VALIDATE)]
    Update {
        /// A VM, or a brand
        #[arg(value_name = "UUID|ZONENAME|BRAND")]
        target: String,

        #[command(flatten)]
        payload: Payload,
    },
}

/// A command of SmartOS's tool that only SmartOS can do.
#[derive(Debug, Args)]
struct Refused {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<OsString>,
}

const USAGE: u8 = 2;

fn main() -> ExitCode {
    let given = with_long_signal(env::args_os().collect());
    let result = Arguments::try_parse_from(&given).and_then(|arguments| {
        // Whoever types a payload by hand has more likely forgotten to give one.
        match reads_terminal(&arguments.command) {
            Some(verb) => Err(no_payload(verb)),
            None => Ok(arguments),
        }
    });
    let arguments = match result {
        Ok(arguments) => arguments,
        Err(error) => return say_usage(&error, &given),
    };
    match run(arguments) {
        Ok(code) => code,
        // The reader has seen enough, as with `| head`.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let mount = Mount::find(arguments.mount);
    match arguments.command {
        Command::List {
            parsable,
            headless,
            order,
            sort,
            filters,
        } => {
            check(&filters, BadKey::Filter)?;
            let layout = match (parsable, headless) {
                (true, _) => Layout::Parsable,
                (false, true) => Layout::Body,
                (false, false) => Layout::Table,
            };
            let listing = Listing::new(&order, &sort, layout)?;
            let members = listing.members(filters.iter().map(Expression::path));
            let vms = mount.select(&members, &filters)?;
            print(&listing.text(&vms))?;
        }
        Command::Lookup {
            json,
            one,
            output,
            filters,
        } => {
            let shown = match (json, output) {
                (true, None) => Shown::Objects,
                (true, Some(fields)) => Shown::fields(&fields)?,
                (false, None) => Shown::Uuids,
                (false, Some(_)) => return Err(LookupError::FieldsWithoutJson.into()),
            };
            check(&filters, BadKey::Lookup)?;
            let count = if one { Count::One } else { Count::Any };
            let vms = mount.select(&shown.members(&filters), &filters)?;
            count.check(vms.len())?;
            print(&shown.text(vms))?;
        }
        Command::Get(Named { name }) => print_json(&Value::Object(mount.existing(&name)?))?,
        Command::Create(payload) => {
            let uuid = mount.create(&payload.read()?)?;
            eprintln!("Successfully created VM {uuid}");
        }
        Command::Update {
            vm: Named { name },
            payload,
            words,
        } => {
            let payload = if words.is_empty() {
                payload.read()?
            } else {
                Assignment::payload(&words)
            };
            mount.update(&name, &payload)?;
            eprintln!("Successfully updated VM {name}");
        }
        Command::Delete(Named { name }) => return Ok(act(&mount, &name, &Action::Delete)),
        Command::Start(Named { name }) => return Ok(act(&mount, &name, &Action::Start)),
        Command::Stop { vm, force, timeout } => {
            let how = match (force, timeout) {
                (true, _) => Stop::Forced,
                (false, Some(seconds)) => Stop::Within(seconds),
                (false, None) => Stop::Asked,
            };
            return Ok(act(&mount, &vm.name, &Action::Stop(how)));
        }
        Command::Reboot { vm, force } => {
            let how = if force { Stop::Forced } else { Stop::Asked };
            return Ok(act(&mount, &vm.name, &Action::Reboot(how)));
        }
        Command::Kill { vm, signal } => return Ok(act(&mount, &vm.name, &Action::Kill(signal))),
        Command::CreateSnapshot(Snapshot { vm, snapshot }) => {
            return Ok(act(&mount, &vm.name, &Action::Snapshot(snapshot)));
        }
        Command::RollbackSnapshot(Snapshot { vm, snapshot }) => {
            return Ok(act(&mount, &vm.name, &Action::Rollback(snapshot)));
        }
        Command::DeleteSnapshot(Snapshot { vm, snapshot }) => {
            return Ok(act(&mount, &vm.name, &Action::DeleteSnapshot(snapshot)));
        }
        Command::Validate { action } => return validate(&mount, action),
        Command::Events {
            json,
            full,
            ready,
            name,
        } => {
            let format = match (json, full) {
                (true, _) => Format::Json,
                (false, true) => Format::Full,
                (false, false) => Format::Short,
            };
            let shown = stream::Shown { format, ready };
            mount.print_events(stream::Start::Now, name, shown, &mut io::stdout())?;
        }
        Command::Console(_) => return Ok(refuse("console", NO_CONSOLE)),
        Command::Info(_) => return Ok(refuse("info", NO_INFO)),
        Command::Sysrq(_) => return Ok(refuse("sysrq", NO_SYSRQ)),
        Command::Reprovision(_) => return Ok(refuse("reprovision", NO_REPROVISION)),
        Command::Send(_) => return Ok(refuse("send", NO_SEND)),
        Command::Receive(_) => return Ok(refuse("receive", NO_RECEIVE)),
        Command::Install(_) => return Ok(refuse("install", NO_INSTALL)),
    }
    Ok(ExitCode::SUCCESS)
}

fn act(mount: &Mount, name: &VmName, action: &Action) -> ExitCode {
    match mount.act(name, action) {
        Ok(done) => {
            eprintln!("{}", action.success(name, done));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", action.failure(name, &error));
            ExitCode::FAILURE
        }
    }
}

fn validate(mount: &Mount, action: Validate) -> Result<ExitCode, Error> {
    let verdict = match action {
        Validate::Create(payload) => Verdict::of_create(&payload.read()?),
        Validate::Update { target, payload } => {
            let payload = payload.read()?;
            if BRANDS.contains(&target.as_str()) {
                Verdict::of_update_for(&target, &payload)
            } else {
                Verdict::of_update(&mount.existing(&VmName::new(target))?, &payload)
            }
        }
    };
    eprintln!("{}", verdict.text());
    Ok(if verdict.is_valid() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn refuse(verb: &str, why: &str) -> ExitCode {
    eprintln!("vmadm {verb}: {why}");
    ExitCode::FAILURE
}

/// Refuses filters of what no VM has.
fn check(filters: &[Expression], bad: fn(String) -> BadKey) -> Result<(), BadKey> {
    let unknown = filters
        .iter()
        .map(Expression::path)
        .find(|path| !fields::is_known(path));
    unknown.map_or(Ok(()), |path| Err(bad(path.to_string())))
}

impl Payload {
    fn read(&self) -> Result<vminfod::vm::Object, Error> {
        Ok(self.input().payload()?)
    }

    fn input(&self) -> Input {
        Input::new(self.file.clone())
    }
}

/// The command that would read its payload from a terminal.
fn reads_terminal(command: &Command) -> Option<&'static str> {
    let (verb, payload) = match command {
        Command::Create(payload) => ("create", payload),
        Command::Update { payload, words, .. } if words.is_empty() => ("update", payload),
        Command::Validate {
            action: Validate::Create(payload) | Validate::Update { payload, .. },
        } => ("validate", payload),
        _ => return None,
    };
    (payload.input() == Input::Stdin && io::stdin().is_terminal()).then_some(verb)
}

fn no_payload(verb: &str) -> clap::Error {
    let text = format!("Will not {verb} from stdin when stdin is a tty.");
    Arguments::command().error(ErrorKind::MissingRequiredArgument, text)
}

/// The arguments with what kill(1) writes as `-KILL` or `-9` written as an option that the parser
/// knows.
fn with_long_signal(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let mut is_value = false;
    let verb = arguments.iter().skip(1).position(|argument| {
        let is_verb = !is_value && !argument.as_encoded_bytes().starts_with(b"-");
        is_value = argument == "--mount";
        is_verb
    });
    let Some(verb) = verb.map(|position| position + 1) else {
        return arguments;
    };
    if arguments[verb] != "kill" {
        return arguments;
    }
    for argument in &mut arguments[verb + 1..] {
        let signal = argument.to_str().and_then(|text| text.strip_prefix('-'));
        let is_signal = |text: &&str| {
            let plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
            !text.is_empty() && text.bytes().all(plain)
        };
        if let Some(signal) = signal.filter(is_signal) {
            *argument = format!("--signal={signal}").into();
        }
    }
    arguments
}

/// Prints help that was asked for to standard output, or what was wrong and the usage to standard
/// error.
fn say_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if asked_for {
        // Nothing can be said about an output that does not take it.
        let _ = print(&error.render().to_string());
        return ExitCode::SUCCESS;
    }
    let answer = usage::answer(error, &Arguments::command(), arguments);
    eprint!("{}", answer.text);
    ExitCode::from(USAGE)
}
