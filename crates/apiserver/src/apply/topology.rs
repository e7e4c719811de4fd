//! Where in an object one is, and whether lists and objects there are merged or replaced.

use crate::fields::{self, Field, Message, Shape, Topology, Type};
use crate::schema::Walk;
use serde_json::{Map, Value};

/// A place in an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// A whole custom resource.
    Root(Walk<'a>),
    /// In a custom resource.
    Custom(Walk<'a>),
    /// An object of a built-in kind, or one in it.
    Message(&'static Message),
    /// The value of a field of a built-in kind.
    Field(&'static Field),
    /// Nothing is known: objects merge, lists do not.
    Deduced,
}

/// How the value at a place is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Replaced as a whole.
    Atomic,
    /// Field by field.
    Object,
    /// Distinct values.
    Set,
    /// Elements told apart by these fields.
    MapList(Vec<String>),
}

impl<'a> Place<'a> {
    /// How `value`, which stands here, is merged.
    pub(super) fn kind(self, value: &Value) -> Kind {
        match value {
            Value::Object(_) if self.is_atomic_object() => Kind::Atomic,
            Value::Object(_) => Kind::Object,
            Value::Array(_) => match self {
                Self::Custom(walk) if walk.is_set() => Kind::Set,
                Self::Custom(walk) => walk.keys().map_or(Kind::Atomic, |keys| Kind::MapList(keys.to_vec())),
                Self::Field(Field { shape: Shape::List, topology: Topology::Set, .. }) => Kind::Set,
                Self::Field(Field { shape: Shape::List, topology: Topology::MapList(keys), .. }) => {
                    Kind::MapList(keys.split(',').map(str::to_owned).collect())
                }
                _ => Kind::Atomic,
            },
            _ => Kind::Atomic,
        }
    }

    fn is_atomic_object(self) -> bool {
        match self {
            Self::Custom(walk) => walk.is_atomic_map(),
            Self::Message(message) => message.atomic,
            Self::Field(field) => {
                field.topology == Topology::Atomic
                    || matches!(field.of, Type::Any | Type::Fields)
                    || (field.shape == Shape::One && field.message().is_some_and(|message| message.atomic))
            }
            Self::Root(_) | Self::Deduced => false,
        }
    }

    /// The place of a field of the object here.
    pub(super) fn field(self, name: &str) -> Self {
        let of_message = |message: &'static Message| message.field(name).map_or(Self::Deduced, Self::Field);
        match self {
            Self::Root(_) if name == "metadata" => Self::Message(fields::object_meta()),
            Self::Root(walk) | Self::Custom(walk) => Self::Custom(walk.field(name)),
            Self::Message(message) => of_message(message),
            Self::Field(field) => match (field.shape, field.message()) {
                (Shape::One, Some(message)) => of_message(message),
                (Shape::Map, Some(message)) => Self::Message(message),
                _ => Self::Deduced,
            },
            Self::Deduced => Self::Deduced,
        }
    }

    /// The place of the elements of the list here.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Custom(walk) => Self::Custom(walk.items()),
            Self::Field(field) => field.message().map_or(Self::Deduced, Self::Message),
            _ => Self::Deduced,
        }
    }

    /// What tells an element of the list here from the others, as it stands in `managedFields`.
    pub(super) fn id(self, keys: &[String], element: &Value) -> String {
        let id: Map<String, Value> = keys
            .iter()
            .filter_map(|key| {
                let value = element.get(key).filter(|value| !value.is_null()).cloned();
                Some((key.clone(), value.or_else(|| self.default_key(key))?))
            })
            .collect();
        format!("k:{}", Value::Object(id))
    }

    /// A key that the manager left to its default.
    fn default_key(self, key: &str) -> Option<Value> {
        match self {
            Self::Custom(walk) => walk.items().field(key).default_value().cloned(),
            // The one built-in key with a default.
            Self::Field(_) if key == "protocol" => Some("TCP".into()),
            _ => None,
        }
    }
}
