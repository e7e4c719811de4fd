//! Parameters, configuration, errors and VERSION.

use super::bench::{Bench, CALICO, CALICO_IPAM, is_silent, printed, refused};
use serde_json::{Value, json};

const PLUGINS: [&str; 2] = [CALICO, CALICO_IPAM];

fn code(bench: &Bench, command: &str, variables: &[(&str, &str)], input: &str) -> u64 {
    let codes = PLUGINS.map(|plugin| refused(&bench.run(plugin, command, "c", variables, input)).0);
    assert_eq!(codes[0], codes[1], "both plugins answer alike");
    codes[0]
}

pub(crate) fn unknown_verb(bench: &mut Bench) {
    for verb in ["add", "UPDATE", "ADD "] {
        assert_eq!(code(bench, verb, &[], &bench.config().to_string()), 4, "{verb}");
    }
}

pub(crate) fn missing_variables(bench: &mut Bench) {
    let input = bench.config().to_string();
    for (verb, required) in [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"][..]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"][..]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"][..]),
        ("GC", &["CNI_PATH"][..]),
        ("STATUS", &["CNI_PATH"][..]),
    ] {
        let all: Vec<(&str, &str)> = required.iter().map(|name| (*name, "")).collect();
        let (number, message) = refused(&bench.run(CALICO_IPAM, verb, "c", &all, &input));
        assert_eq!(number, 4, "{verb}");
        assert!(required.iter().all(|name| message.contains(name)), "{verb}: {message}");
        for name in required {
            assert_eq!(code(bench, verb, &[(name, "")], &input), 4, "{verb} without {name}");
        }
    }
}

pub(crate) fn malformed_container(bench: &mut Bench) {
    for value in ["-abc", ".abc", "a/b", "a b", "ä"] {
        assert_eq!(
            code(bench, "ADD", &[("CNI_CONTAINERID", value)], &bench.config().to_string()),
            4,
            "{value}"
        );
    }
}

pub(crate) fn malformed_interface(bench: &mut Bench) {
    for value in [".", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
        assert_eq!(code(bench, "ADD", &[("CNI_IFNAME", value)], &bench.config().to_string()), 4, "{value}");
    }
}

pub(crate) fn malformed_arguments(bench: &mut Bench) {
    for value in ["K8S_POD_NAME", "A=b;", ";A=b", "A=b=c", "=b", "IP=10.0.0", "IP=10.0.0.0/8"] {
        assert_eq!(code(bench, "ADD", &[("CNI_ARGS", value)], &bench.config().to_string()), 4, "{value}");
    }
}

pub(crate) fn unknown_arguments(bench: &mut Bench) {
    let input = bench.config().to_string();
    let variables = [("CNI_ARGS", "FOO=bar;K8S_POD_NAME=p;K8S_POD_NAMESPACE=n")];
    printed(&bench.run(CALICO_IPAM, "ADD", "c", &variables, &input));
}

pub(crate) fn no_json(bench: &mut Bench) {
    for text in ["", "{", "[]", "3", "{\"name\":3}", "{\"name\":\"net\",\"ipam\":{\"assign_ipv4\":true}}"] {
        assert_eq!(code(bench, "ADD", &[], text), 6, "{text}");
    }
    assert_eq!(code(bench, "ADD", &[], &" ".repeat((1 << 20) + 1)), 6);
}

pub(crate) fn name_required(bench: &mut Bench) {
    for name in ["", "a/b", "-a", "a b"] {
        let mut config = bench.config();
        config["name"] = json!(name);
        assert_eq!(code(bench, "ADD", &[], &config.to_string()), 7, "{name}");
    }
    assert_eq!(code(bench, "ADD", &[], "{}"), 7);
}

pub(crate) fn unknown_version(bench: &mut Bench) {
    let mut config = bench.config();
    for version in ["9.9.9", "1.1", "v1.0.0"] {
        config["cniVersion"] = json!(version);
        let (number, message) = refused(&bench.ipam("ADD", "c", config.clone()));
        assert_eq!(number, 1, "{version}");
        assert!(message.contains(version) && message.contains("1.1.0"), "{message}");
    }
}

pub(crate) fn unknown_keys(bench: &mut Bench) {
    let mut config = bench.config();
    config["later"] = json!({"x": [1]});
    config["ipam"]["later"] = json!(true);
    config["cni.dev/later"] = json!("x");
    printed(&bench.ipam("ADD", "c", config));
}

pub(crate) fn later_verbs(bench: &mut Bench) {
    let mut config = bench.config();
    for (version, verbs) in [("0.3.1", &["CHECK", "GC", "STATUS"][..]), ("1.0.0", &["GC", "STATUS"][..])] {
        config["cniVersion"] = json!(version);
        for verb in verbs {
            assert_eq!(code(bench, verb, &[], &config.to_string()), 1, "{verb} {version}");
        }
    }
}

pub(crate) fn errors_are_objects(bench: &mut Bench) {
    let mut config = bench.config();
    config["cniVersion"] = json!("0.4.0");
    config["ipam"]["ipv4_pools"] = json!(["nowhere"]);
    let output = bench.ipam("ADD", "c", config);
    refused(&output);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["cniVersion"], "0.4.0");
}

pub(crate) fn retry_is_11(bench: &mut Bench) {
    bench.stop();
    for verb in ["ADD", "DEL"] {
        assert_eq!(refused(&bench.ipam(verb, "c", bench.config())).0, 11, "{verb}");
    }
}

pub(crate) fn own_codes(bench: &mut Bench) {
    bench.pool("p", json!({"cidr": "192.168.0.0/16", "disabled": true}));
    bench.until(|bench| !bench.ipam("STATUS", "", bench.config()).status.success());
    let (number, message) = refused(&bench.ipam("ADD", "c", bench.config()));
    assert_eq!(number, 100);
    assert!(message.contains("no enabled IPv4 pool"), "{message}");
}

pub(crate) fn versions(bench: &mut Bench) {
    for plugin in PLUGINS {
        let answer = printed(&bench.run(plugin, "VERSION", "", &[], "{\"cniVersion\":\"0.4.0\"}"));
        assert_eq!(answer["cniVersion"], "0.4.0");
        let listed = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(answer["supportedVersions"], json!(listed));
        // Every one of them is spoken.
        for version in listed {
            let mut config = bench.config();
            config["cniVersion"] = json!(version);
            assert!(is_silent(&bench.ipam("DEL", "never", config)), "{version}");
        }
    }
}
