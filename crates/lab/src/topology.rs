//! The ContainerLab topology: as much of its schema as a lab of kind clusters uses, read strictly.

use crate::yaml::{self, Wrong};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Spanned;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long `deploy` waits for the nodes when the topology does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(15 * 60);

/// The kind of node that is a cluster.
pub const CLUSTER_KIND: &str = "k8s-kind";

/// The kind of node that names one of a cluster's containers again.
const ALIAS_KIND: &str = "ext-container";

/// What a topology asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The file, absolute.
    pub file: PathBuf,
    /// Name of the lab.
    pub lab: String,
    /// Name of the cluster: the key of its node.
    pub cluster: String,
    /// Line of the topology that names the cluster.
    pub cluster_line: u64,
    /// Image for all nodes; `None` leaves it to the kind configuration.
    pub image: Option<String>,
    /// The kind configuration, absolute; `None` means one control-plane node.
    pub startup_config: Option<PathBuf>,
    /// Line of the topology that names it.
    pub startup_config_line: u64,
    /// How long to wait for the nodes to be Ready; zero does not wait.
    pub wait: Duration,
    /// The kubeconfig file to merge into instead of the user's.
    pub kubeconfig: Option<PathBuf>,
    /// What was read and has no effect here.
    pub warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: Option<Spanned<String>>,
    #[serde(default)]
    #[expect(dead_code, reason = "accepted: the nodes of kind clusters never carry it")]
    prefix: Option<String>,
    #[serde(default)]
    mgmt: Option<Management>,
    #[serde(default)]
    #[expect(dead_code, reason = "accepted without effect")]
    settings: Option<Value>,
    topology: Option<Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(dead_code, reason = "the nodes of kind clusters are never attached to this network")]
