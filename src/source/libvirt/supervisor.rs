//! The thread that runs the program `vminfod-libvirt` and makes reports of what it says.
//!
//! ```text
//!   starting ──▶ running ──ended, or silent for long──▶ waiting ──▶ starting
//! ```
//!
//! Each start of the program has a number, so that what an ended one still says is dropped.
//!
//! Who has a domain changed waits for the answer on a channel that this thread keeps. When the program ends the
//! channels go, and all who wait are told so.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::{debug, warn};
use uuid::Uuid;

use super::wire::{Answer, Change, Line, Request};
use super::{LibvirtOptions, PROGRAM};
use crate::source::{Failed, FailedKind, Listing, Loaded, Report};

/// The pause before the program is started again, and the longest that it grows to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What arrives at the thread.
#[derive(Debug)]
pub(super) enum Message {
    /// The program of this number said something.
    Line(u64, Box<Line>),
    /// It has ended.
    Ended(u64),
    /// List everything.
    Rescan,
    /// Read this VM again.
    Reload(Uuid),
    /// Read or change this VM, and tell what came of it. Who waits is dropped if the program ends first.
    Change(Uuid, Change, Sender<Result<Answer, Failed>>),
    /// End.
    Stop,
}

/// What `.status` says.
#[derive(Debug, Default)]
pub(super) struct Status {
    pid: Option<u32>,
    starts: u64,
    /// Why there is no libvirt to ask.
    broken: Option<String>,
    unplaced: Vec<(String, String)>,
    health: Value,
}

impl Status {
    pub(super) fn describe(&self) -> Value {
        let unplaced: Vec<Value> = (self.unplaced.iter())
            .map(|(name, reason)| json!({"zonename": name, "reason": reason}))
            .collect();
        json!({
            "index": self.broken,
            "unplaced": unplaced,
            "program": {"pid": self.pid, "starts": self.starts},
            "libvirt": self.health,
        })
    }
}

/// A program that runs. Dropping it ends it.
struct Running {
    child: Child,
    /// Where its requests are written; a thread does it, since the program may hang.
    requests: Sender<Request>,
    /// Who waits for the answers to its changes.
    waiting: HashMap<u64, Sender<Result<Answer, Failed>>>,
    /// When it was last asked, and when it last answered.
    asked: Instant,
    answered: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its calls may hang. Who waits for a change is told that it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A listing of which not all has come.
#[derive(Default)]
struct Partial {
    vms: HashMap<Uuid, Loaded>,
    same: HashMap<Uuid, SystemTime>,
}

/// The thread's state.
pub(super) struct Supervisor {
    options: LibvirtOptions,
    inbox: Sender<Message>,
    reports: Sender<Report>,
    status: Arc<Mutex<Status>>,
    running: Option<Running>,
    number: u64,
    /// How many changes were asked for.
    changes: u64,
    pause: Duration,
    again: Instant,
    partial: Option<Partial>,
    /// Whether ingest has had a listing: it has to be the first report.
    listed: bool,
}

impl Supervisor {
    pub(super) fn new(
        options: LibvirtOptions,
        inbox: Sender<Message>,
        reports: Sender<Report>,
        status: Arc<Mutex<Status>>,
    ) -> Supervisor {
        Supervisor {
            options,
            inbox,
            reports,
            status,
            running: None,
            number: 0,
            changes: 0,
            pause: PAUSE.0,
            again: Instant::now(),
            partial: None,
            listed: false,
        }
    }

