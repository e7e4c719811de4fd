//! Line 12: the same requests, and the answers that a kube-apiserver gave to them, field by field.
//!
//! What the real one answered is kept in `real_answers.jsonl`. With `KUBEBUILDER_ASSETS` it is asked again, and what is
//! kept must still be what it says; `TORTIE_BLESS=1` writes the file, and `docs/api-conformance.md`, anew.

use crate::accepted::ACCEPTED;
use crate::real::Real;
use crate::support::{Client, Lab};
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const STEPS: &str = include_str!("differences.jsonl");

/// A request of the script.
struct Step {
    name: String,
    method: Method,
    path: String,
    media_type: String,
    accept: String,
    body: Value,
}

fn steps() -> Vec<Step> {
    let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    STEPS
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let step: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            Step {
                name: text(&step["name"], ""),
                method: text(&step["method"], "GET").parse().unwrap(),
                path: text(&step["path"], ""),
                media_type: text(&step["type"], "application/json"),
                accept: text(&step["accept"], "application/json"),
                body: step["body"].clone(),
            }
        })
        .collect()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checklist").join(name)
}

/// What is different at each run: identities, times, revisions.
fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // Who changed what is kept of appliers only; in which order they stand says nothing.
            if let Some(Value::Array(managers)) = map.get_mut("managedFields") {
                managers.retain(|manager| manager["operation"] == "Apply");
                managers.sort_by_key(|manager| manager["manager"].to_string());
                managers.iter_mut().for_each(|manager| manager["time"] = Value::Null);
                if managers.is_empty() {
                    map.remove("managedFields");
                }
            }
            if let Some(Value::Array(cells)) = map.get_mut("cells") {
                for cell in cells.iter_mut() {
                    let is_age = cell
                        .as_str()
                        .and_then(|text| text.strip_suffix('s'))
                        .is_some_and(|text| text.parse::<u32>().is_ok());
                    if is_age {
                        *cell = "AGE".into();
                    }
                }
            }
            for (key, value) in map.iter_mut() {
                let masked = matches!(
                    key.as_str(),
                    "uid"
                        | "resourceVersion"
                        | "creationTimestamp"
                        | "deletionTimestamp"
                        | "lastTransitionTime"
                        | "token"
                        | "expirationTimestamp"
                        | "continue"
                        | "serverAddress"
                        | "authentication.kubernetes.io/credential-id"
                );
                if masked && !value.is_null() {
                    *value = "MASKED".into();
                } else {
                    mask(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(mask),
        Value::String(text) => {
            let words: Vec<String> = text
                .split(' ')
                .map(|word| {
                    let bare = word.trim_matches(|letter: char| !letter.is_ascii_alphanumeric());
                    let is_revision = text.starts_with("Timeout: Too large") && bare.parse::<u64>().is_ok();
                    let is_uid =
                        bare.len() == 36 && bare.chars().filter(|letter| *letter == '-').count() == 4;
                    if is_uid || is_revision { word.replace(bare, "MASKED") } else { word.to_owned() }
                })
                .collect();
            *text = words.join(" ");
        }
        _ => {}
    }
}

async fn answers(client: &Client) -> Vec<Value> {
    let mut session = client.session().await;
    let mut answers = Vec::new();
    for step in steps() {
        let body = match &step.body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            object => object.to_string(),
        };
        let headers = [("content-type", step.media_type.as_str()), ("accept", step.accept.as_str())];
        let mut answer = session.send(step.method.clone(), &step.path, &headers, body.clone().into()).await;
        // A real server serves a new kind a moment after it said so.
        while step.name.starts_with("WAIT") && answer.code == 404 {
            answer = session.send(step.method.clone(), &step.path, &headers, body.clone().into()).await;
        }
        let mut shown = serde_json::from_slice(&answer.body)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&answer.body).into_owned()));
        mask(&mut shown);
        let warnings: Vec<&str> =
            answer.headers.get_all("warning").iter().filter_map(|value| value.to_str().ok()).collect();
        answers.push(json!({"step": step.name, "code": answer.code, "warnings": warnings, "body": shown}));
    }
    answers
}

