//! What an Installation asks for: its pools with every default in place, or what is wrong with it (controllers §6).

use crate::object::{self, items, text};
use api::{AssignmentMode, Cidr, Encapsulation, IpVersion, Pool, Use};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Why something cannot be done, in the operator's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// One of the operator's reasons.
    pub(super) reason: &'static str,
    /// What is wrong with which object, and what to do.
    pub(super) message: String,
}

impl Trouble {
    pub(super) fn configuration(problem: impl std::fmt::Display) -> Self {
        let message = format!("error validating IP pool configuration: {problem}");
        Self { reason: "InvalidConfigurationError", message }
    }
}

/// What is known of the cluster besides its Calico resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Platform {
    /// Where the platform wants pods to be; empty where it does not say.
    pub(super) pod_cidrs: Vec<Cidr>,
    /// Where services are.
    pub(super) service_cidrs: Vec<Cidr>,
    /// Where nodes are.
    pub(super) node_networks: Vec<Cidr>,
    /// Addresses of nodes, by name.
    pub(super) node_addresses: Vec<(String, IpAddr)>,
}

impl Platform {
    /// Reads the subnets of kubeadm's ConfigMap. Entries that are no CIDR are passed over.
    pub(super) fn read_kubeadm(&mut self, config_map: &Value) {
        for (_, value) in object::entries(config_map, "/data") {
            let text = value.as_str().unwrap_or_default();
            if self.pod_cidrs.is_empty() {
                self.pod_cidrs = subnets(text, "podSubnet:");
            }
            if self.service_cidrs.is_empty() {
                self.service_cidrs = subnets(text, "serviceSubnet:");
            }
        }
    }
}

/// The comma-separated CIDRs behind `key` in a YAML text.
fn subnets(text: &str, key: &str) -> Vec<Cidr> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(key))
        .into_iter()
        .flat_map(|list| list.trim().trim_matches(['"', '\'']).split(','))
        .filter_map(|cidr| cidr.trim().parse().ok())
        .collect()
}

/// The pools that `installation` asks for. `None`: it leaves pools to their users.
///
/// # Errors
/// What is wrong with the list; nothing of it is to be carried out then.
pub(super) fn wanted_pools(
    installation: &Value,
    platform: &Platform,
    existing: &[Pool],
) -> Result<Option<Vec<Pool>>, Trouble> {
    let pools = match installation.pointer("/spec/calicoNetwork/ipPools") {
        Some(Value::Array(entries)) => {
            let mut pools = Vec::with_capacity(entries.len());
            for entry in entries {
                pools.push(pool(entry).map_err(Trouble::configuration)?);
            }
            pools
        }
        _ if !existing.is_empty() => return Ok(None),
        _ => platform_pools(platform)?,
    };
    let pools = named(pools, existing);
    distinct(&pools)?;
    for (pool, _) in &pools {
        let stands = existing.iter().any(|found| found.cidr == pool.cidr);
        placed(pool, platform, stands).map_err(Trouble::configuration)?;
    }
    Ok(Some(pools.into_iter().map(|(pool, _)| pool).collect()))
}

/// One pool for the first pod network of each family that the platform has, or Calico's own default.
fn platform_pools(platform: &Platform) -> Result<Vec<Pool>, Trouble> {
    let mut cidrs = platform.pod_cidrs.clone();
    if cidrs.is_empty() {
        cidrs.extend("192.168.0.0/16".parse::<Cidr>());
    }
    cidrs
        .into_iter()
        .map(|cidr| pool(&json!({"cidr": cidr.to_string()})).map_err(Trouble::configuration))
        .collect()
}

