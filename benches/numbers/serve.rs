//! A daemon that can be broken: this program started again, with the daemon's own code and a switch for the faults
//! that tests use.

use std::io::{BufRead, stdin};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;

use vminfod::daemon;
use vminfod::fs::{MountOptions, OpenTo, Places};
use vminfod::mutation::Timeouts;
use vminfod::source::zones::{Provider, Zones, ZonesOptions};

use crate::Failure;
use crate::mounts::{Daemon, Store};

/// The argument that makes this program such a daemon.
pub const SERVE: &str = "--serve";

/// Starts it on a store. Each line that is written to it names the zones that are not read from then on.
pub fn start<'a>(store: &'a Store<'a>) -> Result<(Daemon<'a>, ChildStdin), Failure> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(SERVE)
        .args([store.root(), store.mountpoint()])
        .stdin(Stdio::piped());
    let mut daemon = store.start(command)?;
    let switch = daemon.stdin().ok_or("the daemon has no standard input")?;
    Ok((daemon, switch))
}

/// Is it, until it is stopped.
pub fn serve(root: PathBuf, mountpoint: PathBuf) -> Result<(), Failure> {
    let mut zones = ZonesOptions::new(root);
    (zones.datasets, zones.runtime) = (Provider::Files, Provider::Files);
    let faults = zones.faults.clone();
    thread::Builder::new()
        .name("faults".into())
        .spawn(move || {
            for line in stdin().lock().lines().map_while(Result::ok) {
                faults.hang(&line.split(' ').collect::<Vec<_>>());
            }
        })?;
    let source = Arc::new(Zones::new(zones));
    let apply = source.applier();
    let options = daemon::Options {
        places: Places::Both {
            read_only: mountpoint.with_file_name("ro"),
            writable: mountpoint,
        },
        mount: MountOptions {
            source: "zones".to_owned(),
            group: None,
            open_to: OpenTo::Everybody,
        },
        history: 64 << 20,
        timeouts: Timeouts::default(),
    };
    daemon::run(source, apply, &options, || {})?;
    Ok(())
}
