//! Runs a host's commands (`zfs`, `zpool`, `zoneadm`, `kstat`) without ever waiting for them too
//! long.
//!
//! A command gets no standard input and the C locale, its output is bounded, and it is given up
//! when its deadline is over or its [`Lifeline`] is dropped. A child that cannot be killed, as one
//! that sleeps in the kernel on a hung pool, is left to a thread named "reaper" and never waited
//! for here; until it has ended, its [`Runner`] starts nothing more, so that such children do not
//! pile up.
//!
//! Only the child itself is killed, not what it started; but a [`Runner::of_scripts`] kills all that
//! its program has started and that has not left its process group.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

/// More output than this is not that of a command we know.
const STDOUT_LIMIT: usize = 256 << 20;

/// How often the end of a script is looked for while it says nothing.
const GLANCE: Duration = Duration::from_millis(20);

/// Of standard error this much is kept; the rest is read and thrown away.
const STDERR_LIMIT: usize = 64 << 10;

/// The owner's end: when it is dropped, every command that was given the other end is over.
#[derive(Debug)]
pub struct Lifeline(#[expect(dead_code, reason = "only its drop matters")] PipeWriter);

/// The commands' end of a [`Lifeline`], if there is one.
#[derive(Clone, Debug)]
pub struct Cancel(Option<Arc<PipeReader>>);

/// Makes a lifeline: its owner's end and the commands' end.
///
/// # Errors
/// When the process has no descriptors left.
pub fn lifeline() -> io::Result<(Lifeline, Cancel)> {
    let (reader, writer) = io::pipe()?;
    Ok((Lifeline(writer), Cancel(Some(Arc::new(reader)))))
}

impl Cancel {
    /// For commands that nothing but their deadline ends.
    pub fn never() -> Cancel {
        Cancel(None)
    }

    /// Sleeps for this long; `Err` at once when the lifeline is dropped.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn sleep(&self, time: Duration) -> Result<(), Error> {
        match wait_for(self, &[], Some(Instant::now() + time)) {
            Wait::Cancelled => Err(Error::Cancelled),
            Wait::Overdue | Wait::Ready => Ok(()),
        }
    }
}

/// Why a command gave no answer. The text names the command line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program, or it cannot be executed.
    #[error("{command}: cannot be started: {error}")]
    Start {
        /// The command line.
        command: String,
        /// The system's error.
        error: io::Error,
    },
    /// It ended with an exit status other than 0, or by a signal.
    #[error("{command}: {status}: {message}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The first line of its standard error.
        message: String,
    },
    /// It did not end in time and was killed.
    #[error("{command}: no answer within {}", rounded(*.deadline))]
    Overdue {
        /// The command line.
        command: String,
        /// How long it had.
        deadline: Duration,
    },
    /// An earlier run was killed and has still not ended.
    #[error("{command}: not started: an earlier run hangs in the kernel and cannot be killed")]
    Hung {
        /// The command line.
        command: String,
    },
    /// It printed more than any sensible answer.
    #[error("{command}: printed more than {} MiB", STDOUT_LIMIT >> 20)]
    Flood {
        /// The command line.
        command: String,
    },
    /// Its output could not be read, or its end not be waited for.
    #[error("{command}: {error}")]
    Io {
        /// The command line.
        command: String,
        /// The system's error.
        error: io::Error,
    },
    /// A program that is followed, and should never end, did.
    #[error("{command}: has ended")]
    Ended {
        /// The command line.
        command: String,
    },
    /// The lifeline was dropped: nobody wants the answer any more.
    #[error("given up, because its owner stops")]
    Cancelled,
}

/// Runs one program again and again, each time with a deadline.
#[derive(Debug)]
pub struct Runner {
    program: PathBuf,
    deadline: Duration,
    cancel: Cancel,
    hung: Arc<AtomicBool>,
    manner: Manner,
}

/// How a program is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// One of the system's commands: it ends when its output does, and starts nothing that stays.
    Command,
    /// Somebody's script: it may leave others running, which have its output open.
    Script,
}

/// What a command that ended has said.
#[derive(Debug)]
pub struct Finished {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// [`Error::Failed`] with the first line of standard error.
    pub fn success(self) -> Result<Vec<u8>, Error> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let text = String::from_utf8_lossy(&self.stderr);
        let message = text.lines().find(|line| !line.trim().is_empty());
        Err(Error::Failed {
            command: self.command,
            status: self.status,
            message: message.unwrap_or("no message").trim().to_owned(),
        })
    }
}

