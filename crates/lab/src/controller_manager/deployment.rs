//! Deployment: a ReplicaSet per template, the newest scaled up while the others go down.

use super::action::{Action, Kind, owner_reference};
use super::object;
use serde_json::{Value, json};
use std::fmt::Write as _;

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Name part for a template: equal templates give equal names, at most ten characters without vowels.
pub(super) fn template_hash(owner: &Value) -> String {
    let template = object::at(owner, &["spec", "template"]).map(Value::to_string).unwrap_or_default();
    let hash = template
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    let mut digits = String::new();
    let _ = write!(digits, "{hash}");
    digits.bytes().map(|digit| char::from(b"bcdf456789"[usize::from(digit - b'0')])).collect()
}

/// What brings the ReplicaSets of `deployment` (all those it controls) to its wish. `now` is in RFC 3339.
pub(super) fn reconcile(deployment: &Value, replica_sets: &[&Value], now: &str) -> Vec<Action> {
    if object::is_deleting(deployment) {
        return Vec::new();
    }
    let hash = template_hash(deployment);
    let wanted = object::number(deployment, &["spec", "replicas"]).unwrap_or(1);
    let is_current = |set: &&&Value| object::text(set, &["metadata", "labels", HASH_LABEL]) == hash;
    let current = replica_sets.iter().find(is_current).copied();
    let old: Vec<&Value> = replica_sets.iter().filter(|set| !is_current(set)).copied().collect();
    let old_wanted: i64 = old.iter().map(|set| wish(set)).sum();
    let ready = |set: &Value| object::number(set, &["status", "readyReplicas"]).unwrap_or(0);
    let old_ready: i64 = old.iter().map(|set| ready(set)).sum();
    let current_ready = current.map_or(0, ready);
    let (surge, unavailable) = limits(deployment, wanted);
    let recreate = object::text(deployment, &["spec", "strategy", "type"]) == "Recreate";

    let mut actions = Vec::new();
    let room = if recreate {
        if old_pods(&old) == 0 { wanted } else { 0 }
    } else {
        (wanted + surge - old_wanted).max(0)
    };
    let goal = wanted.min(room);
    match current {
        None => {
            actions.push(Action::Create(Kind::ReplicaSet, replica_set(deployment, &hash, goal, replica_sets)))
        }
        Some(set) => {
            let held = wish(set);
            let next = if held > wanted { wanted } else { held.max(goal) };
            if next != held {
                actions.push(scale(set, next));
            }
        }
    }
    actions.extend(number(deployment, current, replica_sets));
    // Pods of old templates go as fast as the new ones get ready, but no faster than allowed.
    let keep = if recreate { 0 } else { (wanted - unavailable - current_ready).max(0) };
    let mut spare = (old_wanted - keep).max(0);
    for set in old.iter().filter(|set| wish(set) > 0) {
        let cut = wish(set).min(spare);
        if cut > 0 {
            actions.push(scale(set, wish(set) - cut));
            spare -= cut;
        }
    }
    actions.extend(drop_history(deployment, &old));
    actions.extend(status(deployment, replica_sets, current, current_ready + old_ready, now));
    actions
}

/// Numbers the templates in the order of their use, so that a rollout can be undone: the one in use has the highest
/// number, also when it was in use before, and the Deployment says which it is.
fn number(deployment: &Value, current: Option<&Value>, replica_sets: &[&Value]) -> Vec<Action> {
    let newest = newest(replica_sets);
    let mut actions = Vec::new();
    let in_use = match current {
        None => newest + 1,
        Some(set) if revision(set) < newest => {
            actions.push(annotate(Kind::ReplicaSet, set, newest + 1));
            newest + 1
        }
        Some(_) => newest,
    };
    if revision(deployment) != in_use {
        actions.push(annotate(Kind::Deployment, deployment, in_use));
    }
    actions
}

fn annotate(kind: Kind, object: &Value, revision: i64) -> Action {
    let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
    Action::Patch(kind, object::name_of(object), patch)
}

fn wish(set: &Value) -> i64 {
    object::number(set, &["spec", "replicas"]).unwrap_or(0)
}

fn old_pods(old: &[&Value]) -> i64 {
    old.iter().map(|set| object::number(set, &["status", "replicas"]).unwrap_or(0)).sum()
}

fn scale(set: &Value, replicas: i64) -> Action {
    Action::Patch(Kind::ReplicaSet, object::name_of(set), json!({"spec": {"replicas": replicas}}))
}

