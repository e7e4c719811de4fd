//! What happened, in order: as a digest always, as readable lines when asked for.

use datastore::Record;
use std::fmt;

/// The record of one simulation.
#[derive(Clone, Debug)]
pub struct Trace {
    digest: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty one; `readable` keeps the lines too.
    pub fn new(readable: bool) -> Self {
        Self { digest: 0xcbf2_9ce4_8422_2325, lines: readable.then(Vec::new) }
    }

    /// Takes numbers in that tell this run from others.
    pub fn mix(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.digest = (self.digest ^ number).wrapping_mul(0x0100_0000_01b3);
            self.digest ^= self.digest >> 29;
        }
    }

    /// Notes a line, which is made only if somebody wants to read it.
    pub fn line<T: fmt::Display>(&mut self, line: impl FnOnce() -> T) {
        if let Some(lines) = &mut self.lines {
            lines.push(line().to_string());
        }
    }

    /// Whether lines are kept.
    pub fn is_readable(&self) -> bool {
        self.lines.is_some()
    }

    /// The digest so far.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The lines, if they were kept.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

/// A record in few words.
pub fn shown(record: &Record) -> String {
    match record {
        Record::Block(block) => {
            let owner = block.affinity.as_ref().map_or("nobody", |owner| &owner.name);
            let cells: Vec<String> = block
                .allocations
                .iter()
                .map(|index| match index.and_then(|index| block.attributes.get(index)) {
                    None => "-".to_owned(),
                    Some(held) if held.released_at.is_some() => "cooling".to_owned(),
                    Some(held) => held.handle_id.clone().unwrap_or_else(|| "anonymous".to_owned()),
                })
                .collect();
            format!("of {owner} #{} [{}]", block.sequence_number % 1_000_000_000, cells.join(" "))
        }
        Record::Affinity(affinity) => affinity.state.as_str().to_owned(),
        Record::Handle(handle) => {
            let blocks: Vec<String> =
                handle.blocks.iter().map(|(cidr, count)| format!("{cidr}: {count}")).collect();
            format!("{{{}}}", blocks.join(", "))
        }
        Record::Pool(pool) => {
            format!("{}/{}{}", pool.cidr, pool.block_size, if pool.disabled { " disabled" } else { "" })
        }
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_what_happened_is_part_of_the_digest() {
        let digest = |numbers: &[u64]| {
            let mut trace = Trace::new(false);
            trace.mix(numbers);
            trace.digest()
        };
        assert_eq!(digest(&[1, 2]), digest(&[1, 2]));
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
    }

    #[test]
    fn lines_are_made_only_where_they_are_kept() {
        let mut trace = Trace::new(false);
        trace.line(|| -> String { panic!("nobody reads this") });
        let mut readable = Trace::new(true);
        readable.line(|| "one");
        assert_eq!(readable.into_lines(), ["one"]);
    }
}
