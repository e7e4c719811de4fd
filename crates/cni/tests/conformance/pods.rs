//! What a pod's names, annotations and sandboxes change.

use super::bench::{Bench, CALICO, CALICO_IPAM, address, is_silent, linked, path_of, printed, refused};
use super::namespace::Namespace;
use serde_json::{Value, json};

/// An ADD or DEL of `calico-ipam` with these arguments.
fn with_arguments(bench: &Bench, command: &str, container: &str, arguments: &str) -> std::process::Output {
    let mut config = bench.config();
    config["policy"] = json!({"type": "k8s"});
    let variables = [("CNI_ARGS", arguments)];
    bench.run(CALICO_IPAM, command, container, &variables, &config.to_string())
}

pub(crate) fn particular(bench: &mut Bench) {
    let wanted = |container: &str| with_arguments(bench, "ADD", container, "IP=192.168.7.7");
    for _ in 0..2 {
        let result = printed(&wanted("c"));
        assert_eq!(result["ips"][0]["address"], "192.168.7.7/32");
        assert_eq!(result["routes"][0]["dst"], "192.168.7.7/32");
    }
    assert_eq!(refused(&wanted("d")).0, 100);
    assert!(is_silent(&with_arguments(bench, "DEL", "c", "IP=192.168.7.7")));
    printed(&wanted("d"));
}

pub(crate) fn annotated(bench: &mut Bench) {
    bench.pool("q", json!({"cidr": "10.1.0.0/16"}));
    bench.pool("r", json!({"cidr": "10.2.0.0/16"}));
    let annotate = |path: &str, annotations: Value| {
        let of = |(key, value): (&String, &Value)| (format!("cni.projectcalico.org/{key}"), value.clone());
        let annotations: serde_json::Map<String, Value> =
            annotations.as_object().unwrap().iter().map(of).collect();
        bench.fake.put(path, json!({"metadata": {"annotations": annotations}}));
    };
    annotate("/api/v1/namespaces/default", json!({"ipv4pools": "[\"q\"]"}));
    annotate("/api/v1/namespaces/default/pods/own", json!({"ipv4pools": "[\"10.2.0.0/16\"]"}));
    annotate("/api/v1/namespaces/default/pods/static", json!({"ipAddrs": "[\"192.168.9.9\"]"}));
    annotate("/api/v1/namespaces/default/pods/wrong", json!({"ipFamilies": "[\"IPv5\"]"}));
    let add = |pod: &str| {
        with_arguments(bench, "ADD", pod, &format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"))
    };
    // The pools may still be on their way to the agent, which refuses names that it does not know.
    bench.until(|_| add("plain").status.success());
    assert!(address(&printed(&add("plain"))).starts_with("10.1."));
    bench.until(|_| add("own").status.success());
    assert!(address(&printed(&add("own"))).starts_with("10.2."));
    assert_eq!(printed(&add("static"))["ips"][0]["address"], "192.168.9.9/32");
    let (code, message) = refused(&add("wrong"));
    assert!(code == 7 && message.contains("IPv5"), "{message}");
    // A configuration that asks for nothing: the pod's word counts, and without one there is no address.
    annotate("/api/v1/namespaces/default/pods/four", json!({"ipFamilies": "[\"IPv4\"]"}));
    let mut none = bench.config();
    none["policy"] = json!({"type": "k8s"});
    none["ipam"]["assign_ipv4"] = json!("false");
    for (pod, count) in [("four", 1), ("none", 0)] {
        let arguments = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}");
        let variables = [("CNI_ARGS", arguments.as_str())];
        let result = printed(&bench.run(CALICO_IPAM, "ADD", pod, &variables, &none.to_string()));
        assert_eq!(result["ips"].as_array().map_or(0, Vec::len), count, "{result}");
    }
    // Not in a network of Kubernetes.
    let variables = [("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=static")];
    let result =
        printed(&bench.run(CALICO_IPAM, "ADD", "elsewhere", &variables, &bench.config().to_string()));
    assert_ne!(address(&result), "192.168.9.9");
}

/// An ADD of `calico` for the pod web-0 with this UID.
fn sandbox(bench: &Bench, command: &str, container: &str, uid: &str, netns: &str) -> std::process::Output {
    let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID={uid}");
    let variables = [("CNI_NETNS", netns), ("CNI_ARGS", arguments.as_str())];
    bench.run(CALICO, command, container, &variables, &bench.config().to_string())
}

pub(crate) fn takes_over(bench: &mut Bench) {
    let (old, new, folder) = (Namespace::new(), Namespace::new(), tempfile::tempdir().unwrap());
    let link = folder.path().join("old");
    let first = address(&printed(&sandbox(bench, "ADD", "old", "u1", &linked(&old, &link))));
    let path = path_of(&new);
    std::fs::remove_file(&link).unwrap();
    assert_eq!(address(&printed(&sandbox(bench, "ADD", "new", "u1", &path))), first);
    assert!(bench.handle("old").is_none() && bench.handle("new").is_some());
    // The old sandbox's DEL comes late.
    let input = bench.config().to_string();
    assert!(is_silent(&bench.run(CALICO, "DEL", "old", &[("CNI_NETNS", "")], &input)));
    assert_eq!(address(&printed(&sandbox(bench, "ADD", "new", "u1", &path))), first);
}

pub(crate) fn does_not_take_over(bench: &mut Bench) {
    let (old, new, folder) = (Namespace::new(), Namespace::new(), tempfile::tempdir().unwrap());
    let links = ["old", "new"].map(|name| folder.path().join(name));
    let first = address(&printed(&sandbox(bench, "ADD", "old", "u1", &linked(&old, &links[0]))));
    let second = address(&printed(&sandbox(bench, "ADD", "new", "u1", &linked(&new, &links[1]))));
    assert_ne!(second, first, "the old namespace stands");
    let last = Namespace::new();
    for link in links {
        std::fs::remove_file(link).unwrap();
    }
    let third = address(&printed(&sandbox(bench, "ADD", "third", "u2", &path_of(&last))));
    assert!(third != first && third != second, "another pod of the same name");
}
