//! Whichever store is configured: Calico knows two.

use crate::etcd::{self, Etcd};
use crate::kubernetes::{self, Kubernetes, Rate};
use crate::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Revision, Scope, Stored,
    Version, Write,
};
use api::wire::Group;
use futures::stream::BoxStream;
use kube::Client;
use std::path::PathBuf;

/// Calls at once where `K8S_CLIENT_QPS` is set and `K8S_CLIENT_BURST` is not.
const BURST: u32 = 100;

/// Which store is meant and how it is reached, in Calico's variables.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The Kubernetes API: the store itself, or beside etcd where pods and namespaces are asked for. `None`: the one
    /// that is found as kubectl finds it, where it is the store; else none.
    pub kubeconfig: Option<PathBuf>,
    /// Where the records are.
    pub store: Store,
}

/// Where the records are.
#[derive(Clone, Debug, PartialEq)]
pub enum Store {
    /// `DATASTORE_TYPE=kubernetes`.
    Kubernetes {
        /// `CALICO_API_GROUP`; `None`: the server is asked.
        group: Option<Group>,
        /// `K8S_CLIENT_QPS` and `K8S_CLIENT_BURST`; `None`: no limit.
        rate: Option<Rate>,
    },
    /// `DATASTORE_TYPE=etcdv3`.
    Etcd(etcd::Settings),
}

/// Settings that make no driver.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A store that Calico does not know.
    #[error("unknown datastore type {named}: set DATASTORE_TYPE to kubernetes or etcdv3")]
    Kind {
        /// As given.
        named: String,
    },
    /// A limit of calls that is no number.
    #[error("{variable}={value} is no number; leave it unset for no limit")]
    Rate {
        /// Which.
        variable: &'static str,
        /// As given.
        value: String,
    },
    /// What is said about etcd is not enough.
    #[error(transparent)]
    Etcd(#[from] etcd::SettingsError),
    /// There is no way to the Kubernetes API.
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::ConnectError),
}

impl Settings {
    /// The Kubernetes API that `kubeconfig` names, without limits.
    pub fn kubernetes(kubeconfig: Option<PathBuf>) -> Self {
        Self { kubeconfig, store: Store::Kubernetes { group: None, rate: None } }
    }

    /// The settings that this process's environment makes: `CALICO_<NAME>`, else `<NAME>`, as Calico's programs read them.
    ///
    /// # Errors
    /// As [`Settings::from_variables`].
    pub fn from_environment() -> Result<Self, SettingsError> {
        Self::from_variables(in_environment)
    }

    /// The settings that Calico's variables make. `lookup` tells a variable; an empty one counts as not set.
    ///
    /// Read are `DATASTORE_TYPE` (unset: etcd where `ETCD_ENDPOINTS` is set, else Kubernetes), `KUBECONFIG`,
    /// `CALICO_API_GROUP`, `K8S_CLIENT_QPS`, `K8S_CLIENT_BURST`, and what [`etcd::Settings::from_variables`] reads.
    ///
    /// # Errors
    /// [`SettingsError`]; the names of files are not looked at.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let kubeconfig = set("KUBECONFIG").map(PathBuf::from);
        let etcd = match set("DATASTORE_TYPE").as_deref() {
            Some("kubernetes") => false,
            Some("etcdv3") => true,
            None => set("ETCD_ENDPOINTS").is_some(),
            Some(other) => return Err(SettingsError::Kind { named: other.to_owned() }),
        };
        let store = if etcd {
            Store::Etcd(etcd::Settings::from_variables(&lookup)?)
        } else {
            let group = set("CALICO_API_GROUP").as_deref().and_then(Group::configured);
            Store::Kubernetes { group, rate: rate(set)? }
        };
        Ok(Self { kubeconfig, store })
    }

    /// Makes the driver. Nothing is sent yet.
    ///
    /// # Errors
    /// [`SettingsError`], where files cannot be read or used.
    pub async fn connect(&self) -> Result<Backend, SettingsError> {
        Ok(match &self.store {
            Store::Etcd(settings) => Backend::Etcd(Etcd::new(settings.clone())?),
            Store::Kubernetes { group, rate } => {
                let mut store = Kubernetes::connect(self.kubeconfig.as_deref()).await?;
                if let Some(group) = group {
                    store = store.with_group(*group);
                }
                Backend::Kubernetes(match rate {
                    Some(rate) => store.with_rate(*rate),
                    None => store,
                })
            }
        })
    }

    /// A client of the Kubernetes API for what no store holds, such as pods and namespaces: that of the store where it
    /// is one; beside etcd only where `KUBECONFIG` names one.
    ///
    /// # Errors
    /// [`SettingsError`], where the kubeconfig cannot be used.
    pub async fn client(&self, store: &Backend) -> Result<Option<Client>, SettingsError> {
        match (store, &self.kubeconfig) {
            (Backend::Kubernetes(store), _) => Ok(Some(store.client())),
            (Backend::Etcd(_), Some(kubeconfig)) => Ok(Some(kubernetes::client(Some(kubeconfig)).await?)),
            (Backend::Etcd(_), None) => Ok(None),
        }
    }
}