impl Runner {
    /// A runner of `program`, which is looked up in `PATH` if it is a bare name.
    pub fn new(program: &Path, deadline: Duration, cancel: &Cancel) -> Runner {
        Runner {
            program: program.to_owned(),
            deadline,
            cancel: cancel.clone(),
            hung: Arc::default(),
            manner: Manner::Command,
        }
    }

    /// The same for a program that may start others: it gets the environment as it is, it has ended
    /// when it has, even if what it started goes on, and when it is killed so are those.
    pub fn of_scripts(self) -> Runner {
        Runner {
            manner: Manner::Script,
            ..self
        }
    }

    /// Runs the program to its end, whatever its exit status.
    ///
    /// # Errors
    /// Every [`Error`] but [`Error::Failed`].
    pub fn run(&self, arguments: &[&str]) -> Result<Finished, Error> {
        self.run_within(self.deadline, arguments)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// Every [`Error`] but [`Error::Failed`].
    pub fn run_within(&self, deadline: Duration, arguments: &[&str]) -> Result<Finished, Error> {
        let command = self.command_line(arguments);
        if self.hung.load(Ordering::Acquire) {
            return Err(Error::Hung { command });
        }
        // What is started and killed at once may have done half of it.
        if deadline.is_zero() {
            return Err(Error::Overdue { command, deadline });
        }
        let mut child = self.spawn(arguments, Stdio::piped())?;
        match self.attend(&mut child, &command, deadline) {
            Ok(finished) => Ok(finished),
            Err(error) => {
                self.abandon(child);
                Err(error)
            }
        }
    }

    /// Starts the program and leaves it running; its output is read as it comes.
    ///
    /// # Errors
    /// [`Error::Start`].
    pub fn follow(&self, arguments: &[&str]) -> Result<Follower, Error> {
        let mut child = self.spawn(arguments, Stdio::null())?;
        Ok(Follower {
            command: self.command_line(arguments),
            stdout: child
                .stdout
                .take()
                .map(|pipe| File::from(OwnedFd::from(pipe))),
            child: Some(child),
            cancel: self.cancel.clone(),
        })
    }

    fn command_line(&self, arguments: &[&str]) -> String {
        let mut line = self.program.display().to_string();
        for argument in arguments {
            line.push(' ');
            line.push_str(argument);
        }
        line
    }

    fn spawn(&self, arguments: &[&str], stderr: Stdio) -> Result<Child, Error> {
        let mut command = Command::new(&self.program);
        match self.manner {
            Manner::Command => command.env("LC_ALL", "C"),
            Manner::Script => command.process_group(0),
        };
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| Error::Start {
                command: self.command_line(arguments),
                error,
            })
    }

    /// Reads both pipes to their ends, then waits for the exit status.
    fn attend(
        &self,
        child: &mut Child,
        command: &str,
        deadline: Duration,
    ) -> Result<Finished, Error> {
        let until = Instant::now() + deadline;
        let failed = |error: io::Error| Error::Io {
            command: command.to_owned(),
            error,
        };
        let overdue = || Error::Overdue {
            command: command.to_owned(),
            deadline,
        };
        let mut stdout = Stream::new(child.stdout.take().map(OwnedFd::from));
        let mut stderr = Stream::new(child.stderr.take().map(OwnedFd::from));
        loop {
            let open: Vec<&File> = [&stdout.pipe, &stderr.pipe].into_iter().flatten().collect();
            if open.is_empty() {
                break;
            }
            // A script's pipes may be open for ever; its end is looked for now and then.
            let glance = match self.manner {
                Manner::Command => until,
                Manner::Script => until.min(Instant::now() + GLANCE),
            };
            match wait_for(&self.cancel, &open, Some(glance)) {
                Wait::Cancelled => return Err(Error::Cancelled),
                Wait::Overdue if Instant::now() >= until => return Err(overdue()),
                Wait::Overdue if child.try_wait().map_err(failed)?.is_some() => break,
                Wait::Overdue | Wait::Ready => {}
            }
            stdout.read_some().map_err(failed)?;
            stderr.read_some().map_err(failed)?;
            stderr.bytes.truncate(STDERR_LIMIT);
            if stdout.bytes.len() > STDOUT_LIMIT {
                return Err(Error::Flood {
                    command: command.to_owned(),
                });
            }
        }
        // The kernel closes a child's pipes while it exits, so this loop is nearly always over in
        // its first turns. A child that closes them and lives on meets the deadline.
        let mut pause = Duration::from_micros(20);
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(Finished {
                    command: command.to_owned(),
                    status,
                    stdout: stdout.bytes,
                    stderr: stderr.bytes,
                });
            }
            if Instant::now() >= until {
                return Err(overdue());
            }
            self.cancel.sleep(pause)?;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills a child; until it has ended, nothing more is started.
    fn abandon(&self, child: Child) {
        let hung = Arc::clone(&self.hung);
        hung.store(true, Ordering::Release);
        if self.manner == Manner::Script
            && let Ok(group) = i32::try_from(child.id())
        {
            // It fails only if all of them have ended already.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        bury(child, move || hung.store(false, Ordering::Release));
    }
}

/// Kills a child and leaves its burial to a thread, since it may not die for a long time.
fn bury(mut child: Child, then: impl FnOnce() + Send + 'static) {
    // It fails only if the child has ended already.
    let _ = child.kill();
    let reaper = thread::Builder::new().name("reaper".to_owned());
    let spawned = reaper.spawn(move || {
        let _ = child.wait();
        then();
    });
    if let Err(error) = spawned {
        tracing::warn!("thread reaper: {error}: a killed command stays a zombie");
    }
}

/// A command that runs until it is dropped.
#[derive(Debug)]
pub struct Follower {
    command: String,
    child: Option<Child>,
    stdout: Option<File>,
    cancel: Cancel,
}

impl Follower {
    /// Waits for output and reads what there is, at least one byte.
    ///
    /// # Errors
    /// [`Error::Ended`] when the program has closed its output, [`Error::Cancelled`], or
    /// [`Error::Io`] when reading fails.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let command = || self.command.clone();
        let Some(stdout) = &mut self.stdout else {
            return Err(Error::Ended { command: command() });
        };
        if let Wait::Cancelled = wait_for(&self.cancel, &[stdout], None) {
            return Err(Error::Cancelled);
        }
        match stdout.read(buffer) {
            Ok(0) => Err(Error::Ended { command: command() }),
            Ok(count) => Ok(count),
            Err(error) => Err(Error::Io {
                command: command(),
                error,
            }),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            bury(child, || {});
        }
    }
}

