//! The only place that prints. A reader that has closed the pipe has seen enough: that is no failure.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Prints to stdout.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints a sentence, if there is one, to stderr and fails.
pub(crate) fn failed(sentence: &str) -> ExitCode {
    if sentence.is_empty() {
        return ExitCode::FAILURE;
    }
    // Where stderr is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{}", sentence.trim_end());
    ExitCode::FAILURE
}

/// Prints a sentence about what was not asked for to stderr; the command goes on.
pub(crate) fn note(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "{sentence}");
}
