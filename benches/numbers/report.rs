//! Samples, what is said of them, and the bars that they must stay below. All that is printed is kept too, for
//! the Markdown and the picture.

use std::fmt::{self, Display};
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

    /// The smallest and the largest.
    pub fn range(&self) -> (f64, f64) {
        (self.0[0], self.0[self.0.len() - 1])
    }

    /// The median, and between which numbers all lie: `1.02 (0.98 to 1.07)`.
    pub fn spread(&self) -> String {
        let (low, high) = self.range();
        let (low, median, high) = (Short(low), Short(self.median()), Short(high));
        format!("{median} ({low} to {high})")
    }
}

/// A number with three digits that count.
struct Short(f64);

impl Display for Short {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0.abs() {
            size if size >= 99.95 => 0,
            size if size >= 9.995 => 1,
            size if size >= 0.1 || size == 0.0 => 2,
            _ => 4,
        };
        write!(formatter, "{:.decimals$}", self.0)
    }
}

/// A time in microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A time in milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What became of a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Held,
    NotHeld,
}

impl Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Verdict::Held => "held",
            Verdict::NotHeld => "NOT HELD",
        })
    }
}

/// Something that must hold.
#[derive(Clone, Debug)]
pub struct Bar {
    pub what: String,
    pub limit: String,
    pub measured: String,
    pub verdict: Verdict,
}

/// Two things that took turns.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub ours: String,
    pub here: String,
    pub rival: String,
    pub there: String,
    pub ratio: Sample,
}

/// What was measured together.
#[derive(Clone, Debug, Default)]
pub struct Section {
    pub title: String,
    pub comparisons: Vec<Comparison>,
    pub lines: Vec<(String, String)>,
}

/// What is printed, and whether all bars held.
#[derive(Debug, Default)]
pub struct Report {
    pub sections: Vec<Section>,
    pub bars: Vec<Bar>,
    /// What the picture shows.
    pub pictured: Vec<(String, Sample)>,
}

impl Report {
    /// Begins a section.
    pub fn section(&mut self, title: impl Display) {
        println!("\n{title}");
        self.sections.push(Section {
            title: title.to_string(),
            ..Section::default()
        });
    }

    /// Prints one line of a section.
    pub fn line(&mut self, what: impl Display, value: impl Display) {
        println!("  {what:<58} {value}");
        if let Some(section) = self.sections.last_mut() {
            section.lines.push((what.to_string(), value.to_string()));
        }
    }

    /// Prints a comparison.
    pub fn compare(&mut self, comparison: Comparison) {
        println!(
            "  {:<58} {:<28} / {:<28} = {}",
            format!("{} / {}", comparison.ours, comparison.rival),
            comparison.here,
            comparison.there,
            comparison.ratio.spread()
        );
        if let Some(section) = self.sections.last_mut() {
            section.comparisons.push(comparison);
        }
    }

    /// Shows a ratio in the picture.
    pub fn picture(&mut self, what: impl Display, ratio: &Sample) {
        self.pictured.push((what.to_string(), ratio.clone()));
    }

    /// Judges a number that must not exceed a limit; one that was not measured does not hold.
    pub fn at_most(&mut self, limit: f64, unit: &str, what: &str, value: impl Into<Option<f64>>) {
        let limited = format!("at most {limit}{unit}");
        match value.into() {
            Some(value) => self.judge(
                what,
                &limited,
                format!("{}{unit}", Short(value)),
                value <= limit,
            ),
            None => self.judge(what, &limited, "not measured", false),
        }
    }

    /// Judges a number that must reach a limit.
    pub fn at_least(&mut self, limit: f64, unit: &str, what: &str, value: f64) {
        let limited = format!("at least {limit}{unit}");
        self.judge(
            what,
            &limited,
            format!("{}{unit}", Short(value)),
            value >= limit,
        );
    }

    /// Judges something that must hold.
    pub fn holds(&mut self, what: &str, met: bool, found: impl Display) {
        self.judge(what, "", found, met);
    }

    /// Judges something that was found, by what it was to be.
    pub fn judge(&mut self, what: &str, limit: &str, found: impl Display, met: bool) {
        let verdict = if met { Verdict::Held } else { Verdict::NotHeld };
        self.bar(what, limit, found, verdict);
    }

    fn bar(&mut self, what: &str, limit: &str, found: impl Display, verdict: Verdict) {
        let found = found.to_string();
        let parts = [found.as_str(), limit]
            .into_iter()
            .filter(|part| !part.is_empty());
        let parts: Vec<&str> = parts.collect();
        println!("  {what:<58} {}: {verdict}", parts.join(", "));
        self.bars.push(Bar {
            what: what.to_owned(),
            limit: limit.to_owned(),
            measured: found,
            verdict,
        });
    }

    /// What was missed.
    pub fn missed(&self) -> impl Iterator<Item = &Bar> {
        self.bars
            .iter()
            .filter(|bar| bar.verdict == Verdict::NotHeld)
    }
}
