//! The binaries as a runtime sees them: what is printed, and how they exit.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const CALICO: &str = env!("CARGO_BIN_EXE_calico");
const CALICO_IPAM: &str = env!("CARGO_BIN_EXE_calico-ipam");

/// Runs a plugin with a complete environment for `command`, changed by `variables`.
fn call(program: &str, command: &str, variables: &[(&str, &str)], input: &str) -> Output {
    let mut process = Command::new(program);
    process
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "abc")
        .env("CNI_NETNS", "/nonexistent/netns")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", Path::new(program).parent().unwrap())
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    // One that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn config(version: &str) -> String {
    json!({
        "cniVersion": version, "name": "k8s-pod-network",
        "ipam": {"type": "calico-ipam", "agent_socket": "/nonexistent/agent.sock"},
    })
    .to_string()
}

/// Code and `cniVersion` of the error that was printed.
fn refused(output: &Output) -> (u64, String) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    (error["code"].as_u64().unwrap(), error["cniVersion"].as_str().unwrap().to_owned())
}

#[test]
fn versions_are_told_in_the_version_that_was_asked_in() {
    for program in [CALICO, CALICO_IPAM] {
        let output = call(program, "VERSION", &[], r#"{"cniVersion":"0.4.0"}"#);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["cniVersion"], "0.4.0");
        let supported = answer["supportedVersions"].as_array().unwrap();
        assert_eq!(supported.first(), Some(&json!("0.1.0")));
        assert_eq!(supported.last(), Some(&json!("1.1.0")));
    }
}

#[test]
fn a_person_who_runs_a_plugin_is_told_what_it_is() {
    for program in [CALICO, CALICO_IPAM] {
        let output = Command::new(program).env_clear().stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("CNI protocol versions supported: 0.1.0"), "{said}");
    }
}

#[test]
fn bad_calls_have_the_codes_of_the_specification() {
    for program in [CALICO, CALICO_IPAM] {
        let good = config("1.0.0");
        let code = |command: &str, variables: &[(&str, &str)], input: &str| {
            refused(&call(program, command, variables, input)).0
        };
        assert_eq!(code("ADD", &[("CNI_CONTAINERID", "")], &good), 4);
        assert_eq!(code("ADD", &[("CNI_ARGS", "a")], &good), 4);
        assert_eq!(code("FROB", &[], &good), 4);
        assert_eq!(code("ADD", &[], "{"), 6);
        assert_eq!(code("ADD", &[], "{}"), 7);
        assert_eq!(code("ADD", &[], &config("9.9.9")), 1);
        assert_eq!(code("CHECK", &[], &config("0.3.1")), 1);
        assert_eq!(code("GC", &[], &good), 1);
        assert_eq!(code("STATUS", &[], &good), 1);
        assert_eq!(code("ADD", &[], &" ".repeat((1 << 20) + 1)), 6);
    }
}

#[test]
fn errors_carry_the_version_of_the_configuration() {
    let output = call(CALICO_IPAM, "ADD", &[], &config("0.3.1"));
    assert_eq!(refused(&output), (11, "0.3.1".to_owned()));
}

#[test]
fn without_its_agent_a_plugin_is_not_available() {
    for program in [CALICO, CALICO_IPAM] {
        assert_eq!(refused(&call(program, "STATUS", &[], &config("1.1.0"))).0, 50);
        assert_eq!(refused(&call(program, "DEL", &[], &config("1.1.0"))).0, 11);
    }
    assert_eq!(refused(&call(CALICO_IPAM, "ADD", &[], &config("1.1.0"))).0, 11);
}

#[test]
fn an_address_plugin_that_does_not_exist_is_named() {
    let input = json!({"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "no-such-plugin"}});
    let output = call(CALICO, "DEL", &[], &input.to_string());
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 7);
    assert!(error["msg"].as_str().unwrap().contains("no-such-plugin"), "{error}");
}

#[test]
fn both_families_off_is_an_empty_result_without_asking_anyone() {
    let input = json!({
        "cniVersion": "1.0.0", "name": "net",
        "ipam": {"type": "calico-ipam", "assign_ipv4": "false", "agent_socket": "/nonexistent/agent.sock"},
    });
    let output = call(CALICO_IPAM, "ADD", &[], &input.to_string());
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "{\n    \"cniVersion\": \"1.0.0\"\n}");
}
