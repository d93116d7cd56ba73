//! A reader of `events`, and changes to make it read something.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::Failure;
use crate::mounts::{Daemon, Zone};

/// How long an event may be missing before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tag that no sample VM has, by which the bench knows its changes again.
pub const TAG: &str = "bench";

/// A line of a stream.
pub struct Line {
    /// When the read(2) returned that ended it.
    pub arrived: Instant,
    /// Its text.
    pub text: String,
}

/// An open stream, read on a thread of its own until the mount ends.
pub struct Events(Receiver<Line>);

impl Events {
    /// Opens the stream and reads its first line.
    pub fn open(daemon: &Daemon<'_>) -> Result<Events, Failure> {
        let mut file = File::open(daemon.path("events"))?;
        let (lines, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("events".into())
            .spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                let mut begun = Vec::new();
                while let Ok(len @ 1..) = file.read(&mut buffer) {
                    let arrived = Instant::now();
                    for piece in buffer[..len].split_inclusive(|byte| *byte == b'\n') {
                        begun.extend_from_slice(piece);
                        if piece.ends_with(b"\n") {
                            let text = String::from_utf8_lossy(&begun).into_owned();
                            begun.clear();
                            if lines.send(Line { arrived, text }).is_err() {
                                return;
                            }
                        }
                    }
                }
            })?;
        let events = Events(receiver);
        events.next()?;
        Ok(events)
    }

    /// The next line.
    pub fn next(&self) -> Result<Line, Failure> {
        Ok(self
            .0
            .recv_timeout(PATIENCE)
            .map_err(|_| "an event did not come")?)
    }

    /// The next line that holds a text.
    pub fn find(&self, text: &str) -> Result<Line, Failure> {
        loop {
            let line = self.next()?;
            if line.text.contains(text) {
                return Ok(line);
            }
        }
    }
}

/// A change that waits to be made: a new version of a file, complete but for its name.
pub struct Prepared {
    from: PathBuf,
    to: PathBuf,
}

impl Zone {
    /// Writes a version of the tags in which [`TAG`] has this value.
    pub fn prepare(&self, value: u64) -> Result<Prepared, Failure> {
        let mut tags: Map<String, Value> = serde_json::from_slice(&fs::read(&self.tags)?)?;
        tags.insert(TAG.to_owned(), Value::from(value));
        let from = self.waiting.with_extension(value.to_string());
        fs::write(&from, Value::Object(tags).to_string())?;
        Ok(Prepared {
            from,
            to: self.tags.clone(),
        })
    }
}

impl Prepared {
    /// Renames it over the old version.
    pub fn commit(self) -> Result<(), Failure> {
        Ok(fs::rename(self.from, self.to)?)
    }
}

/// How a change shows in an event.
pub fn shown(value: u64) -> String {
    format!(r#""{TAG}":{value}}}"#)
}
