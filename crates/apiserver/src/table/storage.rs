//! Rows of volumes and of what provides them.

use super::format::{NONE, age, items, joined, name, text, text_or};
use super::{Cells, Head, number, shown, wide};
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn printer(group: &str, resource: &str) -> Option<(&'static [Head], Cells)> {
    Some(match (group, resource) {
        ("storage.k8s.io", "storageclasses") => (
            const {
                &[
                    shown("Name"),
                    shown("Provisioner"),
                    shown("ReclaimPolicy"),
                    shown("VolumeBindingMode"),
                    shown("AllowVolumeExpansion"),
                    shown("Age"),
                ]
            },
            class,
        ),
        ("storage.k8s.io", "csidrivers") => (
            const {
                &[
                    shown("Name"),
                    shown("AttachRequired"),
                    shown("PodInfoOnMount"),
                    shown("StorageCapacity"),
                    shown("TokenRequests"),
                    shown("RequiresRepublish"),
                    shown("Modes"),
                    shown("Age"),
                ]
            },
            driver,
        ),
        ("storage.k8s.io", "csinodes") => {
            (const { &[shown("Name"), number("Drivers"), shown("Age")] }, csi_node)
        }
        ("storage.k8s.io", "volumeattachments") => (
            const {
                &[
                    shown("Name"),
                    shown("Attacher"),
                    shown("PV"),
                    shown("Node"),
                    shown("Attached"),
                    shown("Age"),
                ]
            },
            attachment,
        ),
        ("", "persistentvolumes") => (
            const {
                &[
                    shown("Name"),
                    shown("Capacity"),
                    shown("Access Modes"),
                    shown("Reclaim Policy"),
                    shown("Status"),
                    shown("Claim"),
                    shown("StorageClass"),
                    shown("Reason"),
                    shown("Age"),
                    wide("VolumeMode"),
                ]
            },
            volume,
        ),
        ("", "persistentvolumeclaims") => (
            const {
                &[
                    shown("Name"),
                    shown("Status"),
                    shown("Volume"),
                    shown("Capacity"),
                    shown("Access Modes"),
                    shown("StorageClass"),
                    shown("Age"),
                    wide("VolumeMode"),
                ]
            },
            claim,
        ),
        _ => return None,
    })
}

fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_default =
        object["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
    let shown = match is_default {
        true => format!("{} (default)", text(&object["metadata"]["name"])).into(),
        false => name(object),
    };
    vec![
        shown,
        text(&object["provisioner"]).into(),
        text_or(&object["reclaimPolicy"], "Delete"),
        text_or(&object["volumeBindingMode"], "Immediate"),
        (object["allowVolumeExpansion"] == true).into(),
        age(object, now),
    ]
}

fn driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let audiences: Vec<&str> =
        items(&spec["tokenRequests"]).iter().map(|one| text(&one["audience"])).collect();
    vec![
        name(object),
        (spec["attachRequired"] != false).into(),
        (spec["podInfoOnMount"] == true).into(),
        (spec["storageCapacity"] == true).into(),
        joined(audiences, "<unset>").into(),
        (spec["requiresRepublish"] == true).into(),
        joined(items(&spec["volumeLifecycleModes"]).iter().map(text), NONE).into(),
        age(object, now),
    ]
}

fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(&object["spec"]["drivers"]).len().into(), age(object, now)]
}

fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    vec![
        name(object),
        text(&spec["attacher"]).into(),
        text(&spec["source"]["persistentVolumeName"]).into(),
        text(&spec["nodeName"]).into(),
        (object["status"]["attached"] == true).into(),
        age(object, now),
    ]
}

fn access_modes(modes: &Value) -> String {
    let short: Vec<&str> = items(modes)
        .iter()
        .map(|mode| match text(mode) {
            "ReadWriteOnce" => "RWO",
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            other => other,
        })
        .collect();
    short.join(",")
}

fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let claim = match text(&spec["claimRef"]["name"]) {
        "" => String::new(),
        claim => format!("{}/{claim}", text(&spec["claimRef"]["namespace"])),
    };
    vec![
        name(object),
        text(&spec["capacity"]["storage"]).into(),
        access_modes(&spec["accessModes"]).into(),
        text(&spec["persistentVolumeReclaimPolicy"]).into(),
        phase(object),
        claim.into(),
        text(&spec["storageClassName"]).into(),
        text(&object["status"]["reason"]).into(),
        age(object, now),
        text_or(&spec["volumeMode"], "<unset>"),
    ]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    vec![
        name(object),
        phase(object),
        text(&spec["volumeName"]).into(),
        text(&status["capacity"]["storage"]).into(),
        access_modes(&status["accessModes"]).into(),
        text(&spec["storageClassName"]).into(),
        age(object, now),
        text_or(&spec["volumeMode"], "<unset>"),
    ]
}

fn phase(object: &Value) -> Value {
    match text(&object["metadata"]["deletionTimestamp"]) {
        "" => text(&object["status"]["phase"]).into(),
        _ => "Terminating".into(),
    }
}

#[cfg(test)]
mod tests {
    use crate::table::format::testing::cell;
    use serde_json::json;

    #[test]
    fn the_default_class_is_marked() {
        let class = json!({"metadata": {"name": "standard",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
        assert_eq!(cell("storage.k8s.io", "storageclasses", &class, "Name"), "standard (default)");
        assert_eq!(cell("storage.k8s.io", "storageclasses", &class, "VolumeBindingMode"), "Immediate");
    }

    #[test]
    fn access_modes_are_abbreviated() {
        let claim = json!({"status": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "phase": "Bound"}});
        assert_eq!(cell("", "persistentvolumeclaims", &claim, "Access Modes"), "RWO,ROX");
        assert_eq!(cell("", "persistentvolumeclaims", &claim, "Status"), "Bound");
    }
}
