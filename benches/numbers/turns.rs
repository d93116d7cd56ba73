//! Things that are compared take turns, round by round, so that whatever else the machine does meets all of them;
//! a ratio is taken within each round.

use std::time::Instant;

use crate::Failure;
use crate::report::{Comparison, Report, Sample};

/// Something that is measured; its act gives what one round of it took.
pub struct Subject<'a> {
    name: String,
    act: Box<dyn FnMut() -> Result<f64, Failure> + 'a>,
}

impl<'a> Subject<'a> {
    /// By its name.
    pub fn new(
        name: impl Into<String>,
        act: impl FnMut() -> Result<f64, Failure> + 'a,
    ) -> Subject<'a> {
        Subject {
            name: name.into(),
            act: Box::new(act),
        }
    }
}

/// What a subject took in each round.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Which subject.
    pub name: String,
    /// What it took.
    pub rounds: Vec<f64>,
}

impl Taken {
    /// What it took, in order of size.
    pub fn sample(&self) -> Sample {
        Sample::new(self.rounds.iter().copied())
    }

    /// The ratio to another subject in each round.
    pub fn over(&self, other: &Taken) -> Sample {
        let pairs = self.rounds.iter().zip(&other.rounds);
        Sample::new(pairs.map(|(one, other)| one / other))
    }
}

/// What all subjects took.
pub struct Turns(Vec<Taken>);

/// Lets the subjects take turns, after one turn of each that is not counted.
pub fn take(rounds: usize, mut subjects: Vec<Subject<'_>>) -> Result<Turns, Failure> {
    let mut turns = Turns(Vec::new());
    for subject in &mut subjects {
        (subject.act)().map_err(|error| format!("{}: {error}", subject.name))?;
        turns.0.push(Taken {
            name: subject.name.clone(),
            rounds: Vec::new(),
        });
    }
    for _ in 0..rounds {
        for (subject, taken) in subjects.iter_mut().zip(&mut turns.0) {
            taken.rounds.push((subject.act)()?);
        }
    }
    Ok(turns)
}

impl Turns {
    /// What a subject took, if there was one of this name.
    pub fn of(&self, name: &str) -> Option<&Taken> {
        self.0.iter().find(|taken| taken.name == name)
    }

    /// The ratio of two subjects in each round, if there were both.
    pub fn ratio(&self, ours: &str, rival: &str) -> Option<Sample> {
        Some(self.of(ours)?.over(self.of(rival)?))
    }

    /// The median of that.
    pub fn median(&self, ours: &str, rival: &str) -> Option<f64> {
        Some(self.ratio(ours, rival)?.median())
    }

    /// Reports the ratio of one subject to another, if there were both.
    pub fn compare(&self, report: &mut Report, work: &str, ours: &str, rival: &str) {
        if let (Some(here), Some(there)) = (self.of(ours), self.of(rival)) {
            report.compare(Comparison {
                ours: format!("{work}, {ours}"),
                here: here.sample().spread(),
                rival: rival.to_owned(),
                there: there.sample().spread(),
                ratio: here.over(there),
            });
        }
    }

    /// Shows that ratio in the picture.
    pub fn picture(&self, report: &mut Report, work: &str, ours: &str, rival: &str) {
        if let Some(ratio) = self.ratio(ours, rival) {
            report.picture(format!("{work}, {ours} / {rival}"), &ratio);
        }
    }
}

/// How long something takes, in seconds.
pub fn seconds(act: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let began = Instant::now();
    act()?;
    Ok(began.elapsed().as_secs_f64())
}
