//! Writing what a command found to standard output.

use std::io::{self, BufWriter, Write};

use serde_json::Value;

use super::Error;

/// Prints a text as it is.
///
/// # Errors
/// When standard output does not take it.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::Output)
}

/// Prints JSON with two spaces a level, as every tool of SmartOS does.
///
/// # Errors
/// When standard output does not take it.
pub fn print_json(value: &Value) -> Result<(), Error> {
    let mut out = BufWriter::new(io::stdout().lock());
    serde_json::to_writer_pretty(&mut out, value)
        .map_err(io::Error::from)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(Error::Output)
}
