//! kubeconfig files: a component's own, and the entry in the user's.

use crate::private_file;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use serde_json::{Map, Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for another program that writes the same file.
const PATIENCE: Duration = Duration::from_secs(5);

/// A kubeconfig with one cluster, one user and one context, all of them called `name`, with its keys in order.
#[must_use]
pub fn render(name: &str, server: &str, authority: &str, certificate: &str, key: &str) -> String {
    let [authority, certificate, key] =
        [authority, certificate, key].map(|pem| base64::engine::general_purpose::STANDARD.encode(pem));
    format!(
        "apiVersion: v1\n\
         clusters:\n\
         - cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n  name: {name}\n\
         contexts:\n\
         - context:\n    cluster: {name}\n    user: {name}\n  name: {name}\n\
         current-context: {name}\n\
         kind: Config\n\
         preferences: {{}}\n\
         users:\n\
         - name: {name}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n"
    )
}

/// The file that kubectl reads for this user: the first of `KUBECONFIG`, else `~/.kube/config`.
#[must_use]
pub fn user_file() -> Option<PathBuf> {
    let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let first = std::env::split_paths(&listed).find(|path| !path.as_os_str().is_empty());
    let file = first.or_else(|| std::env::home_dir().map(|home| home.join(".kube").join("config")))?;
    std::path::absolute(file).ok()
}

/// Puts the entry `text` (as [`render`] makes it) into `file` and makes it the current one.
///
/// Returns what this made: the file or its directory, outermost last, to be given to [`remove`] later.
///
/// # Errors
/// When the file is no kubeconfig or cannot be written.
pub fn merge(file: &Path, text: &str) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let parent =
        file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if !parent.exists() {
        private_file::create_directory(parent)?;
        made.push(parent.to_owned());
    }
    let _lock = Lock::take(file)?;
    if !file.exists() {
        made.insert(0, file.to_owned());
    }
    let mut config = read(file)?;
    let entry: Value = serde_saphyr::from_str(text).context("reading the cluster's own kubeconfig")?;
    for list in ["clusters", "contexts", "users"] {
        let ours = entry.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let theirs = items(&mut config, list);
        theirs.retain(|item| ours.iter().all(|new| new.get("name") != item.get("name")));
        theirs.extend(ours);
    }
    if let Some(current) = entry.get("current-context") {
        config.insert("current-context".into(), current.clone());
    }
    write(file, &config)?;
    Ok(made)
}

/// Takes cluster, user and context `name` out of `file`, and what `made` says was made for it, if nothing else is in
/// there. A file that is gone is no error.
///
/// # Errors
/// When the file is no kubeconfig or cannot be written.
pub fn remove(file: &Path, name: &str, made: &[PathBuf]) -> Result<()> {
    if file.exists() {
        let _lock = Lock::take(file)?;
        let mut config = read(file)?;
        for list in ["clusters", "contexts", "users"] {
            items(&mut config, list).retain(|item| item.get("name").and_then(Value::as_str) != Some(name));
        }
        if config.get("current-context").and_then(Value::as_str) == Some(name) {
            config.insert("current-context".into(), json!(""));
        }
        let empty = ["clusters", "contexts", "users"].iter().all(|list| items(&mut config, list).is_empty());
        if empty && made.iter().any(|path| path == file) {
            std::fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
        } else {
            write(file, &config)?;
        }
    }
    for directory in made.iter().filter(|path| *path != file) {
        // Something else may have come into it meanwhile; then it stays.
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

fn items<'a>(config: &'a mut Map<String, Value>, list: &str) -> &'a mut Vec<Value> {
    let value = config.entry(list).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(items) => items,
        // Made an array above.
        _ => unreachable!("a list of {list}"),
    }
}

fn read(file: &Path) -> Result<Map<String, Value>> {
    let empty = || {
        let base = [("apiVersion", json!("v1")), ("kind", json!("Config")), ("preferences", json!({}))];
        base.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
    };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(empty()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    if text.trim().is_empty() {
        return Ok(empty());
    }
    serde_saphyr::from_str::<Map<String, Value>>(&text)
        .map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))
        .with_context(|| {
            format!("{} is no kubeconfig; move it away or set KUBECONFIG to another file", file.display())
        })
}

fn write(file: &Path, config: &Map<String, Value>) -> Result<()> {
    let text = serde_saphyr::to_string(config).context("writing YAML")?;
    // A link that the user made stays one, and the file stays its owner's, also when root writes it.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let owner = std::fs::metadata(&file).ok().map(|meta| (meta.uid(), meta.gid()));
    private_file::write(&file, text.as_bytes())?;
    if let Some((user, group)) = owner
        && rustix::process::geteuid().is_root()
    {
        std::os::unix::fs::chown(&file, Some(user), Some(group))
            .with_context(|| format!("giving {} back to its owner", file.display()))?;
    }
    Ok(())
}

/// The lock file that kubectl and client-go use: `<file>.lock`, there or not there.
struct Lock(PathBuf);

impl Lock {
    fn take(file: &Path) -> Result<Self> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(_) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if Instant::now() > deadline {
                        anyhow::bail!(
                            "{} is locked by another program; if none runs, remove {}",
                            file.display(),
                            path.display()
                        );
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error).with_context(|| format!("locking {}", file.display())),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn entry() -> String {
        render("kind-a", "https://127.0.0.1:1", "ca", "certificate", "key")
    }

    #[test]
    fn an_entry_is_merged_and_taken_out_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        let other = entry().replace("kind-a", "other").replace(":1", ":2");
        std::fs::write(&file, &other).unwrap();
        assert!(merge(&file, &entry()).unwrap().is_empty());
        assert!(merge(&file, &entry()).unwrap().is_empty());
        let config = read(&file).unwrap();
        assert_eq!(config["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(config["current-context"], "kind-a");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        remove(&file, "kind-a", &[]).unwrap();
        let config = read(&file).unwrap();
        assert_eq!(config["clusters"][0]["name"], "other");
        assert_eq!(config["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(config["current-context"], "");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_to_the_users_file_stays_a_link_and_the_file_its_owners() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, file) = (directory.path().join("kept"), directory.path().join("config"));
        std::fs::write(&kept, entry().replace("kind-a", "other")).unwrap();
        std::os::unix::fs::symlink(&kept, &file).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&kept, Some(12345), None).unwrap();
        }
        merge(&file, &entry()).unwrap();
        assert!(file.is_symlink());
        assert_eq!(read(&kept).unwrap()["clusters"].as_array().unwrap().len(), 2);
        remove(&file, "kind-a", &[]).unwrap();
        assert!(file.is_symlink());
        assert_eq!(read(&kept).unwrap()["clusters"].as_array().unwrap().len(), 1);
        assert!(!is_root || std::fs::metadata(&kept).unwrap().uid() == 12345);
    }

    #[test]
    fn what_was_made_for_the_entry_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(".kube").join("config");
        let made = merge(&file, &entry()).unwrap();
        assert_eq!(made, [file.clone(), file.parent().unwrap().to_owned()]);
        remove(&file, "kind-a", &made).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        remove(&file, "kind-a", &made).unwrap();
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        std::fs::write(&file, "- a list\n").unwrap();
        assert!(format!("{:#}", merge(&file, &entry()).unwrap_err()).contains("is no kubeconfig"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "- a list\n");
    }
}
