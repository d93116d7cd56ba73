//! Answers to wrong usage: what was wrong, and the usage of the command that was meant. Pure.

use std::ffi::OsString;

use clap::Command;

/// What a command line that could not be understood is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was wrong and the usage.
    pub text: String,
    /// The subcommand that was meant, as far as there is one.
    pub subcommand: Option<String>,
}

/// Explains an error in the arguments of `program`, `arguments` being all of them.
pub fn answer(error: &clap::Error, program: &Command, arguments: &[OsString]) -> Answer {
    let text = error.render().to_string();
    let lenient = program.clone().ignore_errors(true);
    let matches = lenient.try_get_matches_from(arguments).ok();
    let subcommand = matches.and_then(|matches| matches.subcommand_name().map(str::to_owned));
    // clap leaves the usage out when only a value is wrong.
    if text.contains("Usage:") {
        return Answer { text, subcommand };
    }
    let mut program = program.clone();
    program.build();
    let meant = subcommand
        .as_deref()
        .and_then(|name| program.find_subcommand_mut(name));
    let usage = match meant {
        Some(subcommand) => subcommand.render_usage(),
        None => program.render_usage(),
    };
    Answer {
        text: format!("{text}\n{usage}\n"),
        subcommand,
    }
}
