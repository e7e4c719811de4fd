//! The compact JSON text of values in etcd, as Calico's encoder spells it.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::io;

/// `value` as compact JSON. Angle brackets, ampersands and the two Unicode line ends are escaped, as Calico's encoder does.
pub(super) fn compact(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Escaping);
    value.serialize(&mut serializer).expect("writing to memory does not fail, and all keys are texts");
    String::from_utf8(bytes).expect("the parts written are texts")
}

struct Escaping;

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, special) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = special.chars();
            if let Some(character) = characters.next() {
                write!(writer, "\\u{:04x}", u32::from(character))?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// A map whose fields come in `first`'s order, then the others sorted.
pub(super) struct InOrder<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) first: &'a [&'a str],
}

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.map.len()))?;
        for field in self.first {
            if let Some(value) = self.map.get(*field) {
                map.serialize_entry(field, value)?;
            }
        }
        for (field, value) in self.map {
            if !self.first.contains(&field.as_str()) {
                map.serialize_entry(field, value)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_could_be_markup_is_escaped_and_nothing_else() {
        let value = json!({"a": "x < y && \"z\" > ö\n\u{2028}"});
        assert_eq!(compact(&value), r#"{"a":"x \u003c y \u0026\u0026 \"z\" \u003e ö\n\u2028"}"#);
    }

    #[test]
    fn named_fields_come_first_and_the_rest_sorted() {
        let value = json!({"b": 1, "a": 2, "z": 3});
        let map = value.as_object().unwrap();
        assert_eq!(compact(&InOrder { map, first: &["z", "missing"] }), r#"{"z":3,"a":2,"b":1}"#);
    }
}
