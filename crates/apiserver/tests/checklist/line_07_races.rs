//! Line 7: of those who write at the same time, nobody's write is lost unnoticed.

use crate::support::{Lab, MERGE};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CLIENTS: usize = 20;
const ROUNDS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn line_07_one_write_wins_per_revision_and_no_field_is_lost() {
    let lab = Lab::start().await;
    one_put_wins_per_revision(&lab).await;
    patches_keep_each_others_fields(&lab).await;
    generated_names_are_all_different(&lab).await;
}

async fn one_put_wins_per_revision(lab: &Lab) {
    let admin = lab.admin();
    admin.post(MAPS, &json!({"metadata": {"name": "put"}})).await.ok();
    let path = format!("{MAPS}/put");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (admin, path) = (admin.clone(), path.clone());
            tokio::spawn(async move {
                let mut session = admin.session().await;
                let mut outcomes = Vec::new();
                for round in 0..ROUNDS {
                    let mut object = session.get(&path).await.ok();
                    let version = object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
                    object["data"] = json!({"by": format!("{client}-{round}")});
                    let answer = session.put(&path, &object).await;
                    assert!(answer.code == 200 || answer.json()["reason"] == "Conflict", "{answer:?}");
                    outcomes.push((version, answer.code == 200));
                }
                outcomes
            })
        })
        .collect();
    let mut winners: BTreeMap<String, usize> = BTreeMap::new();
    for client in clients {
        for (version, won) in client.await.unwrap() {
            *winners.entry(version).or_default() += usize::from(won);
        }
    }
    assert!(winners.values().all(|count| *count <= 1), "two PUTs won with one revision");
    // Whichever revision is not the last was ended by exactly one of them: nobody else writes here.
    let lost = winners.values().filter(|count| **count == 0).count();
    assert!(lost <= 1, "{lost} revisions have no winner");
    assert!(winners.len() > 1);
}

async fn patches_keep_each_others_fields(lab: &Lab) {
    let admin = lab.admin();
    admin.post(MAPS, &json!({"metadata": {"name": "merge"}})).await.ok();
    let path = format!("{MAPS}/merge");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (admin, path) = (admin.clone(), path.clone());
            tokio::spawn(async move {
                let mut session = admin.session().await;
                for round in 0..ROUNDS {
                    let patch = json!({"data": {format!("{client}-{round}"): "x"}});
                    session.patch(&path, MERGE, &patch).await.ok();
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let merged = admin.get(&path).await.ok();
    assert_eq!(merged["data"].as_object().map(serde_json::Map::len), Some(CLIENTS * ROUNDS));
}

async fn generated_names_are_all_different(lab: &Lab) {
    let admin = lab.admin();
    // So long that only the drawn ending tells them apart.
    let prefix = "a".repeat(80);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (admin, prefix) = (admin.clone(), prefix.clone());
            tokio::spawn(async move {
                let mut session = admin.session().await;
                let mut names = Vec::new();
                for _ in 0..ROUNDS {
                    let map = json!({"metadata": {"generateName": prefix}});
                    let made: Value = session.post(MAPS, &map).await.ok();
                    names.push(made["metadata"]["name"].as_str().unwrap().to_owned());
                }
                names
            })
        })
        .collect();
    let mut names = BTreeSet::new();
    for client in clients {
        names.extend(client.await.unwrap());
    }
    assert_eq!(names.len(), CLIENTS * ROUNDS);
    assert!(names.iter().all(|name| name.len() == 63));
}
