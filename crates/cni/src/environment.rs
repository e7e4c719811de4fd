//! The environment variables of a call: which verb, which container, which arguments.

use crate::error::{CniError, code};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// See whether it is still attached.
    Check,
    /// Remove what belongs to no attachment.
    Gc,
    /// See whether ADD can be served.
    Status,
    /// Tell the versions.
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The word of the variable.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// The variables of one call, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty where the verb needs none.
    pub container: String,
    /// `CNI_NETNS`; empty where the namespace is gone already.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_PATH`: directories that plugins are looked for in.
    pub path: Vec<PathBuf>,
    /// `CNI_ARGS`.
    pub arguments: Arguments,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub own_namespace_allowed: bool,
}

/// `CNI_ARGS`, of which the names of the pod matter. Unknown keys are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `IP`: one particular address.
    pub address: Option<IpAddr>,
    /// `K8S_POD_NAME`.
    pub pod: String,
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_UID`.
    pub pod_uid: String,
}

impl Arguments {
    /// Reads `K=V;K=V`. Later duplicates win.
    ///
    /// # Errors
    /// Code 4 for a pair without exactly one `=`, an empty pair, or an address that is none.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let bad = |message: String| CniError::new(code::BAD_ENVIRONMENT, message);
        let mut arguments = Self::default();
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, value)| !key.is_empty() && !value.contains('='))
                .ok_or_else(|| bad(format!("ARGS: invalid pair {pair:?}; write K=V;K=V")))?;
            match key {
                "IP" if value.is_empty() => arguments.address = None,
                "IP" => {
                    let address = value.parse().map_err(|_| {
                        bad(format!(
                            "ARGS: error parsing value of pair {pair:?}: invalid IP address: {value}"
                        ))
                    })?;
                    arguments.address = Some(address);
                }
                "K8S_POD_NAME" => value.clone_into(&mut arguments.pod),
                "K8S_POD_NAMESPACE" => value.clone_into(&mut arguments.namespace),
                "K8S_POD_UID" => value.clone_into(&mut arguments.pod_uid),
                _ => {}
            }
        }
        Ok(arguments)
    }

    /// Namespace and name of the pod; `None` when a container is attached that is none.
    #[must_use]
    pub fn pod(&self) -> Option<(&str, &str)> {
        (!self.pod.is_empty() && !self.namespace.is_empty())
            .then_some((self.namespace.as_str(), self.pod.as_str()))
    }
}

impl Environment {
    /// Checks the variables of a call. `None` when `CNI_COMMAND` is not set: a person runs the plugin.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing.
    pub fn read(variables: &BTreeMap<String, String>) -> Result<Option<Self>, CniError> {
        let bad = |message: String| CniError::new(code::BAD_ENVIRONMENT, message);
        let variable = |name: &str| variables.get(name).cloned().unwrap_or_default();
        let command = variable("CNI_COMMAND");
        if command.is_empty() {
            return Ok(None);
        }
        let command =
            Command::parse(&command).ok_or_else(|| bad(format!("unknown CNI_COMMAND: {command}")))?;
        let missing: Vec<&str> =
            command.required().iter().copied().filter(|name| variable(name).is_empty()).collect();
        if !missing.is_empty() {
            return Err(bad(format!("required env variables [{}] missing", missing.join(","))));
        }
        let container = variable("CNI_CONTAINERID");
        if !container.is_empty() && !is_identifier(&container) {
            return Err(bad(format!(
                "invalid characters in containerID {container:?}: letters, digits, '_', '.', '-'"
            )));
        }
        let interface = variable("CNI_IFNAME");
        if !interface.is_empty() && !is_interface_name(&interface) {
            return Err(bad(format!(
                "invalid interface name {interface:?}: 1 to 15 bytes, no '/', ':', space"
            )));
        }
        Ok(Some(Self {
            command,
            container,
            netns: variable("CNI_NETNS"),
            interface,
            path: std::env::split_paths(&variable("CNI_PATH")).collect(),
            arguments: Arguments::parse(&variable("CNI_ARGS"))?,
            own_namespace_allowed: matches!(
                variable("CNI_NETNS_OVERRIDE").to_ascii_uppercase().as_str(),
                "1" | "TRUE"
            ),
        }))
    }
}

/// Whether a text may be a container id or a network name.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter))
}

fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_missing_variable_is_named() {
        let error = Environment::read(&variables(&[("CNI_COMMAND", "ADD")])).unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(
            error.msg,
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing"
        );
    }

    #[test]
    fn del_needs_no_namespace() {
        let environment = Environment::read(&variables(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]))
        .unwrap()
        .unwrap();
        assert_eq!(environment.netns, "");
        assert_eq!(environment.arguments.pod(), None);
    }

    #[test]
    fn a_person_running_the_plugin_is_told_so_and_not_refused() {
        assert_eq!(Environment::read(&variables(&[])), Ok(None));
    }

    #[test]
    fn malformed_variables_are_refused_with_code_4() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "-abc"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", "longer-than-an-interface"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a b"),
            ("CNI_ARGS", "K8S_POD_NAME=a;"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "A=b=c"),
            ("CNI_ARGS", "IP=10.0.0"),
        ] {
            let mut variables = variables(&[
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "abc"),
                ("CNI_NETNS", "/run/netns/x"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", "/opt/cni/bin"),
            ]);
            variables.insert(name.to_owned(), value.to_owned());
            assert_eq!(Environment::read(&variables).unwrap_err().code, 4, "{name}={value}");
        }
    }

    #[test]
    fn the_pod_is_read_from_the_arguments_and_the_rest_is_passed_over() {
        let arguments = Arguments::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;IP=",
        )
        .unwrap();
        assert_eq!(arguments.pod(), Some(("default", "web-0")));
        assert_eq!(arguments.address, None);
        assert_eq!(Arguments::parse("").unwrap(), Arguments::default());
    }
}
