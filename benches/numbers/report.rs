//! Samples, what is said of them, and the bars that they must stay below.

use std::fmt::Display;
use std::time::Duration;

/// Numbers that were measured in the same way, in order of size.
#[derive(Clone, Debug)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// The numbers, of which there is at least one.
    pub fn new(numbers: impl IntoIterator<Item = f64>) -> Sample {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        assert!(!numbers.is_empty(), "a sample of nothing");
        numbers.sort_by(f64::total_cmp);
        Sample(numbers)
    }

    /// The number that a share of all others, between 0 and 1, does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The median, and between which numbers all lie: `1.02 (0.98 to 1.07)`.
    pub fn spread(&self, decimals: usize) -> String {
        let (low, high) = (self.0[0], self.0[self.0.len() - 1]);
        format!(
            "{:.decimals$} ({low:.decimals$} to {high:.decimals$})",
            self.median()
        )
    }
}

/// A time in microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What is printed, and whether all bars held.
#[derive(Debug, Default)]
pub struct Report {
    missed: Vec<String>,
}

impl Report {
    /// Begins a section.
    pub fn section(&self, title: impl Display) {
        println!("\n{title}");
    }

    /// Prints one line of a section.
    pub fn line(&self, what: impl Display, value: impl Display) {
        println!("  {what:<44} {value}");
    }

    /// Prints a number that must not exceed a limit.
    pub fn at_most(&mut self, limit: f64, unit: &str, what: &str, value: f64) {
        let met = value <= limit;
        self.judge(
            what,
            format!("{value:.2}{unit}, at most {limit}{unit}"),
            met,
        );
    }

    /// Prints something that must hold.
    pub fn holds(&mut self, what: &str, met: bool, found: impl Display) {
        self.judge(what, found.to_string(), met);
    }

    fn judge(&mut self, what: &str, found: String, met: bool) {
        let verdict = if met { "ok" } else { "MISSED" };
        self.line(what, format!("{found}: {verdict}"));
        if !met {
            self.missed.push(format!("{what}: {found}"));
        }
    }

    /// What was missed.
    pub fn missed(&self) -> &[String] {
        &self.missed
    }
}
