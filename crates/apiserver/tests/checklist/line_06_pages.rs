//! Line 6: the pages of a list are one list.

use crate::support::{Client, Lab, MERGE};
use crate::{bulk, size};
use serde_json::json;

/// Reads a list page by page and returns its names, and the token after its first page.
async fn pages(admin: &Client, limit: usize) -> (Vec<String>, String) {
    let mut session = admin.session().await;
    let (mut names, mut token, mut first) = (Vec::new(), String::new(), None);
    loop {
        let page = session.get(&format!("{}?limit={limit}&continue={token}", bulk::GRAINS)).await.ok();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit);
        names.extend(items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()));
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        first.get_or_insert_with(|| token.clone());
        if token.is_empty() {
            return (names, first.unwrap_or_default());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn line_06_pages_are_a_consistent_snapshot_while_others_write() {
    let lab = Lab::start().await;
    let admin = lab.admin();
    bulk::define(&lab).await;
    let count = 10_000;
    bulk::create(&admin, 0..count).await;
    let wanted: Vec<String> = (0..count).map(bulk::name).collect();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = {
        let admin = admin.clone();
        tokio::spawn(async move {
            let mut session = admin.session().await;
            // Grains come before, among and after those of the list, change, and go: no page shows a half of it.
            let mut number = 0;
            while stopped.try_recv().is_err() && number < 3_000 {
                let name = format!("{}-late", bulk::name(number * 7 % count));
                session
                    .post(bulk::GRAINS, &json!({"metadata": {"name": name}, "spec": {"number": 1}}))
                    .await
                    .ok();
                let changed = bulk::name(number * 11 % count);
                session
                    .patch(&format!("{}/{changed}", bulk::GRAINS), MERGE, &json!({"spec": {"number": 2}}))
                    .await
                    .ok();
                session.delete(&format!("{}/{name}", bulk::GRAINS)).await.ok();
                number += 1;
            }
        })
    };
    let mut token = String::new();
    for limit in [1, 2, 500] {
        // Pages of one and two at full size are ten thousand requests each.
        if limit < 500 && size(1, 0) == 0 {
            let page = admin.get(&format!("{}?limit={limit}", bulk::GRAINS)).await.ok();
            assert_eq!(page["items"].as_array().unwrap().len(), limit);
        }
        let limit = if limit < 500 && size(1, 0) == 0 { limit * 37 } else { limit };
        let (names, first) = pages(&admin, limit).await;
        let mut settled = names.clone();
        settled.retain(|name| !name.ends_with("-late"));
        assert_eq!(settled, wanted, "pages of {limit}: every grain that stays is there, once, in order");
        assert!(names.is_sorted() && names.len() <= count + 1, "at most the one that was there at the time");
        token = first;
    }
    // Whoever is stopped has already ended, or ends.
    let _ = stop.send(());
    writing.await.unwrap();
    bulk::forget(&admin).await;
    let (code, message) = admin.get(&format!("{}?limit=500&continue={token}", bulk::GRAINS)).await.refused();
    assert_eq!(code, 410);
    assert!(message.starts_with("The provided continue parameter is too old"), "{message}");
}
