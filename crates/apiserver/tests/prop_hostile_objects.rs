//! Objects of any shape go through everything that a write and a table do with them, without a panic.

use apiserver::apply::{self, Request};
use apiserver::patch::{self, PatchType};
use apiserver::schema::Schema;
use apiserver::selector::{FieldSelector, LabelSelector};
use apiserver::table::{Columns, IncludeObject, table};
use apiserver::{defaults, jsonpath, negotiation, openapi, protobuf, registry::Registry, validate};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Words that the rules look for, so that random objects get past their first field.
const WORDS: [&str; 42] = [
    "metadata",
    "name",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "spec",
    "status",
    "template",
    "selector",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "containers",
    "initContainers",
    "volumes",
    "ports",
    "port",
    "containerPort",
    "resources",
    "limits",
    "env",
    "valueFrom",
    "fieldRef",
    "tolerations",
    "conditions",
    "type",
    "strategy",
    "rollingUpdate",
    "subsets",
    "addresses",
    "ingress",
    "$patch",
    "$retainKeys",
    "$setElementOrder/ports",
    "$deleteFromPrimitiveList/finalizers",
    "containerStatuses",
    "state",
    "replicas",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![8 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned), 1 => "[a-z./]{0,8}"]
}

/// An object with a few of the usual fields, each of any shape.
fn any_object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(word(), any_json(), 1..10)
        .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>()))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
        Just(json!("delete")),
        Just(json!("2026-01-01T00:00:00Z")),
    ];
    leaf.prop_recursive(7, 64, 6, |inner| {
        prop_oneof![
            2 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::btree_map(word(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// An object of a kind: whatever else it is, these two fields are right.
fn object_of(api_version: &str, kind: &str, any: &Value) -> Value {
    let mut object = any.as_object().cloned().unwrap_or_default();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    object.into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn built_in_kinds_take_any_object(any in any_object(), patch in any_object()) {
        for resource in Registry::default().resources() {
            let api_version = resource.api_version();
            let mut object = object_of(&api_version, &resource.kind, &any);
            let patch = object_of(&api_version, &resource.kind, &patch);
            validate::unknown_fields(&api_version, &resource.kind, &mut object);
            prop_assert!(validate::unknown_fields(&api_version, &resource.kind, &mut object.clone()).is_empty());
            defaults::apply_defaults(&resource.group, &resource.kind, &mut object);
            let once = object.clone();
            defaults::apply_defaults(&resource.group, &resource.kind, &mut object);
            prop_assert_eq!(&once, &object, "defaults of {} do not settle", resource.kind);
            validate::validate_builtin(&resource.group, &resource.kind, &object, Some(&patch));
            let columns = Columns::for_kind(&resource.group, &resource.plural);
            table(&columns, &[&object], IncludeObject::Metadata, json!({}), jiff::Timestamp::UNIX_EPOCH);
            for kind in [PatchType::Strategic, PatchType::Merge, PatchType::Json] {
                drop(patch::apply(kind, &object, &patch));
            }
            FieldSelector::default().matches(resource, &object);
        }
    }

    #[test]
    fn applying_any_object_settles(current in any_object(), applied in any_object()) {
        for (api_version, kind) in [("apps/v1", "Deployment"), ("v1", "Service"), ("e.org/v1", "Cat")] {
            let current = object_of(api_version, kind, &current);
            let mut applied = object_of(api_version, kind, &applied);
            if let Some(metadata) = applied.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            let request = |current| Request {
                manager: "m", subresource: "", force: true, api_version, kind,
                now: "2026-01-01T00:00:00Z", schema: None, current: Some(current), applied: &applied,
            };
            if let Ok(once) = apply::apply(&request(&current))
                && once["metadata"].is_object()
            {
                prop_assert_eq!(apply::apply(&request(&once)).ok(), Some(once.clone()));
            }
        }
    }

    #[test]
    fn schemas_take_any_schema_and_any_object(schema in any_object(), object in any_object()) {
        let mut root = schema.as_object().cloned().unwrap_or_default();
        root.insert("type".to_owned(), "object".into());
        let sound = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string", "default": "x"}}}}}}}});
        for schema in [Value::Object(root), sound] {
            if let Ok(schema) = Schema::compile(&schema) {
                let mut object = object.clone();
                schema.prune(&mut object);
                prop_assert!(schema.prune(&mut object.clone()).is_empty());
                schema.default(&mut object);
                schema.validate(&object, None);
                prop_assert!(schema.validate(&object, Some(&object)).is_empty());
            }
        }
    }

    #[test]
    fn texts_and_bytes_are_read_or_refused(text in ".{0,64}", bytes in prop::collection::vec(any::<u8>(), 0..96)) {
        drop(LabelSelector::parse(&text));
        drop(FieldSelector::parse(&text));
        drop(jsonpath::JsonPath::parse(&text));
        negotiation::accept(Some(&text));
        negotiation::discovery(Some(&text));
        openapi::v3_document(&Registry::default(), &text);
        let begin = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12";
        drop(protobuf::decode(&[&begin[..], &bytes].concat()));
        drop(protobuf::decode(&bytes));
    }
}