/// One entry of the list with its defaults; the name may be empty still.
fn pool(entry: &Value) -> Result<Pool, String> {
    let written = text(entry, "/cidr");
    let cidr: Cidr = written.parse().map_err(|error| format!("{error}"))?;
    let address = written.split('/').next().and_then(|address| address.parse::<IpAddr>().ok());
    if address.is_some_and(|address| address != cidr.network()) {
        return Err(format!("IPPool CIDR {written} has bits set behind its prefix; write {cidr}"));
    }
    let ipv4 = cidr.version() == IpVersion::V4;
    let mut pool = Pool::with_defaults(text(entry, "/name"), cidr);
    let (ipip, vxlan) = match text(entry, "/encapsulation") {
        "" if ipv4 => (Encapsulation::Always, Encapsulation::Never),
        "" | "None" => (Encapsulation::Never, Encapsulation::Never),
        "IPIP" => (Encapsulation::Always, Encapsulation::Never),
        "IPIPCrossSubnet" => (Encapsulation::CrossSubnet, Encapsulation::Never),
        "VXLAN" => (Encapsulation::Never, Encapsulation::Always),
        "VXLANCrossSubnet" => (Encapsulation::Never, Encapsulation::CrossSubnet),
        other => {
            return Err(format!(
                "encapsulation {other:?} of IPPool {cidr} is not known: use IPIP, VXLAN, IPIPCrossSubnet, VXLANCrossSubnet or None"
            ));
        }
    };
    if !ipv4 && ipip != Encapsulation::Never {
        return Err(format!(
            "IPPool {cidr} is IPv6 and cannot use IPIP: use VXLAN, VXLANCrossSubnet or None"
        ));
    }
    (pool.ipip_mode, pool.vxlan_mode) = (ipip, vxlan);
    pool.nat_outgoing = match text(entry, "/natOutgoing") {
        "" => ipv4,
        "Enabled" => true,
        "Disabled" => false,
        other => {
            return Err(format!(
                "natOutgoing {other:?} of IPPool {cidr} is not known: use Enabled or Disabled"
            ));
        }
    };
    if let Some(selector) = entry.get("nodeSelector").and_then(Value::as_str) {
        if selector.is_empty() {
            return Err(format!("nodeSelector of IPPool {cidr} is empty: write all() for every node"));
        }
        api::selector::Selector::parse(selector)
            .map_err(|error| format!("nodeSelector of IPPool {cidr}: {error}"))?;
        selector.clone_into(&mut pool.node_selector);
    }
    if let Some(size) = entry.get("blockSize").and_then(Value::as_i64).filter(|size| *size != 0) {
        let (least, most) = if ipv4 { (20, 32) } else { (116, 128) };
        pool.block_size = u8::try_from(size)
            .ok()
            .filter(|size| (least..=most).contains(size))
            .ok_or_else(|| format!("blockSize {size} of IPPool {cidr} is not between {least} and {most}"))?;
    }
    if cidr.prefix() > pool.block_size {
        return Err(format!(
            "IPPool {cidr} is smaller than one block of /{}: take a larger CIDR or a larger blockSize number",
            pool.block_size
        ));
    }
    let flag = |field: &str| entry.get(field).and_then(Value::as_bool).unwrap_or(false);
    pool.disabled = flag("disableNewAllocations");
    pool.disable_bgp_export = flag("disableBGPExport");
    let uses = items(entry, "/allowedUses");
    if !uses.is_empty() {
        pool.allowed_uses = uses
            .iter()
            .map(|entry| {
                entry.as_str().and_then(Use::parse).ok_or_else(|| {
                    format!("allowed use {entry} of IPPool {cidr} is not known: use Workload, Tunnel or LoadBalancer")
                })
            })
            .collect::<Result<_, _>>()?;
    }
    let balances = pool.allowed_uses.contains(&Use::LoadBalancer);
    if balances && pool.allowed_uses.len() > 1 {
        return Err(format!("IPPool {cidr} is for LoadBalancer and something else: make it two pools"));
    }
    if balances
        && (ipip != Encapsulation::Never
            || vxlan != Encapsulation::Never
            || pool.disable_bgp_export
            || pool.node_selector != "all()")
    {
        return Err(format!(
            "IPPool {cidr} is for LoadBalancer: it needs encapsulation None, nodeSelector all() and no disableBGPExport"
        ));
    }
    pool.assignment_mode = AssignmentMode::parse(text(entry, "/assignmentMode"))
        .ok_or_else(|| format!("assignmentMode of IPPool {cidr} is not known: use Automatic or Manual"))?;
    Ok(pool)
}

