//! Line 5: watches lose nothing, tell nothing twice, and say when they cannot go on.

use crate::support::{Client, Events, Lab, MERGE};
use crate::{bulk, kubectl, size};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
const WATCHERS: usize = 50;
const WRITERS: usize = 8;

fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn revision(admin: &Client) -> u64 {
    revision_of(&admin.get(MAPS).await.ok())
}

/// Every change of this many, as (revision, writer): checked to come in order and once.
async fn hear(events: &mut Events, wanted: usize) -> Vec<(u64, String)> {
    let mut heard: Vec<(u64, String)> = Vec::with_capacity(wanted);
    while heard.len() < wanted {
        let Some(event) = events.next().await else { break };
        assert_eq!(event["type"], "MODIFIED", "{event}");
        let revision = revision_of(&event["object"]);
        assert!(heard.last().is_none_or(|(last, _)| *last < revision), "told twice or out of order");
        heard.push((revision, format!("{}", event["object"]["data"])));
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn line_05_watches_lose_and_repeat_nothing_and_say_when_to_list_again() {
    let mut lab = Lab::start().await;
    let admin = lab.admin();
    nothing_is_lost_or_told_twice(&admin).await;
    bulk::define(&lab).await;
    one_that_takes_nothing_is_cut_off(&admin).await;
    an_old_revision_is_gone(&admin).await;
    bookmarks_and_initial_events(&admin).await;
    one_object_is_shown_once(&lab, &admin).await;
    // Last: afterwards the server is another one.
    let last = revision(&admin).await;
    lab.restart().await;
    let mut events = admin.watch(&format!("{MAPS}?watch=true&resourceVersion={last}"), JSON).await;
    admin.patch(&format!("{MAPS}/w0"), MERGE, &json!({"data": {"after": "restart"}})).await.ok();
    assert_eq!(events.told().await, ("MODIFIED".into(), "w0".into()), "a watch goes on where it was");
}

async fn nothing_is_lost_or_told_twice(admin: &Client) {
    let writes = size(100_000, 2_000);
    for writer in 0..WRITERS {
        admin.post(MAPS, &json!({"metadata": {"name": format!("w{writer}")}})).await.ok();
    }
    let begin = revision(admin).await;
    let from = |revision: u64| format!("{MAPS}?watch=true&resourceVersion={revision}");
    let mut slow = admin.watch(&from(begin), JSON).await;
    let mut watchers = Vec::new();
    for _ in 1..WATCHERS {
        let mut events = admin.watch(&from(begin), JSON).await;
        let (admin, from) = (admin.clone(), from);
        watchers.push(tokio::spawn(async move {
            let mut heard = hear(&mut events, writes).await;
            // One that cannot keep up is cut off, and goes on from where it was.
            while heard.len() < writes {
                let last = heard.last().map_or(begin, |(last, _)| *last);
                let mut events = admin.watch(&from(last), JSON).await;
                heard.extend(hear(&mut events, writes - heard.len()).await);
            }
            heard
        }));
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let admin = admin.clone();
            tokio::spawn(async move {
                let mut session = admin.session().await;
                for number in 0..writes / WRITERS {
                    let patch = json!({"data": {"n": format!("{writer}-{number}")}});
                    session.patch(&format!("{MAPS}/w{writer}"), MERGE, &patch).await.ok();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut all = Vec::new();
    for watcher in watchers {
        all.push(watcher.await.unwrap());
    }
    assert!(all.iter().all(|heard| *heard == all[0]), "all hear the same");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, data) in &all[0] {
        *counts.entry(data).or_default() += 1;
    }
    assert_eq!((counts.len(), counts.values().max()), (writes, Some(&1)), "every write was told, once");
    // The slow one read nothing until now: what it is told is the beginning of what all were, however long.
    let heard = hear(&mut slow, writes).await;
    assert!(!heard.is_empty() && all[0].starts_with(&heard));
}

async fn watchers(admin: &Client) -> usize {
    let metrics = String::from_utf8(admin.get("/metrics").await.body.to_vec()).unwrap();
    let line = metrics.lines().find(|line| line.starts_with("tortie_apiserver_watchers "));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// More is written than the connection and the server keep for somebody who reads nothing.
async fn one_that_takes_nothing_is_cut_off(admin: &Client) {
    let path = format!("{}?watch=true", bulk::GRAINS);
    let mut stalled = admin.watch(&path, JSON).await;
    let mut reading = admin.watch(&path, JSON).await;
    let both = watchers(admin).await;
    let count = 20_000;
    let hearing = tokio::spawn(async move {
        for number in 0..count {
            assert_eq!(reading.told().await, ("ADDED".into(), bulk::name(number)), "the other is not slowed");
        }
    });
    for begin in (0..count).step_by(1000) {
        bulk::create_large(admin, begin..begin + 1000).await;
    }
    hearing.await.unwrap();
    assert!(watchers(admin).await < both, "nothing more waits for the one that takes nothing");
    // What it is told when it reads at last is the beginning, in order, and then the end.
    let mut heard = 0;
    while let Some(event) = stalled.next().await {
        assert_eq!(event["object"]["metadata"]["name"], bulk::name(heard));
        heard += 1;
    }
    assert!((1..count).contains(&heard), "{heard}");
    bulk::delete(admin, 0..count).await;
}

async fn an_old_revision_is_gone(admin: &Client) {
    let old = revision(admin).await;
    bulk::forget(admin).await;
    let mut events = admin.watch(&format!("{MAPS}?watch=true&resourceVersion={old}"), JSON).await;
    let error = events.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(events.next().await, None);
}

async fn bookmarks_and_initial_events(admin: &Client) {
    let now = revision(admin).await;
    let path = format!("{MAPS}?watch=true&resourceVersion={now}&allowWatchBookmarks=true&timeoutSeconds=1");
    let mut events = admin.watch(&path, JSON).await;
    let bookmark = events.next().await.unwrap();
    assert_eq!((&bookmark["type"], revision_of(&bookmark["object"]) >= now), (&json!("BOOKMARK"), true));
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = admin.watch(&format!("{MAPS}?{query}"), JSON).await;
    for number in 0..=WRITERS {
        let name = if number == 0 { "kube-root-ca.crt".to_owned() } else { format!("w{}", number - 1) };
        assert_eq!(events.told().await, ("ADDED".into(), name));
    }
    let end = events.next().await.unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let without_match = admin.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(without_match.code, 422);
}

async fn one_object_is_shown_once(lab: &Lab, admin: &Client) {
    let kubectl = kubectl::Kubectl::new(lab, &kubectl::any());
    // The second line is of a later change: the first is not shown again.
    let script =
        "exec 3< <(exec kubectl get configmap w0 -w --no-headers); read -r first <&3; echo \"$first\"
        kubectl patch configmap w0 --type=merge -p '{\"data\":{\"b\":\"1\"}}' >/dev/null
        read -r second <&3; echo \"$second\"; kill $!";
    let shown = kubectl.run(script).await;
    let cells: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(cells, [["w0", "1"], ["w0", "2"]], "{shown}");
    admin.get(&format!("{MAPS}/w0")).await.ok();
}