/// Places where two values differ, as JSON pointers, with both values.
fn differences(ours: &Value, theirs: &Value, place: &str, found: &mut Vec<(String, String, String)>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                differences(&of(ours), &of(theirs), &format!("{place}/{key}"), found);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                differences(ours, theirs, &format!("{place}/{at}"), found);
            }
        }
        _ if ours == theirs => {}
        _ => found.push((place.to_owned(), ours.to_string(), theirs.to_string())),
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn line_12_answers_are_those_of_a_kube_apiserver_but_for_what_is_listed() {
    let lab = Lab::start().await;
    let ours = answers(&lab.admin()).await;
    let blesses = std::env::var_os("TORTIE_BLESS").is_some();
    let real = match Real::start(&lab, true).await {
        Some(real) => Some(answers(&real.client(&lab)).await),
        None => {
            eprintln!("without KUBEBUILDER_ASSETS: compared with what a kube-apiserver answered before");
            None
        }
    };
    let lines = |answers: &[Value]| {
        answers.iter().fold(String::new(), |mut text, answer| {
            writeln!(text, "{answer}").unwrap();
            text
        })
    };
    if let (true, Some(real)) = (blesses, &real) {
        std::fs::write(file("real_answers.jsonl"), lines(real)).unwrap();
    }
    let kept = std::fs::read_to_string(file("real_answers.jsonl")).unwrap();
    let theirs: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    if let Some(real) = &real {
        assert_eq!(lines(real), kept, "the kube-apiserver answers otherwise than when its answers were kept");
    }
    assert_eq!(ours.len(), theirs.len(), "real_answers.jsonl is of another script");
    let (mut report, mut unlisted, mut used) = (Report::default(), String::new(), BTreeSet::new());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours["step"], theirs["step"], "real_answers.jsonl is of another script");
        let name = ours["step"].as_str().unwrap();
        let mut found = Vec::new();
        differences(ours, theirs, "", &mut found);
        let mut reasons = BTreeSet::new();
        for (place, our, their) in found {
            match ACCEPTED.iter().position(|(step, at, _)| fits(step, name) && fits(at, &place)) {
                Some(at) => {
                    used.insert(at);
                    reasons.insert(ACCEPTED[at].2);
                }
                None => writeln!(unlisted, "{name} {place}\n    ours   {our:.400}\n    theirs {their:.400}")
                    .unwrap(),
            }
        }
        report.add(name, &reasons);
    }
    if blesses {
        std::fs::write(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api-conformance.md"),
            report.text(),
        )
        .unwrap();
    }
    assert!(unlisted.is_empty(), "differences that nobody accepted:\n{unlisted}");
    for (at, (step, place, _)) in ACCEPTED.iter().enumerate() {
        assert!(used.contains(&at), "no longer a difference, take it off the list: {step} {place}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api-conformance.md");
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        report.text(),
        "make docs/api-conformance.md anew: TORTIE_BLESS=1"
    );
}

/// The page about it.
#[derive(Default)]
struct Report {
    same: Vec<String>,
    other: Vec<(String, Vec<&'static str>)>,
}

impl Report {
    fn add(&mut self, name: &str, reasons: &BTreeSet<&'static str>) {
        if reasons.is_empty() {
            self.same.push(name.to_owned());
        } else {
            self.other.push((name.to_owned(), reasons.iter().copied().collect()));
        }
    }

    fn text(&self) -> String {
        let mut text = include_str!("api-conformance.head.md").to_owned();
        let all = self.same.len() + self.other.len();
        writeln!(text, "\n## Compared with a kube-apiserver\n").unwrap();
        writeln!(text, "{all} requests, {} of them answered the same in every field that is not a time, an identity or a revision.\n", self.same.len()).unwrap();
        writeln!(text, "### What differs, and why that is accepted\n\n| request | difference |\n|---|---|")
            .unwrap();
        for (name, reasons) in &self.other {
            writeln!(text, "| {name} | {} |", reasons.join("; ")).unwrap();
        }
        writeln!(text, "\n### The same\n").unwrap();
        for name in &self.same {
            writeln!(text, "- {name}").unwrap();
        }
        text
    }
}
