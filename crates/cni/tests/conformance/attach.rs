//! ADD.

use super::bench::{Bench, CALICO, CALICO_IPAM, NETWORK, address, path_of, printed, refused};
use super::fake::Fault;
use super::namespace::Namespace;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

pub(crate) fn every_version(bench: &mut Bench) {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut config = bench.config();
        config["cniVersion"] = json!(version);
        let result = printed(&bench.ipam("ADD", &format!("c{version}"), config));
        assert_eq!(result["cniVersion"], version);
        let told = match version {
            "0.1.0" | "0.2.0" => &result["ip4"]["ip"],
            _ => &result["ips"][0]["address"],
        };
        assert!(told.as_str().is_some_and(|told| told.ends_with("/26")), "{version}: {result}");
        let family = &result["ips"][0]["version"];
        assert_eq!(family == "4", version.starts_with("0.3") || version.starts_with("0.4"), "{version}");
    }
}

pub(crate) fn makes_interface(bench: &mut Bench) {
    let pod = Namespace::new();
    let result = printed(&bench.calico("ADD", "c", &pod, bench.config()));
    let interface = &result["interfaces"][1];
    assert_eq!((&interface["name"], &interface["mtu"]), (&json!("eth0"), &json!(1400)));
    assert_eq!(interface["sandbox"], path_of(&pod));
    assert_eq!(interface["mac"].as_str().unwrap().len(), 17);
    assert_eq!(result["ips"][0]["interface"], 1);
    let shown = pod.run(|| std::process::Command::new("ip").args(["-o", "addr", "show", "eth0"]).output());
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    assert!(shown.contains(&format!("inet {}/32", address(&result))), "{shown}");
}

pub(crate) fn address_result(bench: &mut Bench) {
    let result = printed(&bench.ipam("ADD", "c", bench.config()));
    assert!(result.get("interfaces").is_none() && result["ips"][0].get("interface").is_none(), "{result}");
}

pub(crate) fn again(bench: &mut Bench) {
    let first = bench.add("c");
    assert_eq!(bench.add("c"), first);
    bench.stop();
    bench.start();
    assert_eq!(bench.add("c"), first, "and to another agent");
    assert_ne!(bench.add("d"), first);
}

pub(crate) fn two_interfaces(bench: &mut Bench) {
    let first = bench.add("c");
    let input = bench.config().to_string();
    let second = bench.run(CALICO_IPAM, "ADD", "c", &[("CNI_IFNAME", "net1")], &input);
    assert_ne!(address(&printed(&second)), first);
    assert_eq!(bench.add("c"), first);
}

/// A folder with the plugin `recorder`, which writes down how it was called and fails with Calico's code.
fn recorder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let (program, log) = (folder.path().join("recorder"), folder.path().join("log"));
    let script = format!(
        "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS $(cat)\" >> {}\n\
         echo '{{\"cniVersion\":\"1.1.0\",\"code\":142,\"msg\":\"nothing left\",\"details\":\"of all\"}}'\nexit 1\n",
        log.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (folder, log.display().to_string())
}

/// What `recorder` was called with by an ADD of `calico`, and what that answered.
fn recorded(bench: &Bench, pod: &Namespace) -> (Vec<String>, (u64, String)) {
    let (folder, log) = recorder();
    let config =
        json!({"cniVersion": "1.1.0", "name": NETWORK, "ipam": {"type": "recorder", "x": [1]}, "y": 2});
    let (netns, path) = (path_of(pod), format!("/nonexistent:{}", folder.path().display()));
    let variables = [
        ("CNI_NETNS", netns.as_str()),
        ("CNI_PATH", path.as_str()),
        ("CNI_ARGS", "A=b"),
        ("PATH", "/usr/bin:/bin"),
    ];
    let output = bench.run(CALICO, "ADD", "c", &variables, &config.to_string());
    let text = std::fs::read_to_string(log).unwrap();
    (text.lines().map(str::to_owned).collect(), refused(&output))
}

pub(crate) fn delegate_undone(bench: &mut Bench) {
    let (calls, _) = recorded(bench, &Namespace::new());
    assert!(
        calls[0].starts_with("ADD c ") && calls[1].starts_with("DEL c ") && calls.len() == 2,
        "{calls:?}"
    );
}

pub(crate) fn delegate_gets_everything(bench: &mut Bench) {
    let pod = Namespace::new();
    let (calls, (code, message)) = recorded(bench, &pod);
    assert!(calls[0].contains(&format!("ADD c {} eth0 A=b ", path_of(&pod))), "{calls:?}");
    assert!(calls[0].contains("\"x\":[1]") && calls[0].contains("\"y\":2"), "{calls:?}");
    assert_eq!((code, message.as_str()), (142, "nothing left of all"));
}

pub(crate) fn missing_delegate(bench: &mut Bench) {
    let pod = Namespace::new();
    for name in ["no-such-plugin", "../calico-ipam", ""] {
        let mut config = bench.config();
        config["ipam"]["type"] = json!(name);
        let (code, message) = refused(&bench.calico("ADD", "c", &pod, config));
        assert_eq!(code, 7);
        assert!(message.contains(&format!("{name:?}")), "{message}");
    }
}

pub(crate) fn own_namespace(bench: &mut Bench) {
    let variables = [("CNI_NETNS", "/proc/self/ns/net")];
    let output = bench.run(CALICO, "ADD", "c", &variables, &bench.config().to_string());
    assert_eq!(refused(&output).0, 8);
    assert!(bench.handle("c").is_none());
}

pub(crate) fn missing_namespace(bench: &mut Bench) {
    let output = bench.run(CALICO, "ADD", "c", &[], &bench.config().to_string());
    let (code, message) = refused(&output);
    assert_eq!(code, 4);
    assert!(message.contains("CNI_NETNS") && message.contains("/nonexistent/netns"), "{message}");
    assert!(bench.handle("c").is_none());
}

pub(crate) fn both_or_none(bench: &mut Bench) {
    let mut config = bench.config();
    config["ipam"]["assign_ipv6"] = json!("true");
    let (_, message) = refused(&bench.ipam("ADD", "c", config.clone()));
    assert!(message.contains("IPv6"), "{message}");
    bench.until(|bench| bench.handle("c").is_none());
    bench.pool("six", json!({"cidr": "fd00:10::/64"}));
    bench.until(|bench| bench.ipam("STATUS", "", config.clone()).status.success());
    let result = printed(&bench.ipam("ADD", "c", config));
    assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
}

pub(crate) fn away(bench: &mut Bench) {
    bench.add("before");
    bench.fake.fail(|_, _| Some(Fault::Refused(503)));
    let begin = Instant::now();
    let (code, message) = refused(&bench.ipam("ADD", "c", bench.config()));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(code, 11, "{message}");
    bench.fake.fail(|_, _| None);
    bench.until(|bench| bench.ipam("ADD", "c", bench.config()).status.success());
}
