//! What is known of a domain, and why it is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virt::domain::Domain;

use crate::load::{End, Rebooted, Statistics};

/// What is known of a domain.
#[derive(Default)]
pub struct Known {
    pub name: String,
    /// What it is asked by on this connection.
    pub domain: Option<Domain>,
    /// What was last said of it.
    pub said: Option<u64>,
    /// It does not answer, and that has been said.
    pub silent: Option<String>,
    /// It is waiting to be read or being read.
    pub busy: bool,
    /// Since when it is being read.
    pub since: Option<Instant>,
    /// That has taken too long, and is not waited for.
    pub given_up: bool,
    /// Tells the thread that reads it whether it was given up.
    pub end: End,
    /// What it is being read for.
    pub purpose: Purpose,
    /// It is to be read again, for this.
    pub again: Option<Purpose>,
    /// It has just been read, and is read again after a pause if it was announced meanwhile.
    pub rests: bool,
    /// What its statistics were when it was read.
    pub stats: Option<Arc<Statistics>>,
    /// Its last reboot.
    pub rebooted: Option<Rebooted>,
}

impl Known {
    /// When its reading has taken too long, if one may take so long.
    pub fn hangs_at(&self, deadline: Duration) -> Option<Instant> {
        Some(self.since.filter(|_| !self.given_up)? + deadline)
    }

    /// Notes that it is to be read again.
    pub fn note(&mut self, purpose: Purpose) {
        self.again = Some(self.again.take().unwrap_or_default().and(purpose));
    }
}

/// What a domain is read for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purpose {
    /// Something says that it may have changed.
    pub event: bool,
    /// For the listing in progress.
    pub scan: bool,
    /// At once, and its statistics are asked for even if its XML is what it was.
    pub whole: bool,
}

impl Purpose {
    fn and(self, other: Purpose) -> Purpose {
        Purpose {
            event: self.event || other.event,
            scan: self.scan || other.scan,
            whole: self.whole || other.whole,
        }
    }
}

/// An event or a file announced a change. A change of the statistics alone is announced by neither, and asking the
/// hypervisor's process for them takes longer than all else.
pub const ANNOUNCED: Purpose = Purpose {
    event: true,
    scan: false,
    whole: false,
};
/// The daemon asks, or the statistics are not what they were.
pub const ASKED: Purpose = Purpose {
    event: true,
    scan: false,
    whole: true,
};
/// The listing in progress.
pub const SCAN: Purpose = Purpose {
    event: false,
    scan: true,
    whole: true,
};
