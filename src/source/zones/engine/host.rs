//! Which zones there are: what the loop does with a reading of the index and `.sysinfo.json`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::scan::Phase;
use super::{Engine, RETRY, Zone, has_grace};
use crate::source::Report;
use crate::source::zones::index::{Entry, Index};
use crate::source::zones::read::{Host, Key};
use crate::source::zones::schedule::{Causes, Load, Verdict};
use crate::source::zones::watch::{Coverage, Name};

impl Engine {
    /// Takes what was read of the host.
    pub(super) fn host_read(&mut self, host: Host, load: Load, now: Instant) -> Verdict {
        let Host { mut index, sysinfo } = host;
        let newly_broken = index.broken.is_some() && self.incomplete.is_none();
        if has_grace(load, now) && newly_broken {
            return Verdict::Again(now + RETRY);
        }
        let is_whole = load.causes.contains(Causes::WHOLE);
        let is_sure = !self.is_written && (is_whole || self.doubted.as_ref() == Some(&index));
        if index.broken.is_none() && !is_sure && self.would_remove(&index) {
            if has_grace(load, now) {
                self.doubted = Some(index);
                return Verdict::Again(now + RETRY);
            }
            index.broken = Some("somebody is writing it and has not closed it".to_owned());
        }
        self.doubted = None;
        // While the index could not be read, the whole store may have been away.
        let is_back = self.incomplete.is_some() && index.broken.is_none();
        let is_replaced = std::mem::take(&mut self.replaced);
        let everything = is_back || is_replaced || sysinfo != *self.sysinfo;
        self.sysinfo = Arc::new(sysinfo);
        self.apply_index(index, load.causes, now);
        let in_scan = self
            .scan
            .as_ref()
            .is_some_and(|scan| scan.phase == Phase::Host);
        if in_scan && load.causes.contains(Causes::SCAN) {
            self.scan_zones(now);
        } else if everything {
            self.want_all(now);
        }
        Verdict::Done
    }

    /// Goes on without a reading of the host, with the zones that are known.
    pub(super) fn host_silent(&mut self, reason: String, now: Instant) {
        tracing::warn!("zones: {reason}");
        self.health.lock().index = Some(reason.clone());
        self.incomplete = Some(reason);
        if self
            .scan
            .as_ref()
            .is_some_and(|scan| scan.phase == Phase::Host)
        {
            self.scan_zones(now);
        }
    }

    fn would_remove(&self, index: &Index) -> bool {
        let named = (index.entries.iter())
            .filter(|entry| self.zones.contains_key(entry.zonename.as_str()))
            .count();
        named < self.zones.len()
    }

    /// Makes the list of zones what the index says, as far as that can be trusted.
    fn apply_index(&mut self, index: Index, causes: Causes, now: Instant) {
        let Index {
            entries,
            unplaced,
            broken,
        } = index;
        let broken = broken.map(|reason| {
            format!(
                "etc/zones/index: {}",
                reason.trim_start_matches("etc/zones/index: ")
            )
        });
        if let Some(reason) = &broken
            && self.incomplete.as_ref() != Some(reason)
        {
            tracing::warn!("zones: {reason}; no VM is removed until it can be read whole");
        }
        if broken.is_none() {
            let named: HashMap<&str, Uuid> = (entries.iter())
                .map(|entry| (entry.zonename.as_str(), entry.uuid))
                .collect();
            let uuids: HashSet<Uuid> = named.values().copied().collect();
            let gone: Vec<Name> = (self.zones.iter())
                .filter(|(name, zone)| named.get(&***name) != Some(&zone.entry.uuid))
                .map(|(name, _)| Arc::clone(name))
                .collect();
            for name in gone {
                self.remove(&name, causes, |uuid| uuids.contains(&uuid));
            }
        }
        for entry in entries {
            self.place(entry, now);
        }
        let mut health = self.health.lock();
        health.zones = self.zones.len();
        health.index.clone_from(&broken);
        health.unplaced = unplaced;
        drop(health);
        self.incomplete = broken;
    }

    /// Adds a zone, or takes note of what the index now says of it.
    fn place(&mut self, entry: Entry, now: Instant) {
        match self.zones.get_mut(entry.zonename.as_str()) {
            Some(zone) if *zone.entry == entry => {}
            // In an index that is not trusted, a line does not give a zone another identity.
            Some(zone) if zone.entry.uuid != entry.uuid => {}
            Some(zone) => {
                let key = Key::Zone(Name::from(entry.zonename.as_str()));
                zone.entry = Arc::new(entry);
                self.want(&key, Causes::EVENT, now, now);
            }
            None if self.names.contains_key(&entry.uuid) => {}
            None => {
                let name = Name::from(entry.zonename.as_str());
                self.names.insert(entry.uuid, Arc::clone(&name));
                let zone = Zone {
                    entry: Arc::new(entry),
                    failed: Vec::new(),
                    reported: false,
                    coverage: Coverage::Watched,
                    looks: None,
                };
                self.zones.insert(Arc::clone(&name), zone);
                let key = Key::Zone(name);
                self.schedule.insert(key.clone());
                // A scan that is about to read all zones reads this one too.
                if self
                    .scan
                    .as_ref()
                    .is_none_or(|scan| scan.phase != Phase::Host)
                {
                    // Where ZFS is polled nobody knows its datasets yet.
                    self.want(&key, Causes::EVENT | Causes::ASKED, now, now);
                }
            }
        }
    }

    /// Removes a zone. Its VM is gone unless another zone now has its uuid. What only a scan found
    /// gone is said at its end, when it is known whether somebody announced it.
    fn remove(&mut self, name: &Name, causes: Causes, is_elsewhere: impl Fn(Uuid) -> bool) {
        let Some(zone) = self.zones.remove(name) else {
            return;
        };
        let uuid = zone.entry.uuid;
        self.names.remove(&uuid);
        self.owners.forget(name);
        self.schedule.remove(&Key::Zone(Arc::clone(name)));
        self.reader.watch.forget(name);
        self.health.lock().silent.remove(name);
        let is_gone = self.listed && !is_elsewhere(uuid);
        let is_announced = causes.contains(Causes::EVENT) || !causes.contains(Causes::SCAN);
        if let Some(scan) = &mut self.scan {
            scan.found.remove(name);
            if is_gone && !is_announced {
                scan.gone.push(uuid);
                return;
            }
        }
        if is_gone {
            self.outgoing.push(Report::Gone(uuid));
        }
    }
}
