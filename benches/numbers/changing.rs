//! Changes of config files that arrive beside what is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::mounts::Zone;

/// Makes 500 changes a second until it is dropped, on a thread of its own.
pub struct Changing {
    state: Arc<State>,
    began: Instant,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    ended: AtomicBool,
    made: AtomicU64,
}

impl Changing {
    /// Starts, with these zones in turn.
    pub fn start(zones: Vec<Zone>) -> Result<Changing, Failure> {
        const PERIOD: Duration = Duration::from_millis(2);
        let state = Arc::<State>::default();
        let ours = state.clone();
        let thread = thread::Builder::new()
            .name("changing".into())
            .spawn(move || {
                let mut next = Instant::now();
                for (number, zone) in zones.iter().cycle().enumerate() {
                    if ours.ended.load(Ordering::Relaxed) {
                        return;
                    }
                    // Values that no section waits for.
                    let prepared = zone.prepare(2_000_000_000 + number as u64);
                    if prepared.and_then(|change| change.commit()).is_ok() {
                        ours.made.fetch_add(1, Ordering::Relaxed);
                    }
                    next += PERIOD;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })?;
        Ok(Changing {
            state,
            began: Instant::now(),
            thread: Some(thread),
        })
    }

    /// How many it has made a second, so far.
    pub fn rate(&self) -> f64 {
        self.state.made.load(Ordering::Relaxed) as f64 / self.began.elapsed().as_secs_f64()
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics never; if it did, it has said so.
            let _ = thread.join();
        }
    }
}
