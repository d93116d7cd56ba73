//! What `.status` says of the zones source: written by the thread `zones`, read by anybody.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::watch::Name;
use crate::source::Unplaced;

/// The numbers and reasons. All of it is what the engine last saw.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// How many scans have ended.
    pub(super) scans: u64,
    /// When the last one ended and how long it took.
    pub(super) last_scan: Option<(SystemTime, Duration)>,
    /// How often events were lost, so that a scan was started.
    pub(super) overflows: u64,
    /// How many zones the index names.
    pub(super) zones: usize,
    /// Why the index cannot be trusted to be whole.
    pub(super) index: Option<String>,
    /// The zones that have no place in the tree.
    pub(super) unplaced: Vec<Unplaced>,
    /// The zones that do not answer, and why.
    pub(super) silent: BTreeMap<Name, String>,
}

impl Health {
    /// As JSON.
    pub(super) fn describe(&self) -> Value {
        let unplaced: Vec<Value> = (self.unplaced.iter())
            .map(|zone| json!({"zonename": zone.zonename, "reason": zone.reason}))
            .collect();
        let silent: serde_json::Map<String, Value> = (self.silent.iter())
            .map(|(name, reason)| (name.to_string(), json!(reason)))
            .collect();
        json!({
            "zones": self.zones,
            "index": self.index,
            "unplaced": unplaced,
            "silent": silent,
            "overflows": self.overflows,
            "scans": {
                "count": self.scans,
                "last": self.last_scan.map(|(at, _)| humantime::format_rfc3339_millis(at).to_string()),
                "seconds": self.last_scan.map(|(_, took)| took.as_secs_f64()),
            },
        })
    }
}
