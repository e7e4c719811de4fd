//! Reading YAML that a person wrote: strictly, with the place of what is wrong.

use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;
use std::fmt::Display;
use std::io::Read as _;
use std::path::Path;

/// Largest file that is read, in bytes.
const SIZE_LIMIT: u64 = 1 << 20;

/// Something wrong in a file: its name, the line where known, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// File name and, where known, line: `lab.clab.yaml:7`.
    pub place: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl Display for Wrong {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for Wrong {}

impl Wrong {
    /// Something wrong on line `line` of `file`; line 0 stands for the whole file.
    pub fn at(file: &Path, line: u64, message: impl Into<String>) -> Self {
        let file = file.display();
        let place = if line == 0 { file.to_string() } else { format!("{file}:{line}") };
        Self { place, message: message.into() }
    }

    /// Something wrong with `value` in `file`.
    pub fn of<T>(file: &Path, value: &Spanned<T>, message: impl Into<String>) -> Self {
        Self::at(file, value.referenced.line(), message)
    }
}

/// Reads the text of `file`.
///
/// # Errors
/// As the system words it, when there is no such file or it is too large.
pub fn read(file: &Path) -> Result<String, Wrong> {
    let too_large =
        || Wrong::at(file, 0, format!("is larger than {SIZE_LIMIT} bytes; is it the right file?"));
    match std::fs::File::open(file) {
        // A device says that it is empty and never ends: the length counts only once it is read.
        Ok(open) => {
            let mut text = String::new();
            match open.take(SIZE_LIMIT + 1).read_to_string(&mut text) {
                Ok(_) if text.len() as u64 > SIZE_LIMIT => Err(too_large()),
                Ok(_) => Ok(text),
                // Text that was cut within a character is too long rather than wrong.
                Err(_) if std::fs::metadata(file).is_ok_and(|metadata| metadata.len() > SIZE_LIMIT) => {
                    Err(too_large())
                }
                Err(error) => Err(Wrong::at(file, 0, error.to_string())),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Wrong::at(file, 0, "no such file or directory"))
        }
        Err(error) => Err(Wrong::at(file, 0, error.to_string())),
    }
}

/// Reads `text`, which is the content of `file`.
///
/// # Errors
/// At the first key that is unknown, value that does not fit, or place that is no YAML.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, Wrong> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let message = first_sentence(&error.without_snippet().to_string());
        // The parser names a field that it does not know, but not the one whose value does not fit.
        let message = match key_on(text, line).filter(|key| !message.contains(&format!("`{key}`"))) {
            Some(key) => format!("{key}: {message}"),
            None => message,
        };
        Wrong::at(file, line, message)
    })
}

/// The key that a line of the text begins with; lines count from 1.
fn key_on(text: &str, line: u64) -> Option<&str> {
    let index = usize::try_from(line).ok()?.checked_sub(1)?;
    let (key, _) = text.lines().nth(index)?.trim_start_matches([' ', '-']).split_once(':')?;
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    is_key.then_some(key)
}

/// The parser's own words, without the place, which stands before them already.
fn first_sentence(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let message = message.split(" at line ").next().unwrap_or(message);
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ").replace("expected one of", "allowed are")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_too_large() {
        let wrong = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(wrong.to_string(), "/dev/zero: is larger than 1048576 bytes; is it the right file?");
    }
}
