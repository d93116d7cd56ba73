//! `vminfod`: mounts the VMs of this host. Parses arguments, starts the daemon, maps the result to an
//! exit code; the work is done in the library.

// What users and sources give is an error, never a panic.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing_subscriber::EnvFilter;
use vminfod::daemon;
use vminfod::fs::mountpoint::{self, Busy};
use vminfod::fs::{MountOptions, OpenTo, Places};
use vminfod::mutation::Timeouts;
use vminfod::sample;
use vminfod::source::libvirt::{Libvirt, LibvirtOptions};
use vminfod::source::zones::{Provider, Watcher, Zones, ZonesOptions};
use vminfod::source::{Apply, Source};

const EXAMPLES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage.

Examples:
  vminfod mount /vms                                  the zones of this host
  vminfod sample /tmp/store --vms 100                 a store to play with
  vminfod mount --zones-root /tmp/store /tmp/vms
  vminfod mount --source libvirt:qemu:///system /vms  the domains of this host's libvirt
  vminfod umount /tmp/vms";

#[derive(Parser)]
#[command(name = "vminfod", version, about = "Keeps every VM of a host in memory and mounts it", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Mount the VMs; returns when the tree is complete
    Mount(MountArgs),
    /// Unmount them, lazily if somebody still uses the mount
    Umount {
        /// Where they are mounted
        mountpoint: PathBuf,
    },
    /// Write a zone store to play with, as realistic as it is made up
    Sample {
        /// A directory that does not exist yet, or is empty
        dir: PathBuf,
        /// How many VMs
        #[arg(long)]
        vms: usize,
        /// Another seed gives other VMs; the same one always the same
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

const OPTIONS: &str = "\
Options of -o, separated by commas:
  zones_root=DIR         the same as --zones-root
  ro_mount=DIR           mount them read-only as well, there: faster to read
  ro                     the same as --read-only
  group=GROUP            this group may read, and write, what root may
  private                only for the user who mounts (noallow_other is the same)
  rescan=SECONDS         compare everything this often [300; 8 ms a VM with more than 37,500]
  zfs_poll=SECONDS       ask ZFS this often where it announces nothing [1]
  datasets=auto|zfs|files      where datasets are read from
  runtime=auto|zoneadm|files   where the state of zones is read from
  runtime_exec=CMD       start and stop zones whose state is in files by `CMD VERB UUID`;
                         without it that is only recorded
  history=BYTES          how much of past events is kept; K, M, G [64M]
  load_deadline=SECONDS  a zone that takes longer to read is marked stale [2], or a domain [5]
  libvirt_poll=SECONDS   ask libvirt for statistics this often [10]
  libvirt_root=DIR       where etc/libvirt, run/libvirt and var/lib/libvirt of its host are found [/]
  confirm_timeout=SECONDS  how long a write waits until it is confirmed [60; 300 for start,
                         stop, reboot, create and delete]
  watch=auto|inotify     what watches the folders of zones; auto: fanotify if that is permitted
  max_watches=NUMBER     use no more inotify watches than this; the rest is polled

The log goes to standard error, and nowhere once in the background, unless --log-file is given.
RUST_LOG chooses what is logged: RUST_LOG=vminfod=debug.";

#[derive(Args)]
#[command(after_help = OPTIONS)]
struct MountArgs {
    /// Where the VMs are found: zones, or libvirt:URI
    #[arg(long, default_value = "zones")]
    source: String,
    /// The root of the zone store
    #[arg(long, value_name = "DIR")]
    zones_root: Option<PathBuf>,
    /// Mount options
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Mount them read-only, for readers only: faster to read, without events
    #[arg(long)]
    read_only: bool,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Append the log to a file
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Tells whoever started this process, on standard output, when the tree is mounted
    #[arg(long, hide = true)]
    tell_ready: bool,
    /// An empty directory
    mountpoint: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Wrong usage that clap cannot see.
struct Usage(String);

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Sub::Mount(args) => match mount_settings(&args) {
            Ok(settings) if args.foreground || args.tell_ready => run(&args, settings),
            Ok(_) => start(),
            Err(Usage(text)) => {
                eprintln!("vminfod: {text}");
                return ExitCode::from(2);
            }
        },
        Sub::Umount { mountpoint } => umount(&mountpoint).map(|()| ExitCode::SUCCESS),
        Sub::Sample { dir, vms, seed } => write_sample(&dir, vms, seed).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vminfod: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

/// What `mount` was asked for.
struct Settings {
    zones: ZonesOptions,
    /// Set where the VMs are those of a libvirt.
    libvirt: Option<LibvirtOptions>,
    daemon: daemon::Options,
}

fn mount_settings(args: &MountArgs) -> Result<Settings, Usage> {
    let uri = args
        .source
        .strip_prefix("libvirt:")
        .filter(|uri| !uri.is_empty());
    if uri.is_none() && args.source != "zones" {
        let source = &args.source;
        return Err(Usage(format!(
            "--source {source}: no such source; there are zones and libvirt:URI, such as libvirt:qemu:///system"
        )));
    }
    let mut libvirt = uri.map(LibvirtOptions::new);
    let mut zones = ZonesOptions::new("/");
    let mut mount = MountOptions {
        source: args.source.clone(),
        group: None,
        open_to: OpenTo::Everybody,
    };
    let mut history = 64 << 20;
    let mut timeouts = Timeouts::default();
    let (mut read_only, mut beside) = (args.read_only, None);
    for option in args
        .options
        .iter()
        .flat_map(|options| options.split(','))
        .filter(|one| !one.is_empty())
    {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if let Some(libvirt) = &mut libvirt
            && libvirt_option(libvirt, option, name, value)?
        {
            continue;
        }
        match name {
            "zones_root" if !value.is_empty() => zones.root = PathBuf::from(value),
            "group" => mount.group = Some(group(value)?),
            "private" | "noallow_other" if value.is_empty() => mount.open_to = OpenTo::Owner,
            "rescan" => zones.rescan = Some(seconds(option, value)?),
            "zfs_poll" => zones.zfs_poll = seconds(option, value)?,
            "datasets" => zones.datasets = provider(option, value, "zfs")?,
            "runtime" => zones.runtime = provider(option, value, "zoneadm")?,
            "runtime_exec" if !value.is_empty() => zones.runtime_exec = Some(PathBuf::from(value)),
            "fault_step" => fault_step(&zones, option, value)?,
            "history" => history = bytes(option, value)?,
            "load_deadline" => zones.load_deadline = seconds(option, value)?,
            "confirm_timeout" => {
                let change = seconds(option, value)?;
                timeouts = Timeouts {
                    change,
                    life: change,
                };
            }
            "watch" => zones.watcher = watcher(option, value)?,
            "max_watches" => zones.max_watches = bytes(option, value)?,
            "rw" | "defaults" => {}
            "ro" if value.is_empty() => read_only = true,
            "ro_mount" if !value.is_empty() => beside = Some(PathBuf::from(value)),
            _ => {
                return Err(Usage(format!(
                    "-o {option}: no such option; see vminfod mount --help"
                )));
            }
        }
    }
    if let Some(root) = &args.zones_root {
        zones.root.clone_from(root);
    }
    let mountpoint = args.mountpoint.clone();
    let places = match (read_only, beside) {
        (false, None) => Places::Writable(mountpoint),
        (false, Some(beside)) => Places::Both {
            writable: mountpoint,
            read_only: beside,
        },
        (true, None) => Places::ReadOnly(mountpoint),
        (true, Some(_)) => {
            return Err(Usage(
                "-o ro_mount: is a second mount beside a writable one; leave out --read-only or it"
                    .to_owned(),
            ));
        }
    };
    let daemon = daemon::Options {
        places,
        mount,
        history,
        timeouts,
    };
    Ok(Settings {
        zones,
        libvirt,
        daemon,
    })
}

/// Takes an option of the libvirt source; whether it is one.
fn libvirt_option(
    libvirt: &mut LibvirtOptions,
    option: &str,
    name: &str,
    value: &str,
) -> Result<bool, Usage> {
    match name {
        "rescan" => libvirt.rescan = seconds(option, value)?,
        "libvirt_poll" => libvirt.poll = seconds(option, value)?,
        "libvirt_root" if !value.is_empty() => libvirt.root = PathBuf::from(value),
        "load_deadline" => libvirt.deadline = seconds(option, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn group(name: &str) -> Result<u32, Usage> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(Usage(format!("-o group={name}: no such group"))),
    }
}

fn seconds(option: &str, value: &str) -> Result<Duration, Usage> {
    let seconds = value.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| Usage(format!("-o {option}: not a positive number of seconds")))
}

fn provider(option: &str, value: &str, command: &str) -> Result<Provider, Usage> {
    match value {
        "auto" => Ok(Provider::Auto),
        "files" => Ok(Provider::Files),
        value if value == command => Ok(Provider::Commands),
        _ => Err(Usage(format!(
            "-o {option}: must be auto, {command} or files"
        ))),
    }
}

fn watcher(option: &str, value: &str) -> Result<Watcher, Usage> {
    match value {
        "auto" => Ok(Watcher::Auto),
        "inotify" => Ok(Watcher::Inotify),
        _ => Err(Usage(format!("-o {option}: must be auto or inotify"))),
    }
}

/// For tests, `fault_step=N:abort`: the process is killed before the Nth step of its changes.
fn fault_step(zones: &ZonesOptions, option: &str, value: &str) -> Result<(), Usage> {
    let number = value
        .strip_suffix(":abort")
        .and_then(|number| number.parse::<u64>().ok());
    let Some(number) = number else {
        return Err(Usage(format!("-o {option}: not a number and :abort")));
    };
    let count = AtomicU64::new(0);
    zones.faults.on_step(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) + 1 == number {
            kill(Pid::this(), Signal::SIGKILL)?;
        }
        Ok(())
    });
    Ok(())
}

