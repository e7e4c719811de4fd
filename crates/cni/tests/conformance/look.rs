//! CHECK and STATUS.

use super::bench::{Bench, CALICO, CALICO_IPAM, is_silent, refused};
use super::fake::Fault;
use super::namespace::Namespace;
use serde_json::{Value, json};
use std::process::Command;

pub(crate) fn check_needs_result(bench: &mut Bench) {
    bench.add("c");
    assert_eq!(refused(&bench.ipam("CHECK", "c", bench.config())).0, 7);
    let mut config = bench.config();
    config["prevResult"] = json!({"cniVersion": "1.1.0"});
    assert_eq!(refused(&bench.ipam("CHECK", "c", config)).0, 7, "nor may it name no address");
}

pub(crate) fn check_intact(bench: &mut Bench) {
    let pod = Namespace::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let mut config = bench.config();
        config["cniVersion"] = json!(version);
        let added = bench.calico("ADD", "c", &pod, config);
        let mut config = bench.config_after(&added);
        config["cniVersion"] = json!(version);
        assert!(is_silent(&bench.calico("CHECK", "c", &pod, config)), "{version}");
    }
}

/// A CHECK fails, and names this.
fn differs(output: &std::process::Output, words: &[&str]) {
    let (code, message) = refused(output);
    assert_eq!(code, 101, "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{message} does not name {words:?}");
}

pub(crate) fn check_datastore(bench: &mut Bench) {
    let added = bench.ipam("ADD", "c", bench.config());
    let config = bench.config_after(&added);
    assert!(is_silent(&bench.ipam("CHECK", "c", config.clone())));
    let address = super::bench::address(&super::bench::printed(&added));
    differs(&bench.ipam("CHECK", "d", config.clone()), &[&address, "net.c"]);
    let other = bench.run(CALICO_IPAM, "CHECK", "c", &[("CNI_IFNAME", "net1")], &config.to_string());
    differs(&other, &[&address, "eth0"]);
    assert!(is_silent(&bench.ipam("DEL", "c", bench.config())));
    differs(&bench.ipam("CHECK", "c", config), &[&address, "not allocated"]);
}

/// Adds a pod, has `change` done in its namespace, and answers its CHECK.
fn changed(bench: &Bench, container: &str, change: &[&str]) -> std::process::Output {
    let pod = Namespace::new();
    let added = bench.calico("ADD", container, &pod, bench.config());
    let config = bench.config_after(&added);
    let done = pod.run(|| Command::new("ip").args(change).status()).unwrap();
    assert!(done.success());
    bench.calico("CHECK", container, &pod, config)
}

pub(crate) fn check_interfaces(bench: &mut Bench) {
    differs(&changed(bench, "a", &["link", "set", "eth0", "mtu", "1300"]), &["MTU 1300, not 1400"]);
    let mac = ["link", "set", "eth0", "address", "02:00:00:00:00:01"];
    differs(&changed(bench, "b", &mac), &["02:00:00:00:00:01"]);
    let host = api::attachment::host_interface("default", "c");
    differs(&changed(bench, "c", &["link", "del", "eth0"]), &["eth0 is missing in the pod", &host]);
}

pub(crate) fn check_routes(bench: &mut Bench) {
    differs(&changed(bench, "a", &["addr", "flush", "dev", "eth0"]), &["address 192.168.", "eth0"]);
    differs(&changed(bench, "b", &["route", "del", "default"]), &["default route through 169.254.1.1"]);
    let pod = Namespace::new();
    let added = bench.calico("ADD", "c", &pod, bench.config());
    let address = super::bench::address(&super::bench::printed(&added));
    // The agent puts it back, sooner or later: what is looked for is a CHECK that comes before it.
    let output = loop {
        let _ = Command::new("ip").args(["route", "del", &address]).output().unwrap();
        let output = bench.calico("CHECK", "c", &pod, bench.config_after(&added));
        if !output.status.success() {
            break output;
        }
    };
    let host = api::attachment::host_interface("default", "c");
    differs(&output, &[&address, &host]);
}

fn status(bench: &Bench, plugin: &str, config: &Value) -> std::process::Output {
    bench.run(plugin, "STATUS", "", &[], &config.to_string())
}

/// Waits until STATUS fails, and answers how; both plugins say the same.
fn hindrance(bench: &Bench, config: &Value) -> (u64, String) {
    bench.until(|bench| !status(bench, CALICO_IPAM, config).status.success());
    let told = refused(&status(bench, CALICO, config));
    assert_eq!(told, refused(&status(bench, CALICO_IPAM, config)));
    told
}

pub(crate) fn status_well(bench: &mut Bench) {
    for plugin in [CALICO, CALICO_IPAM] {
        assert!(is_silent(&status(bench, plugin, &bench.config())));
    }
}

pub(crate) fn status_agent(bench: &mut Bench) {
    bench.stop();
    let (code, message) = hindrance(bench, &bench.config());
    assert_eq!(code, 50);
    assert!(message.contains("agent"), "{message}");
}

pub(crate) fn status_store(bench: &mut Bench) {
    bench.fake.fail(|_, _| Some(Fault::Refused(503)));
    // Watches that are open already notice nothing.
    let (code, message) = hindrance(bench, &bench.config());
    assert_eq!(code, 51);
    assert!(message.contains("datastore"), "{message}");
}

pub(crate) fn status_locked(bench: &mut Bench) {
    bench.lock(true);
    let (code, message) = hindrance(bench, &bench.config());
    assert_eq!(code, 50);
    assert!(message.contains("unlocked"), "{message}");
}

pub(crate) fn status_pools(bench: &mut Bench) {
    let mut config = bench.config();
    config["ipam"]["assign_ipv6"] = json!("true");
    assert!(hindrance(bench, &config).1.contains("IPv6"));
    config = bench.config();
    config["ipam"]["ipv4_pools"] = json!(["q"]);
    assert!(hindrance(bench, &config).1.contains("\"q\""));
    bench.pool("q", json!({"cidr": "10.0.0.0/30", "blockSize": 30}));
    bench.until(|bench| status(bench, CALICO_IPAM, &config).status.success());
    for container in ["a", "b", "c", "d"] {
        bench.ipam("ADD", container, config.clone());
    }
    let (code, message) = hindrance(bench, &config);
    assert_eq!(code, 50);
    assert!(message.contains("q (10.0.0.0/30)"), "{message}");
    bench.pool("p", json!({"cidr": "192.168.0.0/16", "nodeSelector": "zone == 'b'"}));
    bench.remove_pool("q");
    let (code, message) = hindrance(bench, &bench.config());
    assert_eq!(code, 50);
    assert!(message.contains("zone == 'b'"), "{message}");
}
