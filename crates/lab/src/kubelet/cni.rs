//! The container runtime's side of CNI: the configuration list of the node and its plugins, executed one by one.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Interface that every pod gets.
pub(super) const INTERFACE: &str = "eth0";

/// Longest run of one plugin. It has deadlines of its own; this is for one that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Largest configuration and largest result that are read, in bytes.
const SIZE_LIMIT: u64 = 1 << 20;

/// A network configuration list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    pub name: String,
    #[serde(rename = "cniVersion")]
    pub version: String,
    pub plugins: Vec<Value>,
}

/// A container to connect.
#[derive(Clone, Debug)]
pub(super) struct Attachment<'a> {
    pub container: &'a str,
    pub netns: &'a Path,
    pub namespace: &'a str,
    pub pod: &'a str,
    pub uid: &'a str,
}

/// Why a network operation did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CniError {
    /// The plugin said no.
    #[error("plugin type=\"{plugin}\" failed ({verb}): {message}")]
    Refused { plugin: String, verb: &'static str, message: String },
    /// The plugin could not be executed or did not answer.
    #[error("plugin type=\"{plugin}\" failed ({verb}): {cause}; is it beside the tortie program?")]
    NotRun { plugin: String, verb: &'static str, cause: String },
}

/// The first configuration in `directory` by name, as the runtime chooses; `None` where there is none yet.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn read(directory: &Path) -> Result<Option<Network>, String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(None) };
    let first = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .min();
    let Some(path) = first else { return Ok(None) };
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size = std::fs::metadata(&path).map_err(|error| fail(&error))?.len();
    if size > SIZE_LIMIT {
        return Err(fail(&"too large for a network configuration"));
    }
    let text = std::fs::read(&path).map_err(|error| fail(&error))?;
    parse(&text).map(Some).map_err(|error| fail(&error))
}

fn parse(text: &[u8]) -> Result<Network, serde_json::Error> {
    let value: Value = serde_json::from_slice(text)?;
    if value.get("plugins").is_some() {
        return serde_json::from_value(value);
    }
    // A single plugin stands for a list of one.
    let text =
        |key: &str, otherwise: &str| value.get(key).and_then(Value::as_str).unwrap_or(otherwise).to_owned();
    Ok(Network { name: text("name", ""), version: text("cniVersion", "0.1.0"), plugins: vec![value] })
}

impl Network {
    /// What a plugin reads on standard input.
    fn request(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut request = plugin.clone();
        if let Some(request) = request.as_object_mut() {
            request.insert("name".into(), json!(self.name));
            request.insert("cniVersion".into(), json!(self.version));
            request.remove("capabilities");
            if let Some(previous) = previous {
                request.insert("prevResult".into(), previous.clone());
            }
        }
        request
    }

    /// Connects a container: the result of the last plugin.
    ///
    /// # Errors
    /// The first plugin's refusal; the caller has to undo by [`Network::del`].
    pub(super) async fn add(&self, attachment: &Attachment<'_>, path: &Path) -> Result<Value, CniError> {
        let mut previous = None;
        for plugin in &self.plugins {
            let answer =
                execute("add", plugin, &self.request(plugin, previous.as_ref()), attachment, path).await?;
            previous = Some(answer);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// Disconnects a container, the last plugin first. Repeating it does no harm.
    ///
    /// # Errors
    /// The first refusal; it is to be tried again.
    pub(super) async fn del(
        &self,
        attachment: &Attachment<'_>,
        result: Option<&Value>,
        path: &Path,
    ) -> Result<(), CniError> {
        for plugin in self.plugins.iter().rev() {
            execute("del", plugin, &self.request(plugin, result), attachment, path).await?;
        }
        Ok(())
    }
}

async fn execute(
    verb: &'static str,
    plugin: &Value,
    request: &Value,
    attachment: &Attachment<'_>,
    path: &Path,
) -> Result<Value, CniError> {
    let name = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
    let not_run = |cause: &dyn std::fmt::Display| CniError::NotRun {
        plugin: name.to_owned(),
        verb,
        cause: cause.to_string(),
    };
    if name.is_empty() || name.contains('/') {
        return Err(not_run(&"the network configuration names no plugin"));
    }
    let program: PathBuf = path.join(name);
    let mut child = Command::new(&program)
        .env_clear()
        .env("PATH", super::program::PATH)
        .env("CNI_COMMAND", verb.to_ascii_uppercase())
        .env("CNI_CONTAINERID", attachment.container)
        .env("CNI_NETNS", attachment.netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", path)
        .env("CNI_ARGS", arguments(attachment))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_run(&format!("{}: {error}", program.display())))?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(not_run(&"it has no streams"));
    };
    let request = request.to_string();
    let run = async {
        let write = async move {
            // A plugin that does not read its configuration says so by how it ends.
            let _ = stdin.write_all(request.as_bytes()).await;
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (mut stdout, mut stderr) = (stdout.take(SIZE_LIMIT), stderr.take(SIZE_LIMIT));
        let ((), read, said) =
            tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        read?;
        said?;
        Ok::<_, std::io::Error>((child.wait().await?, out, err))
    };
    let (status, out, err) = match tokio::time::timeout(DEADLINE, run).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return Err(not_run(&error)),
        Err(_) => return Err(not_run(&format!("no answer after {} s", DEADLINE.as_secs()))),
    };
    if status.success() {
        if out.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(&out).map_err(|error| not_run(&format!("its result: {error}")));
    }
    Err(CniError::Refused { plugin: name.to_owned(), verb, message: refusal(&out, &err, status) })
}

/// What a plugin said when it failed.
fn refusal(out: &[u8], err: &[u8], status: std::process::ExitStatus) -> String {
    let part =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Ok(error) = serde_json::from_slice::<Value>(out) {
        let (message, details) = (part(&error, "msg"), part(&error, "details"));
        return if details.is_empty() { message } else { format!("{message}; {details}") };
    }
    let said = String::from_utf8_lossy(err);
    let said = said.trim();
    if said.is_empty() { status.to_string() } else { said.chars().take(2000).collect() }
}

fn arguments(attachment: &Attachment<'_>) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        attachment.namespace, attachment.pod, attachment.container, attachment.uid
    )
}