/// A variable of Calico's in this process's environment, with its prefix or without; empty ones count as not set.
pub fn in_environment(name: &str) -> Option<String> {
    let names = [format!("CALICO_{name}"), name.to_owned()];
    names.into_iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty())
}

/// The limit of calls, where one is set.
fn rate(set: impl Fn(&str) -> Option<String>) -> Result<Option<Rate>, SettingsError> {
    let bad = |variable, value| SettingsError::Rate { variable, value };
    let Some(text) = set("K8S_CLIENT_QPS") else { return Ok(None) };
    let per_second: f64 = text.parse().map_err(|_| bad("K8S_CLIENT_QPS", text))?;
    let burst = match set("K8S_CLIENT_BURST") {
        Some(text) => text.parse().map_err(|_| bad("K8S_CLIENT_BURST", text))?,
        None => BURST,
    };
    // Calico passes a limit of 0 on for none.
    Ok((per_second > 0.0).then_some(Rate { per_second, burst }))
}

/// A Kubernetes API or etcd.
#[derive(Clone, Debug)]
pub enum Backend {
    /// `DATASTORE_TYPE=kubernetes`.
    Kubernetes(Kubernetes),
    /// `DATASTORE_TYPE=etcdv3`.
    Etcd(Etcd),
}

impl Backend {
    /// The Kubernetes driver, for what only a Kubernetes API can be asked (pods, for one).
    pub fn kubernetes(&self) -> Option<&Kubernetes> {
        match self {
            Self::Kubernetes(store) => Some(store),
            Self::Etcd(_) => None,
        }
    }
}

impl Datastore for Backend {
    fn capabilities(&self) -> Capabilities {
        match self {
            Self::Kubernetes(store) => store.capabilities(),
            Self::Etcd(store) => store.capabilities(),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        match self {
            Self::Kubernetes(store) => store.get(key).await,
            Self::Etcd(store) => store.get(key).await,
        }
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        match self {
            Self::Kubernetes(store) => store.list(scope).await,
            Self::Etcd(store) => store.list(scope).await,
        }
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        match self {
            Self::Kubernetes(store) => store.commit(checks, writes).await,
            Self::Etcd(store) => store.commit(checks, writes).await,
        }
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        match self {
            Self::Kubernetes(store) => store.watch(scope, from).await,
            Self::Etcd(store) => store.watch(scope, from).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn etcd_is_meant_where_it_is_named_or_has_endpoints() {
        let endpoints = ("ETCD_ENDPOINTS", "http://h:1");
        let etcd = Store::Etcd(etcd::Settings::of(["http://h:1"]));
        assert_eq!(from(&[endpoints]).unwrap().store, etcd);
        assert_eq!(from(&[("DATASTORE_TYPE", "etcdv3"), endpoints]).unwrap().store, etcd);
        let both = from(&[("DATASTORE_TYPE", "kubernetes"), endpoints, ("KUBECONFIG", "/k")]).unwrap();
        assert_eq!(both, Settings::kubernetes(Some("/k".into())));
        assert_eq!(from(&[]).unwrap(), Settings::kubernetes(None));
        assert!(matches!(from(&[("DATASTORE_TYPE", "etcdv3")]), Err(SettingsError::Etcd(_))));
        let unknown = from(&[("DATASTORE_TYPE", "consul")]).unwrap_err();
        assert!(unknown.to_string().contains("consul"), "{unknown}");
    }

    #[test]
    fn calls_are_limited_only_where_a_limit_is_set() {
        let rate = |variables: &[(&str, &str)]| match from(variables).map(|settings| settings.store) {
            Ok(Store::Kubernetes { rate, .. }) => Some(rate),
            _ => None,
        };
        assert_eq!(rate(&[]), Some(None));
        assert_eq!(rate(&[("K8S_CLIENT_QPS", "0"), ("K8S_CLIENT_BURST", "7")]), Some(None));
        assert_eq!(rate(&[("K8S_CLIENT_QPS", "2.5")]).unwrap(), Some(Rate { per_second: 2.5, burst: BURST }));
        assert_eq!(
            rate(&[("K8S_CLIENT_QPS", "20"), ("K8S_CLIENT_BURST", "7")]),
            Some(Some(Rate { per_second: 20.0, burst: 7 }))
        );
        assert_eq!(rate(&[("K8S_CLIENT_QPS", "fast")]), None);
    }

    #[tokio::test]
    async fn a_limit_that_is_set_holds_back_calls() {
        // Nobody listens there: what is looked at is the driver that the settings make.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n";
        std::fs::write(&file, text).unwrap();
        let path = file.display().to_string();
        let limited =
            from(&[("KUBECONFIG", &path), ("K8S_CLIENT_QPS", "5")]).unwrap().connect().await.unwrap();
        let free = from(&[("KUBECONFIG", &path)]).unwrap().connect().await.unwrap();
        assert!(limited.kubernetes().is_some_and(Kubernetes::is_limited));
        assert!(!free.kubernetes().is_some_and(Kubernetes::is_limited));
    }
}
