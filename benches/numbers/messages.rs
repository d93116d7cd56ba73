//! What the kernel has asked the daemon, by the daemon's own counts.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;
use crate::mounts::Daemon;

/// How many messages of each kind something has cost.
#[derive(Clone, Debug)]
pub struct Messages(Vec<(String, i64)>);

impl Messages {
    /// Of what is done meanwhile.
    pub fn of(
        daemon: &Daemon<'_>,
        act: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Messages, Failure> {
        let (before, _) = counts(daemon)?;
        act()?;
        let (after, looks) = counts(daemon)?;
        let spent = before.into_iter().zip(after);
        Ok(Messages(
            spent
                .map(|((name, before), (_, after))| {
                    let count = after - before - looks * own(&name);
                    (name, count)
                })
                .collect(),
        ))
    }

    /// All that somebody waited for: a FORGET is sent beside.
    pub fn total(&self) -> i64 {
        let waited = self.0.iter().filter(|(name, _)| name != "forget");
        waited.map(|(_, count)| count).sum()
    }

    /// Whether there were exactly so many of each of these kinds, and no others.
    pub fn are(&self, count: i64, kinds: &[&str]) -> bool {
        let right = |(name, found): &(String, i64)| {
            *found
                == if kinds.contains(&name.as_str()) {
                    count
                } else {
                    0
                }
        };
        self.0.iter().all(right)
    }
}

impl std::fmt::Display for Messages {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let some = self.0.iter().filter(|(_, count)| *count != 0);
        let some: Vec<String> = some
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        if some.is_empty() {
            formatter.write_str("none")
        } else {
            formatter.write_str(&some.join(", "))
        }
    }
}

/// The counts of now, and how often they were read. A RELEASE is sent without waiting for it: they are taken once
/// nothing comes any more but what reads them.
fn counts(daemon: &Daemon<'_>) -> Result<(Vec<(String, i64)>, i64), Failure> {
    let mut before = look(daemon)?;
    let mut looks = 1;
    loop {
        looks += 1;
        thread::sleep(Duration::from_millis(1));
        let now = look(daemon)?;
        let others = before.iter().zip(&now).map(|((name, before), (_, now))| {
            let count = now - before - own(name);
            (name.clone(), count)
        });
        let others = Messages(others.collect());
        if others.are(0, &[]) {
            return Ok((now, looks));
        }
        if looks > 5_000 {
            return Err(format!(
                "messages come without an end, or reading .status costs more than an OPEN, a READ and a RELEASE: {others}"
            )
            .into());
        }
        before = now;
    }
}

/// What has come so far, from both mounts together.
fn look(daemon: &Daemon<'_>) -> Result<Vec<(String, i64)>, Failure> {
    let status = daemon.status()?;
    let Value::Object(counts) = &status["mount"]["messages"] else {
        return Err(".status: no messages".into());
    };
    let read_only = &status["readOnlyMount"]["messages"];
    let count = |(name, count): (&String, &Value)| {
        let count = count.as_i64().unwrap_or(0) + read_only[name].as_i64().unwrap_or(0);
        (name.clone(), count)
    };
    Ok(counts.iter().map(count).collect())
}

/// How many messages of a kind a reading of the counts costs.
fn own(kind: &str) -> i64 {
    i64::from(matches!(kind, "open" | "read" | "release"))
}
