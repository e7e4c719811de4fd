//! Resources that are not about addresses: policies, sets, peers, settings. An import writes them as they stand in the file
//! (calicoctl §11), and compares before and after.

use super::definitions;
use crate::failure::Failure;
use datastore::ReadError;
use datastore::kubernetes::{Kubernetes, Other, place_of};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A kind of them.
#[derive(Debug)]
struct OtherKind {
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
}

const fn cluster(kind: &'static str, plural: &'static str) -> OtherKind {
    OtherKind { kind, plural, namespaced: false }
}

const fn namespaced(kind: &'static str, plural: &'static str) -> OtherKind {
    OtherKind { kind, plural, namespaced: true }
}

/// What an export has beside pools, reservations and nodes.
const KINDS: [OtherKind; 14] = [
    cluster("Tier", "tiers"),
    cluster("BGPPeer", "bgppeers"),
    cluster("BGPConfiguration", "bgpconfigurations"),
    cluster("BGPFilter", "bgpfilters"),
    cluster("FelixConfiguration", "felixconfigurations"),
    cluster("KubeControllersConfiguration", "kubecontrollersconfigurations"),
    cluster("HostEndpoint", "hostendpoints"),
    cluster("GlobalNetworkPolicy", "globalnetworkpolicies"),
    cluster("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies"),
    cluster("GlobalNetworkSet", "globalnetworksets"),
    cluster("RemoteClusterConfiguration", "remoteclusterconfigurations"),
    namespaced("NetworkPolicy", "networkpolicies"),
    namespaced("StagedNetworkPolicy", "stagednetworkpolicies"),
    namespaced("NetworkSet", "networksets"),
];

/// Tiers that a cluster has of itself.
const BUILT_IN_TIERS: [&str; 5] =
    ["default", "kube-admin", "kube-baseline", "adminnetworkpolicy", "baselineadminnetworkpolicy"];

/// Begin of the names of policies that are made from those of Kubernetes.
const FROM_KUBERNETES: &str = "knp.";

/// Namespace and name.
type Place = (String, String);

