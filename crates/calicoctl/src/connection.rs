//! Which datastore is meant: the configuration file if there is one, else the environment (calicoctl §1.4).

use crate::failure::Failure;
use api::wire::Group;
use datastore::backend::Backend;
use datastore::etcd::{self, Etcd};
use datastore::kubernetes::Kubernetes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Read where no other file is named; it need not exist.
const DEFAULT_FILE: &str = "/etc/calico/calicoctl.cfg";

/// Fields of a configuration file about etcd, and the variables that say the same. The certificates' texts have no
/// variable of Calico's; here they have one in the same spelling.
const ETCD: [(&str, &str); 10] = [
    ("etcdEndpoints", "ETCD_ENDPOINTS"),
    ("etcdDiscoverySrv", "ETCD_DISCOVERY_SRV"),
    ("etcdUsername", "ETCD_USERNAME"),
    ("etcdPassword", "ETCD_PASSWORD"),
    ("etcdKeyFile", "ETCD_KEY_FILE"),
    ("etcdCertFile", "ETCD_CERT_FILE"),
    ("etcdCACertFile", "ETCD_CA_CERT_FILE"),
    ("etcdKey", "ETCD_KEY"),
    ("etcdCert", "ETCD_CERT"),
    ("etcdCACert", "ETCD_CA_CERT"),
];

/// Sets up the driver. Nothing is sent yet.
pub(crate) async fn connect(config: Option<&Path>) -> Result<Backend, Failure> {
    let settings = settings(config)?;
    let failed = |error: &dyn std::fmt::Display| Failure::new(error.to_string());
    match settings.datastore()? {
        DatastoreKind::Etcd => {
            let etcd = etcd::Settings::from_variables(|name| settings.etcd.get(name).cloned())
                .and_then(Etcd::new)
                .map_err(|error| failed(&error))?;
            Ok(Backend::Etcd(etcd))
        }
        DatastoreKind::Kubernetes => {
            let store =
                Kubernetes::connect(settings.kubeconfig.as_deref()).await.map_err(|error| failed(&error))?;
            Ok(Backend::Kubernetes(match settings.group.as_deref().and_then(Group::configured) {
                Some(group) => store.with_group(group),
                None => store,
            }))
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DatastoreKind {
    Kubernetes,
    Etcd,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    datastore: Option<String>,
    kubeconfig: Option<PathBuf>,
    group: Option<String>,
    /// What is said about etcd, by the names of variables.
    etcd: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Which kind is meant: as named, else etcd where endpoints are given.
    fn datastore(&self) -> Result<DatastoreKind, Failure> {
        match self.datastore.as_deref() {
            Some("kubernetes") => Ok(DatastoreKind::Kubernetes),
            Some("etcdv3") => Ok(DatastoreKind::Etcd),
            None if self.etcd.contains_key("ETCD_ENDPOINTS") => Ok(DatastoreKind::Etcd),
            None => Ok(DatastoreKind::Kubernetes),
            Some(other) => Err(Failure::new(format!(
                "unknown datastore type {other}: set DATASTORE_TYPE to kubernetes or etcdv3"
            ))),
        }
    }
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
        etcd: ETCD
            .into_iter()
            .filter_map(|(field, variable)| Some((variable, text(&format!("/spec/{field}"))?)))
            .collect(),
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
    let etcd = ETCD.into_iter().filter_map(|(_, variable)| Some((variable, named(variable)?))).collect();
    Settings { datastore: named("DATASTORE_TYPE"), kubeconfig, group, etcd }
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

    #[test]
    fn etcd_is_meant_where_it_is_named_or_has_endpoints() {
        let read = |spec: &str| {
            let text = format!("apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {spec}\n");
            from_file(Path::new("f"), &text).unwrap()
        };
        let settings = read("{etcdEndpoints: \"https://10.0.0.1:2379\", etcdCACertFile: /ca}");
        assert_eq!(settings.datastore().unwrap(), DatastoreKind::Etcd);
        assert_eq!(settings.etcd["ETCD_CA_CERT_FILE"], "/ca");
        assert_eq!(read("{datastoreType: etcdv3}").datastore().unwrap(), DatastoreKind::Etcd);
        assert_eq!(read("{}").datastore().unwrap(), DatastoreKind::Kubernetes);
        let both = read("{datastoreType: kubernetes, etcdEndpoints: \"http://h:1\"}");
        assert_eq!(both.datastore().unwrap(), DatastoreKind::Kubernetes);
        assert!(read("{datastoreType: consul}").datastore().unwrap_err().sentence().contains("consul"));
    }
}
