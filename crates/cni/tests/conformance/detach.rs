//! DEL and GC.

use super::bench::{Bench, CALICO, CALICO_IPAM, is_silent, linked, printed, refused};
use super::fake::Fault;
use super::namespace::Namespace;
use serde_json::{Value, json};

pub(crate) fn repeatable(bench: &mut Bench) {
    bench.add("c");
    for _ in 0..2 {
        assert!(is_silent(&bench.ipam("DEL", "c", bench.config())));
        assert!(bench.handle("c").is_none());
    }
    assert!(is_silent(&bench.ipam("DEL", "never", bench.config())));
}

pub(crate) fn no_namespace(bench: &mut Bench) {
    let pod = Namespace::new();
    let input = bench.config().to_string();
    for (container, netns) in [("a", ""), ("b", "/nonexistent/netns")] {
        printed(&bench.calico("ADD", container, &pod, bench.config()));
        assert!(is_silent(&bench.run(CALICO, "DEL", container, &[("CNI_NETNS", netns)], &input)));
        assert!(bench.handle(container).is_none());
        bench.calico("DEL", container, &pod, bench.config());
    }
}

pub(crate) fn no_result(bench: &mut Bench) {
    let pod = Namespace::new();
    printed(&bench.calico("ADD", "c", &pod, bench.config()));
    assert!(is_silent(&bench.calico("DEL", "c", &pod, bench.config())));
    assert!(bench.handle("c").is_none());
    let shown = pod.run(|| std::process::Command::new("ip").args(["link", "show", "eth0"]).output()).unwrap();
    assert!(!shown.status.success(), "{shown:?}");
}

pub(crate) fn one_interface(bench: &mut Bench) {
    let first = bench.add("c");
    let input = bench.config().to_string();
    let second = |verb: &str| bench.run(CALICO_IPAM, verb, "c", &[("CNI_IFNAME", "net1")], &input);
    printed(&second("ADD"));
    assert!(is_silent(&second("DEL")));
    assert!(bench.handle("c").is_some());
    assert_eq!(bench.add("c"), first);
    assert!(is_silent(&bench.ipam("DEL", "c", bench.config())));
    assert!(bench.handle("c").is_none());
}

pub(crate) fn away(bench: &mut Bench) {
    bench.add("c");
    bench.fake.fail(|_, _| Some(Fault::Refused(503)));
    assert!(is_silent(&bench.ipam("DEL", "c", bench.config())));
    assert!(bench.handle("c").is_some());
    bench.fake.fail(|_, _| None);
    bench.until(|bench| bench.handle("c").is_none());
}

fn gc(bench: &Bench, config: Value) {
    assert!(is_silent(&bench.run(CALICO_IPAM, "GC", "", &[], &config.to_string())));
}

pub(crate) fn gc_exactly(bench: &mut Bench) {
    let kept = bench.add("a");
    let input = bench.config().to_string();
    printed(&bench.run(CALICO_IPAM, "ADD", "a", &[("CNI_IFNAME", "net1")], &input));
    for container in ["b", "c", "d"] {
        bench.add(container);
    }
    gc(bench, bench.config_with_valid(&[("a", "eth0"), ("c", "eth0"), ("gone", "eth0")]));
    let held = ["a", "b", "c", "d"].map(|container| bench.handle(container).is_some());
    assert_eq!(held, [true, false, true, false]);
    let blocks = bench.handle("a").unwrap()["spec"]["block"].clone();
    let counted: u64 = blocks.as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(counted, 1, "net1 of a is not valid: {blocks}");
    assert_eq!(bench.add("a"), kept);
    gc(bench, bench.config_with_valid(&[]));
    assert!(["a", "c"].iter().all(|container| bench.handle(container).is_none()));
}

pub(crate) fn gc_others(bench: &mut Bench) {
    // A network whose name begins alike: the handle `net.x.y` alone does not tell whose it is.
    let mut other = bench.config_with_valid(&[]);
    other["name"] = json!("net.x");
    printed(&bench.ipam("ADD", "y", other.clone()));
    gc(bench, bench.config_with_valid(&[]));
    assert!(bench.handle("x.y").is_some());
    gc(bench, other);
    assert!(bench.handle("x.y").is_none());
}

pub(crate) fn gc_standing(bench: &mut Bench) {
    let (pod, folder) = (Namespace::new(), tempfile::tempdir().unwrap());
    let link = folder.path().join("c");
    let netns = linked(&pod, &link);
    let variables = [("CNI_NETNS", netns.as_str())];
    printed(&bench.run(CALICO, "ADD", "c", &variables, &bench.config().to_string()));
    gc(bench, bench.config_with_valid(&[]));
    assert!(bench.handle("c").is_some());
    // A plain file: the namespace may be bound on it where only another runtime sees it.
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, "").unwrap();
    gc(bench, bench.config_with_valid(&[]));
    assert!(bench.handle("c").is_some());
    std::fs::remove_file(&link).unwrap();
    gc(bench, bench.config_with_valid(&[]));
    assert!(bench.handle("c").is_none());
}

pub(crate) fn gc_needs_list(bench: &mut Bench) {
    bench.add("c");
    let output = bench.run(CALICO_IPAM, "GC", "", &[], &bench.config().to_string());
    assert_eq!(refused(&output).0, 7);
    assert!(bench.handle("c").is_some());
}

pub(crate) fn gc_off(bench: &mut Bench) {
    bench.add("c");
    let mut config = bench.config_with_valid(&[]);
    config["disableGC"] = json!(true);
    gc(bench, config);
    assert!(bench.handle("c").is_some());
}

pub(crate) fn gc_delegated(bench: &mut Bench) {
    bench.add("c");
    let config = bench.config_with_valid(&[]).to_string();
    assert!(is_silent(&bench.run(CALICO, "GC", "", &[], &config)));
    assert!(bench.handle("c").is_none());
}
