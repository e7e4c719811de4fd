//! The bytes of the release queue's log: lines of text, each with its checksum.
//!
//! ```text
//! \n 8 hex digits of the CRC-32 of the text \x20 text (one JSON object) \n
//! ```
//!
//! A line is a record: `append` (the entry is owed) or `remove` (it is not any more). It begins with a line end as well as
//! ending with one, so that a record that was torn by a crash never runs into the next. A line that is empty says
//! nothing; one whose checksum does not match is left out and counted, and what follows it is read all the same. A record is
//! at most [`LONGEST`] bytes.

use super::{Entry, Number};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of the longest record.
pub const LONGEST: usize = 64 * 1024;

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Written<'a> {
    Append { number: Number, entry: &'a Entry },
    Remove { number: Number },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Read {
    Append { number: Number, entry: Entry },
    Remove { number: Number },
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Entries appended and not removed.
    pub entries: BTreeMap<Number, Entry>,
    /// The highest number used.
    pub next: u64,
    /// Records that made sense.
    pub records: usize,
    /// Lines that did not.
    pub damaged: usize,
}

/// The record that makes an entry owed. Appended again under the same number it says nothing new.
pub fn append(number: Number, entry: &Entry) -> Vec<u8> {
    line(&Written::Append { number, entry })
}

/// The record that makes an entry no longer owed.
pub fn remove(number: Number) -> Vec<u8> {
    line(&Written::Remove { number })
}

/// The whole log of these entries.
pub fn whole(entries: &[(Number, Entry)]) -> Vec<u8> {
    entries.iter().flat_map(|(number, entry)| append(*number, entry)).collect()
}

/// Whether an entry does not fit a record.
pub(super) fn is_too_long(entry: &Entry) -> bool {
    append(Number(u64::MAX), entry).len() > LONGEST
}

fn line(record: &Written<'_>) -> Vec<u8> {
    // Texts, numbers and lists of them: there is nothing in a record that JSON could not say.
    let text = serde_json::to_string(record).unwrap_or_default();
    format!("\n{:08x} {text}\n", checksum(text.as_bytes())).into_bytes()
}

/// Reads a log, whatever is in it: any prefix of what was written, and any damage.
pub fn decode(bytes: &[u8]) -> Decoded {
    let mut found = Decoded::default();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match record(line) {
            Some(Read::Append { number, entry }) => {
                found.records += 1;
                found.next = found.next.max(number.0);
                found.entries.insert(number, entry);
            }
            Some(Read::Remove { number }) => {
                found.records += 1;
                found.next = found.next.max(number.0);
                found.entries.remove(&number);
            }
            None => found.damaged += 1,
        }
    }
    found
}

fn record(line: &[u8]) -> Option<Read> {
    if line.len() > LONGEST {
        return None;
    }
    let (sum, text) = line.split_at_checked(9)?;
    let sum = std::str::from_utf8(sum).ok()?.strip_suffix(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == checksum(text)).then(|| serde_json::from_slice(text).ok()).flatten()
}

/// CRC-32 as of IEEE 802.3, bit by bit: records are short and few.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| {
                if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release_queue::Held;
    use api::attachment::Attachment;
    use jiff::Timestamp;

    fn entry(container: &str) -> Entry {
        Entry {
            attachment: Attachment {
                network: "net".to_owned(),
                container: container.to_owned(),
                interface: "eth0".to_owned(),
            },
            handle: format!("net.{container}"),
            held: Some(vec![Held { address: "fd00::1".parse().unwrap(), sequence: u64::MAX }]),
            cluster: Some("guid".to_owned()),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn log() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for record in [
            append(Number(1), &entry("a")),
            append(Number(2), &entry("b")),
            remove(Number(1)),
            append(Number(3), &entry("line\nend\u{7f}")),
        ] {
            bytes.extend(record);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_was_written_is_read() {
        let found = decode(&log().0);
        let left = BTreeMap::from([(Number(2), entry("b")), (Number(3), entry("line\nend\u{7f}"))]);
        assert_eq!(found, Decoded { entries: left, next: 3, records: 4, damaged: 0 });
        let all: Vec<_> = found.entries.clone().into_iter().collect();
        assert_eq!(decode(&whole(&all)).entries, found.entries);
    }

    #[test]
    fn a_torn_tail_loses_only_itself_and_does_not_hurt_what_is_appended_after_it() {
        let (bytes, ends) = log();
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            let torn = &bytes[..cut];
            // All but the line end that closes it may be there.
            let found = decode(torn);
            assert!(found.records == whole || ends.contains(&(cut + 1)), "{cut}");
            assert!(found.damaged <= 1, "{cut}");
            let mut longer = torn.to_vec();
            longer.extend(append(Number(9), &entry("z")));
            assert_eq!(decode(&longer).entries.get(&Number(9)), Some(&entry("z")), "{cut}");
            assert_eq!(decode(&longer).records, found.records + 1, "{cut}");
        }
    }

    #[test]
    fn a_flipped_bit_is_found_and_the_other_records_are_kept() {
        let (bytes, _) = log();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let found = decode(&damaged);
            let expected = decode(&bytes);
            // A line end that became something else joins nothing but an empty line to its record.
            assert!(found.records >= 3, "{at}");
            for (number, entry) in &found.entries {
                assert!(expected.entries.get(number) == Some(entry) || *number == Number(1), "{at}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_log_are_counted_and_hold_nothing() {
        let long = vec![b'x'; 2 * LONGEST];
        for bytes in [&b"x"[..], b"12345678 {}", b"\xff\xfe\n\n\0", &long, b"00000000 "] {
            let found = decode(bytes);
            assert_eq!((found.entries.len(), found.records), (0, 0));
            assert!(found.damaged > 0);
        }
        assert_eq!(decode(b""), Decoded::default());
    }

    #[test]
    fn an_entry_that_does_not_fit_a_record_is_known_beforehand() {
        assert!(!is_too_long(&entry("a")));
        assert!(is_too_long(&entry(&"a".repeat(LONGEST))));
    }
}
