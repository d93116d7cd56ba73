//! The libvirt source: the domains of a libvirt, read by a program of its own.
//!
//! ```text
//!                         ┌── requests, pings ──▶ vminfod-libvirt ◀──▶ libvirt
//!   libvirt (thread) ◀────┴───── lines ─────────────┘
//!        └──report──▶ ingest
//! ```
//!
//! - Only `vminfod-libvirt` is linked to libvirt: the daemon starts where that is missing, and a call that hangs,
//!   hangs only there. What both say to each other is in [`wire`], how a domain becomes a VM in [`domain`].
//! - The thread `libvirt` (`supervisor`) starts the program, turns its lines into reports, and ends it when it
//!   does not answer. It starts it again, later each time it fails.
//! - A program or a libvirt that is gone deletes nothing: all VMs are stale until a whole listing has come.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;

use super::{Apply, Report, Source, SourceError};
use apply::Applier;
use supervisor::{Message, Status, Supervisor};

mod apply;
pub mod device;
pub mod domain;
mod plan;
pub mod step;
mod supervisor;
pub mod wire;

/// The name of the program.
pub const PROGRAM: &str = "vminfod-libvirt";

/// What to read, and how.
#[derive(Clone, Debug)]
pub struct LibvirtOptions {
    /// Which libvirt: `qemu:///system`.
    pub uri: String,
    /// The program `vminfod-libvirt`.
    pub program: PathBuf,
    /// Where `etc/libvirt`, `run/libvirt` and `var/lib/libvirt` of its host are found.
    pub root: PathBuf,
    /// How long from one listing to the next.
    pub rescan: Duration,
    /// How long from one poll of statistics to the next.
    pub poll: Duration,
    /// How long a domain may take to answer.
    pub deadline: Duration,
}

impl LibvirtOptions {
    /// The defaults for a libvirt. The program is the one beside this one; without one there, that of the PATH.
    pub fn new(uri: impl Into<String>) -> LibvirtOptions {
        let beside = std::env::current_exe().ok();
        let beside = beside.map(|daemon| daemon.with_file_name(PROGRAM));
        LibvirtOptions {
            uri: uri.into(),
            program: (beside.filter(|program| program.exists())).unwrap_or_else(|| PROGRAM.into()),
            root: "/".into(),
            rescan: Duration::from_secs(300),
            poll: Duration::from_secs(10),
            deadline: Duration::from_secs(5),
        }
    }
}

/// The domains of a libvirt. Dropping it ends its thread and its program.
pub struct Libvirt {
    options: LibvirtOptions,
    inbox: Sender<Message>,
    /// The other end of the inbox, until the thread takes it.
    outbox: Mutex<Option<Receiver<Message>>>,
    status: Arc<Mutex<Status>>,
}

impl Libvirt {
    /// A source that does nothing yet.
    pub fn new(options: LibvirtOptions) -> Libvirt {
        let (inbox, outbox) = mpsc::channel();
        Libvirt {
            options,
            inbox,
            outbox: Mutex::new(Some(outbox)),
            status: Arc::default(),
        }
    }

    /// What changes these domains.
    pub fn applier(&self) -> Arc<dyn Apply> {
        // Longer than the program takes to tell that a domain hangs.
        let patience = self.options.deadline * 2;
        Arc::new(Applier::new(self.inbox.clone(), patience))
    }
}

impl Source for Libvirt {
    fn describe(&self) -> String {
        format!("libvirt at {}", self.options.uri)
    }

    fn start(&self, reports: Sender<Report>) -> Result<(), SourceError> {
        let setup = |error| SourceError::Setup {
            what: "libvirt source".to_owned(),
            error,
        };
        let Some(messages) = self.outbox.lock().take() else {
            return Err(setup(std::io::Error::other("already started")));
        };
        let mut supervisor = Supervisor::new(
            self.options.clone(),
            self.inbox.clone(),
            reports,
            self.status.clone(),
        );
        // A program that is not there will not come: that is told at once, by whoever mounts.
        supervisor.start().map_err(|error| SourceError::Provider {
            provider: format!("libvirt:{}", self.options.uri),
            problem: format!(
                "{}: {error}; install it beside vminfod (cargo builds it with the feature libvirt)",
                self.options.program.display()
            ),
        })?;
        thread::Builder::new()
            .name("libvirt".to_owned())
            .spawn(move || supervisor.run(&messages))
            .map_err(setup)?;
        Ok(())
    }

    fn rescan(&self) {
        // Nobody listens before the start, and then everything is listed anyway.
        let _ = self.inbox.send(Message::Rescan);
    }

    fn reload(&self, uuid: Uuid) {
        let _ = self.inbox.send(Message::Reload(uuid));
    }

    fn status(&self) -> Value {
        self.status.lock().describe()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Stop);
    }
}

#[cfg(test)]
mod tests;