/// How many pods may exist beyond the wish, and how many of it may be missing, during a rolling update.
fn limits(deployment: &Value, wanted: i64) -> (i64, i64) {
    let value =
        |key: &str, round_up: bool| match object::at(deployment, &["spec", "strategy", "rollingUpdate", key])
        {
            Some(Value::Number(number)) => number.as_i64().unwrap_or(0).max(0),
            Some(Value::String(text)) => percent(text, wanted, round_up),
            _ => percent("25%", wanted, round_up),
        };
    let (surge, unavailable) = (value("maxSurge", true), value("maxUnavailable", false));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

fn percent(text: &str, of: i64, round_up: bool) -> i64 {
    let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(25);
    let product = of.saturating_mul(percent.clamp(0, 100));
    if round_up { (product + 99) / 100 } else { product / 100 }
}

fn replica_set(deployment: &Value, hash: &str, replicas: i64, existing: &[&Value]) -> Value {
    let (namespace, name) = object::name_of(deployment);
    let mut template = object::at(deployment, &["spec", "template"]).cloned().unwrap_or_else(|| json!({}));
    object::set(&mut template, &["metadata", "labels", HASH_LABEL], json!(hash));
    let mut selector = object::at(deployment, &["spec", "selector"]).cloned().unwrap_or_else(|| json!({}));
    object::set(&mut selector, &["matchLabels", HASH_LABEL], json!(hash));
    let revision = newest(existing) + 1;
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{name}-{hash}"),
            "namespace": namespace,
            "labels": template["metadata"]["labels"],
            "annotations": {REVISION: revision.to_string()},
            "ownerReferences": owner_reference(Kind::Deployment, deployment),
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    })
}

fn newest(sets: &[&Value]) -> i64 {
    sets.iter().map(|set| revision(set)).max().unwrap_or(0)
}

fn revision(numbered: &Value) -> i64 {
    object::text(numbered, &["metadata", "annotations", REVISION]).parse().unwrap_or(0)
}

/// Empty ReplicaSets of old templates beyond the history limit are removed, oldest first.
fn drop_history(deployment: &Value, old: &[&Value]) -> Vec<Action> {
    let limit = usize::try_from(object::number(deployment, &["spec", "revisionHistoryLimit"]).unwrap_or(10))
        .unwrap_or(10);
    let mut empty: Vec<&&Value> = old.iter().filter(|set| wish(set) == 0 && old_pods(&[set]) == 0).collect();
    empty.sort_by_key(|set| revision(set));
    let excess = empty.len().saturating_sub(limit);
    empty
        .into_iter()
        .take(excess)
        .map(|set| Action::Delete(Kind::ReplicaSet, object::name_of(set), object::uid(set).to_owned()))
        .collect()
}

