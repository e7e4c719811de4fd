//! Rows of the kinds that make pods.

use super::format::{NONE, UNKNOWN, age, containers, count, items, labels, name, selector, since, text};
use super::{Cells, Head, number, shown, wide};
use crate::age as ages;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn printer(group: &str, resource: &str) -> Option<(&'static [Head], Cells)> {
    Some(match (group, resource) {
        ("apps", "deployments") => (
            const {
                &[
                    shown("Name"),
                    shown("Ready"),
                    number("Up-to-date"),
                    number("Available"),
                    shown("Age"),
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            deployment,
        ),
        ("apps", "replicasets") | ("", "replicationcontrollers") => (
            const {
                &[
                    shown("Name"),
                    number("Desired"),
                    number("Current"),
                    number("Ready"),
                    shown("Age"),
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            replica_set,
        ),
        ("apps", "daemonsets") => (
            const {
                &[
                    shown("Name"),
                    number("Desired"),
                    number("Current"),
                    number("Ready"),
                    number("Up-to-date"),
                    number("Available"),
                    shown("Node Selector"),
                    shown("Age"),
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            daemon_set,
        ),
        ("apps", "statefulsets") => (
            const { &[shown("Name"), shown("Ready"), shown("Age"), wide("Containers"), wide("Images")] },
            stateful_set,
        ),
        ("apps", "controllerrevisions") => (
            const { &[shown("Name"), shown("Controller"), number("Revision"), shown("Age")] },
            controller_revision,
        ),
        ("batch", "jobs") => (
            const {
                &[
                    shown("Name"),
                    shown("Completions"),
                    shown("Duration"),
                    shown("Age"),
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            job,
        ),
        ("batch", "cronjobs") => (
            const {
                &[
                    shown("Name"),
                    shown("Schedule"),
                    shown("Suspend"),
                    number("Active"),
                    shown("Last Schedule"),
                    shown("Age"),
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            },
            cron_job,
        ),
        ("", "podtemplates") => (
            const { &[shown("Name"), shown("Containers"), shown("Images"), shown("Pod Labels")] },
            pod_template,
        ),
        ("policy", "poddisruptionbudgets") => (
            const {
                &[
                    shown("Name"),
                    shown("Min Available"),
                    shown("Max Unavailable"),
                    number("Allowed Disruptions"),
                    shown("Age"),
                ]
            },
            disruption_budget,
        ),
        _ => return None,
    })
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let (names, images) = containers(&spec["template"]);
    vec![
        name(object),
        format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"])).into(),
        count(&status["updatedReplicas"]).into(),
        count(&status["availableReplicas"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(&spec["selector"]).into(),
    ]
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let (names, images) = containers(&spec["template"]);
    let structured = spec["selector"].get("matchLabels").or_else(|| spec["selector"].get("matchExpressions"));
    vec![
        name(object),
        count(&spec["replicas"]).into(),
        count(&status["replicas"]).into(),
        count(&status["readyReplicas"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        // A replication controller's selector is a plain map.
        if structured.is_some() { selector(&spec["selector"]) } else { labels(&spec["selector"]) }.into(),
    ]
}

fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let (names, images) = containers(&spec["template"]);
    vec![
        name(object),
        count(&status["desiredNumberScheduled"]).into(),
        count(&status["currentNumberScheduled"]).into(),
        count(&status["numberReady"]).into(),
        count(&status["updatedNumberScheduled"]).into(),
        count(&status["numberAvailable"]).into(),
        labels(&spec["template"]["spec"]["nodeSelector"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(&spec["selector"]).into(),
    ]
}

fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let (names, images) = containers(&spec["template"]);
    vec![
        name(object),
        format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"])).into(),
        age(object, now),
        names.into(),
        images.into(),
    ]
}

fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let controller = items(&object["metadata"]["ownerReferences"])
        .iter()
        .find(|owner| owner["controller"] == true)
        .map_or_else(
            || NONE.to_owned(),
            |owner| {
                let (group, _) = text(&owner["apiVersion"]).rsplit_once('/').unwrap_or(("", ""));
                let kind = text(&owner["kind"]).to_lowercase();
                let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
                format!("{kind}/{}", text(&owner["name"]))
            },
        );
    vec![name(object), controller.into(), count(&object["revision"]).into(), age(object, now)]
}

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let succeeded = count(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), count(&spec["parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel @ 2..) => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let start: Option<Timestamp> = text(&status["startTime"]).parse().ok();
    let end: Option<Timestamp> = text(&status["completionTime"]).parse().ok();
    let duration =
        start.map(|start| ages::human(ages::whole_seconds(start, end.unwrap_or(now)))).unwrap_or_default();
    let (names, images) = containers(&spec["template"]);
    vec![
        name(object),
        completions.into(),
        duration.into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(&spec["selector"]).into(),
    ]
}

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let last = match since(&status["lastScheduleTime"], now) {
        none if none == UNKNOWN => NONE.to_owned(),
        since => since,
    };
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let job = &spec["jobTemplate"]["spec"];
    let (names, images) = containers(&job["template"]);
    vec![
        name(object),
        text(&spec["schedule"]).into(),
        suspended.into(),
        items(&status["active"]).len().into(),
        last.into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(&job["selector"]).into(),
    ]
}

fn pod_template(object: &Value, _now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(&object["template"]);
    vec![name(object), names.into(), images.into(), labels(&object["template"]["metadata"]["labels"]).into()]
}

fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |value: &Value| match value {
        Value::Null => "N/A".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let spec = &object["spec"];
    vec![
        name(object),
        bound(&spec["minAvailable"]).into(),
        bound(&spec["maxUnavailable"]).into(),
        count(&object["status"]["disruptionsAllowed"]).into(),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use crate::table::format::testing::{cell, row_of};
    use serde_json::{Value, json};

    #[test]
    fn a_deployment_counts_ready_of_desired() {
        let object = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:58:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
        });
        let cells: Vec<Value> =
            row_of("apps", "deployments", &object).into_iter().map(|(_, cell)| cell).collect();
        assert_eq!(Value::from(cells), json!(["web", "2/3", 3, 2, "2m", "a,b", "x:1,y", "app=web"]));
    }

    #[test]
    fn a_daemon_set_names_its_node_selector() {
        let object = json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}}});
        assert_eq!(cell("apps", "daemonsets", &object, "Node Selector"), "kubernetes.io/os=linux");
        assert_eq!(cell("apps", "daemonsets", &json!({}), "Node Selector"), "<none>");
    }

    #[test]
    fn a_job_shows_how_long_it_took() {
        let object = json!({"spec": {"completions": 3},
            "status": {"succeeded": 3, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:07Z"}});
        assert_eq!(cell("batch", "jobs", &object, "Duration"), "7s");
        assert_eq!(cell("batch", "jobs", &object, "Completions"), "3/3");
        let parallel = json!({"spec": {"parallelism": 2}, "status": {}});
        assert_eq!(cell("batch", "jobs", &parallel, "Completions"), "0/1 of 2");
    }

    #[test]
    fn selectors_with_expressions_are_written_out() {
        let object = json!({"spec": {"selector": {"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]}}});
        assert_eq!(cell("apps", "replicasets", &object, "Selector"), "a in (x,y),b=1,!c");
    }
}
