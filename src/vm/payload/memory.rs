//! The memory of a VM: limits that hang together.

use serde_json::Value;

use super::draft::Draft;
use super::{Invalid, InvalidKind};
use crate::vm::property;

/// The least swap a zone starts with, in MiB.
const LEAST_SWAP: f64 = 256.0;

/// What the zone of a VM with its own kernel needs at least beside the guest's memory, in MiB.
const LEAST_OVERHEAD: f64 = 256.0;

impl Draft {
    /// Brings the limits of memory together. What was given is refused where it does not fit;
    /// what was not given follows.
    pub(super) fn settle_memory(&mut self) -> Result<(), Invalid> {
        const LIMITS: [&str; 5] = [
            "ram",
            "max_physical_memory",
            "max_locked_memory",
            "max_swap",
            "tmpfs",
        ];
        if !LIMITS.iter().any(|limit| self.said.contains(limit)) {
            return Ok(());
        }
        let hvm = property::hvm(&self.brand);
        if let Some(ram) = self.ram {
            let given = self.number("max_physical_memory").unwrap_or(ram);
            if !hvm && self.said.contains("max_physical_memory") && given != ram {
                let reason = format!("the same as max_physical_memory, which is {given}: {ram}");
                return Err(InvalidKind::Value.refuse("ram", reason));
            }
            let physical = ram + self.overhead();
            self.follow("max_physical_memory", physical);
            let physical = self.number("max_physical_memory").unwrap_or(physical);
            self.follow("max_locked_memory", physical);
            if !hvm {
                self.follow("tmpfs", physical.min(ram));
            }
        }
        let Some(physical) = self.number("max_physical_memory") else {
            return Ok(());
        };
        let said = |limit| self.said.contains(limit);
        if let (true, Some(ram)) = (hvm, self.number("ram"))
            && (said("ram") || said("max_physical_memory"))
            && physical < ram + LEAST_OVERHEAD
        {
            let reason = format!(
                "not at least ram, which is {ram}, and {LEAST_OVERHEAD} MiB: {physical}; give \
                 ram alone for one that fits"
            );
            return Err(InvalidKind::Value.refuse("max_physical_memory", reason));
        }
        self.keep_ratio_of_tmpfs(physical);
        let swap = physical.max(LEAST_SWAP);
        for (limit, least, most) in [
            ("max_locked_memory", 0.0, physical),
            ("max_swap", swap, f64::MAX),
            ("tmpfs", 0.0, physical),
        ] {
            let Some(now) = self.number(limit) else {
                continue;
            };
            if (least..=most).contains(&now) {
                continue;
            }
            if self.said.contains(limit) {
                let side = if now < least { "below" } else { "above" };
                let reason = format!("{side} max_physical_memory, which is {physical}: {now}");
                return Err(InvalidKind::Value.refuse(limit, reason));
            }
            self.follow(limit, now.clamp(least, most));
        }
        Ok(())
    }

    /// What the zone itself takes beside the guest, in MiB.
    pub(super) fn overhead(&self) -> f64 {
        match self.brand.as_str() {
            "kvm" => 1024.0,
            "bhyve" => 1280.0,
            _ => 0.0,
        }
    }

    /// Gives a limit a value, unless the payload says it.
    pub(super) fn follow(&mut self, limit: &str, value: f64) {
        if self.said.contains(limit) {
            return;
        }
        let value = match value.fract() == 0.0 {
            true => Value::from(value as i64),
            false => Value::from(value),
        };
        self.put(limit, Some(value));
    }

    fn keep_ratio_of_tmpfs(&mut self, physical: f64) {
        let number = |name| self.before.get(name).and_then(Value::as_f64);
        if let (Some(tmpfs), Some(was)) = (number("tmpfs"), number("max_physical_memory"))
            && was > 0.0
            && was != physical
            && self.ram.is_none()
        {
            self.follow("tmpfs", (tmpfs * physical / was).round());
        }
    }
}
