//! Validation rules: what a schema says of a value in the expression language.

use super::validate::old_item;
use super::{Additional, Kind, Node, below};
use crate::cel::{Budget, Program, Subject};
use crate::error::{FieldError, FieldFault};
use serde_json::{Number, Value, json};
use std::borrow::Cow;

/// Faults reported for one object, at most.
const MAX_FAULTS: usize = 100;

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) source: String,
    pub(super) program: Program,
    pub(super) message: String,
    pub(super) message_program: Option<Program>,
    pub(super) fault: FieldFault,
    /// Where in the value the fault is told, as `.min`; empty: at the value itself.
    pub(super) field: String,
}

/// Judges the rules of an object. Other faults that its shape has may keep them from being judged.
pub(super) fn judge(root: &Node, object: &Value, old: Option<&Value>, faults: &mut Vec<FieldError>) {
    let blocks = |fault: &FieldError| {
        matches!(
            fault.fault,
            FieldFault::Required
                | FieldFault::TypeInvalid
                | FieldFault::NotSupported
                | FieldFault::TooLong
                | FieldFault::TooMany
        )
    };
    if faults.iter().any(blocks) {
        let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        faults.push(FieldError::invalid("<nil>", &Value::Null, detail));
        return;
    }
    walk(root, object, old, "", &mut Judged { faults, budget: Budget::default() });
}

/// What was found out about one object.
struct Judged<'a> {
    faults: &'a mut Vec<FieldError>,
    budget: Budget,
}

fn walk(node: &Node, value: &Value, old: Option<&Value>, path: &str, judged: &mut Judged<'_>) {
    if old == Some(value) || value.is_null() || judged.faults.len() >= MAX_FAULTS || judged.budget.is_spent()
    {
        return;
    }
    if !node.rules.is_empty() {
        let (value, old) = (declared(node, value), old.map(|old| declared(node, old)));
        let subject = Subject::new(&value, old.as_deref(), &mut judged.budget);
        for rule in &node.rules {
            let fault = rule.judge(&subject, old.is_some(), path, &mut judged.budget);
            judged.faults.extend(fault);
            if judged.budget.is_spent() {
                let detail = "validation failed due to running out of cost budget, no further validation rules will be run";
                judged.faults.push(FieldError::invalid(path, &json!(""), detail));
                return;
            }
        }
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let known = match (node.properties.get(name), &node.additional) {
                    (Some(property), _) => property,
                    (None, Additional::Of(values)) => values,
                    _ => continue,
                };
                walk(known, value, old.and_then(|old| old.get(name)), &below(path, name), judged);
            }
        }
        Value::Array(list) => {
            let Some(items) = &node.items else { return };
            for (at, item) in list.iter().enumerate() {
                let old = old_item(&node.list_type, item, at, old);
                walk(items, item, old, &format!("{path}[{at}]"), judged);
            }
        }
        _ => {}
    }
}

/// The value with numbers as the schema declares them: 1 is the double 1.0 where it says `number`, for a rule that
/// multiplies it with another.
fn declared<'a>(node: &Node, value: &'a Value) -> Cow<'a, Value> {
    match value {
        Value::Number(number) if node.kind == Some(Kind::Number) && !number.is_f64() => {
            match number.as_f64().and_then(Number::from_f64) {
                Some(double) => Cow::Owned(double.into()),
                None => Cow::Borrowed(value),
            }
        }
        Value::Object(map) => {
            let changed: Vec<(&String, Value)> = map
                .iter()
                .filter_map(|(name, value)| match (node.properties.get(name), &node.additional) {
                    (Some(property), _) => Some((name, declared(property, value))),
                    (None, Additional::Of(values)) => Some((name, declared(values, value))),
                    _ => None,
                })
                .filter_map(|(name, value)| match value {
                    Cow::Owned(value) => Some((name, value)),
                    Cow::Borrowed(_) => None,
                })
                .collect();
            if changed.is_empty() {
                return Cow::Borrowed(value);
            }
            let mut map = map.clone();
            map.extend(changed.into_iter().map(|(name, value)| (name.clone(), value)));
            Cow::Owned(map.into())
        }
        Value::Array(list) => {
            let Some(items) = &node.items else { return Cow::Borrowed(value) };
            let list: Vec<Cow<'_, Value>> = list.iter().map(|item| declared(items, item)).collect();
            match list.iter().all(|item| matches!(item, Cow::Borrowed(_))) {
                true => Cow::Borrowed(value),
                false => Cow::Owned(list.into_iter().map(Cow::into_owned).collect()),
            }
        }
        _ => Cow::Borrowed(value),
    }
}

