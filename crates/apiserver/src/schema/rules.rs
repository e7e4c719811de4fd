//! Validation rules: what a schema says of a value in the expression language.

use super::validate::old_item;
use super::{Additional, Node, below};
use crate::cel::Program;
use crate::error::{FieldError, FieldFault};
use serde_json::{Value, json};

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
    walk(root, object, old, "", faults);
}

fn walk(node: &Node, value: &Value, old: Option<&Value>, path: &str, faults: &mut Vec<FieldError>) {
    if old == Some(value) || value.is_null() || faults.len() >= MAX_FAULTS {
        return;
    }
    for rule in &node.rules {
        faults.extend(rule.judge(value, old, path));
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let known = match (node.properties.get(name), &node.additional) {
                    (Some(property), _) => property,
                    (None, Additional::Of(values)) => values,
                    _ => continue,
                };
                walk(known, value, old.and_then(|old| old.get(name)), &below(path, name), faults);
            }
        }
        Value::Array(list) => {
            let Some(items) = &node.items else { return };
            for (at, item) in list.iter().enumerate() {
                let old = old_item(&node.list_type, item, at, old);
                walk(items, item, old, &format!("{path}[{at}]"), faults);
            }
        }
        _ => {}
    }
}

impl Rule {
    fn judge(&self, value: &Value, old: Option<&Value>, path: &str) -> Option<FieldError> {
        if self.program.uses_old() && old.is_none() {
            return None;
        }
        let field = format!("{path}{}", self.field);
        let field = field.trim_start_matches('.').to_owned();
        let message = match self.program.evaluate(value, old) {
            Ok(Value::Bool(true)) => return None,
            Ok(Value::Bool(false)) => {
                let made =
                    self.message_program.as_ref().and_then(|program| program.evaluate(value, old).ok());
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
}