/// One of a child's pipes and what came out of it.
struct Stream {
    pipe: Option<File>,
    bytes: Vec<u8>,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>) -> Stream {
        Stream {
            pipe: pipe.map(File::from),
            bytes: Vec::new(),
        }
    }

    /// Reads once if that does not block; at the end of the stream the pipe is closed.
    fn read_some(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO)? == 0 {
            return Ok(());
        }
        let mut buffer = [0; 16 << 10];
        match pipe.read(&mut buffer)? {
            0 => self.pipe = None,
            count => self.bytes.extend_from_slice(&buffer[..count]),
        }
        Ok(())
    }
}

/// A time for people: those that somebody has set are whole, but what is left of one is not.
fn rounded(time: Duration) -> humantime::FormattedDuration {
    let unit = match time {
        _ if time > Duration::from_secs(1) => Duration::from_secs(1),
        _ => Duration::from_millis(1),
    };
    let units = (time.as_nanos() + unit.as_nanos() / 2) / unit.as_nanos();
    humantime::format_duration(unit * u32::try_from(units).unwrap_or(u32::MAX))
}

/// How waiting has ended.
enum Wait {
    Ready,
    Overdue,
    Cancelled,
}

/// Waits until one of the pipes can be read, the time is over, or the lifeline is dropped.
fn wait_for(cancel: &Cancel, pipes: &[&File], until: Option<Instant>) -> Wait {
    loop {
        // Not poll(2): a command's end is waited for in fractions of its milliseconds.
        let timeout = until
            .map(|until| TimeSpec::from_duration(until.saturating_duration_since(Instant::now())));
        let lifeline = cancel.0.iter().map(|lifeline| lifeline.as_fd());
        let mut set: Vec<PollFd<'_>> = lifeline
            .chain(pipes.iter().map(|pipe| pipe.as_fd()))
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        match ppoll(&mut set, timeout, None) {
            // ppoll(2) refuses only what cannot be here: bad pointers, too many descriptors.
            Err(Errno::EINTR) | Ok(0) => {}
            Err(_) => return Wait::Overdue,
            Ok(_) if cancel.0.is_some() && set[0].any() == Some(true) => return Wait::Cancelled,
            Ok(_) => return Wait::Ready,
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Wait::Overdue;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(deadline: Duration) -> (Lifeline, Runner) {
        let (lifeline, cancel) = lifeline().unwrap();
        (lifeline, Runner::new(Path::new("sh"), deadline, &cancel))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_of_both_kinds_is_kept_apart() {
        let (_lifeline, sh) = shell(LONG);
        let finished = sh.run(&["-c", "echo out; echo err >&2; exit 3"]).unwrap();
        assert_eq!(finished.stdout, b"out\n");
        assert_eq!(finished.stderr, b"err\n");
        assert_eq!(finished.status.code(), Some(3));
    }

    #[test]
    fn more_output_than_a_pipe_holds_is_read_whole() {
        let (_lifeline, sh) = shell(LONG);
        let script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2";
        let finished = sh.run(&["-c", script]).unwrap();
        assert_eq!(finished.stdout.len(), 3_000_000);
        assert_eq!(finished.stderr.len(), STDERR_LIMIT);
    }

    #[test]
    fn a_failure_names_the_command_its_exit_code_and_its_first_message() {
        let (_lifeline, sh) = shell(LONG);
        let script = "echo >&2; echo no such pool >&2; echo usage >&2; exit 2";
        let error = sh.run(&["-c", script]).unwrap().success().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("sh -c "), "{text}");
        assert!(text.ends_with("exit status: 2: no such pool"), "{text}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let (_lifeline, cancel) = lifeline().unwrap();
        let runner = Runner::new(Path::new("/nonexistent/zfs"), LONG, &cancel);
        let error = runner.run(&["list"]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/nonexistent/zfs list: cannot be started")
        );
    }

    #[test]
    fn a_command_past_its_deadline_is_killed() {
        let (_lifeline, sh) = shell(Duration::from_millis(50));
        let error = sh.run(&["-c", "exec sleep 600"]).unwrap_err();
        assert!(matches!(error, Error::Overdue { .. }));
        assert!(
            error.to_string().ends_with("no answer within 50ms"),
            "{error}"
        );
        while sh.hung.load(Ordering::Acquire) {
            thread::yield_now();
        }
        assert!(sh.run(&["-c", "exit 0"]).is_ok());
    }

    #[test]
    fn a_time_that_is_over_is_told_without_its_fractions() {
        let told = |time| rounded(time).to_string();
        assert_eq!(told(Duration::new(300, 12)), "5m");
        assert_eq!(told(Duration::from_micros(59_999_400)), "1m");
        assert_eq!(told(Duration::from_micros(99_900)), "100ms");
        assert_eq!(told(Duration::from_millis(50)), "50ms");
    }

    #[test]
    fn a_script_has_ended_when_it_has_and_not_what_it_left_running() {
        let (_lifeline, sh) = shell(LONG);
        let finished = sh.of_scripts().run(&["-c", "sleep 600 & echo $!"]).unwrap();
        let pid: i32 = String::from_utf8(finished.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(finished.status.success());
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_script_past_its_deadline_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut pipe = File::options().read(true).write(true).open(&fifo).unwrap();
        let (_lifeline, sh) = shell(Duration::from_secs(2));
        let script = format!("exec 3>{}; echo >&3; sleep 600; true", fifo.display());
        let error = sh.of_scripts().run(&["-c", &script]).unwrap_err();
        assert!(matches!(error, Error::Overdue { .. }), "{error}");
        pipe.read_exact(&mut [0]).unwrap();
        let mut reader = File::open(&fifo).unwrap();
        drop(pipe);
        // The end comes when nobody has it open for writing any more.
        assert_eq!(reader.read(&mut [0; 16]).unwrap(), 0);
    }

    #[test]
    fn closed_pipes_do_not_hide_a_command_that_stays() {
        let (_lifeline, sh) = shell(Duration::from_millis(50));
        let error = sh.run(&["-c", "exec sleep 600 >&- 2>&-"]).unwrap_err();
        assert!(matches!(error, Error::Overdue { .. }));
    }

    #[test]
    fn nothing_is_started_while_an_earlier_child_hangs() {
        let (_lifeline, sh) = shell(LONG);
        sh.hung.store(true, Ordering::Release);
        assert!(matches!(sh.run(&["-c", "exit 0"]), Err(Error::Hung { .. })));
    }

    #[test]
    fn dropping_the_lifeline_ends_a_command_and_a_follower() {
        let (lifeline, sh) = shell(LONG);
        let mut follower = sh.follow(&["-c", "echo first; exec sleep 600"]).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(follower.read(&mut buffer).unwrap(), 6);
        let waiting = thread::spawn(move || sh.run(&["-c", "exec sleep 600"]));
        drop(lifeline);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
        assert!(matches!(follower.read(&mut buffer), Err(Error::Cancelled)));
    }

    #[test]
    fn a_follower_reads_until_its_program_ends() {
        let (_lifeline, sh) = shell(LONG);
        let mut follower = sh.follow(&["-c", "printf a; printf b"]).unwrap();
        let mut text = Vec::new();
        let mut buffer = [0; 1];
        let end = loop {
            match follower.read(&mut buffer) {
                Ok(_) => text.push(buffer[0]),
                Err(end) => break end,
            }
        };
        assert_eq!(text, b"ab");
        assert!(matches!(end, Error::Ended { .. }));
    }
}
