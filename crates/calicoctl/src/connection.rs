//! Which datastore is meant: the configuration file if there is one, else the environment (calicoctl §1.4).

use crate::failure::Failure;
use api::wire::Group;
use datastore::kubernetes::Kubernetes;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Read where no other file is named; it need not exist.
const DEFAULT_FILE: &str = "/etc/calico/calicoctl.cfg";

/// Sets up the driver. Nothing is sent yet.
pub(crate) async fn connect(config: Option<&Path>) -> Result<Kubernetes, Failure> {
    let settings = settings(config)?;
    if settings.datastore.as_deref().is_some_and(|kind| kind != "kubernetes") {
        return Err(Failure::new(
            "this calicoctl speaks to Kubernetes datastores only: set DATASTORE_TYPE=kubernetes",
        ));
    }
    let store = Kubernetes::connect(settings.kubeconfig.as_deref())
        .await
        .map_err(|error| Failure::new(error.to_string()))?;
    Ok(match settings.group.as_deref().and_then(Group::configured) {
        Some(group) => store.with_group(group),
        None => store,
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    datastore: Option<String>,
    kubeconfig: Option<PathBuf>,
    group: Option<String>,
}

fn settings(config: Option<&Path>) -> Result<Settings, Failure> {
    let file = config.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(file) {
        Ok(text) => from_file(file, &text),
        Err(_) if config.is_none_or(|file| file == Path::new(DEFAULT_FILE)) => Ok(from_environment()),
        // Scripts look for this text on stdout.
        Err(_) => {
            let sentence = format!("Error reading config file: {}", file.display());
            Err(Failure::after(format!("{sentence}\n"), String::new()))
        }
    }
}

fn from_file(file: &Path, text: &str) -> Result<Settings, Failure> {
    let document: Value = serde_saphyr::from_str(text)
        .map_err(|error| Failure::new(format!("syntax error in {}: {error}", file.display())))?;
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let (version, kind) = (text("/apiVersion").unwrap_or_default(), text("/kind").unwrap_or_default());
    if version != "projectcalico.org/v3" {
        return Err(Failure::new(format!("invalid config file: unknown APIVersion '{version}'")));
    }
    if kind != "CalicoAPIConfig" {
        return Err(Failure::new(format!(
            "invalid config file: expected kind 'CalicoAPIConfig', got '{kind}'"
        )));
    }
    Ok(Settings {
        datastore: text("/spec/datastoreType"),
        kubeconfig: text("/spec/kubeconfig").map(PathBuf::from),
        group: text("/spec/calicoAPIGroup"),
    })
}

fn from_environment() -> Settings {
    let named = |name: &str| {
        [format!("CALICO_{name}"), name.to_owned()]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
    };
    let kubeconfig = named("KUBECONFIG").map(PathBuf::from);
    let group = std::env::var("CALICO_API_GROUP").ok();
    Settings { datastore: named("DATASTORE_TYPE"), kubeconfig, group }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_file_names_the_kubeconfig() {
        let text = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  datastoreType: kubernetes\n  kubeconfig: /tmp/k\n  calicoAPIGroup: projectcalico.org/v3\n";
        let settings = from_file(Path::new("f"), text).unwrap();
        assert_eq!(settings.kubeconfig, Some(PathBuf::from("/tmp/k")));
        assert_eq!(settings.group.as_deref().and_then(Group::configured), Some(Group::V3));
        let wrong = from_file(Path::new("f"), "apiVersion: v1\nkind: CalicoAPIConfig\n").unwrap_err();
        assert_eq!(wrong.sentence(), "invalid config file: unknown APIVersion 'v1'");
        assert!(from_file(Path::new("f"), "a: [").is_err());
    }
}