fn bytes(option: &str, value: &str) -> Result<usize, Usage> {
    let digits = value.trim_end_matches(['K', 'M', 'G']);
    let shift = match &value[digits.len()..] {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        _ => None,
    };
    let bytes = digits
        .parse::<usize>()
        .ok()
        .zip(shift)
        .and_then(|(bytes, shift)| bytes.checked_mul(1 << shift));
    bytes.ok_or_else(|| Usage(format!("-o {option}: not a number")))
}

/// Starts this program again in the background, and waits until it has mounted.
fn start() -> Result<ExitCode, Failure> {
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .arg("--tell-ready")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line == "ready\n" {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why on standard error.
    let status = child.wait()?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1)
            .max(1),
    ))
}

fn run(args: &MountArgs, mut settings: Settings) -> Result<ExitCode, Failure> {
    log_to(args.log_format, args.log_file.as_deref())?;
    // A daemon that lost one of its threads would go on showing what is no longer true.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    if args.tell_ready {
        nix::unistd::setsid()?;
    }
    if let Err(error) = allow_descriptors() {
        tracing::warn!(%error, "cannot raise the limit of open files: few readers can wait at once");
    }
    // A relative path must mean the same once the daemon is elsewhere.
    settings.zones.root = std::path::absolute(&settings.zones.root)?;
    // A bare name is looked for in PATH, when it is called.
    if let Some(program) = &mut settings.zones.runtime_exec
        && program.components().count() > 1
    {
        *program = std::path::absolute(&program)?;
    }
    let (source, apply): (Arc<dyn Source>, Arc<dyn Apply>) = match settings.libvirt {
        Some(mut options) => {
            options.root = std::path::absolute(&options.root)?;
            let source = Arc::new(Libvirt::new(options));
            let apply = source.applier();
            (source, apply)
        }
        None => {
            let source = Arc::new(Zones::new(settings.zones));
            let apply = source.applier();
            (source, apply)
        }
    };
    daemon::run(source, apply, &settings.daemon, || {
        if args.tell_ready
            && let Err(error) = detach()
        {
            tracing::warn!(%error, "still attached to the terminal");
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Raises the limit of open files as far as it goes: each reader that waits for an event takes one,
/// so the usual 1024 would not do for a thousand readers.
fn allow_descriptors() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// Says that the tree is mounted, and lets go of the terminal and the current folder.
fn detach() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    std::env::set_current_dir("/")?;
    nix::unistd::dup2_stderr(&null)?;
    let mut stdout = io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

fn log_to(format: LogFormat, file: Option<&Path>) -> Result<(), Failure> {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::WARN.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    let open = |path: &Path| {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        file.map_err(|error| format!("log file {}: {error}", path.display()))
    };
    let result = match (format, file) {
        (LogFormat::Text, None) => builder
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr)
            .try_init(),
        (LogFormat::Json, None) => builder.json().with_writer(io::stderr).try_init(),
        (LogFormat::Text, Some(path)) => {
            builder.with_ansi(false).with_writer(open(path)?).try_init()
        }
        (LogFormat::Json, Some(path)) => builder.json().with_writer(open(path)?).try_init(),
    };
    result.map_err(|error| error as Failure)
}

fn umount(path: &Path) -> Result<(), Failure> {
    let mounted = mountpoint::find(path)?;
    // The daemon sees that its mount has gone, and ends. Nothing is asked of it: it may hang.
    if mountpoint::unmount(&mounted.path, Busy::Fail).is_err() {
        mountpoint::unmount(&mounted.path, Busy::Detach)?;
    }
    Ok(())
}

fn write_sample(dir: &Path, vms: usize, seed: u64) -> Result<(), Failure> {
    let summary = sample::write(dir, &sample::Options { vms, seed })?;
    println!(
        "wrote {} VMs ({} running) to {}",
        summary.vms,
        summary.running,
        dir.display()
    );
    Ok(())
}
