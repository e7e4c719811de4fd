//! Reading objects that clients send as protobuf: newer kubectl does so when it makes objects itself.
//!
//! Nothing is ever written this way. The fields come from [`crate::fields`]; what the table does not know is skipped.

use crate::fields::{self, Field, Message, Shape, Type};
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use thiserror::Error;

/// Begins every object on the wire.
const MAGIC: &[u8] = b"k8s\0";
/// Levels of messages, at most. The deepest kind has fewer.
const MAX_DEPTH: usize = 40;

/// Why a body cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// It does not begin with the four bytes that mark an object.
    #[error("it does not begin with the mark of a Kubernetes object")]
    NoMagic,
    /// The bytes break off or contradict themselves.
    #[error("the bytes are no protobuf message: {0}")]
    Malformed(&'static str),
    /// The kind is not in the table: it must be sent as JSON.
    #[error("kind {kind:?} in version {api_version:?} can only be read as JSON")]
    UnknownKind {
        /// As `apps/v1`.
        api_version: String,
        /// As `Deployment`.
        kind: String,
    },
}

/// Reads an object, `apiVersion` and `kind` included.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Value, DecodeError> {
    let bytes = bytes.strip_prefix(MAGIC).ok_or(DecodeError::NoMagic)?;
    let (mut api_version, mut kind, mut raw, mut content_type) = (String::new(), String::new(), &[][..], "");
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?.to_owned(),
                        (2, Wire::Bytes(text)) => kind = utf8(text)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (4, Wire::Bytes(text)) => content_type = utf8(text)?,
            _ => {}
        }
    }
    let mut object = if content_type == "application/json" {
        let object = serde_json::from_slice(raw).map_err(|_| DecodeError::Malformed("it holds no JSON"))?;
        let Value::Object(object) = object else { return Err(DecodeError::Malformed("it holds no object")) };
        object
    } else {
        let unknown = || DecodeError::UnknownKind { api_version: api_version.clone(), kind: kind.clone() };
        message(fields::kind(&api_version, &kind).ok_or_else(unknown)?, raw, 0)?
    };
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(object.into())
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Malformed("a text is not UTF-8"))
}