struct Management {
    network: Option<String>,
    bridge: Option<String>,
    ipv4_subnet: Option<String>,
    ipv6_subnet: Option<String>,
    ipv4_gw: Option<String>,
    ipv6_gw: Option<String>,
    ipv4_range: Option<String>,
    ipv6_range: Option<String>,
    mtu: Option<u32>,
    external_access: Option<bool>,
    driver_opts: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    #[serde(default)]
    defaults: Option<Definition>,
    #[serde(default)]
    kinds: BTreeMap<String, Option<Definition>>,
    #[serde(default)]
    groups: BTreeMap<String, Option<Definition>>,
    #[serde(default)]
    nodes: HashMap<Spanned<String>, Option<Definition>>,
    #[serde(default)]
    links: Option<Spanned<Vec<Value>>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Definition {
    kind: Option<Spanned<String>>,
    image: Option<String>,
    startup_config: Option<Spanned<String>>,
    group: Option<String>,
    extras: Option<Extras>,
    labels: Option<BTreeMap<String, Value>>,
    env: Option<BTreeMap<String, Value>>,
    exec: Option<Vec<String>>,
    startup_delay: Option<u32>,
    binds: Option<Vec<String>>,
    ports: Option<Vec<String>>,
    cmd: Option<String>,
    entrypoint: Option<String>,
    user: Option<String>,
    network_mode: Option<String>,
    mgmt_ipv4: Option<String>,
    mgmt_ipv6: Option<String>,
    stages: Option<Value>,
    memory: Option<String>,
    cpu: Option<f64>,
    image_pull_policy: Option<String>,
    runtime: Option<String>,
    #[serde(rename = "type")]
    kind_type: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extras {
    k8s_kind: Option<ClusterExtras>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterExtras {
    deploy: Option<DeployExtras>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeployExtras {
    wait: Option<Spanned<String>>,
    kubeconfig: Option<String>,
}

impl Definition {
    /// This definition where it says something, else `base`.
    fn over(self, base: Self) -> Self {
        let deploy = |definition: &Self| {
            let extras = definition.extras.clone().unwrap_or_default();
            extras.k8s_kind.unwrap_or_default().deploy.unwrap_or_default()
        };
        let (ours, theirs) = (deploy(&self), deploy(&base));
        let merged = DeployExtras {
            wait: ours.wait.or(theirs.wait),
            kubeconfig: ours.kubeconfig.or(theirs.kubeconfig),
        };
        Self {
            kind: self.kind.or(base.kind),
            image: self.image.or(base.image),
            startup_config: self.startup_config.or(base.startup_config),
            group: self.group.or(base.group),
            extras: Some(Extras { k8s_kind: Some(ClusterExtras { deploy: Some(merged) }) }),
            labels: self.labels.or(base.labels),
            env: self.env.or(base.env),
            exec: self.exec.or(base.exec),
            startup_delay: self.startup_delay.or(base.startup_delay),
            binds: self.binds.or(base.binds),
            ports: self.ports.or(base.ports),
            cmd: self.cmd.or(base.cmd),
            entrypoint: self.entrypoint.or(base.entrypoint),
            user: self.user.or(base.user),
            network_mode: self.network_mode.or(base.network_mode),
            mgmt_ipv4: self.mgmt_ipv4.or(base.mgmt_ipv4),
            mgmt_ipv6: self.mgmt_ipv6.or(base.mgmt_ipv6),
            stages: self.stages.or(base.stages),
            memory: self.memory.or(base.memory),
            cpu: self.cpu.or(base.cpu),
            image_pull_policy: self.image_pull_policy.or(base.image_pull_policy),
            runtime: self.runtime.or(base.runtime),
            kind_type: self.kind_type.or(base.kind_type),
        }
    }

    /// Keys that were given and do nothing here.
    fn without_effect(&self) -> Vec<&'static str> {
        let given = [
            ("labels", self.labels.is_some()),
            ("env", self.env.is_some()),
            ("startup-delay", self.startup_delay.is_some()),
            ("binds", self.binds.is_some()),
            ("ports", self.ports.is_some()),
            ("cmd", self.cmd.is_some()),
            ("entrypoint", self.entrypoint.is_some()),
            ("user", self.user.is_some()),
            ("network-mode", self.network_mode.is_some()),
            ("mgmt-ipv4", self.mgmt_ipv4.is_some()),
            ("mgmt-ipv6", self.mgmt_ipv6.is_some()),
            ("stages", self.stages.is_some()),
            ("memory", self.memory.is_some()),
            ("cpu", self.cpu.is_some()),
            ("image-pull-policy", self.image_pull_policy.is_some()),
            ("type", self.kind_type.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

/// Reads the topology in `file`, absolute; `lookup` gives the value of an environment variable.
///
/// # Errors
/// With file, line, key and remedy.
pub fn read(file: &Path, lookup: impl Fn(&str) -> Option<String>) -> Result<Topology, Wrong> {
    parse(file, &yaml::read(file)?, lookup)
}

/// Reads a topology from its text.
///
/// # Errors
/// With file, line, key and remedy.
pub fn parse(file: &Path, text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Topology, Wrong> {
    if let Some(line) = text.lines().position(|line| line.contains("{{")) {
        let message =
            "template expressions ({{ … }}) are not supported; write the value itself or use ${VARIABLE}";
        return Err(Wrong::at(file, line_number(line), message));
    }
    let text = expand(text, lookup);
    let document: Document = yaml::parse(file, &text).map_err(|wrong| Wrong {
        message: format!(
            "{}\nConsult with release notes to see if any fields were changed/removed",
            wrong.message
        ),
        place: format!("failed to read topology file: {}", wrong.place),
    })?;

    let lab = document.name.ok_or_else(|| Wrong::at(file, 0, "has no lab name; add a line: name: my-lab"))?;
    if !is_name(&lab.value, b"-_.") {
        let message = format!(
            "name: {:?} is not a valid lab name; begin with a letter or digit, then letters, digits, '-', '_' and '.'",
            lab.value
        );
        return Err(Wrong::of(file, &lab, message));
    }
    let mut warnings = Vec::new();
    if document.mgmt.is_some_and(|network| network.ipv4_subnet.is_some() || network.ipv6_subnet.is_some()) {
        warnings
            .push("mgmt: the nodes of kind clusters are not attached to the management network".to_owned());
    }
    let section = document.topology.ok_or_else(|| {
        Wrong::at(file, 0, "has no topology; add topology.nodes with a node of kind k8s-kind")
    })?;
    if let Some(links) = section.links.as_ref().filter(|links| !links.value.is_empty()) {
        let message =
            "topology.links: links between the nodes of kind clusters are not supported; remove them";
        return Err(Wrong::of(file, links, message));
    }
    let mut clusters = Vec::new();
    let mut nodes: Vec<_> = section.nodes.iter().collect();
    nodes.sort_by_key(|(name, _)| name.referenced.line());
    for (name, definition) in nodes {
        let definition = merge(definition.clone().unwrap_or_default(), &section);
        if let Some(cluster) = node(file, name, definition, &mut warnings)? {
            clusters.push((name, cluster));
        }
    }
    let mut clusters = clusters.into_iter();
    let Some((name, definition)) = clusters.next() else {
        let message = format!("topology.nodes has no cluster; add a node with kind: {CLUSTER_KIND}");
        return Err(Wrong::at(file, 0, message));
    };
    if let Some((second, _)) = clusters.next() {
        let message = format!(
            "topology.nodes.{}: a lab has one cluster here; write a topology of its own for it",
            second.value
        );
        return Err(Wrong::of(file, second, message));
    }
    cluster(file, lab.value, name, definition, warnings)
}

/// The node with the defaults of the topology, its kind and its group.
fn merge(node: Definition, section: &Section) -> Definition {
    let group = |definition: &Definition| definition.group.clone();
    let named = |map: &BTreeMap<String, Option<Definition>>, name: Option<String>| {
        name.and_then(|name| map.get(&name).cloned().flatten()).unwrap_or_default()
    };
    let defaults = section.defaults.clone().unwrap_or_default();
    let group = named(&section.groups, group(&node).or_else(|| group(&defaults)));
    let kind = [&node, &group, &defaults].iter().find_map(|definition| definition.kind.clone());
    let kind = named(&section.kinds, kind.map(|kind| kind.value.to_lowercase()));
    node.over(group.over(kind.over(defaults)))
}

/// Checks a node; one that is no cluster gives nothing.
fn node(
    file: &Path,
    name: &Spanned<String>,
    definition: Definition,
    warnings: &mut Vec<String>,
) -> Result<Option<Definition>, Wrong> {
    if !is_name(&name.value, b"-_.|") {
        let message = format!(
            "topology.nodes: {:?} is not a valid node name; begin with a letter or digit, then letters, digits, \
             '-', '_' and '.'",
            name.value
        );
        return Err(Wrong::of(file, name, message));
    }
    let Some(kind) = &definition.kind else {
        let message = format!("topology.nodes.{} has no kind; add kind: {CLUSTER_KIND}", name.value);
        return Err(Wrong::of(file, name, message));
    };
    let name = &name.value;
    match kind.value.to_lowercase().as_str() {
        CLUSTER_KIND => {}
        ALIAS_KIND => return Ok(None),
        _ => {
            let message = format!(
                "constructing node {name:?}: kind {:?} is not supported. Supported kinds are {CLUSTER_KIND:?}, \
                 {ALIAS_KIND:?}",
                kind.value
            );
            return Err(Wrong::of(file, kind, message));
        }
    }
    for key in definition.without_effect() {
        warnings.push(format!("topology.nodes.{name}.{key} has no effect on a node of kind {CLUSTER_KIND}"));
    }
    if definition.exec.is_some() {
        warnings.push(format!("Exec operation is not implemented for kind {CLUSTER_KIND:?}"));
    }
    Ok(Some(definition))
}

fn cluster(
    file: &Path,
    lab: String,
    name: &Spanned<String>,
    definition: Definition,
    warnings: Vec<String>,
) -> Result<Topology, Wrong> {
    let (cluster_line, name) = (name.referenced.line(), &name.value);
    let deploy =
        definition.extras.unwrap_or_default().k8s_kind.unwrap_or_default().deploy.unwrap_or_default();
    let wait = match &deploy.wait {
        None => DEFAULT_WAIT,
        Some(text) => parse_duration(&text.value).ok_or_else(|| {
            let message = format!(
                "topology.nodes.{name}.extras.k8s_kind.deploy.wait: failed to parse wait duration: \
                 {:?} is no duration; write 0s, 90s or 5m",
                text.value
            );
            Wrong::of(file, text, message)
        })?,
    };
    let startup_config_line = definition.startup_config.as_ref().map_or(0, |path| path.referenced.line());
    Ok(Topology {
        file: file.to_owned(),
        lab,
        cluster: name.clone(),
        cluster_line,
        image: definition.image.filter(|image| !image.is_empty()),
        startup_config: definition.startup_config.map(|path| resolve(file, &path.value)),
        startup_config_line,
        wait,
        kubeconfig: deploy.kubeconfig.map(|path| resolve(file, &path)),
        warnings,
    })
}

/// A path of the topology: relative ones begin at its file, `~` at the user's home.
fn resolve(file: &Path, path: &str) -> PathBuf {
    if let (Some(rest), Some(home)) = (path.strip_prefix("~/"), std::env::home_dir()) {
        return home.join(rest);
    }
    file.parent().unwrap_or_else(|| Path::new("/")).join(path)
}

/// Whether the name begins with a letter or digit and has only these and `others`.
fn is_name(name: &str, others: &[u8]) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(allowed)
        && name.len() <= 253
}

/// Replaces `${NAME}` and `${NAME:-default}`; a variable that is not set and has no default stays as it is written.
fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        result.push_str(before);
        let Some(end) = from.find('}') else { break };
        let (whole, after) = from.split_at(end + 1);
        let inner = whole.trim_start_matches("${").trim_end_matches('}');
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (inner, None),
        };
        let value = lookup(name).filter(|value| default.is_none() || !value.is_empty()).or(default);
        result.push_str(value.as_deref().unwrap_or(whole));
        rest = after;
    }
    result.push_str(rest);
    result
}

/// A duration in Go's notation (`0s`, `1h30m`, `1.5s`, `500ms`); negative ones are none.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, unit_on) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let length = unit_on.find(|character: char| character.is_ascii_digit()).unwrap_or(unit_on.len());
        let (unit, after) = unit_on.split_at(length);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * factor;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

fn line_number(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX - 1) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const LESSON: &str = "\
name: calico-ipam
topology:
  nodes:
    calico-ipam:
      kind: k8s-kind
      image: kindest/node:v1.28.0
      startup-config: calico-ipam-no-cni.yaml
      extras:
        k8s_kind:
          deploy:
            wait: 0s
";

    fn parse_text(text: &str) -> Result<Topology, Wrong> {
        parse(Path::new("/lab/a.clab.yaml"), text, |name| (name == "IMAGE").then(|| "from-env".to_owned()))
    }

    #[test]
    fn the_lessons_topology_is_read() {
        let topology = parse_text(LESSON).unwrap();
        assert_eq!(topology.lab, "calico-ipam");
        assert_eq!(topology.cluster, "calico-ipam");
        assert_eq!(topology.image.as_deref(), Some("kindest/node:v1.28.0"));
        assert_eq!(topology.startup_config, Some(PathBuf::from("/lab/calico-ipam-no-cni.yaml")));
        assert_eq!(topology.startup_config_line, 7);
        assert_eq!(topology.wait, Duration::ZERO);
        assert!(topology.warnings.is_empty());
    }

    #[test]
    fn nodes_inherit_from_their_kind_and_the_defaults() {
        let text = "\
name: x
mgmt: {network: bridge}
topology:
  defaults: {kind: k8s-kind, image: default}
  kinds:
    k8s-kind: {image: '${IMAGE}', startup-config: '${NONE:-k.yaml}'}
  nodes:
    c:
";
        let topology = parse_text(text).unwrap();
        assert_eq!(topology.image.as_deref(), Some("from-env"));
        assert_eq!(topology.startup_config, Some(PathBuf::from("/lab/k.yaml")));
        assert_eq!(topology.wait, DEFAULT_WAIT);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_a_remedy() {
        let wrong = |from: &str, to: &str| parse_text(&LESSON.replace(from, to)).unwrap_err().to_string();
        let text = wrong("      image:", "      imagee:");
        assert!(text.starts_with("failed to read topology file: /lab/a.clab.yaml:6: "), "{text}");
        assert!(text.contains("unknown field `imagee`"), "{text}");
        assert!(text.contains("allowed are kind, image, startup-config"), "{text}");
        assert!(
            text.ends_with("Consult with release notes to see if any fields were changed/removed"),
            "{text}"
        );

        assert_eq!(
            wrong("kind: k8s-kind", "kind: linux"),
            "/lab/a.clab.yaml:5: constructing node \"calico-ipam\": kind \"linux\" is not supported. \
             Supported kinds are \"k8s-kind\", \"ext-container\""
        );
        let text = wrong("wait: 0s", "wait: soon");
        assert!(text.starts_with("/lab/a.clab.yaml:11: "), "{text}");
        assert!(text.contains("failed to parse wait duration"), "{text}");
        let text = wrong("calico-ipam-no-cni.yaml", "{{ .x }}");
        assert!(text.starts_with("/lab/a.clab.yaml:7: template expressions"), "{text}");
        let text = wrong("name: calico-ipam\n", "name: -x\n");
        assert!(text.starts_with("/lab/a.clab.yaml:1: name: "), "{text}");
        let text = wrong("name: calico-ipam\n", "");
        assert!(text.contains("has no lab name"), "{text}");
        let text = wrong("  nodes:", "  links: [{endpoints: [a, b]}]\n  nodes:");
        assert!(text.contains("links"), "{text}");
    }

    #[test]
    fn durations_are_gos() {
        let parsed: Vec<_> =
            ["0s", "1h30m", "1.5s", "250ms", "0"].iter().map(|text| parse_duration(text)).collect();
        let expected = [0, 5_400_000, 1500, 250, 0].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(parsed, expected);
        for text in ["", "5", "s", "-1s", "1 s", "1d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
