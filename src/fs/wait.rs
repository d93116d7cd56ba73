//! Callers that wait for a reply, and when to let go of them.
//!
//! A process that waits for a FUSE reply cannot be ended, not even by SIGKILL: the kernel tells the
//! server by a FUSE_INTERRUPT message and goes on waiting for the reply, and fuser answers that
//! message with ENOSYS. So while a request is parked, somebody has to look whether its caller has a
//! signal pending, and answer EINTR. That is the thread `interrupts`, every [`INTERVAL`]; it sleeps
//! while nothing is parked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How often callers are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long a caller is kept whose signals cannot be seen: one outside of the daemon's pid
/// namespace has pid 0.
const BLIND: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Rung {
    parked: bool,
    ended: bool,
}

/// Tells the thread `interrupts` that requests are parked.
#[derive(Debug, Default)]
pub struct Interrupts {
    rung: Mutex<Rung>,
    wake: Condvar,
}

impl Interrupts {
    /// Says that a request has been parked.
    pub fn ring(&self) {
        self.rung.lock().parked = true;
        self.wake.notify_one();
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.rung.lock().ended = true;
        self.wake.notify_one();
    }

    /// Runs `interrupt` again and again while requests are parked, which is what it returns: the
    /// thread `interrupts`.
    pub fn run(&self, interrupt: impl Fn() -> bool) {
        let mut any = false;
        while self.wait(any) {
            thread::sleep(INTERVAL);
            any = interrupt();
        }
    }

    /// Waits until a request is parked, unless `any` is; whether to go on.
    fn wait(&self, any: bool) -> bool {
        let mut rung = self.rung.lock();
        while !any && !rung.parked && !rung.ended {
            self.wake.wait(&mut rung);
        }
        rung.parked = false;
        !rung.ended
    }
}

/// A caller whose request is parked.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Tells parked requests apart.
    pub id: u64,
    /// The caller's `/proc/<tid>/status`, opened while the caller waited for us: it stays that
    /// thread's, whoever gets its number later.
    status: Option<Arc<File>>,
    since: Instant,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Caller {
    /// The thread that sent a request, by its number in the daemon's pid namespace.
    pub fn of(tid: u32) -> Caller {
        let status = (tid != 0)
            .then(|| File::open(format!("/proc/{tid}/status")).ok())
            .flatten();
        Caller {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            status: status.map(Arc::new),
            since: Instant::now(),
        }
    }

    /// Whether the caller has a signal that it does not block, or cannot be seen and has waited
    /// long enough.
    pub fn is_interrupted(&self) -> bool {
        let Some(status) = &self.status else {
            return self.since.elapsed() >= BLIND;
        };
        let mut text = [0; 4096];
        match status.read_at(&mut text, 0) {
            Ok(len) => pending(&String::from_utf8_lossy(&text[..len])),
            // The thread no longer exists: nobody waits for the reply.
            Err(_) => true,
        }
    }
}

/// Whether a thread is ending because a signal has killed its process: then its files are closed for
/// it. `false` for one that cannot be seen.
pub fn was_killed(tid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    ended_by_signal(&stat)
}

/// Whether a `/proc/<tid>/stat` shows a process that a signal is ending.
fn ended_by_signal(stat: &str) -> bool {
    const EXITING: u64 = 4;
    // The program's name is in brackets and may hold anything.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let field = |number: usize| -> u64 {
        let field = fields.split_ascii_whitespace().nth(number - 3);
        field.and_then(|field| field.parse().ok()).unwrap_or(0)
    };
    // The exit code is the whole process's, as wait(2) tells it: its low bits are the signal.
    let (flags, exit_code) = (field(9), field(52));
    flags & EXITING != 0 && exit_code & 0x7f != 0
}

/// Signals that neither end nor stop a program that says nothing of them: SIGCHLD, SIGCONT, SIGURG and SIGWINCH. Who
/// catches them, as a shell does SIGCHLD, wants the calls that they come into to go on; no call on a file goes on after
/// an EINTR.
const HARMLESS: u64 = 1 << (17 - 1) | 1 << (18 - 1) | 1 << (23 - 1) | 1 << (28 - 1);

/// Whether a `/proc/<tid>/status` shows a pending signal that is not blocked, and not harmless.
fn pending(status: &str) -> bool {
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !HARMLESS != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_blocked_does_not_count() {
        for (own, shared, blocked, counts) in [
            (0, 0, 0, false),
            (0, 2, 0, true),
            (0x100, 0, 2, true),
            (0, 2, 2, false),
            // A child of a shell has ended; with it, somebody asks the shell to end.
            (0, 0x10000, 0, false),
            (0, 0x14000, 0, true),
        ] {
            let status = format!(
                "Name:\tcat\nSigQ:\t0/1\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n"
            );
            assert_eq!(pending(&status), counts, "{status}");
        }
    }

    #[test]
    fn a_thread_that_waits_for_nothing_is_not_interrupted() {
        let caller = Caller::of(nix::unistd::gettid().as_raw() as u32);
        assert!(!caller.is_interrupted());
    }
}