/// One value as it stands on the wire.
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in the order of the wire.
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl<'a> Parts<'a> {
    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(DecodeError::Malformed("a number breaks off"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed("a number has more than ten bytes"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], DecodeError> {
        let short = DecodeError::Malformed("a field is longer than its message");
        let length = usize::try_from(length).map_err(|_| short.clone())?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn part(&mut self) -> Result<(u32, Wire<'a>), DecodeError> {
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| DecodeError::Malformed("a field number is too large"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(DecodeError::Malformed("a field has an unknown wire type")),
        };
        Ok((number, wire))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) =
            self.0.split_first_chunk().ok_or(DecodeError::Malformed("a field is longer than its message"))?;
        self.0 = rest;
        Ok(*taken)
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

fn message(of: &'static Message, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, DecodeError> {
    if depth > MAX_DEPTH {
        return Err(DecodeError::Malformed("messages are nested too deep"));
    }
    let mut object = Map::new();
    for part in Parts(bytes) {
        let (number, wire) = part?;
        let Some(field) = of.fields.iter().find(|field| field.number == number) else { continue };
        if field.is_inline() {
            if let (Some(inner), Wire::Bytes(bytes)) = (field.message(), wire) {
                object.extend(message(inner, bytes, depth + 1)?);
            }
            continue;
        }
        match field.shape {
            Shape::One => match value(field.of, &wire, depth)? {
                Some(value) if keeps(field, &value) => {
                    object.insert(field.name.to_owned(), value);
                }
                _ => {}
            },
            Shape::List => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { continue };
                match (field.of, &wire) {
                    // Numbers may come packed.
                    (Type::Int | Type::Bool, Wire::Bytes(bytes)) => {
                        let mut packed = Parts(bytes);
                        while !packed.0.is_empty() {
                            list.extend(value(field.of, &Wire::Varint(packed.varint()?), depth)?);
                        }
                    }
                    _ => list.extend(value(field.of, &wire, depth)?),
                }
            }
            Shape::Map => {
                let Wire::Bytes(entry) = wire else { continue };
                let (mut key, mut found) = ("", None);
                for part in Parts(entry) {
                    match part? {
                        (1, Wire::Bytes(text)) => key = utf8(text)?,
                        (2, wire) => found = value(field.of, &wire, depth)?,
                        _ => {}
                    }
                }
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key.to_owned(), found.unwrap_or_else(|| zero(field.of)));
                }
            }
        }
    }
    Ok(object)
}

/// Writers send every scalar, so a zero means absence unless the field knows the difference. Metadata are never absent,
/// those of templates neither.
fn keeps(field: &Field, value: &Value) -> bool {
    field.presence || field.required || field.name == "metadata" || !is_zero(value)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn zero(of: Type) -> Value {
    match of {
        Type::Message(_) if fields::message(of).is_some_and(|message| message.list_of.is_some()) => {
            Value::Array(Vec::new())
        }
        Type::Message(_) => Value::Object(Map::new()),
        Type::Int | Type::Double => 0.into(),
        Type::Bool => false.into(),
        _ => "".into(),
    }
}

fn signed(number: u64) -> i64 {
    i64::from_le_bytes(number.to_le_bytes())
}

/// `None`: a time that was not set.
fn value(of: Type, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>, DecodeError> {
    let mismatch = DecodeError::Malformed("a field has another type than its kind says");
    Ok(Some(match (of, wire) {
        (Type::String, Wire::Bytes(text)) => utf8(text)?.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        (Type::Bool, Wire::Varint(number)) => (*number != 0).into(),
        (Type::Int, Wire::Varint(number)) => signed(*number).into(),
        (Type::Double, Wire::Fixed64(bits)) => f64::from_bits(*bits).into(),
        (Type::Double, Wire::Fixed32(bits)) => f64::from(f32::from_bits(*bits)).into(),
        (Type::Time | Type::MicroTime, Wire::Bytes(bytes)) => {
            let (seconds, nanos) = (number(bytes, 1)?, number(bytes, 2)?);
            if seconds == 0 && nanos == 0 {
                return Ok(None);
            }
            let nanos = i32::try_from(nanos).map_err(|_| mismatch.clone())?;
            let time = Timestamp::new(seconds, nanos)
                .map_err(|_| DecodeError::Malformed("a time is out of range"))?;
            match of {
                Type::Time => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                _ => time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            }
            .into()
        }
        (Type::Quantity, Wire::Bytes(bytes)) => text(bytes, 1)?.into(),
        (Type::IntOrString, Wire::Bytes(bytes)) => match number(bytes, 1)? {
            0 => number(bytes, 2)?.into(),
            _ => text(bytes, 3)?.into(),
        },
        (Type::Any | Type::Fields, Wire::Bytes(bytes)) => {
            let raw = last(bytes, 1)?.unwrap_or_default();
            match raw {
                [] => Value::Null,
                raw => serde_json::from_slice(raw).map_err(|_| DecodeError::Malformed("it holds no JSON"))?,
            }
        }
        (Type::Duration, Wire::Bytes(bytes)) => duration(number(bytes, 1)?).into(),
        (Type::Message(_), Wire::Bytes(bytes)) => {
            let Some(of) = fields::message(of) else { return Err(mismatch) };
            match of.list_of {
                Some(item) => {
                    let mut list = Vec::new();
                    for part in Parts(bytes) {
                        if let (1, wire) = part? {
                            list.extend(value(item, &wire, depth + 1)?);
                        }
                    }
                    list.into()
                }
                None => message(of, bytes, depth + 1)?.into(),
            }
        }
        _ => return Err(mismatch),
    }))
}

fn number(bytes: &[u8], wanted: u32) -> Result<i64, DecodeError> {
    let mut found = 0;
    for part in Parts(bytes) {
        if let (number, Wire::Varint(value)) = part?
            && number == wanted
        {
            found = signed(value);
        }
    }
    Ok(found)
}

fn last(bytes: &[u8], wanted: u32) -> Result<Option<&[u8]>, DecodeError> {
    let mut found = None;
    for part in Parts(bytes) {
        if let (number, Wire::Bytes(value)) = part?
            && number == wanted
        {
            found = Some(value);
        }
    }
    Ok(found)
}

fn text(bytes: &[u8], wanted: u32) -> Result<String, DecodeError> {
    Ok(utf8(last(bytes, wanted)?.unwrap_or_default())?.to_owned())
}

/// Nanoseconds as `1h0m0s`.
fn duration(nanos: i64) -> String {
    let duration = SignedDuration::from_nanos(nanos);
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A field that holds bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend(content);
        bytes
    }

    fn int(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn object(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_deployment_is_read_like_its_json() {
        let metadata = [
            field(1, b"web"),
            field(2, b""),
            int(7, 0),
            field(8, b""),
            field(11, &[field(1, b"app"), field(2, b"web")].concat()),
        ]
        .concat();
        let container = [field(1, b"c"), field(2, b"x:1"), field(8, b""), int(16, 0), int(18, 0)].concat();
        let pod_spec = [field(2, &container), field(3, b""), int(11, 0)].concat();
        let template = [field(1, &field(1, b"")), field(2, &pod_spec)].concat();
        let spec =
            [int(1, 0), field(2, b""), field(3, &template), field(4, &field(1, b"")), int(5, 0)].concat();
        let raw = [field(1, &metadata), field(2, &spec), field(3, &int(1, 0))].concat();
        assert_eq!(
            decode(&object("apps/v1", "Deployment", &raw)).unwrap(),
            json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {
                    // Zero replicas are asked for; an empty selector is one that was given.
                    "replicas": 0,
                    "selector": {},
                    "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}},
                },
            })
        );
    }

    #[test]
    fn special_messages_become_their_json_forms() {
        let target = [int(1, 1), int(2, 0), field(3, b"http")].concat();
        let port = [field(1, b""), field(2, b"TCP"), int(3, 80), field(4, &target), int(5, 0)].concat();
        let raw = field(2, &field(1, &port));
        assert_eq!(
            decode(&object("v1", "Service", &raw)).unwrap()["spec"]["ports"],
            json!([{"protocol": "TCP", "port": 80, "targetPort": "http"}])
        );
        let secret = field(2, &[field(1, b"key"), field(2, b"value")].concat());
        assert_eq!(decode(&object("v1", "Secret", &secret)).unwrap()["data"], json!({"key": "dmFsdWU="}));
        let created = field(1, &field(8, &[8, 0x80, 0xa6, 0x86, 0xd8, 0x06]));
        assert_eq!(
            decode(&object("v1", "Namespace", &created)).unwrap()["metadata"]["creationTimestamp"],
            "2026-11-21T12:48:00Z"
        );
    }

    #[test]
    fn inlined_messages_stand_in_their_parent() {
        let volume = [field(1, b"v"), field(2, &field(2, &[]))].concat();
        let raw = field(2, &field(1, &volume));
        assert_eq!(
            decode(&object("v1", "Pod", &raw)).unwrap()["spec"]["volumes"],
            json!([{"name": "v", "emptyDir": {}}])
        );
    }

    #[test]
    fn delete_options_are_read_under_any_group() {
        let raw = [int(1, 0), field(4, b"Background")].concat();
        let options = decode(&object("apps/v1", "DeleteOptions", &raw)).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 0);
        assert_eq!(options["propagationPolicy"], "Background");
    }

    #[test]
    fn broken_bytes_are_refused() {
        assert_eq!(decode(b"{}"), Err(DecodeError::NoMagic));
        let whole = object("v1", "Pod", &field(1, &field(1, b"name")));
        for length in 4..whole.len() {
            // Cut anywhere, it is an error or an object with less in it, never a panic.
            let _ = decode(&whole[..length]);
        }
        assert!(decode(&[MAGIC, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff]].concat()).is_err());
        assert!(matches!(decode(&object("a/v1", "Cat", b"")), Err(DecodeError::UnknownKind { .. })));
        let wrong_type = field(1, &int(1, 5));
        assert!(decode(&object("v1", "Pod", &wrong_type)).is_err());
    }
}