/// Gives every pool its name (controllers §6.2 step 4). The flag says whether the name was written by the user.
fn named(pools: Vec<Pool>, existing: &[Pool]) -> Vec<(Pool, bool)> {
    let families: Vec<IpVersion> = pools.iter().map(|pool| pool.cidr.version()).collect();
    let plain = families.len() == 1 || (families.len() == 2 && families[0] != families[1]);
    pools
        .into_iter()
        .map(|mut pool| {
            let given = !pool.name.is_empty();
            if !given {
                pool.name = match existing.iter().find(|found| found.cidr == pool.cidr) {
                    Some(found) => found.name.clone(),
                    None if plain && pool.cidr.version() == IpVersion::V4 => "default-ipv4-ippool".to_owned(),
                    None if plain => "default-ipv6-ippool".to_owned(),
                    None => derived_name(pool.cidr),
                };
            }
            (pool, given)
        })
        .collect()
}

/// `10.10.0.0-16`; IPv6 addresses are written out, their colons become dots.
fn derived_name(cidr: Cidr) -> String {
    let address = match cidr.network() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:04x}")).join("."),
    };
    format!("{address}-{}", cidr.prefix())
}

/// Names and ranges are each used once in the list.
fn distinct(pools: &[(Pool, bool)]) -> Result<(), Trouble> {
    for (index, (pool, _)) in pools.iter().enumerate() {
        for (other, _) in &pools[..index] {
            if pool.name == other.name {
                let problem = format!("IPPool name {} is used twice; rename one", pool.name);
                return Err(Trouble::configuration(problem));
            }
            if pool.cidr.overlaps(other.cidr) {
                let problem = format!(
                    "IPPool {} ({}) overlaps with IPPool {} ({}); choose ranges that share no address",
                    pool.name, pool.cidr, other.name, other.cidr
                );
                return Err(Trouble::configuration(problem));
            }
        }
    }
    Ok(())
}

/// The pool is where pods may be. A pool that stands already is not asked about the platform's pod network.
fn placed(pool: &Pool, platform: &Platform, stands: bool) -> Result<(), String> {
    let cidr = pool.cidr;
    if let Some(service) = platform.service_cidrs.iter().find(|service| service.overlaps(cidr)) {
        return Err(format!(
            "IPPool {cidr} overlaps with the service CIDR {service}, whose addresses are translated on every node; choose a range outside it"
        ));
    }
    if let Some(network) = platform.node_networks.iter().find(|network| network.overlaps(cidr)) {
        return Err(format!(
            "IPPool {cidr} overlaps with the network of the nodes {network}; choose a range outside it"
        ));
    }
    if let Some((node, address)) = platform.node_addresses.iter().find(|(_, address)| cidr.contains(*address))
    {
        return Err(format!(
            "IPPool {cidr} holds the address {address} of node {node}; choose a range outside the nodes' network"
        ));
    }
    let same_family: Vec<&Cidr> =
        platform.pod_cidrs.iter().filter(|pods| pods.version() == cidr.version()).collect();
    if !stands && !platform.pod_cidrs.is_empty() && !same_family.iter().any(|pods| pods.contains_cidr(cidr)) {
        let all: Vec<String> = platform.pod_cidrs.iter().map(Cidr::to_string).collect();
        return Err(format!(
            "IPPool {cidr} is not within the platform's configured pod network CIDR(s) [{}]",
            all.join(" ")
        ));
    }
    Ok(())
}

