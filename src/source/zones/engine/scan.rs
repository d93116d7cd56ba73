//! The full scan: the host, then every zone, then all that was announced meanwhile, so that only
//! what nobody announced counts as found by the scan.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use uuid::Uuid;

use super::{Engine, RESCAN, SCAN_EACH};
use crate::source::zones::read::Key;
use crate::source::zones::schedule::Causes;
use crate::source::zones::watch::Name;
use crate::source::{Listing, Loaded, Report, Via};

/// A scan in progress.
pub(super) struct Scan {
    pub(super) began: Instant,
    pub(super) phase: Phase,
    /// What became of each zone.
    pub(super) found: HashMap<Name, Found>,
    /// VMs that the index no longer had when the scan read it.
    pub(super) gone: Vec<Uuid>,
}

/// A zone in a scan.
pub(super) enum Found {
    /// Its newest reading.
    Read(Box<Loaded>),
    /// Its files looked at this time as when they were read.
    Same(SystemTime),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host is being read.
    Host,
    /// The zones are being read.
    Zones,
    /// All are read; what was announced meanwhile is being heard.
    Hearing,
}

impl Engine {
    pub(super) fn begin_scan(&mut self, now: Instant) {
        let usual = RESCAN.max(SCAN_EACH * self.zones.len() as u32);
        self.next_scan = now + self.rescan.unwrap_or(usual);
        if self.scan.is_some() {
            self.scan_again = true;
            return;
        }
        self.scan = Some(Scan {
            began: now,
            phase: Phase::Host,
            found: HashMap::new(),
            gone: Vec::new(),
        });
        self.schedule.begin_scan();
        if self.listed {
            self.reader.providers.refresh();
        }
        self.want(&Key::Host, Causes::SCAN, now, now);
    }

    pub(super) fn scan_zones(&mut self, now: Instant) {
        if let Some(scan) = &mut self.scan {
            scan.phase = Phase::Zones;
        }
        let keys = self.zones.keys().cloned().map(Key::Zone).collect();
        let starts = self.schedule.scan(keys, now);
        self.begin(starts);
    }

    /// When all zones have been read, hears what was announced before it says what it found.
    pub(super) fn advance_scan(&mut self) {
        if let Some(scan) = &mut self.scan
            && scan.phase == Phase::Zones
            && self.schedule.scan_is_answered()
        {
            scan.phase = Phase::Hearing;
            self.reader.watch.drain();
        }
    }

    pub(super) fn end_scan(&mut self, now: Instant) {
        let Some(scan) = self.scan.take_if(|scan| scan.phase == Phase::Hearing) else {
            return;
        };
        let announced = self.schedule.end_scan();
        let mut found = scan.found;
        if announced.contains(&Key::Host) {
            let names = &self.names;
            let gone = scan.gone.into_iter();
            let gone = gone.filter(|uuid| !names.contains_key(uuid));
            self.outgoing.extend(gone.map(Report::Gone));
        }
        let mut listing = Listing {
            vms: Vec::with_capacity(found.len()),
            incomplete: self.incomplete.clone(),
            ..Listing::default()
        };
        let mut health = self.health.lock();
        for (name, zone) in &self.zones {
            let uuid = zone.entry.uuid;
            if let Some(reason) = health.silent.get(name) {
                listing.silent.push((uuid, reason.clone()));
                continue;
            }
            match found.remove(name) {
                Some(Found::Read(mut loaded)) => {
                    if announced.contains(&Key::Zone(Arc::clone(name))) {
                        loaded.via = Via::Event;
                    }
                    listing.vms.push(*loaded);
                }
                Some(Found::Same(at)) => listing.same.push((uuid, at)),
                None if zone.reported => {
                    let reason = format!("zone {name} is still being read");
                    listing.silent.push((uuid, reason));
                }
                None => {}
            }
        }
        health.scans += 1;
        health.last_scan = Some((SystemTime::now(), now.saturating_duration_since(scan.began)));
        drop(health);
        self.outgoing.push(Report::Listing(listing));
        if !std::mem::replace(&mut self.listed, true) {
            tracing::info!("zones: watches: {}", self.reader.watch.status());
        }
        self.tell_limit();
        if std::mem::take(&mut self.scan_again) {
            self.begin_scan(now);
        }
    }

    /// Logs once what to do so that everything can be watched.
    fn tell_limit(&mut self) {
        let hint = self.reader.watch.hint();
        if let Some(hint) = &hint
            && self.hint.is_none()
        {
            tracing::warn!("zones: {hint}");
        }
        self.hint = hint;
    }
}
