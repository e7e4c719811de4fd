//! Damages texts and JSON values by seeded changes.

use serde_json::{Map, Value, json};

/// Shows the input if its check panics.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input: {}", String::from_utf8_lossy(self.0).escape_debug());
        }
    }
}

/// A stream of damaged input.
pub(crate) struct Damage {
    corpus: Vec<Vec<u8>>,
    values: Vec<Value>,
    state: u64,
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

impl Damage {
    /// From a corpus of one entry per line.
    pub(crate) fn new(corpus: &str) -> Self {
        let corpus: Vec<Vec<u8>> = corpus.lines().map(|line| line.as_bytes().to_vec()).collect();
        let values = corpus.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Self { corpus, values, state: setting("TORTIE_FUZZ_SEED", 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub(crate) fn cases(&self) -> u64 {
        setting("TORTIE_FUZZ_CASES", 4000)
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).unwrap() % limit
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// A damaged text.
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// A damaged JSON text, and what it says if it is JSON. One in four is damaged as bytes, the others as values.
    pub(crate) fn json(&mut self) -> (Vec<u8>, Option<Value>) {
        if self.below(4) == 0 {
            let bytes = self.bytes();
            let value = serde_json::from_slice(&bytes).ok();
            return (bytes, value);
        }
        let at = self.below(self.values.len());
        let mut value = self.values[at].clone();
        for _ in 0..=self.below(4) {
            self.hurt(&mut value);
        }
        (serde_json::to_vec(&value).unwrap(), Some(value))
    }

    /// One line of the corpus with a few bytes changed, added, removed, repeated, or put in from another line.
    fn bytes(&mut self) -> Vec<u8> {
        const TOKENS: [&str; 24] = [
            "(",
            ")",
            "!",
            "&&",
            "||",
            "'",
            "\"",
            "{",
            "}",
            ",",
            "==",
            " in ",
            "not in",
            "has(",
            "all()",
            "/",
            ":",
            ".",
            "::",
            "-1",
            "18446744073709551616",
            "\\u0000",
            "é",
            "\u{1f408}",
        ];
        let at = self.below(self.corpus.len());
        let mut line = self.corpus[at].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(line.len() + 1);
            let end = (at + self.below(12)).min(line.len());
            match self.below(7) {
                0 if at < line.len() => line[at] = u8::try_from(self.below(256)).unwrap(),
                1 => drop(line.drain(at..end)),
                2 => drop(line.splice(at..at, self.one_of(&TOKENS).bytes())),
                3 => drop(line.splice(at..end, self.one_of(&TOKENS).bytes())),
                4 => {
                    let times = self.one_of(&[2, 3, 100]);
                    let repeated = line[at..end].repeat(times);
                    line.splice(at..end, repeated);
                }
                5 => {
                    let other = self.below(self.corpus.len());
                    let from = self.below(self.corpus[other].len() + 1);
                    line.truncate(at);
                    line.extend_from_slice(&self.corpus[other][from..]);
                }
                _ => line.truncate(end),
            }
        }
        line
    }

    /// Changes one place of a value.
    fn hurt(&mut self, value: &mut Value) {
        let mut place = value;
        // Goes down by chance, so that every depth is hurt.
        loop {
            let inside = match place {
                Value::Object(map) => map.len(),
                Value::Array(list) => list.len(),
                _ => 0,
            };
            if inside == 0 || self.below(5) == 0 {
                break;
            }
            let at = self.below(inside);
            place = match place {
                Value::Object(map) => map.values_mut().nth(at).unwrap(),
                Value::Array(list) => list.get_mut(at).unwrap(),
                _ => unreachable!("it has something inside"),
            };
        }
        match (self.below(4), place) {
            (0, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(self.below(map.len())).unwrap().clone();
                let moved = map.remove(&key).unwrap();
                if self.below(2) == 0 {
                    let key = self.key(&key);
                    map.insert(key, moved);
                }
            }
            (0, Value::Array(list)) if !list.is_empty() => {
                let at = self.below(list.len());
                let times = self.one_of(&[0, 2, 40]);
                let entry = list.remove(at);
                list.splice(at..at, std::iter::repeat_n(entry, times));
            }
            (1, place) => {
                let (number, text) = (place.as_u64().unwrap_or(0), place.to_string());
                *place = match self.below(4) {
                    0 => json!([place.clone()]),
                    1 => json!({"a": place.clone()}),
                    2 => json!(text),
                    _ => json!(number.wrapping_add(1)),
                };
            }
            (_, place) => *place = self.odd(),
        }
    }

    fn key(&mut self, key: &str) -> String {
        let odd = ["", "0", "4096", "-1", "10.0.0.1/8", "::/0", "x", &key.to_uppercase(), &format!("{key} ")];
        self.one_of(&odd.map(str::to_owned))
    }

    /// A value that is seldom expected.
    fn odd(&mut self) -> Value {
        let number = self.below(30);
        match number {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(self.below(5000)),
            3 => json!(-1),
            4 => json!(1_u64 << 32),
            5 => json!(u64::MAX),
            6 => json!(i64::MIN),
            7 => json!(0.5),
            8 => json!(1e300),
            9 => json!([]),
            10 => json!([null, null, null, null]),
            11 => Value::Object(Map::new()),
            12 => (0..100).fold(Value::Null, |inner, _| json!([inner])),
            13 => json!("x".repeat(3000)),
            14 => json!("é\u{2028}\u{0}\u{1f408}".repeat(100)),
            _ => json!(self.one_of(&Self::TEXTS)),
        }
    }

    const TEXTS: [&str; 30] = [
        "",
        " ",
        "\r",
        "a\rb",
        "0",
        "T",
        "host:",
        "host:a:b",
        "virtual:x",
        "@:x",
        "pendingDeletion",
        "Confirmed",
        "10.0.0.0/8",
        "10.0.0.0/20",
        "10.0.0.0/33",
        "10.0.0.77/30",
        "fd00::/116",
        "fd00::1/127",
        "fd00::/64",
        "::/0",
        "10.0.0.1",
        "2026-08-01T10:15:30.999999999Z",
        "2026-08-01T10:15:30+25:00",
        "9999-12-30T22:00:00Z",
        "-009999-01-02T01:59:59Z",
        "-000001-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "1970-01-01",
        "Tunnel",
        "Manual",
    ];
}
