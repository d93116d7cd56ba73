//! The statistics of all domains, asked for again and again: they tell of some changes that nothing announces.
//!
//! The thread `poll` has one call in flight at most. A domain that hangs keeps it waiting; the engine notices.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use virt::connect::Connect;
use virt::error::ErrorNumber;

use crate::engine::Message;
use crate::link::{self, Stats};
use crate::load::is;

/// Asks for the statistics of all domains, again and again, until the connection is dropped.
pub fn poll(
    connect: &Connect,
    epoch: u64,
    pause: Duration,
    inbox: &Sender<Message>,
    stop: &Receiver<()>,
) {
    loop {
        let stats = match link::all_stats(connect) {
            // Then events and the rescan have to do.
            Err(error) if is(&error, ErrorNumber::NoSupport) => Ok(Vec::new()),
            stats => stats,
        };
        if inbox.send(Message::Stats(epoch, stats)).is_err() {
            return;
        }
        if !matches!(stop.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

/// Whether a statistic says that a domain is another than before; others merely count.
pub fn matters(name: &str) -> bool {
    name.starts_with("state.")
        || matches!(
            name,
            "balloon.current" | "balloon.maximum" | "vcpu.current" | "vcpu.maximum" | "block.count"
        )
        || name.ends_with(".capacity")
        || name.ends_with(".path")
        || name.ends_with(".name")
}

/// What tells whether the statistics that matter are the same.
pub fn digest(stats: &Stats) -> u64 {
    let matter: Vec<_> = stats.iter().filter(|(name, _)| matters(name)).collect();
    hash(&format!("{matter:?}"))
}

/// A number that tells texts apart.
pub fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_merely_counts_is_no_change() {
        let stats = |name: &str, value: u64| {
            let mut stats = Stats::from([
                ("state.state".to_owned(), json!(1)),
                ("block.0.capacity".to_owned(), json!(5)),
                ("cpu.time".to_owned(), json!(100)),
            ]);
            stats.insert(name.to_owned(), json!(value));
            digest(&stats)
        };
        let before = stats("cpu.time", 100);
        assert_eq!(stats("cpu.time", 200), before);
        assert_eq!(stats("balloon.rss", 7), before);
        assert_ne!(stats("block.0.capacity", 6), before);
        assert_ne!(stats("state.state", 3), before);
        assert_ne!(stats("balloon.current", 64), before);
    }
}
