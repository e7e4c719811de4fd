//! Rules of the kinds that make pods from a template.

use super::{metadata, pod, unchanged};
use crate::error::FieldError;
use crate::selector::LabelSelector;
use serde_json::Value;

pub(super) fn check(kind: &str, object: &Value, old: Option<&Value>, faults: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    match kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            selector(&spec["selector"], &spec["template"], faults);
            template(&spec["template"], "spec.template", &["Always"], faults);
            unchanged(object, old, "spec.selector", faults);
            if kind == "StatefulSet" {
                unchanged(object, old, "spec.serviceName", faults);
                unchanged(object, old, "spec.volumeClaimTemplates", faults);
            }
        }
        "ReplicationController" => template(&spec["template"], "spec.template", &["Always"], faults),
        "Job" => {
            template(&spec["template"], "spec.template", &["OnFailure", "Never"], faults);
            unchanged(object, old, "spec.selector", faults);
            // A job that has not begun may still get other labels and constraints; this lab's jobs begin at once.
            unchanged(object, old, "spec.template", faults);
            unchanged(object, old, "spec.completionMode", faults);
        }
        "CronJob" => {
            let job = &spec["jobTemplate"]["spec"];
            template(&job["template"], "spec.jobTemplate.spec.template", &["OnFailure", "Never"], faults);
            let schedule = spec["schedule"].as_str().unwrap_or_default();
            if schedule.is_empty() {
                faults.push(FieldError::required("spec.schedule", ""));
            } else if !schedule.starts_with('@') && schedule.split_whitespace().count() != 5 {
                let detail = "must have five fields: minute, hour, day of month, month, day of week";
                faults.push(FieldError::invalid("spec.schedule", &spec["schedule"], detail));
            }
        }
        _ => return,
    }
    for field in
        ["replicas", "minReadySeconds", "revisionHistoryLimit", "parallelism", "completions", "backoffLimit"]
    {
        if spec[field].as_i64().is_some_and(|number| number < 0) {
            let detail = "must be greater than or equal to 0";
            faults.push(FieldError::invalid(format!("spec.{field}"), &spec[field], detail));
        }
    }
}

fn selector(selector: &Value, template: &Value, faults: &mut Vec<FieldError>) {
    const FIELD: &str = "spec.selector";
    if selector.is_null() {
        return faults.push(FieldError::required(FIELD, ""));
    }
    match LabelSelector::from_value(selector) {
        Err(why) => faults.push(FieldError::invalid(FIELD, selector, &why)),
        Ok(parsed) if parsed.is_empty() => {
            faults.push(FieldError::invalid(FIELD, selector, "empty selector is invalid for a workload"));
        }
        Ok(parsed) if !parsed.matches(&template["metadata"]["labels"]) => {
            let labels = &template["metadata"]["labels"];
            let detail = "`selector` does not match template `labels`";
            faults.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
        }
        Ok(_) => {}
    }
}

fn template(template: &Value, path: &str, policies: &[&str], faults: &mut Vec<FieldError>) {
    metadata::labels(&template["metadata"]["labels"], &format!("{path}.metadata.labels"), faults);
    let spec = &template["spec"];
    pod::check(spec, &format!("{path}.spec"), faults);
    if let Some(policy) = spec["restartPolicy"].as_str().filter(|policy| !policies.contains(policy)) {
        let field = format!("{path}.spec.restartPolicy");
        faults.push(FieldError::not_supported(field, &policy.into(), policies));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(selector: Value, labels: Value) -> Value {
        json!({"spec": {"selector": selector, "replicas": 1, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "a", "image": "x"}]}}}})
    }

    fn faults(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut faults = Vec::new();
        check(kind, object, old, &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_selector_must_match_the_template() {
        let fits = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "a"}));
        assert!(faults("Deployment", &fits, None).is_empty());
        let differs = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "b"}));
        assert_eq!(
            faults("Deployment", &differs, None),
            [
                r#"spec.template.metadata.labels: Invalid value: {"app":"b"}: `selector` does not match template `labels`"#
            ]
        );
        let missing = deployment(Value::Null, json!({"app": "b"}));
        assert_eq!(faults("DaemonSet", &missing, None), ["spec.selector: Required value"]);
        let empty = deployment(json!({}), json!({"app": "b"}));
        assert_eq!(faults("ReplicaSet", &empty, None).len(), 1);
    }

    #[test]
    fn the_selector_stays() {
        let old = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "a"}));
        let new = deployment(json!({"matchLabels": {"app": "b"}}), json!({"app": "b"}));
        let faults = faults("Deployment", &new, Some(&old));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].ends_with("field is immutable"), "{}", faults[0]);
    }

    #[test]
    fn jobs_do_not_restart_their_pods_for_ever() {
        let job = |policy: &str| {
            json!({"spec": {"template": {"spec": {"restartPolicy": policy,
                "containers": [{"name": "a", "image": "x"}]}}}})
        };
        assert!(faults("Job", &job("Never"), None).is_empty());
        assert_eq!(faults("Job", &job("Always"), None).len(), 1);
    }

    #[test]
    fn counts_are_not_negative() {
        let mut object = deployment(json!({"matchLabels": {"app": "a"}}), json!({"app": "a"}));
        object["spec"]["replicas"] = (-1).into();
        assert_eq!(
            faults("Deployment", &object, None),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
    }
}
