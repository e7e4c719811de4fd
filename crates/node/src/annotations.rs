//! Calico's annotations of pods and namespaces: they change what an ADD asks for (cni §9.2).
//!
//! A pod's annotation stands in the place of its namespace's of the same key, as a whole. `hwAddr`, `floatingIPs`,
//! `ipAddrsNoIpam` and `allowedSourcePrefixes` are of the wiring, and not read here.

use crate::node_object::{self, CallError};
use api::IpVersion;
use api::attachment::{AddRequest, ErrorReply};
use ipam::agent::BAD_REQUEST;
use kube::Client;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::IpAddr;

const PREFIX: &str = "cni.projectcalico.org/";

/// Annotations of an object, by key.
pub(crate) type Annotations = BTreeMap<String, String>;

/// What the annotations of the pod and of its namespace make of a request. Particular addresses are more than one request: one for
/// each.
///
/// # Errors
/// Code 7, naming the annotation.
pub(crate) fn applied(
    request: &AddRequest,
    pod: &Annotations,
    namespace: &Annotations,
) -> Result<Vec<AddRequest>, ErrorReply> {
    let mut changed = request.clone();
    let of = |key: &str| {
        let key = format!("{PREFIX}{key}");
        pod.get(&key).or_else(|| namespace.get(&key))
    };
    if let Some(pools) = list("ipv4pools", of("ipv4pools"))? {
        changed.ipv4_pools = pools;
    }
    if let Some(pools) = list("ipv6pools", of("ipv6pools"))? {
        changed.ipv6_pools = pools;
    }
    if let Some(families) = list::<String>("ipFamilies", of("ipFamilies"))? {
        if let Some(other) = families.iter().find(|family| !matches!(family.as_str(), "IPv4" | "IPv6")) {
            return Err(bad(format!("error parsing ipFamilies: {other}; write IPv4 or IPv6")));
        }
        let wants = |name: &str| u32::from(families.iter().any(|family| family == name));
        (changed.ipv4, changed.ipv6) = (wants("IPv4"), wants("IPv6"));
    }
    // Of the pod alone: one address is for one pod.
    let key = format!("{PREFIX}ipAddrs");
    let Some(texts) = list::<String>("ipAddrs", pod.get(&key))? else { return Ok(vec![changed]) };
    if texts.is_empty() {
        return Err(bad(format!("annotation {key:?} specified but empty")));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        let address: IpAddr = text.parse().map_err(|_| bad(format!("invalid IP format: {text}")))?;
        let version = IpVersion::of(address);
        if addresses.iter().any(|other| IpVersion::of(*other) == version) {
            return Err(bad(format!("cannot have more than one {version} address for {key:?} annotation")));
        }
        addresses.push(address);
    }
    let particular = |address: IpAddr| AddRequest { requested: Some(address), ..changed.clone() };
    Ok(addresses.into_iter().map(particular).collect())
}

fn bad(message: String) -> ErrorReply {
    ErrorReply { code: BAD_REQUEST, message, details: String::new() }
}

/// A list in JSON.
fn list<T: DeserializeOwned>(key: &str, value: Option<&String>) -> Result<Option<Vec<T>>, ErrorReply> {
    let parsed = value.map(|text| serde_json::from_str(text)).transpose();
    parsed.map_err(|error| bad(format!("annotation \"{PREFIX}{key}\" is no list in JSON: {error}")))
}

/// The requests that a pod's ADD comes to: its annotations and those of its namespace are read where it is a pod and there is an API to
/// ask. A pod that is not there has none.
///
/// # Errors
/// Code 7 for annotations that make no sense, 11 where they cannot be read, 100 where they may not.
pub(crate) async fn requests(
    client: Option<&Client>,
    request: AddRequest,
) -> Result<Vec<AddRequest>, ErrorReply> {
    let pod = request.attributes.get("pod").filter(|pod| !pod.is_empty());
    // Where the configuration turns both families off, a pod that asks for none gets none, which is no error.
    let asks = |request: &AddRequest| request.ipv4 > 0 || request.ipv6 > 0 || request.requested.is_some();
    let may_be_empty = !asks(&request);
    let (Some(client), Some(namespace), Some(pod)) = (client, &request.namespace, pod) else {
        return Ok(if may_be_empty { Vec::new() } else { vec![request] });
    };
    let unread = |error: CallError| ErrorReply {
        code: error.code(),
        message: format!("the annotations of pod {namespace}/{pod} cannot be read: {error}"),
        details: String::new(),
    };
    let (of_pod, of_namespace) = futures::try_join!(
        node_object::pod_annotations(client, namespace, pod),
        node_object::namespace_annotations(client, namespace)
    )
    .map_err(unread)?;
    let mut requests = applied(&request, &of_pod, &of_namespace)?;
    requests.retain(|request| !may_be_empty || asks(request));
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::attachment::Attachment;

    fn request() -> AddRequest {
        let [network, container, interface] = ["net", "c", "eth0"].map(str::to_owned);
        AddRequest {
            attachment: Attachment { network, container, interface },
            ipv4: 1,
            ipv6: 0,
            ipv4_pools: vec!["configured".to_owned()],
            ipv6_pools: Vec::new(),
            requested: None,
            attributes: BTreeMap::new(),
            namespace: None,
        }
    }

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
    }

    #[test]
    fn a_pods_annotation_stands_in_the_place_of_its_namespaces() {
        let namespace = annotations(&[("ipv4pools", r#"["n"]"#), ("ipFamilies", r#"["IPv4","IPv6"]"#)]);
        let changed = applied(&request(), &annotations(&[]), &namespace).unwrap();
        assert_eq!((changed[0].ipv4, changed[0].ipv6), (1, 1));
        assert_eq!(changed[0].ipv4_pools, ["n"]);
        let pod = annotations(&[("ipv4pools", r#"["10.0.0.0/24","p"]"#), ("ipFamilies", r#"["IPv6"]"#)]);
        let changed = applied(&request(), &pod, &namespace).unwrap();
        assert_eq!(changed[0].ipv4_pools, ["10.0.0.0/24", "p"]);
        assert_eq!((changed[0].ipv4, changed[0].ipv6), (0, 1));
        assert_eq!(applied(&request(), &annotations(&[]), &annotations(&[])).unwrap(), [request()]);
    }

    #[test]
    fn particular_addresses_are_a_request_each_and_the_pods_alone() {
        let both = annotations(&[("ipAddrs", r#"["10.0.0.7","fd00::7"]"#)]);
        let changed = applied(&request(), &both, &annotations(&[])).unwrap();
        let wanted: Vec<String> =
            changed.iter().map(|request| request.requested.unwrap().to_string()).collect();
        assert_eq!(wanted, ["10.0.0.7", "fd00::7"]);
        assert_eq!(applied(&request(), &annotations(&[]), &both).unwrap(), [request()]);
    }

    #[test]
    fn annotations_that_make_no_sense_are_told_in_calicos_words() {
        for (key, value, words) in [
            ("ipv4pools", "p", "no list in JSON"),
            ("ipFamilies", r#"["IPv5"]"#, "error parsing ipFamilies: IPv5"),
            ("ipAddrs", "[]", "specified but empty"),
            ("ipAddrs", r#"["10.0.0"]"#, "invalid IP format: 10.0.0"),
            ("ipAddrs", r#"["10.0.0.1","10.0.0.2"]"#, "cannot have more than one IPv4 address"),
        ] {
            let error = applied(&request(), &annotations(&[(key, value)]), &annotations(&[])).unwrap_err();
            assert!(error.code == 7 && error.message.contains(words), "{error:?}");
        }
    }
}
