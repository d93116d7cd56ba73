//! Following an events file.
//!
//! A [`Stream`] is one open file with its own cursor in the daemon. Its first event is `ready`;
//! whatever happens after that follows, or a `gap` says how much is missing. It has no thread: who
//! asks for the next event waits for it, as long as [`Until`] lets it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::event::{Event, Format, Kind};
use super::{Error, Mount, VmName, garbled};

/// Large enough that a burst of events takes few reads.
const BUFFER: usize = 128 * 1024;

/// A deadline further away than poll(2) can count is approached in steps of this.
const LONGEST_POLL: Duration = Duration::from_secs(24 * 60 * 60);

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what happens from now on.
    Now,
    /// After the event of this sequence number, as far as the daemon still has it.
    After(u64),
}

/// What ends the wait for an event, besides an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Until<'a> {
    /// The time is up.
    pub deadline: Option<Instant>,
    /// The reader of this pipe has gone: whoever ends `vminfo events | head -1` early would
    /// otherwise be noticed only when the next event is written.
    pub closed: Option<BorrowedFd<'a>>,
}

impl Until<'_> {
    /// Whether the deadline has passed.
    pub fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline <= Instant::now())
    }
}

/// An open events file.
#[derive(Debug)]
pub struct Stream {
    reader: BufReader<File>,
    file: PathBuf,
    mount: Mount,
    only: Option<VmName>,
    line: Vec<u8>,
}

/// What a command that prints events shows of them.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// How each is printed.
    pub format: Format,
    /// Whether the `ready` that opens a stream is printed too.
    pub ready: bool,
}

impl Mount {
    /// Opens a stream of all VMs' events, or of one VM's. The VM need not exist: its creation is
    /// an event as well.
    ///
    /// # Errors
    /// When the mount has no such file, or this user may not read it.
    pub fn follow(&self, start: Start, only: Option<VmName>) -> Result<Stream, Error> {
        if start == Start::Now
            && let Some(stream) = self.follow_one(only.as_ref())?
        {
            return Ok(stream);
        }
        // All VMs' events, of which the stream passes on those that are wanted.
        let file = match start {
            Start::Now => self.root.join("events"),
            Start::After(seq) => self.root.join(".events").join(seq.to_string()),
        };
        match File::open(&file) {
            Ok(open) => Ok(Stream::new(self, open, file, only)),
            Err(error) => Err(self.explain(&file, error)),
        }
    }

    /// Prints events to `out` until its reader goes away. A VM that is named by its zonename has
    /// to exist, unless the past is asked for: it may well be of a VM that is gone.
    ///
    /// # Errors
    /// When there is no such VM, the stream ends or breaks, or `out` cannot be written.
    pub fn print_events<W: Write + AsFd>(
        &self,
        start: Start,
        only: Option<VmName>,
        shown: Shown,
        out: &mut W,
    ) -> Result<(), Error> {
        let mut stream = self.follow(start, only.clone())?;
        if let (Start::Now, Some(name)) = (start, only)
            && !name.is_uuid()
            && self.vm(&name)?.is_none()
        {
            return Err(Error::VmNotFound(name.to_string()));
        }
        stream.print(out, shown)
    }

