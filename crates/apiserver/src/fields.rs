//! The fields of the built-in kinds, from one table that the protobuf decoder, strict validation, strategic merge,
//! server-side apply and the OpenAPI documents all read.

use serde_json::Value;
use std::collections::HashMap;
use std::sync::LazyLock;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(include_str!("fields.txt")));

/// How a value looks in JSON and in protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A string.
    String,
    /// Bytes; base64 in JSON.
    Bytes,
    /// A boolean.
    Bool,
    /// An integer of up to 64 bits, as a varint.
    Int,
    /// A floating-point number.
    Double,
    /// RFC 3339 with seconds in JSON; seconds and nanoseconds in protobuf.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A quantity as `100m`; a message that holds the text in protobuf. JSON may also hold a number.
    Quantity,
    /// An integer or a string.
    IntOrString,
    /// Any JSON; bytes that hold JSON in protobuf.
    Any,
    /// The field set of a managed-fields entry: JSON text in protobuf.
    Fields,
    /// A duration as `1m0s`.
    Duration,
    /// Another message, by its place in the table.
    Message(usize),
}

/// Whether a field holds one value, a list or a map from strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    One,
    /// A list.
    List,
    /// A map from strings.
    Map,
}

/// How server-side apply treats a list or a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// The default of the shape: lists are atomic, objects and maps are merged.
    Default,
    /// A list of distinct values.
    Set,
    /// A list of objects told apart by these fields, separated by commas.
    MapList(&'static str),
    /// Replaced as a whole.
    Atomic,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Number in protobuf.
    pub number: u32,
    /// Name in JSON; `~` for the fields that stand in the parent's object.
    pub name: &'static str,
    /// Whether absence and the zero value are different things.
    pub presence: bool,
    /// Whether it must be there.
    pub required: bool,
    /// One value, a list or a map.
    pub shape: Shape,
    /// Type of the value, or of the values of the list or map.
    pub of: Type,
    /// Strategic merge: the list is merged. `Some("")`: a list of plain values.
    pub merge_key: Option<&'static str>,
    /// Strategic merge: fields that the patch does not name are removed when it says `$retainKeys`.
    pub retain_keys: bool,
    /// Server-side apply.
    pub topology: Topology,
}

impl Field {
    /// Whether its message's fields stand in the parent's JSON object.
    pub fn is_inline(&self) -> bool {
        self.name == "~"
    }

    /// The message of its values, if they are messages.
    pub fn message(&self) -> Option<&'static Message> {
        message(self.of)
    }
}

/// One message of the table.
#[derive(Clone, Debug)]
pub struct Message {
    /// Name, unique in the table.
    pub name: &'static str,
    /// Fields in the order of the table.
    pub fields: Vec<Field>,
    /// Replaced as a whole by server-side apply.
    pub atomic: bool,
    /// `Some`: in JSON this message is a list of these.
    pub list_of: Option<Type>,
}

impl Message {
    /// The field of this JSON name, looking into the inlined messages too.
    pub fn field(&'static self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find_map(|field| match field.is_inline() {
            true => field.message()?.field(name),
            false => (field.name == name).then_some(field),
        })
    }

    /// Removes nulls, and the fields of `value` that this has not; adds the paths of the latter to `removed`.
    pub(crate) fn prune(&'static self, value: &mut Value, path: &str, removed: &mut Vec<String>) {
        let Value::Object(map) = value else { return };
        map.retain(|name, value| {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let Some(field) = self.field(name) else {
                removed.push(below);
                return false;
            };
            // A null says no more than absence, and not every client sends it.
            if value.is_null() {
                return false;
            }
            if let Some(message) = field.message().filter(|message| message.list_of.is_none()) {
                match (field.shape, value) {
                    (Shape::One, value) => message.prune(value, &below, removed),
                    (Shape::List, Value::Array(list)) => {
                        for (at, item) in list.iter_mut().enumerate() {
                            message.prune(item, &format!("{below}[{at}]"), removed);
                        }
                    }
                    (Shape::Map, Value::Object(map)) => {
                        for (key, value) in map {
                            message.prune(value, &format!("{below}.{key}"), removed);
                        }
                    }
                    _ => {}
                }
            }
            true
        });
    }
}

#[derive(Debug)]
struct Table {
    messages: Vec<Message>,
    /// By (apiVersion, kind).
    kinds: HashMap<(&'static str, &'static str), usize>,
    object_meta: usize,
}

/// The message behind a type.
pub fn message(of: Type) -> Option<&'static Message> {
    match of {
        Type::Message(at) => TABLE.messages.get(at),
        _ => None,
    }
}