/// The Installation's `spec` with every default in place, for its status.
pub(super) fn computed(installation: &Value, pools: &[Pool]) -> Value {
    let mut spec = installation.get("spec").cloned().unwrap_or_else(|| json!({}));
    let entries: Vec<Value> = pools.iter().map(entry).collect();
    if !spec.is_object() {
        spec = json!({});
    }
    let mut defaults = json!({
        "variant": "Calico",
        "cni": {"type": "Calico", "ipam": {"type": "Calico"}},
        "controlPlaneReplicas": 2,
        "calicoNetwork": {"bgp": "Enabled", "linuxDataplane": "Iptables", "hostPorts": "Enabled"},
    });
    lay_over(&mut defaults, &spec);
    defaults["calicoNetwork"]["ipPools"] = json!(entries);
    defaults
}

fn lay_over(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// A pool as an entry of the Installation.
fn entry(pool: &Pool) -> Value {
    let encapsulation = match (pool.ipip_mode, pool.vxlan_mode) {
        (Encapsulation::Always, _) => "IPIP",
        (Encapsulation::CrossSubnet, _) => "IPIPCrossSubnet",
        (_, Encapsulation::Always) => "VXLAN",
        (_, Encapsulation::CrossSubnet) => "VXLANCrossSubnet",
        _ => "None",
    };
    let uses: Vec<&str> = pool.allowed_uses.iter().map(|allowed| allowed.as_str()).collect();
    json!({
        "name": pool.name,
        "cidr": pool.cidr.to_string(),
        "blockSize": pool.block_size,
        "encapsulation": encapsulation,
        "natOutgoing": if pool.nat_outgoing { "Enabled" } else { "Disabled" },
        "nodeSelector": pool.node_selector,
        "disableBGPExport": pool.disable_bgp_export,
        "disableNewAllocations": pool.disabled,
        "allowedUses": uses,
        "assignmentMode": pool.assignment_mode.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform() -> Platform {
        let mut platform = Platform {
            node_networks: vec!["172.18.0.0/16".parse().unwrap()],
            node_addresses: vec![("n".to_owned(), "172.18.0.3".parse().unwrap())],
            ..Platform::default()
        };
        platform.read_kubeadm(&json!({"data": {"ClusterConfiguration":
            "kind: ClusterConfiguration\nnetworking:\n  podSubnet: 192.168.0.0/16\n  serviceSubnet: \"10.96.0.0/16\"\n"}}));
        platform
    }

    fn ask(pools: Value) -> Result<Option<Vec<Pool>>, Trouble> {
        wanted_pools(&json!({"spec": {"calicoNetwork": {"ipPools": pools}}}), &platform(), &[])
    }

    fn refusal(pools: Value) -> String {
        let trouble = ask(pools).unwrap_err();
        assert_eq!(trouble.reason, "InvalidConfigurationError");
        trouble.message
    }

    #[test]
    fn the_lessons_installation_asks_for_the_lessons_pool() {
        let pools =
            ask(json!([{"blockSize": 26, "cidr": "192.168.0.0/16", "encapsulation": "VXLANCrossSubnet",
            "natOutgoing": "Enabled", "nodeSelector": "all()"}]))
            .unwrap()
            .unwrap();
        let mut expected = Pool::with_defaults("default-ipv4-ippool", "192.168.0.0/16".parse().unwrap());
        expected.vxlan_mode = Encapsulation::CrossSubnet;
        expected.nat_outgoing = true;
        assert_eq!(pools, [expected]);
    }

    #[test]
    fn empty_installation_takes_the_platforms_pod_network() {
        let pools = wanted_pools(&json!({"spec": {}}), &platform(), &[]).unwrap().unwrap();
        assert_eq!(pools.len(), 1);
        assert_eq!(pools[0].cidr.to_string(), "192.168.0.0/16");
        assert_eq!(pools[0].ipip_mode, Encapsulation::Always);
        assert_eq!(wanted_pools(&json!({}), &platform(), &pools).unwrap(), None);
        assert_eq!(ask(json!([])).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn pool_over_services_nodes_another_pool_or_outside_the_pod_network_is_refused_with_its_name() {
        assert!(refusal(json!([{"cidr": "10.96.128.0/20"}])).contains("service CIDR 10.96.0.0/16"));
        assert!(refusal(json!([{"cidr": "172.18.128.0/20"}])).contains("network of the nodes 172.18.0.0/16"));
        let overlap = refusal(json!([{"cidr": "192.168.0.0/17"}, {"cidr": "192.168.64.0/18"}]));
        assert!(overlap.contains("192.168.64.0-18") && overlap.contains("192.168.0.0-17"), "{overlap}");
        assert_eq!(
            refusal(json!([{"cidr": "10.0.0.0/16"}])),
            "error validating IP pool configuration: IPPool 10.0.0.0/16 is not within the platform's configured pod network CIDR(s) [192.168.0.0/16]"
        );
    }

    #[test]
    fn every_field_that_makes_no_sense_is_refused() {
        for (entry, word) in [
            (json!({"cidr": "nonsense"}), "nonsense"),
            (json!({"cidr": "192.168.0.1/16"}), "192.168.0.0/16"),
            (json!({"cidr": "192.168.0.0/16", "blockSize": 19}), "blockSize 19"),
            (json!({"cidr": "192.168.0.0/16", "blockSize": 33}), "blockSize 33"),
            (json!({"cidr": "192.168.0.0/16", "blockSize": -1}), "blockSize -1"),
            (json!({"cidr": "192.168.0.0/28"}), "one block of /26"),
            (json!({"cidr": "192.168.0.0/16", "encapsulation": "GRE"}), "GRE"),
            (json!({"cidr": "192.168.0.0/16", "natOutgoing": "Maybe"}), "Maybe"),
            (json!({"cidr": "192.168.0.0/16", "nodeSelector": ""}), "nodeSelector"),
            (json!({"cidr": "192.168.0.0/16", "nodeSelector": "a =="}), "nodeSelector"),
            (json!({"cidr": "192.168.0.0/16", "allowedUses": ["Workload", "LoadBalancer"]}), "LoadBalancer"),
            (json!({"cidr": "192.168.0.0/16", "assignmentMode": "x"}), "assignmentMode"),
            (json!({"cidr": "fd00::/112", "encapsulation": "IPIP"}), "IPv6"),
        ] {
            let message = refusal(json!([entry]));
            assert!(message.contains(word), "{message} should name {word}");
        }
    }

    #[test]
    fn same_range_or_name_twice_is_refused() {
        let entry = json!({"cidr": "192.168.0.0/16"});
        assert!(refusal(json!([entry, entry])).contains("twice"));
    }

    #[test]
    fn pool_keeps_the_name_it_has_in_the_cluster() {
        let found = Pool::with_defaults("mine", "192.168.0.0/16".parse().unwrap());
        let installation = json!({"spec": {"calicoNetwork": {"ipPools": [{"cidr": "192.168.0.0/16"}]}}});
        let pools = wanted_pools(&installation, &platform(), &[found]).unwrap().unwrap();
        assert_eq!(pools[0].name, "mine");
        assert_eq!(
            derived_name("fd20:1::/64".parse().unwrap()),
            "fd20.0001.0000.0000.0000.0000.0000.0000-64"
        );
    }

    #[test]
    fn computed_specification_names_what_was_left_out() {
        let pools = wanted_pools(&json!({}), &platform(), &[]).unwrap().unwrap();
        let computed = computed(&json!({"spec": {"calicoNetwork": {"mtu": 1400}}}), &pools);
        assert_eq!(computed["calicoNetwork"]["mtu"], 1400);
        assert_eq!(computed["calicoNetwork"]["ipPools"][0]["name"], "default-ipv4-ippool");
        assert_eq!(computed["cni"]["ipam"]["type"], "Calico");
    }
}