impl Rule {
    fn judge(
        &self,
        subject: &Subject<'_>,
        has_old: bool,
        path: &str,
        budget: &mut Budget,
    ) -> Option<FieldError> {
        if self.program.uses_old() && !has_old {
            return None;
        }
        let field = format!("{path}{}", self.field);
        let field = field.trim_start_matches('.').to_owned();
        let message = match self.program.judge(subject, budget) {
            Ok(Value::Bool(true)) => return None,
            Ok(Value::Bool(false)) => {
                let made =
                    self.message_program.as_ref().and_then(|program| program.judge(subject, budget).ok());
                made.as_ref().and_then(Value::as_str).unwrap_or(&self.message).to_owned()
            }
            Ok(other) => format!("{other} is neither true nor false evaluating rule: {}", self.source),
            Err(error) => format!("{error} evaluating rule: {}", self.source),
        };
        Some(FieldError {
            message: match self.fault {
                FieldFault::Required => format!("Required value: {message}"),
                FieldFault::Forbidden => format!("Forbidden: {message}"),
                FieldFault::Duplicate => format!("Duplicate value: {message}"),
                _ => format!("Invalid value: {message}"),
            },
            fault: self.fault,
            ..FieldError::invalid(field, &json!(""), "")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Schema;
    use serde_json::{Value, json};

    fn schema() -> Schema {
        Schema::compile(&json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min is above max", "fieldPath": ".min"},
                {"rule": "!has(self.note) || self.note != ''", "reason": "FieldValueForbidden"},
            ],
            "properties": {
                "min": {"type": "integer", "default": 0},
                "max": {"type": "integer", "maximum": 100},
                "note": {"type": "string"},
                "fixed": {"type": "string", "x-kubernetes-validations": [
                    {"rule": "self == oldSelf", "messageExpression": "'was ' + oldSelf"}]},
                "list": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}},
            },
        }}}))
        .unwrap()
    }

    fn faults(spec: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(|spec| json!({"spec": spec}));
        schema().validate(&json!({"spec": spec}), old.as_ref()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_judged_where_they_stand() {
        assert_eq!(faults(json!({"min": 1, "max": 2, "list": [1]}), None), Vec::<String>::new());
        assert_eq!(faults(json!({"min": 3, "max": 2}), None), ["spec.min: Invalid value: min is above max"]);
        assert_eq!(
            faults(json!({"min": 1, "max": 2, "note": ""}), None),
            ["spec: Forbidden: failed rule: !has(self.note) || self.note != ''"]
        );
        assert_eq!(
            faults(json!({"min": 1, "max": 2, "list": [1, 0]}), None),
            ["spec.list[1]: Invalid value: failed rule: self > 0"]
        );
        assert_eq!(
            faults(json!({"min": 1}), None),
            ["spec.min: Invalid value: no such key: max evaluating rule: self.min <= self.max"]
        );
    }

    #[test]
    fn what_must_not_change_is_compared_with_what_was() {
        assert!(faults(json!({"min": 1, "max": 2, "fixed": "a"}), None).is_empty());
        let old = json!({"min": 1, "max": 2, "fixed": "a"});
        assert!(faults(json!({"min": 1, "max": 3, "fixed": "a"}), Some(old.clone())).is_empty());
        assert_eq!(
            faults(json!({"min": 1, "max": 2, "fixed": "b"}), Some(old)),
            ["spec.fixed: Invalid value: was a"]
        );
    }

    #[test]
    fn an_object_of_the_wrong_shape_is_not_judged_further() {
        let told = faults(json!({"min": "x", "max": 2}), None);
        assert_eq!(told.len(), 2);
        assert!(told[1].starts_with("<nil>: Invalid value: null: some validation rules were not checked"));
        // A bound that is crossed keeps nothing from being judged.
        assert_eq!(faults(json!({"min": 200, "max": 101}), None).len(), 2);
    }

    #[test]
    fn rules_that_cannot_be_read_are_refused_and_those_that_need_more_are_told() {
        let with = |rule: &str| {
            Schema::compile(&json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}]}))
        };
        let refused = with("self.a ==").unwrap_err();
        assert_eq!(refused[0].field, "x-kubernetes-validations[0].rule");
        assert_eq!(with("isURL(self.a)").unwrap().unjudged_rules(), ["isURL(self.a)"]);
        assert!(with("has(self.a)").unwrap().unjudged_rules().is_empty());
    }

    #[test]
    fn a_whole_number_is_a_double_where_the_schema_says_number() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "x-kubernetes-validations": [{"rule": "self.share * 2.0 + self.list[0] <= 3.0"}, {"rule": "self.count % 2 == 0"}],
            "properties": {
                "share": {"type": "number"},
                "count": {"type": "integer"},
                "list": {"type": "array", "items": {"type": "number"}},
            },
        }}}))
        .unwrap();
        let object = |share: u8| json!({"spec": {"share": share, "count": 2, "list": [1]}});
        assert!(schema.validate(&object(1), None).is_empty());
        assert_eq!(schema.validate(&object(2), None).len(), 1);
    }

    #[test]
    fn the_rules_of_one_object_end_together() {
        let slow = "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))";
        let rules: Vec<Value> = (0..50).map(|_| json!({"rule": slow})).collect();
        let schema = Schema::compile(&json!({"type": "object", "properties": {"list": {
            "type": "array", "items": {"type": "integer"}, "x-kubernetes-validations": rules,
        }}}))
        .unwrap();
        let told = schema.validate(&json!({"list": (0..300).collect::<Vec<_>>()}), None);
        assert!(told.len() < 10, "{} rules were judged", told.len());
        assert!(told[0].message.contains("the rule takes too many steps"), "{told:?}");
        assert!(told[told.len() - 1].message.contains("running out of cost budget"), "{told:?}");
    }
}