/// The message of a built-in kind. `DeleteOptions` and the like may be sent under any group.
pub fn kind(api_version: &str, kind: &str) -> Option<&'static Message> {
    let table: &'static Table = &TABLE;
    let at = match kind {
        "DeleteOptions" => table.kinds.get(&("v1", "DeleteOptions")),
        _ => table.kinds.get(&(api_version, kind)),
    };
    at.and_then(|at| table.messages.get(*at))
}

/// The metadata of every object.
pub fn object_meta() -> &'static Message {
    let table: &'static Table = &TABLE;
    &table.messages[table.object_meta]
}

impl Table {
    fn parse(text: &'static str) -> Self {
        let lines = || text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
        let names: HashMap<&str, usize> = lines()
            .filter_map(|line| line.strip_prefix("message ").or_else(|| line.strip_prefix("list ")))
            .filter_map(|line| line.split(' ').next())
            .enumerate()
            .map(|(at, name)| (name, at))
            .collect();
        let mut table =
            Self { messages: Vec::with_capacity(names.len()), kinds: HashMap::new(), object_meta: 0 };
        for line in lines() {
            let words = words(line);
            match words.as_slice() {
                ["kind", api_version, kind, name] => {
                    table.kinds.insert((*api_version, *kind), names[name]);
                }
                ["list", name, of] => {
                    let list_of = Some(type_of(of, &names));
                    table.messages.push(Message { name, fields: Vec::new(), atomic: false, list_of });
                }
                ["message", name, rest @ ..] => {
                    let atomic = rest.contains(&"atomic");
                    table.messages.push(Message { name, fields: Vec::new(), atomic, list_of: None });
                }
                [number, name, of, rules @ ..] => {
                    let number = number.parse().expect("a field of the table begins with its number");
                    let last = table.messages.last_mut().expect("a message stands before its fields");
                    last.fields.push(field(number, name, of, rules, &names));
                }
                _ => unreachable!("a line of the table has at least three words: {line}"),
            }
        }
        table.object_meta = names["ObjectMeta"];
        table
    }
}

fn field(
    number: u32,
    name: &'static str,
    of: &str,
    rules: &[&'static str],
    names: &HashMap<&str, usize>,
) -> Field {
    let required = name.contains('!');
    let presence = name.contains('?');
    let name = name.trim_end_matches(['?', '!']);
    let (shape, of) = match (of.strip_prefix("[]"), of.strip_prefix("{}")) {
        (Some(of), _) => (Shape::List, of),
        (_, Some(of)) => (Shape::Map, of),
        _ => (Shape::One, of),
    };
    let of = type_of(of, names);
    let mut field = Field {
        number,
        name,
        presence,
        required,
        shape,
        of,
        merge_key: None,
        retain_keys: false,
        topology: Topology::Default,
    };
    for rule in rules {
        match rule.split_once(':') {
            Some(("merge", key)) => field.merge_key = Some(key),
            Some(("map", keys)) => field.topology = Topology::MapList(keys),
            _ => match *rule {
                "merge" => field.merge_key = Some(""),
                "retain" => field.retain_keys = true,
                "set" => field.topology = Topology::Set,
                "atomic" => field.topology = Topology::Atomic,
                _ => {} // `replace` is what happens anyway
            },
        }
    }
    field
}

fn type_of(name: &str, names: &HashMap<&str, usize>) -> Type {
    match name {
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "double" => Type::Double,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrString,
        "any" => Type::Any,
        "fields" => Type::Fields,
        "duration" => Type::Duration,
        _ => Type::Message(names[name]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_together() {
        for message in &TABLE.messages {
            let mut numbers: Vec<u32> = message.fields.iter().map(|field| field.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), message.fields.len(), "numbers of {} repeat", message.name);
        }
        assert_eq!(object_meta().field("ownerReferences").unwrap().merge_key, Some("uid"));
    }

    #[test]
    fn inlined_fields_are_found_by_their_own_name() {
        let pod = kind("v1", "Pod").unwrap();
        let spec = pod.field("spec").unwrap().message().unwrap();
        let volume = spec.field("volumes").unwrap().message().unwrap();
        assert!(volume.field("hostPath").is_some());
        assert!(volume.field("volumeSource").is_none());
        assert!(spec.field("volumes").unwrap().retain_keys);
    }

    #[test]
    fn the_two_kinds_of_events_are_different_messages() {
        assert_ne!(kind("v1", "Event").unwrap().name, kind("events.k8s.io/v1", "Event").unwrap().name);
    }
}
