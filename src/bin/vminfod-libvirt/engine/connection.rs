//! The connections to libvirt: one that tells of events, and one that domains are read by.
//!
//! libvirtd answers few calls of one client at a time. So when calls hang, they are left behind with their connection:
//! threads take the places of theirs when there is another one, and use only that.

use std::io::Write;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};
use vminfod::source::libvirt::wire::Line;

use super::{Engine, Message};
use crate::known::Known;
use crate::link::{self, Listening};
use crate::load::is;
use crate::poll::poll;

/// How soon a lost connection is tried again, and how much later after failures.
pub(super) const RETRY: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));

/// A connection. Dropping it ends its poll and its events.
pub(super) struct Link {
    pub(super) connect: Connect,
    /// libvirt lets us not change anything.
    pub(super) reads_only: bool,
    /// Another connection to read by is being opened.
    pub(super) opens: bool,
    /// A listing of it has ended.
    pub(super) listed: bool,
    pub(super) listening: Listening,
    /// The version of libvirt, which stays the same: asking for it might wait.
    pub(super) version: Option<String>,
    /// The poll ends when this is dropped.
    _polling: Sender<()>,
}

impl<W: Write> Engine<W> {
    pub(super) fn connect(&mut self) -> std::io::Result<()> {
        let uri = &self.options.uri;
        let opened = open(uri).and_then(|(connect, reads_only)| {
            let reader = match is_within_this_process(uri) {
                true => connect.clone(),
                false => open(uri)?.0,
            };
            Ok((connect, reads_only, reader))
        });
        let (connect, reads_only, reader) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.unreachable(error.message().to_owned()),
        };
        self.epoch += 1;
        let (epoch, inbox) = (self.epoch, self.inbox.clone());
        self.loaders.read_by(Some((epoch, reader)));
        let listening = link::listen(&connect, move |heard| {
            // The engine ends only with the program.
            let _ = inbox.send(Message::Heard(epoch, heard));
        });
        let (polling, stop) = mpsc::channel();
        thread::Builder::new().name("poll".into()).spawn({
            let (connect, inbox) = (connect.clone(), self.inbox.clone());
            let pause = self.options.poll;
            move || poll(&connect, epoch, pause, &inbox, &stop)
        })?;
        let version = connect.lib_version().ok().map(|it| {
            let [major, minor, micro] = [it / 1_000_000, it / 1_000 % 1_000, it % 1_000];
            format!("{major}.{minor}.{micro}")
        });
        self.polled = Instant::now();
        self.count("connections");
        self.link = Some(Link {
            connect,
            reads_only,
            opens: false,
            listed: false,
            listening,
            version,
            _polling: polling,
        });
        self.pause = RETRY.0;
        self.unreachable = None;
        self.list()
    }

    /// Has another connection opened to read by.
    pub(super) fn leave_reader(&mut self) {
        let Some(link) = self.link.as_mut().filter(|link| !link.opens) else {
            return;
        };
        let uri = self.options.uri.clone();
        if is_within_this_process(&uri) {
            return self.loaders.refill();
        }
        let (epoch, inbox) = (self.epoch, self.inbox.clone());
        // It may take as long as whatever is asked of libvirt.
        let started = thread::Builder::new().name("open".into()).spawn(move || {
            // The engine ends only with the program.
            let opened = open(&uri).map(|(reader, _)| reader);
            let _ = inbox.send(Message::Reader(epoch, opened));
        });
        match started {
            Ok(_) => link.opens = true,
            Err(error) => {
                eprintln!("cannot start a thread to connect to libvirt once more: {error}");
                self.loaders.refill();
            }
        }
    }

    /// Reads by this connection from now on, and by all threads again.
    pub(super) fn read_by(&mut self, opened: Result<Connect, Error>) {
        if let Some(link) = &mut self.link {
            link.opens = false;
        }
        match opened {
            Ok(reader) => self.loaders.read_by(Some((self.epoch, reader))),
            Err(error) => eprintln!(
                "cannot connect to libvirt once more: {}; a domain that hangs holds up others",
                error.message()
            ),
        }
        self.loaders.refill();
    }

    /// Says that libvirt cannot be reached, and when to try again.
    pub(super) fn unreachable(&mut self, reason: String) -> std::io::Result<()> {
        self.link = None;
        self.changes.disconnect();
        self.retry = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY.1);
        self.scan = None;
        self.resting.clear();
        // Whatever comes back from its threads belongs to an epoch that is over.
        self.epoch += 1;
        for known in self.known.values().filter(|known| known.since.is_some()) {
            // It may wait for an answer that never comes.
            self.loaders.give_up(&known.end);
        }
        self.loaders.read_by(None);
        self.loaders.refill();
        for known in self.known.values_mut() {
            *known = Known {
                name: std::mem::take(&mut known.name),
                // The process may well go on.
                rebooted: known.rebooted,
                ..Known::default()
            };
        }
        if self.unreachable.as_ref() != Some(&reason) {
            self.say(&Line::Unreachable(format!(
                "{}: {reason}",
                self.options.uri
            )))?;
            self.unreachable = Some(reason);
            self.health()?;
        }
        Ok(())
    }

    /// Whether there was a connection, and it is broken.
    pub(super) fn is_lost(&self) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| !link.connect.is_alive().unwrap_or(false))
    }
}

/// Connects to libvirt, and tells whether it lets us only read. Who may only look may look.
fn open(uri: &str) -> Result<(Connect, bool), Error> {
    let (connect, reads_only) = match Connect::open(Some(uri)) {
        Err(error) if is_not_allowed(&error) => (Connect::open_read_only(Some(uri))?, true),
        connect => (connect?, false),
    };
    // A libvirt that hangs is a lost one after these; a driver within this process needs no such thing.
    let _ = connect.set_keep_alive(3, 3);
    Ok((connect, reads_only))
}

/// Whether the driver keeps its domains in this process, and apart for each connection.
pub fn is_within_this_process(uri: &str) -> bool {
    uri.starts_with("test:")
}

/// Whether libvirt does not let us in to change anything: by its own rules, or by the mode of its socket.
pub fn is_not_allowed(error: &Error) -> bool {
    use ErrorNumber::{AuthCancelled, AuthFailed, AuthUnavailable};
    [AuthFailed, AuthCancelled, AuthUnavailable]
        .iter()
        .any(|number| is(error, *number))
        || error.message().contains("Permission denied")
}