    /// The VM's own stream spares the daemon and us the events of all others. Only a VM that has
    /// its directory now has one for certain; it may vanish while we look, which is no error.
    fn follow_one(&self, only: Option<&VmName>) -> Result<Option<Stream>, Error> {
        let Some(uuid) = only.and_then(|name| name.uuid) else {
            return Ok(None);
        };
        if !self.root.join(uuid.to_string()).exists() {
            return Ok(None);
        }
        let file = self.root.join(".events").join(uuid.to_string());
        match File::open(&file) {
            Ok(open) => Ok(Some(Stream::new(self, open, file, only.cloned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.explain(&file, error)),
        }
    }
}

impl Stream {
    fn new(mount: &Mount, open: File, file: PathBuf, only: Option<VmName>) -> Stream {
        Stream {
            reader: BufReader::with_capacity(BUFFER, open),
            file,
            mount: mount.clone(),
            only,
            line: Vec::new(),
        }
    }

    /// The next event that is wanted, or `None` when `until` ended the wait.
    ///
    /// # Errors
    /// When the stream ends or breaks.
    pub fn next(&mut self, until: &Until) -> Result<Option<Event>, Error> {
        loop {
            let Some(line) = self.next_line(until)? else {
                return Ok(None);
            };
            let event = String::from_utf8(line)
                .map_err(|error| garbled(&self.file, error))
                .and_then(|line| Event::parse(line).map_err(|error| garbled(&self.file, error)))?;
            if self.only.as_ref().is_none_or(|name| event.concerns(name)) {
                return Ok(Some(event));
            }
            // Other VMs' events may come faster than they are passed by.
            if until.is_over() {
                return Ok(None);
            }
        }
    }

    /// Prints events until the reader of `out` goes away.
    ///
    /// # Errors
    /// When the stream ends or breaks, or `out` cannot be written.
    pub fn print<W: Write + AsFd>(&mut self, out: &mut W, shown: Shown) -> Result<(), Error> {
        loop {
            let until = Until {
                deadline: None,
                closed: Some(out.as_fd()),
            };
            let Some(event) = self.next(&until)? else {
                return Ok(());
            };
            if event.kind() == Kind::Ready && !shown.ready {
                continue;
            }
            // Each event is flushed: whoever reads it wants it now.
            out.write_all(event.print(shown.format).as_bytes())
                .and_then(|()| out.flush())
                .map_err(Error::Output)?;
        }
    }

    /// A whole line without its newline. What came of an unfinished one is kept for later.
    fn next_line(&mut self, until: &Until) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if self.reader.buffer().is_empty() && !self.wait_for_data(until)? {
                return Ok(None);
            }
            let available = match self.reader.fill_buf() {
                Ok([]) => {
                    return Err(Error::StreamEnded {
                        file: self.file.clone(),
                    });
                }
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.mount.explain(&self.file, error)),
            };
            match available.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line.extend_from_slice(&available[..end]);
                    self.reader.consume(end + 1);
                    return Ok(Some(std::mem::take(&mut self.line)));
                }
                None => {
                    let length = available.len();
                    self.line.extend_from_slice(available);
                    self.reader.consume(length);
                }
            }
        }
    }

    /// Waits until a read would not block; false if `until` came first. What is there already is
    /// found even when the deadline has passed, so that a wait of no time is one look.
    fn wait_for_data(&self, until: &Until) -> Result<bool, Error> {
        loop {
            let left = until
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut files = vec![PollFd::new(
                self.reader.get_ref().as_fd(),
                PollFlags::POLLIN,
            )];
            // No flags: poll reports a pipe without a reader in any case.
            files.extend(until.closed.map(|fd| PollFd::new(fd, PollFlags::empty())));
            match poll(&mut files, timeout(left)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    return Err(Error::Read {
                        file: self.file.clone(),
                        error: error.into(),
                    });
                }
            }
            let reported = |file: &PollFd| file.revents().unwrap_or(PollFlags::empty());
            let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
            if files
                .iter()
                .skip(1)
                .any(|file| reported(file).intersects(gone))
            {
                return Ok(false);
            }
            // An error or hangup of the stream itself is left to the read, which says which.
            if !reported(&files[0]).is_empty() {
                return Ok(true);
            }
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
        }
    }
}

/// poll(2) counts whole milliseconds: rounded up, so that the last one is not spent spinning.
fn timeout(left: Option<Duration>) -> PollTimeout {
    match left {
        None => PollTimeout::NONE,
        Some(Duration::ZERO) => PollTimeout::ZERO,
        Some(left) => PollTimeout::try_from(left.min(LONGEST_POLL) + Duration::from_millis(1))
            .unwrap_or(PollTimeout::MAX),
    }
}