fn status(
    deployment: &Value,
    sets: &[&Value],
    current: Option<&Value>,
    ready: i64,
    now: &str,
) -> Option<Action> {
    let wanted = object::number(deployment, &["spec", "replicas"]).unwrap_or(1);
    let total = old_pods(sets);
    let updated = current.map_or(0, |set| old_pods(&[set]));
    let (_, unavailable) = limits(deployment, wanted);
    let available = ready >= wanted - unavailable;
    let done = ready >= wanted && updated >= wanted && total == updated;
    let name = current.map(|set| object::name_of(set).1).unwrap_or_default();
    let conditions = json!([
        condition(
            deployment,
            "Available",
            available,
            now,
            if available {
                ("MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
            } else {
                ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.".to_owned())
            }
        ),
        condition(
            deployment,
            "Progressing",
            true,
            now,
            if done {
                ("NewReplicaSetAvailable", format!("ReplicaSet \"{name}\" has successfully progressed."))
            } else {
                ("ReplicaSetUpdated", format!("ReplicaSet \"{name}\" is progressing."))
            }
        ),
    ]);
    let mut wish = json!({
        "replicas": total,
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": (wanted - ready).max(0),
        "observedGeneration": object::number(deployment, &["metadata", "generation"]).unwrap_or(1),
        "conditions": conditions,
    });
    let held = deployment.get("status").cloned().unwrap_or_else(|| json!({}));
    let fields = wish.as_object_mut()?;
    let zero = json!(0);
    fields.retain(|key, value| held.get(key).unwrap_or(&zero) != value);
    (!fields.is_empty()).then(|| {
        Action::PatchStatus(Kind::Deployment, object::name_of(deployment), json!({ "status": wish }))
    })
}

/// A condition, with the times of the one held if nothing about it changes.
fn condition(
    deployment: &Value,
    kind: &str,
    holds: bool,
    now: &str,
    (reason, message): (&str, String),
) -> Value {
    let status = if holds { "True" } else { "False" };
    let held = object::items(deployment, &["status", "conditions"]).iter().find(|condition| {
        object::text(condition, &["type"]) == kind && object::text(condition, &["status"]) == status
    });
    if let Some(held) = held
        && object::text(held, &["reason"]) == reason
        && object::text(held, &["message"]) == message
    {
        return held.clone();
    }
    let transition = held.map_or(now, |held| object::text(held, &["lastTransitionTime"]));
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": transition, "lastUpdateTime": now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn deployment(replicas: i64, image: &str) -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop", "uid": "d", "generation": 1},
               "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image}]}}}})
    }

    fn made(actions: &[Action]) -> Value {
        match actions.iter().find(|action| matches!(action, Action::Create(..))) {
            Some(Action::Create(Kind::ReplicaSet, set)) => set.clone(),
            other => panic!("expected a ReplicaSet, got {other:?}"),
        }
    }

    fn running(mut set: Value, pods: i64) -> Value {
        set["spec"]["replicas"] = json!(pods);
        set["status"] = json!({"replicas": pods, "readyReplicas": pods});
        set
    }

    fn scales(actions: &[Action]) -> Vec<(String, i64)> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::Patch(Kind::ReplicaSet, (_, name), patch) => {
                    Some((name.clone(), patch["spec"]["replicas"].as_i64().unwrap()))
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_new_deployment_makes_one_replica_set_with_the_hash_in_name_and_selector() {
        let set = made(&reconcile(&deployment(3, "a"), &[], NOW));
        let hash = template_hash(&deployment(3, "a"));
        assert_eq!(set["metadata"]["name"], format!("web-{hash}"));
        assert_eq!(set["spec"]["selector"]["matchLabels"]["pod-template-hash"], hash);
        assert_eq!(set["spec"]["replicas"], 3);
        assert!(hash.len() <= 10 && hash.bytes().all(|byte| b"bcdf456789".contains(&byte)), "{hash}");
    }

    #[test]
    fn scaling_changes_the_current_replica_set_only() {
        let set = running(made(&reconcile(&deployment(3, "a"), &[], NOW)), 3);
        let actions = reconcile(&deployment(10, "a"), &[&set], NOW);
        assert_eq!(scales(&actions), [(object::name_of(&set).1, 10)]);
        let actions = reconcile(&deployment(0, "a"), &[&set], NOW);
        assert_eq!(scales(&actions), [(object::name_of(&set).1, 0)]);
    }

    #[test]
    fn a_rolling_update_stays_within_surge_and_unavailability() {
        let old = running(made(&reconcile(&deployment(4, "a"), &[], NOW)), 4);
        let wish = deployment(4, "b");
        let actions = reconcile(&wish, &[&old], NOW);
        let new = made(&actions);
        assert_eq!(new["spec"]["replicas"], 1, "25% of four may exist beyond the wish");
        assert_eq!(scales(&actions), [(object::name_of(&old).1, 3)], "25% of four may be missing");
        let (new, old) = (running(new, 4), running(old, 0));
        assert_eq!(scales(&reconcile(&wish, &[&new, &old], NOW)), vec![]);
    }

    #[test]
    fn the_template_in_use_has_the_highest_number_and_the_deployment_says_it() {
        let numbered = |actions: &[Action]| -> Vec<(Kind, String)> {
            let annotations =
                |patch: &Value| patch["metadata"]["annotations"][REVISION].as_str().map(Into::into);
            actions
                .iter()
                .filter_map(|action| match action {
                    Action::Patch(kind, _, patch) => Some((*kind, annotations(patch)?)),
                    _ => None,
                })
                .collect()
        };
        let first = reconcile(&deployment(2, "a"), &[], NOW);
        assert_eq!(numbered(&first), [(Kind::Deployment, "1".into())]);
        let old = running(made(&first), 2);
        let second = reconcile(&deployment(2, "b"), &[&old], NOW);
        assert_eq!(numbered(&second), [(Kind::Deployment, "2".into())]);
        let new = running(made(&second), 2);
        let undone = reconcile(&deployment(2, "a"), &[&old, &new], NOW);
        assert_eq!(numbered(&undone), [(Kind::ReplicaSet, "3".into()), (Kind::Deployment, "3".into())]);
    }

    #[test]
    fn a_settled_deployment_writes_nothing() {
        let set = running(made(&reconcile(&deployment(2, "a"), &[], NOW)), 2);
        let mut wish = deployment(2, "a");
        object::set(&mut wish, &["metadata", "annotations", REVISION], json!("1"));
        let actions = reconcile(&wish, &[&set], NOW);
        let Some(Action::PatchStatus(_, _, patch)) = actions.last() else {
            panic!("expected a status, got {actions:?}")
        };
        wish["status"] = patch["status"].clone();
        assert_eq!(reconcile(&wish, &[&set], "2026-11-21T12:05:00Z"), vec![]);
    }
}