/// The addresses in a result, without prefix length.
pub(super) fn addresses(result: &Value) -> Vec<String> {
    super::pod::items(result, "/ips")
        .iter()
        .map(|ip| super::pod::text(ip, "/address"))
        .map(|address| address.split('/').next().unwrap_or_default().to_owned())
        .filter(|address| !address.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A plugin that is a shell script.
    fn plugin(directory: &Path, name: &str, script: &str) {
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn network(plugins: &[&str]) -> Network {
        let plugins = plugins.iter().map(|name| json!({"type": name})).collect();
        Network { name: "net".into(), version: "1.0.0".into(), plugins }
    }

    fn attachment() -> Attachment<'static> {
        Attachment { container: "id", netns: Path::new("/ns"), namespace: "n", pod: "p", uid: "u" }
    }

    #[tokio::test]
    async fn plugins_are_chained_and_undone_in_reverse() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log").display().to_string();
        let script = |name: &str| {
            format!(
                "echo \"$CNI_COMMAND {name} $CNI_ARGS $(cat)\" >> {log}; echo '{{\"ips\":[{{\"address\":\"10.0.0.1/32\"}}]}}'"
            )
        };
        plugin(directory.path(), "one", &script("one"));
        plugin(directory.path(), "two", &script("two"));
        let network = network(&["one", "two"]);
        let result = network.add(&attachment(), directory.path()).await.unwrap();
        assert_eq!(addresses(&result), ["10.0.0.1"]);
        network.del(&attachment(), Some(&result), directory.path()).await.unwrap();
        let log = std::fs::read_to_string(log).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("ADD one IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;"), "{log}");
        assert!(!lines[0].contains("prevResult"), "{log}");
        assert!(lines[1].starts_with("ADD two") && lines[1].contains("prevResult"), "{log}");
        assert!(lines[2].starts_with("DEL two") && lines[3].starts_with("DEL one"), "{log}");
    }

    #[tokio::test]
    async fn a_refusal_carries_what_the_plugin_said() {
        let directory = tempfile::tempdir().unwrap();
        plugin(
            directory.path(),
            "full",
            r#"echo '{"code":11,"msg":"pool full","details":"add one"}'; exit 1"#,
        );
        plugin(directory.path(), "mute", "echo 'it broke' >&2; exit 3");
        let error = network(&["full"]).add(&attachment(), directory.path()).await.unwrap_err();
        assert_eq!(error.to_string(), "plugin type=\"full\" failed (add): pool full; add one");
        let error = network(&["mute"]).add(&attachment(), directory.path()).await.unwrap_err();
        assert_eq!(error.to_string(), "plugin type=\"mute\" failed (add): it broke");
        let error = network(&["none"]).add(&attachment(), directory.path()).await.unwrap_err();
        assert!(matches!(error, CniError::NotRun { .. }), "{error}");
    }

    #[test]
    fn the_first_configuration_by_name_counts() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), Ok(None));
        std::fs::write(directory.path().join("20-b.conf"), r#"{"name":"b","type":"b"}"#).unwrap();
        std::fs::write(directory.path().join("calico-kubeconfig"), "x").unwrap();
        assert_eq!(read(directory.path()).unwrap().unwrap().name, "b");
        std::fs::write(
            directory.path().join("10-a.conflist"),
            r#"{"name":"a","cniVersion":"1.0.0","plugins":[]}"#,
        )
        .unwrap();
        assert_eq!(read(directory.path()).unwrap().unwrap().name, "a");
        std::fs::write(directory.path().join("10-a.conflist"), "{").unwrap();
        assert!(read(directory.path()).is_err());
    }
}
