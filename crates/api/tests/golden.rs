//! Golden files of the Kubernetes forms: objects as Calico writes them in both groups, which are read and written again as
//! they were, and objects of old times with what becomes of them.

#![expect(clippy::unwrap_used, reason = "tests")]

use api::wire::Group;
use api::{Affinity, AffinityNaming, Block, ClusterInformation, Handle, IpamConfig, Pool, Reservation};
use serde_json::Value;
use std::path::Path;

fn files(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        (file.display().to_string(), value)
    };
    files.iter().map(read).collect()
}

/// Read and written again, in the group's form.
fn again(object: &Value, group: Group) -> Value {
    let written = match object["kind"].as_str().unwrap() {
        "IPPool" => Pool::from_v1(object).unwrap().to_v1(),
        "IPAMBlock" => Block::from_v1(object).unwrap().to_v1(),
        "BlockAffinity" => Affinity::from_v1(object).unwrap().to_v1(AffinityNaming::PerNode),
        "IPAMHandle" => Handle::from_v1(object).unwrap().to_v1(),
        "IPAMConfig" | "IPAMConfiguration" => IpamConfig::from_v1(object).unwrap().to_v1(),
        "IPReservation" => Reservation::from_v1(object).unwrap().to_v1(),
        "ClusterInformation" => ClusterInformation::from_v1(object).unwrap().to_v1(),
        other => panic!("no record is of kind {other}"),
    };
    group.form(written)
}

#[test]
fn every_golden_object_is_read_and_written_again_as_it_was() {
    for (folder, group) in [("v1", Group::V1), ("v3", Group::V3)] {
        let files = files(folder);
        assert_eq!(files.len(), 13);
        for (file, object) in files {
            assert_eq!(object["apiVersion"], group.api_version(), "{file}");
            assert_eq!(again(&object, group), object, "{file}");
        }
    }
}

#[test]
fn objects_of_old_times_are_written_in_todays_form() {
    let files = files("old");
    assert_eq!(files.len(), 5);
    for (file, pair) in files {
        assert_eq!(again(&pair["read"], Group::V1), pair["written"], "{file}");
        // And the form of today stays.
        assert_eq!(again(&pair["written"], Group::V1), pair["written"], "{file}");
    }
}
