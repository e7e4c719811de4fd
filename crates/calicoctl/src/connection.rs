//! Which datastore is meant: the configuration file if there is one, else the environment (calicoctl §1.4).

use crate::failure::Failure;
use datastore::backend::{Backend, Settings, in_environment};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Read where no other file is named; it need not exist.
const DEFAULT_FILE: &str = "/etc/calico/calicoctl.cfg";

/// Fields of a configuration file, and the variables that say the same. The texts of etcd's certificates have no variable
/// of Calico's; here they have one in the same spelling.
const FIELDS: [(&str, &str); 15] = [
    ("datastoreType", "DATASTORE_TYPE"),
    ("kubeconfig", "KUBECONFIG"),
    ("calicoAPIGroup", "CALICO_API_GROUP"),
    ("k8sClientQPS", "K8S_CLIENT_QPS"),
    ("k8sClientBurst", "K8S_CLIENT_BURST"),
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

/// Variables of Calico's that say where the Kubernetes API is, and are not read here: passed over, another cluster would be meant.
const NOT_READ: [&str; 9] = [
    "K8S_API_ENDPOINT",
    "K8S_API_TOKEN",
    "K8SAPITOKEN",
    "K8S_CERT_FILE",
    "K8S_KEY_FILE",
    "K8S_CA_FILE",
    "K8S_INSECURE_SKIP_TLS_VERIFY",
    "K8S_CURRENT_CONTEXT",
    "KUBECONFIG_INLINE",
];

/// What is configured, by the names of variables.
type Variables = BTreeMap<&'static str, String>;

/// Sets up the driver. Nothing is sent yet.
pub(crate) async fn connect(config: Option<&Path>) -> Result<Backend, Failure> {
    let variables = variables(config)?;
    let settings = Settings::from_variables(|name| variables.get(name).cloned());
    let store = match settings {
        Ok(settings) => settings.connect().await,
        Err(error) => Err(error),
    };
    store.map_err(|error| Failure::new(error.to_string()))
}

fn variables(config: Option<&Path>) -> Result<Variables, Failure> {
    let file = config.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(file) {
        Ok(text) => from_file(file, &text),
        Err(_) if config.is_none_or(|file| file == Path::new(DEFAULT_FILE)) => {
            from_environment(in_environment)
        }
        // Scripts look for this text on stdout.
        Err(_) => {
            let sentence = format!("Error reading config file: {}", file.display());
            Err(Failure::after(format!("{sentence}\n"), String::new()))
        }
    }
}

fn from_file(file: &Path, text: &str) -> Result<Variables, Failure> {
    let document: Value = serde_saphyr::from_str(text)
        .map_err(|error| Failure::new(format!("syntax error in {}: {error}", file.display())))?;
    let text = |pointer: &str| match document.pointer(pointer)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let (version, kind) = (text("/apiVersion").unwrap_or_default(), text("/kind").unwrap_or_default());
    if version != "projectcalico.org/v3" {
        return Err(Failure::new(format!("invalid config file: unknown APIVersion '{version}'")));
    }
    if kind != "CalicoAPIConfig" {
        return Err(Failure::new(format!(
            "invalid config file: expected kind 'CalicoAPIConfig', got '{kind}'"
        )));
    }
    let spec = document.get("spec").and_then(Value::as_object);
    let says_something = |value: &Value| !(value.is_null() || value == "" || value == &Value::Bool(false));
    let unread = spec
        .into_iter()
        .flatten()
        .find(|(field, value)| says_something(value) && !FIELDS.iter().any(|(known, _)| known == field));
    if let Some((field, _)) = unread {
        return Err(not_read(&format!("spec.{field} of {}", file.display())));
    }
    Ok(FIELDS
        .into_iter()
        .filter_map(|(field, variable)| Some((variable, text(&format!("/spec/{field}"))?)))
        .collect())
}

fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Result<Variables, Failure> {
    let variables: Variables =
        FIELDS.into_iter().filter_map(|(_, variable)| Some((variable, lookup(variable)?))).collect();
    let etcd = variables.get("DATASTORE_TYPE").map(String::as_str) == Some("etcdv3");
    match NOT_READ.into_iter().find(|name| !etcd && lookup(name).is_some()) {
        Some(name) => Err(not_read(name)),
        None => Ok(variables),
    }
}

fn not_read(what: &str) -> Failure {
    Failure::new(format!(
        "{what} is not supported, and without it another datastore may be meant: write where the API is into a kubeconfig, and name that"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::backend::Store;
    use datastore::kubernetes::Rate;

    fn read(text: &str) -> Settings {
        let variables = from_file(Path::new("f"), text).unwrap();
        Settings::from_variables(|name| variables.get(name).cloned()).unwrap()
    }

    #[test]
    fn a_configuration_file_names_the_kubeconfig_and_limits_calls() {
        let text = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  datastoreType: kubernetes\n  kubeconfig: /tmp/k\n  calicoAPIGroup: projectcalico.org/v3\n  k8sClientQPS: 20\n";
        let settings = read(text);
        assert_eq!(settings.kubeconfig, Some("/tmp/k".into()));
        assert_eq!(
            settings.store,
            Store::Kubernetes {
                group: Some(api::wire::Group::V3),
                rate: Some(Rate { per_second: 20.0, burst: 100 })
            }
        );
        let wrong = from_file(Path::new("f"), "apiVersion: v1\nkind: CalicoAPIConfig\n").unwrap_err();
        assert_eq!(wrong.sentence(), "invalid config file: unknown APIVersion 'v1'");
        assert!(from_file(Path::new("f"), "a: [").is_err());
    }

    #[test]
    fn what_is_not_read_and_says_where_the_datastore_is_is_refused_by_name() {
        for (field, value) in [
            ("k8sAPIEndpoint", "https://10.0.0.1:6443"),
            ("k8sAPIToken", "t"),
            ("k8sCertFile", "/c"),
            ("k8sKeyFile", "/k"),
            ("k8sCAFile", "/ca"),
            ("kubeconfigInline", "{}"),
            ("k8sCurrentContext", "other"),
            ("k8sInsecureSkipTLSVerify", "true"),
            ("kubeConfig", "/misspelt"),
        ] {
            let text = format!(
                "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {{{field}: '{value}'}}\n"
            );
            let refused = from_file(Path::new("f"), &text).unwrap_err().sentence();
            assert!(refused.starts_with(&format!("spec.{field} of f is not supported")), "{refused}");
        }
        let empty = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {k8sAPIEndpoint: '', k8sInsecureSkipTLSVerify: false}\n";
        assert!(from_file(Path::new("f"), empty).is_ok());
        let named = |wanted: &'static str| move |name: &str| (name == wanted).then(|| "x".to_owned());
        for name in NOT_READ {
            let refused = from_environment(named(name)).unwrap_err().sentence();
            assert!(refused.starts_with(name), "{refused}");
        }
        assert!(from_environment(named("KUBECONFIG")).is_ok());
    }

    #[test]
    fn a_configuration_file_names_etcd_and_its_certificates() {
        let settings = read(
            "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {etcdEndpoints: \"https://10.0.0.1:2379\", etcdCACertFile: /ca}\n",
        );
        let Store::Etcd(etcd) = settings.store else { panic!("{settings:?}") };
        assert_eq!(etcd.endpoints, ["https://10.0.0.1:2379"]);
        assert_eq!(etcd.authority, Some(datastore::etcd::Pem::File("/ca".into())));
    }
}
