//! What assignments cost over real datastores, each beside its raw store in the same run: `cargo xtask bench datastore` builds
//! and runs this and judges its figures.
//!
//! Every round measures, one right after the other: raw writes of one key, ADDs of as many nodes' agents, and the same by
//! Calico's sequence of calls ([`sim::peer`]); what is judged is their ratio within a round, so that a machine that is busy
//! for a while is busy for all of them. A store whose binary is not there is left out, and stderr says so.
//!
//! Prints one JSON object a figure: name, unit, and the value of each round. With `serve FOLDER` it is the embedded API server
//! of that folder.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a figure of something broken is no figure, and printing is what it is for"
)]

#[path = "../../../datastore/tests/etcd/server.rs"]
#[expect(dead_code, reason = "what only the tests of etcd itself need")]
mod etcd;
mod fleet;
mod measure;
mod processor;
mod raw;
#[path = "../../../datastore/tests/kube_apiserver/server.rs"]
#[expect(dead_code, reason = "what only the tests of the driver need")]
mod server;
mod stores;

// What the messages of etcd name.
use datastore::Revision;
use std::path::Path;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", folder] => runtime.block_on(stores::serve(Path::new(folder))),
        which => runtime.block_on(stores::figures(which)),
    }
}

/// Prints a figure.
fn say(name: &str, unit: &str, rounds: &[f64]) {
    let rounds: Vec<String> = rounds.iter().map(|round| format!("{round:.4}")).collect();
    println!(r#"{{"name": "{name}", "unit": "{unit}", "runs": [{}]}}"#, rounds.join(", "));
}