/// Those of a file, in its order.
#[derive(Debug, Default)]
pub(super) struct Others(Vec<(&'static OtherKind, Value)>);

impl Others {
    /// Takes a resource in, if it is of a kind that is known.
    ///
    /// # Errors
    /// One sentence, for one without a name, without the namespace that it needs, or that is there twice.
    pub(super) fn take(&mut self, resource: Value) -> Result<Option<Value>, String> {
        let Some(of) = KINDS.iter().find(|of| resource["kind"] == of.kind) else { return Ok(Some(resource)) };
        let place = place_of(&resource);
        if place.1.is_empty() || of.namespaced == place.0.is_empty() {
            let needed = if of.namespaced { "a namespace and a name" } else { "a name and no namespace" };
            return Err(format!("{} {} must have {needed}", of.kind, shown(place)));
        }
        if self.0.iter().any(|(known, other)| known.kind == of.kind && place_of(other) == place) {
            return Err(format!("{} {} is in the file twice: export again", of.kind, shown(place)));
        }
        self.0.push((of, resource));
        Ok(None)
    }

    /// Whether what stands there is what the file says, as far as it stands there.
    ///
    /// # Errors
    /// Where something is not in the file, or differs from it, or a namespace is missing.
    pub(super) async fn compare(&self, target: &Kubernetes) -> Result<(), Failure> {
        for of in &KINDS {
            let wanted = self.of(of);
            for (place, found) in list(target, of).await? {
                let name = shown((&place.0, &place.1));
                let what = match wanted.get(&place) {
                    Some(wanted) if says_the_same(wanted, &found) => continue,
                    _ if is_built_in(of, &place.1) => continue,
                    Some(_) => "differs from the file",
                    None => "is not in the file",
                };
                return Err(Failure::new(format!(
                    "{} {name} of the datastore {what}. Nothing was written. Import into a cluster without Calico's resources",
                    of.kind
                )));
            }
        }
        let namespaces: BTreeSet<&str> =
            self.0.iter().map(|(_, resource)| place_of(resource).0).filter(|name| !name.is_empty()).collect();
        for name in namespaces {
            if !target.has_namespace(name).await? {
                return Err(Failure::new(format!(
                    "the file has resources of namespace {name}, which is not in the cluster. Nothing was written. Create it first"
                )));
            }
        }
        Ok(())
    }

    /// Defines the kinds that are needed, and creates what is missing.
    ///
    /// # Errors
    /// What the datastore refuses.
    pub(super) async fn make(&self, target: &Kubernetes) -> Result<(), Failure> {
        for of in KINDS.iter().filter(|of| self.0.iter().any(|(known, _)| known.kind == of.kind)) {
            definitions::install_other(target, of.kind, of.plural, of.namespaced).await?;
        }
        for (of, resource) in &self.0 {
            let made = target.create_other(Other { plural: of.plural, resource }).await;
            made.map_err(|error| {
                Failure::new(format!(
                    "the import stopped: {error}. What is written stays, the datastore is locked; run the same command again and it goes on"
                ))
            })?;
        }
        Ok(())
    }

    /// Whether everything stands there as it was written.
    ///
    /// # Errors
    /// The first resource that does not.
    pub(super) async fn read_back(&self, target: &Kubernetes) -> Result<(), Failure> {
        for of in &KINDS {
            let wanted = self.of(of);
            if wanted.is_empty() {
                continue;
            }
            let found = list(target, of).await?;
            let odd = wanted.iter().find(|(place, wanted)| {
                !is_built_in(of, &place.1)
                    && !found.get(*place).is_some_and(|found| says_the_same(wanted, found))
            });
            if let Some((place, _)) = odd {
                return Err(Failure::new(format!(
                    "{} {} does not read back as it was written. Update the custom resource definitions, delete what was imported, and import again; the datastore is locked",
                    of.kind,
                    shown((&place.0, &place.1))
                )));
            }
        }
        Ok(())
    }

    fn of(&self, kind: &OtherKind) -> BTreeMap<Place, &Value> {
        self.0
            .iter()
            .filter(|(of, _)| of.kind == kind.kind)
            .map(|(_, resource)| (place(resource), resource))
            .collect()
    }
}

fn place(resource: &Value) -> Place {
    let (namespace, name) = place_of(resource);
    (namespace.to_owned(), name.to_owned())
}

fn shown((namespace, name): (&str, &str)) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

async fn list(target: &Kubernetes, of: &OtherKind) -> Result<BTreeMap<Place, Value>, ReadError> {
    let found = target.others(of.plural).await?;
    Ok(found.into_iter().map(|object| (place(&object), object)).collect())
}

/// Whether a cluster has it of itself, or from Kubernetes: it stays as it is there.
fn is_built_in(of: &OtherKind, name: &str) -> bool {
    (of.kind == "Tier" && BUILT_IN_TIERS.contains(&name))
        || (of.plural.ends_with("networkpolicies") && name.starts_with(FROM_KUBERNETES))
}

/// An absent spec says what an empty one does.
fn says_the_same(wanted: &Value, found: &Value) -> bool {
    let nothing = json!({});
    let spec = |of: &Value| of.get("spec").filter(|spec| !spec.is_null()).unwrap_or(&nothing).clone();
    spec(wanted) == spec(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_no_known_kind_is_handed_back() {
        let mut others = Others::default();
        let future = json!({"kind": "Future", "metadata": {"name": "x"}});
        assert_eq!(others.take(future.clone()), Ok(Some(future)));
        assert_eq!(others.take(json!({"kind": "BGPPeer", "metadata": {"name": "a"}})), Ok(None));
        assert_eq!(others.0.len(), 1);
    }

    #[test]
    fn names_and_namespaces_are_as_their_kind_needs_them_and_come_once() {
        let mut others = Others::default();
        let policy = |metadata: Value| json!({"kind": "NetworkPolicy", "metadata": metadata});
        assert_eq!(others.take(policy(json!({"name": "p", "namespace": "n"}))), Ok(None));
        assert_eq!(others.take(policy(json!({"name": "p", "namespace": "m"}))), Ok(None));
        for (bad, said) in [
            (policy(json!({"name": "p"})), "a namespace"),
            (policy(json!({"namespace": "n"})), "a namespace"),
            (json!({"kind": "Tier", "metadata": {"name": "t", "namespace": "n"}}), "no namespace"),
            (policy(json!({"name": "p", "namespace": "n"})), "n/p is in the file twice"),
        ] {
            let refused = others.take(bad).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn a_spec_that_is_absent_is_an_empty_one() {
        let with = |spec: Value| json!({"spec": spec});
        assert!(says_the_same(&json!({}), &with(json!({}))));
        assert!(says_the_same(&with(Value::Null), &with(json!({}))));
        assert!(!says_the_same(&with(json!({"order": 1})), &with(json!({"order": 2}))));
    }
}
