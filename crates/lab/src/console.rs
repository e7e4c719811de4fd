//! What `containerlab` and `kind` print: results on standard output, everything else on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

static DEBUG: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);

/// Shows lines of level `DEBU`, too.
pub fn show_debug() {
    DEBUG.store(true, Ordering::Relaxed);
}

/// Shows nothing on standard error.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Prints a result. A closed pipe is not an error: whoever read had enough.
pub fn result(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// Prints a plain line on standard error.
pub fn note(line: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// What is being done.
    Info,
    /// What was not as it should be, and did not matter.
    Warn,
    /// What went wrong.
    Error,
}

impl Level {
    fn tag(self) -> (&'static str, &'static str) {
        match self {
            Self::Debug => ("DEBU", "\x1b[1;38;5;63m"),
            Self::Info => ("INFO", "\x1b[1;38;5;86m"),
            Self::Warn => ("WARN", "\x1b[1;38;5;192m"),
            Self::Error => ("ERRO", "\x1b[1;38;5;204m"),
        }
    }
}

/// Prints a log line: time of day, level, message, `key=value` pairs.
pub fn log(level: Level, message: &str, fields: &[(&str, &str)]) {
    if level == Level::Debug && !DEBUG.load(Ordering::Relaxed) {
        return;
    }
    let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
    note(&line(&time, level, message, fields, is_coloured()));
}

/// Prints a log line of level `INFO`.
pub fn info(message: &str, fields: &[(&str, &str)]) {
    log(Level::Info, message, fields);
}

/// Prints a log line of level `WARN`.
pub fn warn(message: &str, fields: &[(&str, &str)]) {
    log(Level::Warn, message, fields);
}

fn is_coloured() -> bool {
    wants_colour(std::io::stderr().is_terminal())
}

/// Whether to use colours or bold on a stream, by the usual variables and whether it is a terminal.
#[must_use]
pub fn wants_colour(terminal: bool) -> bool {
    let given = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0");
    if given("FORCE_COLOR") {
        return true;
    }
    terminal && !given("NO_COLOR") && std::env::var("TERM").as_deref() != Ok("dumb")
}

fn line(time: &str, level: Level, message: &str, fields: &[(&str, &str)], coloured: bool) -> String {
    let (tag, colour) = level.tag();
    let mut line = if coloured {
        format!("{time} {colour}{tag}\x1b[0m {message}")
    } else {
        format!("{time} {tag} {message}")
    };
    for (key, value) in fields {
        let quoted =
            value.is_empty() || value.chars().any(|character| character.is_whitespace() || character == '"');
        line.push_str(&if quoted { format!(" {key}={value:?}") } else { format!(" {key}={value}") });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_have_containerlabs_shape() {
        assert_eq!(
            line(
                "14:10:38",
                Level::Info,
                "Parsing & checking topology",
                &[("file", "calico-ipam.clab.yaml")],
                false
            ),
            "14:10:38 INFO Parsing & checking topology file=calico-ipam.clab.yaml"
        );
        assert_eq!(line("0", Level::Warn, "m", &[("a", "b c")], false), "0 WARN m a=\"b c\"");
    }
}
