//! A container's environment: values, references to the pod's own fields, and keys of ConfigMaps and Secrets.

use super::pod::{Container, Pod, text};
use base64::Engine as _;
use serde_json::Value;
use std::collections::BTreeMap;

/// What references may point to.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    pub node: String,
    pub host_ip: String,
    pub pod_ips: Vec<String>,
    /// ConfigMaps of the pod's namespace, by name.
    pub config_maps: BTreeMap<String, Value>,
    /// Secrets of the pod's namespace, by name.
    pub secrets: BTreeMap<String, Value>,
}

/// Names of the ConfigMaps and of the Secrets that a container's environment needs.
pub(super) fn needs(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for entry in &container.env {
        config_maps.push(text(entry, "/valueFrom/configMapKeyRef/name"));
        secrets.push(text(entry, "/valueFrom/secretKeyRef/name"));
    }
    for entry in &container.env_from {
        config_maps.push(text(entry, "/configMapRef/name"));
        secrets.push(text(entry, "/secretRef/name"));
    }
    let names = |names: Vec<&str>| {
        names.into_iter().filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<String>>()
    };
    (names(config_maps), names(secrets))
}

/// The whole environment of `container`.
///
/// # Errors
/// The name of a ConfigMap or Secret, or of a key in it, that is missing and not optional.
pub(super) fn build(
    pod: &Pod,
    container: &Container,
    base: BTreeMap<String, String>,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, String> {
    let mut env = base;
    for entry in &container.env_from {
        let prefix = text(entry, "/prefix");
        for (kind, objects, encoded) in
            [("configMap", &sources.config_maps, false), ("secret", &sources.secrets, true)]
        {
            let name = text(entry, &format!("/{kind}Ref/name"));
            if name.is_empty() {
                continue;
            }
            match objects.get(name) {
                Some(object) => {
                    for (key, value) in object.get("data").and_then(Value::as_object).into_iter().flatten() {
                        env.insert(format!("{prefix}{key}"), decode(value, encoded));
                    }
                }
                None if is_optional(entry, &format!("/{kind}Ref/optional")) => {}
                None => return Err(format!("{kind} \"{name}\" not found")),
            }
        }
    }
    for entry in &container.env {
        let value = match entry.get("valueFrom") {
            None => Some(expand(text(entry, "/value"), &env)),
            Some(from) => referenced(pod, from, sources)?,
        };
        if let Some(value) = value {
            env.insert(text(entry, "/name").to_owned(), value);
        }
    }
    Ok(env)
}

fn referenced(pod: &Pod, from: &Value, sources: &Sources) -> Result<Option<String>, String> {
    if from.get("fieldRef").is_some() {
        return Ok(Some(field(pod, text(from, "/fieldRef/fieldPath"), sources)));
    }
    for (kind, objects, encoded) in
        [("configMap", &sources.config_maps, false), ("secret", &sources.secrets, true)]
    {
        let name = text(from, &format!("/{kind}KeyRef/name"));
        let key = text(from, &format!("/{kind}KeyRef/key"));
        if name.is_empty() {
            continue;
        }
        let value = objects.get(name).and_then(|object| object.get("data")).and_then(|data| data.get(key));
        return match value {
            Some(value) => Ok(Some(decode(value, encoded))),
            None if is_optional(from, &format!("/{kind}KeyRef/optional")) => Ok(None),
            None if objects.contains_key(name) => {
                Err(format!("couldn't find key {key} in {kind} {}/{name}", pod.namespace))
            }
            None => Err(format!("{kind} \"{name}\" not found")),
        };
    }
    // Resources are not limited in the lab: a container may have all there is, which 0 stands for.
    Ok(from.get("resourceFieldRef").map(|_| "0".to_owned()))
}

/// A field of the pod, by the paths that Kubernetes allows.
fn field(pod: &Pod, path: &str, sources: &Sources) -> String {
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = pod.object.pointer(&format!("/{}", map.replace('.', "/")));
        return map.and_then(|map| map.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned();
    }
    match path {
        "status.podIP" => sources.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => sources.pod_ips.join(","),
        "status.hostIP" | "status.hostIPs" => sources.host_ip.clone(),
        "spec.nodeName" => sources.node.clone(),
        path => text(&pod.object, &format!("/{}", path.replace('.', "/"))).to_owned(),
    }
}

fn decode(value: &Value, encoded: bool) -> String {
    let value = value.as_str().unwrap_or_default();
    if !encoded {
        return value.to_owned();
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(value).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_optional(entry: &Value, pointer: &str) -> bool {
    entry.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// The command and arguments of `container`, variables replaced.
pub(super) fn command(container: &Container, env: &BTreeMap<String, String>) -> Vec<String> {
    container.command.iter().chain(&container.args).map(|word| expand(word, env)).collect()
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for `$`, an unknown name stays as it is.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, after) = rest.split_at(dollar);
        out.push_str(before);
        rest = after.get(1..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Variables that every container gets.
pub(super) fn base(hostname: &str, api_server: &str) -> BTreeMap<String, String> {
    [
        ("PATH", super::program::PATH),
        ("HOME", "/root"),
        ("HOSTNAME", hostname),
        ("KUBERNETES_SERVICE_HOST", api_server),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(env: Value, env_from: Value) -> Pod {
        let object = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app.kubernetes.io/name": "web"}},
            "spec": {"containers": [{"name": "c", "env": env, "envFrom": env_from}]},
        });
        Pod::read(object)
    }

    fn built(env: Value, env_from: Value) -> Result<BTreeMap<String, String>, String> {
        let pod = pod(env, env_from);
        let sources = Sources {
            node: "node1".into(),
            host_ip: "172.18.0.2".into(),
            pod_ips: vec!["192.168.0.1".into()],
            config_maps: BTreeMap::from([("cm".into(), json!({"data": {"colour": "red"}}))]),
            secrets: BTreeMap::from([("s".into(), json!({"data": {"word": "c2VjcmV0"}}))]),
        };
        build(&pod, &pod.containers[0], BTreeMap::new(), &sources)
    }

    #[test]
    fn references_are_resolved() {
        let env = built(
            json!([
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app.kubernetes.io/name']"}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "colour"}}},
                {"name": "URL", "value": "http://$(IP)/$$(IP)/$(NONE)"},
            ]),
            json!([{"prefix": "X_", "secretRef": {"name": "s"}}]),
        )
        .unwrap();
        let expected = [
            ("APP", "web"),
            ("COLOUR", "red"),
            ("IP", "192.168.0.1"),
            ("NAME", "p"),
            ("URL", "http://192.168.0.1/$(IP)/$(NONE)"),
            ("X_word", "secret"),
        ];
        assert_eq!(env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_missing_is_named_unless_it_is_optional() {
        let reference = |optional: bool| json!([{"configMapRef": {"name": "other", "optional": optional}}]);
        assert_eq!(built(json!([]), reference(false)).unwrap_err(), "configMap \"other\" not found");
        assert_eq!(built(json!([]), reference(true)).unwrap(), BTreeMap::new());
        let key = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
        assert_eq!(built(key, json!([])).unwrap_err(), "couldn't find key k in secret n/s");
    }
}