    /// Starts the program.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.number += 1;
        let number = self.number;
        let options = &self.options;
        let mut child = Command::new(&options.program)
            .arg(&options.uri)
            .arg("--root")
            .arg(&options.root)
            .arg(format!("--rescan={}", options.rescan.as_secs_f64()))
            .arg(format!("--poll={}", options.poll.as_secs_f64()))
            .arg(format!("--deadline={}", options.deadline.as_secs_f64()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let missing = || io::Error::other("no pipe to the program");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let now = Instant::now();
        let pid = child.id();
        let (requests, written) = mpsc::channel();
        self.running = Some(Running {
            child,
            requests,
            waiting: HashMap::new(),
            asked: now,
            answered: now,
        });
        thread::Builder::new()
            .name("libvirt-requests".into())
            .spawn(move || write(stdin, &written))?;
        let inbox = self.inbox.clone();
        thread::Builder::new()
            .name("libvirt-lines".into())
            .spawn(move || read(stdout, number, &inbox))?;
        thread::Builder::new()
            .name("libvirt-log".into())
            .spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    warn!(pid, "{PROGRAM}: {line}");
                }
            })?;
        let mut status = self.status.lock();
        status.pid = Some(pid);
        status.starts += 1;
        Ok(())
    }

    /// Works until it is told to stop, or nobody wants its reports any more.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(self.rest()) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return self.leave(),
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.tick();
        }
    }

    /// Leaves the program to end the changes that it has begun, if there are any.
    fn leave(mut self) {
        if let Some(running) = &mut self.running
            && !running.waiting.is_empty()
        {
            // It ends by itself when nothing more can be asked of it, and waits for no change that hangs.
            running.requests = mpsc::channel().0;
            let _ = running.child.wait();
        }
    }

    /// How long nothing is due.
    fn rest(&self) -> Duration {
        let due = match &self.running {
            Some(running) => running.asked + self.options.deadline / 2,
            None => self.again,
        };
        due.saturating_duration_since(Instant::now())
    }

    /// Does what is due by itself.
    fn tick(&mut self) {
        let now = Instant::now();
        // It gives up a domain after the deadline; it has to go on answering by itself.
        let deadline = self.options.deadline * 3;
        match &self.running {
            Some(running) if now >= running.answered + deadline => {
                let seconds = deadline.as_secs_f64();
                self.lost(&format!("libvirt has not answered for {seconds}s"));
            }
            Some(running) if now >= running.asked + self.options.deadline / 2 => {
                self.ask(Request::Ping(self.number));
                if let Some(running) = &mut self.running {
                    running.asked = now;
                }
            }
            None if now >= self.again => {
                if let Err(error) = self.start() {
                    self.lost(&format!("{}: {error}", self.options.program.display()));
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(number, line) if number == self.number => {
                if let Some(running) = &mut self.running {
                    running.answered = Instant::now();
                }
                self.line(*line);
            }
            Message::Ended(number) if number == self.number && self.running.is_some() => {
                let ended = self.running.as_mut().map(|running| running.child.wait());
                let how = match ended {
                    Some(Ok(status)) => status.to_string(),
                    _ => "no status".to_owned(),
                };
                self.lost(&format!("{PROGRAM} ended: {how}"));
            }
            Message::Line(..) | Message::Ended(_) | Message::Stop => {}
            // A program that has just been started lists everything by itself.
            Message::Rescan => self.ask(Request::List),
            Message::Reload(uuid) => self.ask(Request::Reload(uuid)),
            Message::Change(uuid, change, answer) => self.change(uuid, change, answer),
        }
    }

    fn change(&mut self, uuid: Uuid, change: Change, answer: Sender<Result<Answer, Failed>>) {
        let Some(running) = &mut self.running else {
            let broken = self.status.lock().broken.clone().unwrap_or_default();
            // Who does not wait any more needs no answer.
            let _ = answer.send(Err(Failed {
                kind: FailedKind::Source,
                applied: Vec::new(),
                reason: format!("libvirt cannot be asked: {broken}; nothing was applied"),
            }));
            return;
        };
        self.changes += 1;
        running.waiting.insert(self.changes, answer);
        self.ask(Request::Change(self.changes, uuid, change));
    }

    fn ask(&mut self, request: Request) {
        let Some(running) = &self.running else {
            return;
        };
        if running.requests.send(request).is_err() {
            debug!("{PROGRAM} does not listen");
        }
    }

    /// Ends the program, has all VMs marked stale, and plans to start it again.
    fn lost(&mut self, reason: &str) {
        warn!(reason, "libvirt cannot be asked; trying again");
        self.running = None;
        self.number += 1;
        self.again = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.status.lock().pid = None;
        self.unreachable(reason);
    }

    fn unreachable(&mut self, reason: &str) {
        self.partial = None;
        self.listed = true;
        self.status.lock().broken = Some(reason.to_owned());
        self.report(Report::Listing(Listing {
            incomplete: Some(reason.to_owned()),
            ..Listing::default()
        }));
    }

    fn line(&mut self, line: Line) {
        match line {
            Line::Begin => self.partial = Some(Partial::default()),
            Line::Listed(loaded) => {
                if let Some(partial) = &mut self.partial {
                    partial.same.remove(&loaded.uuid);
                    partial.vms.insert(loaded.uuid, loaded);
                }
            }
            Line::Same(uuid, observed) => {
                if let Some(partial) = &mut self.partial
                    && !partial.vms.contains_key(&uuid)
                {
                    partial.same.insert(uuid, observed);
                }
            }
            Line::Vm(loaded) => self.changed(loaded),
            Line::Gone(uuid) => {
                if let Some(partial) = &mut self.partial {
                    partial.vms.remove(&uuid);
                    partial.same.remove(&uuid);
                }
                self.report_later(Report::Gone(uuid));
            }
            Line::Silent(uuid, reason) => self.report_later(Report::Silent { uuid, reason }),
            Line::Listing { silent, unplaced } => {
                let Some(partial) = self.partial.take() else {
                    return;
                };
                // It works: the next failure is a new one.
                self.pause = PAUSE.0;
                self.listed = true;
                let mut status = self.status.lock();
                (status.broken, status.unplaced) = (None, unplaced);
                drop(status);
                let given_up = |uuid: &Uuid| silent.iter().any(|(silent, _)| silent == uuid);
                let same = partial.same.into_iter().filter(|(uuid, _)| !given_up(uuid));
                let vms = partial.vms.into_values().filter(|vm| !given_up(&vm.uuid));
                let (same, vms) = (same.collect(), vms.collect());
                self.report(Report::Listing(Listing {
                    vms,
                    same,
                    silent,
                    incomplete: None,
                }));
            }
            Line::Unreachable(reason) => self.unreachable(&reason),
            Line::Health(health) => self.status.lock().health = health,
            Line::Pong(_) => {}
            Line::Answer(number, result) => {
                let running = self.running.as_mut();
                if let Some(answer) = running.and_then(|it| it.waiting.remove(&number)) {
                    // Who does not wait any more needs no answer.
                    let _ = answer.send(result);
                }
            }
        }
    }

    /// A VM that was read because something announced a change, perhaps in the middle of a listing: what was
    /// listed of it before is older.
    fn changed(&mut self, loaded: Loaded) {
        match &mut self.partial {
            Some(partial) if !self.listed => {
                partial.vms.insert(loaded.uuid, loaded);
                return;
            }
            Some(partial) => {
                partial.vms.remove(&loaded.uuid);
                partial.same.insert(loaded.uuid, loaded.observed);
            }
            None => {}
        }
        self.report_later(Report::Changed(vec![loaded]));
    }

    /// Reports something if the first listing has been; that has it otherwise.
    fn report_later(&self, report: Report) {
        if self.listed {
            self.report(report);
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens only when the daemon ends.
        let _ = self.reports.send(report);
    }
}

fn write(mut stdin: ChildStdin, requests: &Receiver<Request>) {
    for request in requests {
        if let Err(error) = stdin.write_all(request.encode().as_bytes()) {
            debug!(%error, "{PROGRAM} does not listen");
            return;
        }
    }
}

fn read(stdout: impl io::Read, number: u64, inbox: &Sender<Message>) {
    let lines = BufReader::with_capacity(1 << 16, stdout).lines();
    for line in lines.map_while(Result::ok) {
        let Some(line) = Line::decode(&line) else {
            // Only what kind of line it is: the rest may hold secrets.
            warn!("{PROGRAM} says what is not understood; is it of another version? {line:.20}");
            continue;
        };
        if inbox.send(Message::Line(number, Box::new(line))).is_err() {
            return;
        }
    }
    // The supervisor is there as long as its programs.
    let _ = inbox.send(Message::Ended(number));
}
