//! How long and how deep a rule may be, measured before it is parsed: parsing, judging and dropping a rule recurse.

use super::{ParseError, syntax};

/// Longest text that is read, in bytes.
pub(super) const MAX_LENGTH: usize = 16 << 10;

/// Expressions inside each other, at most: brackets, and operators, fields and calls in a row.
///
/// `&&` and `||` in a row are parsed to a balanced tree and cost less. A rule of this depth is judged on a stack of one
/// mebibyte, in a debug build too (`the_deepest_rule_fits_on_a_small_stack`).
pub(super) const MAX_DEPTH: usize = 100;

/// What stands between two brackets, or between a bracket and a comma.
#[derive(Default)]
struct Level {
    /// The bracket that ends it.
    closing: u8,
    /// `&&` and `||`.
    junctions: usize,
    /// `? :`, each inside the one before.
    choices: usize,
    /// Operators, fields and brackets since the last junction or choice.
    operators: usize,
    /// The deepest bracket since then.
    inner: usize,
    /// The deepest operand of the junctions so far.
    operand: usize,
    /// The deepest of the parts that commas tell apart, so far.
    part: usize,
}

impl Level {
    fn end_operand(&mut self) {
        self.operand = self.operand.max(self.operators + self.inner);
        (self.operators, self.inner) = (0, 0);
    }

    fn end_part(&mut self) {
        self.end_operand();
        // A chain of each of the two kinds, balanced.
        let junctions = if self.junctions == 0 {
            0
        } else {
            2 * usize::try_from(self.junctions.ilog2() + 1).unwrap_or(64)
        };
        self.part = self.part.max(self.operand + junctions + self.choices);
        (self.operand, self.junctions, self.choices) = (0, 0, 0);
    }
}

/// Refuses what is too long, too deep, or has brackets, quotes or letters that no expression has.
///
/// The literals end here where they end for the parser, or a bracket in one of them would be counted.
pub(super) fn check(text: &str) -> Result<(), ParseError> {
    if text.len() > MAX_LENGTH {
        return Err(syntax(format!("longer than {MAX_LENGTH} bytes")));
    }
    let bytes = text.as_bytes();
    let mut outer: Vec<Level> = Vec::new();
    let mut level = Level::default();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        at += match byte {
            b'(' | b'[' | b'{' => {
                level.operators += 1;
                let closing = match byte {
                    b'(' => b')',
                    b'[' => b']',
                    _ => b'}',
                };
                outer.push(std::mem::replace(&mut level, Level { closing, ..Level::default() }));
                1
            }
            b')' | b']' | b'}' => {
                let around = outer.pop().filter(|_| level.closing == byte);
                let around = around.ok_or_else(|| syntax(format!("extraneous '{}'", char::from(byte))))?;
                let mut inner = std::mem::replace(&mut level, around);
                inner.end_part();
                level.inner = level.inner.max(inner.part);
                1
            }
            b',' => {
                level.end_part();
                1
            }
            b'&' | b'|' if rest.get(1) == Some(&byte) => {
                level.end_operand();
                level.junctions += 1;
                2
            }
            b'?' | b':' => {
                level.end_operand();
                level.choices += 1;
                1
            }
            b'/' if rest.get(1) == Some(&b'/') => {
                rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
            }
            b'\'' | b'"' => literal(rest, false)?,
            b'.' | b'!' | b'-' | b'+' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' => {
                level.operators += 1;
                if rest.get(1) == Some(&b'=') { 2 } else { 1 }
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => match prefix(rest) {
                Some((letters, is_raw)) => letters + literal(&rest[letters..], is_raw)?,
                None => {
                    let length = word(rest);
                    level.operators += usize::from(&rest[..length] == b"in");
                    length
                }
            },
            b'0'..=b'9' => {
                let length = word(rest);
                if matches!(rest.get(length), Some(b'\'' | b'"')) {
                    return Err(syntax("a text directly after a number"));
                }
                length
            }
            b'`' => return Err(syntax("unsupported syntax: '`'")),
            byte if byte.is_ascii() => 1,
            _ => return Err(syntax("a letter that stands in texts only")),
        };
    }
    if !outer.is_empty() {
        return Err(syntax(format!("missing '{}'", char::from(level.closing))));
    }
    level.end_part();
    if level.part > MAX_DEPTH {
        return Err(syntax(format!("more than {MAX_DEPTH} expressions inside each other")));
    }
    Ok(())
}

fn word(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(bytes.len())
}

/// The letters before the quotes of a literal, and whether they say that nothing is escaped in it.
fn prefix(bytes: &[u8]) -> Option<(usize, bool)> {
    let letters = bytes.iter().take(2).take_while(|byte| b"rRbB".contains(byte)).count();
    let is_raw = bytes[..letters].iter().any(|byte| b"rR".contains(byte));
    let is_pair = letters < 2 || !bytes[0].eq_ignore_ascii_case(&bytes[1]);
    let quoted = matches!(bytes.get(letters), Some(b'\'' | b'"'));
    (letters > 0 && is_pair && quoted).then_some((letters, is_raw))
}

/// The length of a literal that begins with a quote.
fn literal(bytes: &[u8], is_raw: bool) -> Result<usize, ParseError> {
    let quote = bytes[0];
    let quotes = if bytes.get(1) == Some(&quote) && bytes.get(2) == Some(&quote) { 3 } else { 1 };
    let mut at = quotes;
    let mut is_escaped = false;
    while let Some(&byte) = bytes.get(at) {
        let ends = bytes[at..].iter().take_while(|byte| **byte == quote).count() >= quotes;
        if ends && (is_raw || !is_escaped) {
            return Ok(at + quotes);
        }
        is_escaped = byte == b'\\' && !is_escaped;
        at += 1;
    }
    Err(syntax("a text without an end"))
}
