//! Many objects at once: a custom kind whose objects are made a thousand in one commit.

use crate::support::{Client, Lab};
use serde_json::{Value, json};

/// Objects in one commit, at most.
const EACH: usize = 1000;

/// The collection of the kind.
pub(crate) const GRAINS: &str = "/apis/bulk.example.org/v1/grains";

/// Defines the kind.
pub(crate) async fn define(lab: &Lab) {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"number": {"type": "integer"}}}}});
    let definition = json!({
        "metadata": {"name": "grains.bulk.example.org"},
        "spec": {
            "group": "bulk.example.org", "scope": "Cluster", "names": {"plural": "grains", "kind": "Grain"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    lab.admin().post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.ok();
}

/// The name of a grain: names sort as numbers do.
pub(crate) fn name(number: usize) -> String {
    format!("grain-{number:06}")
}

/// Makes grains of these numbers.
pub(crate) async fn create(admin: &Client, numbers: std::ops::Range<usize>) {
    commit(admin, numbers, |number| {
        json!({"verb": "create", "path": GRAINS,
               "object": {"metadata": {"name": name(number)}, "spec": {"number": number}}})
    })
    .await;
}

/// Makes grains of these numbers that are two kilobytes each.
pub(crate) async fn create_large(admin: &Client, numbers: std::ops::Range<usize>) {
    let note = "x".repeat(2000);
    commit(admin, numbers, |number| {
        json!({"verb": "create", "path": GRAINS,
               "object": {"metadata": {"name": name(number), "annotations": {"note": note}}, "spec": {"number": number}}})
    })
    .await;
}

/// Deletes grains of these numbers.
pub(crate) async fn delete(admin: &Client, numbers: std::ops::Range<usize>) {
    commit(admin, numbers, |number| json!({"verb": "delete", "path": format!("{GRAINS}/{}", name(number))}))
        .await;
}

/// Makes the server forget all that happened before: its memory is of twelve thousand changes.
pub(crate) async fn forget(admin: &Client) {
    for round in 0..7 {
        let numbers = 500_000 + round * EACH..500_000 + (round + 1) * EACH;
        create(admin, numbers.clone()).await;
        delete(admin, numbers).await;
    }
}

async fn commit(admin: &Client, numbers: std::ops::Range<usize>, write: impl Fn(usize) -> Value) {
    let numbers: Vec<usize> = numbers.collect();
    for chunk in numbers.chunks(EACH) {
        let writes: Vec<Value> = chunk.iter().map(|number| write(*number)).collect();
        let commit = json!({"spec": {"writes": writes}});
        admin.post("/apis/tortie.io/v1/commits", &commit).await.ok();
    }
}
