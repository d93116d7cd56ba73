//! Callers that wait for a reply, and when to let go of them.
//!
//! A process that waits for a FUSE reply cannot be ended, not even by SIGKILL: the kernel tells the
//! server by a FUSE_INTERRUPT message and goes on waiting for the reply, and fuser answers that
//! message with ENOSYS. So while a request is parked, somebody has to look whether its caller has a
//! signal pending, and answer EINTR. That is the thread `interrupts`, every [`INTERVAL`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often callers are looked at.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// How long a caller is kept whose signals cannot be seen: one outside of the daemon's pid
/// namespace has pid 0.
const BLIND: Duration = Duration::from_secs(5);

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

/// Whether a `/proc/<tid>/status` shows a pending signal that is not blocked.
fn pending(status: &str) -> bool {
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_blocked_does_not_count() {
        let status = |own: &str, shared: &str, blocked: &str| {
            format!(
                "Name:\tcat\nSigQ:\t0/1\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\n"
            )
        };
        assert!(!pending(&status(
            "0000000000000000",
            "0000000000000000",
            "0000000000000000"
        )));
        assert!(pending(&status(
            "0000000000000000",
            "0000000000000002",
            "0000000000000000"
        )));
        assert!(pending(&status(
            "0000000000000100",
            "0000000000000000",
            "0000000000000002"
        )));
        assert!(!pending(&status(
            "0000000000000000",
            "0000000000000002",
            "0000000000000002"
        )));
    }

    #[test]
    fn a_thread_that_waits_for_nothing_is_not_interrupted() {
        let caller = Caller::of(nix::unistd::gettid().as_raw() as u32);
        assert!(!caller.is_interrupted());
    }
}
