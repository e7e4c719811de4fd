//! `ipam check`: compares what blocks say is allocated with what pods and nodes use (calicoctl §3).

use crate::arguments::Check;
use crate::failure::Failure;
use api::{Attribute, Block, Cidr, Handle, Node, Pool};
use datastore::backend::Backend;
use datastore::{Datastore as _, Kind, Listing, Scope};
use ipam::block;
use ipam::crossing::{Crossing, crossings};
use ipam::seen::Recorded;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Annotations under which a node's tunnel addresses stand; upstream reads the IPv4 ones only and takes the others for leaks.
const TUNNELS: [&str; 5] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
];

/// How many nodes are listed by their allocations.
const TOP_NODES: usize = 20;

/// Everything that is compared.
#[derive(Debug, Default)]
struct Inventory {
    blocks: Vec<Block>,
    pools: Vec<Pool>,
    nodes: Vec<Node>,
    handles: Vec<Handle>,
    /// Addresses of pods, with the pod as `namespace/name`.
    workloads: Vec<(IpAddr, String)>,
    /// Records that cannot be understood, or were mended as they were read, with what is wrong.
    odd: Vec<String>,
}

/// Runs the command. Problems found are no failure of it.
pub(crate) async fn run(store: &Backend, options: &Check) -> Result<String, Failure> {
    // In this order a handle is idle only if the later blocks do not mention it, and an address leaked only if no pod has
    // it after the blocks were read: what appears in between is never taken for garbage.
    let mut odd = Vec::new();
    let handles: Vec<Handle> = list(store, Kind::Handle, &mut odd).await?;
    let blocks: Vec<Block> = list(store, Kind::Block, &mut odd).await?;
    let pools = list(store, Kind::Pool, &mut odd).await?;
    let nodes = list(store, Kind::Node, &mut odd).await?;
    for kind in [Kind::Affinity, Kind::Config, Kind::Reservation] {
        odd.extend(oddities(&store.list(&Scope::All(kind)).await?));
    }
    let workloads = workloads(store).await?;
    let inventory = Inventory {
        blocks: blocks.into_iter().filter(|block| !block.deleted).collect(),
        pools,
        nodes,
        handles: handles.into_iter().filter(|handle| !handle.deleted).collect(),
        workloads,
        odd,
    };
    Ok(report(&inventory, options))
}

/// Every record of a kind; those that are not in order are told.
async fn list<T: Recorded>(store: &Backend, kind: Kind, odd: &mut Vec<String>) -> Result<Vec<T>, Failure> {
    let listing = store.list(&Scope::All(kind)).await?;
    odd.extend(oddities(&listing));
    Ok(listing.items.into_iter().filter_map(|stored| T::from_record(stored.record)).collect())
}

fn oddities(listing: &Listing) -> Vec<String> {
    let unreadable = listing.unreadable.iter();
    let unreadable = unreadable
        .map(|key| format!("{key} cannot be understood and is left alone: correct it or delete it"));
    let mended = listing.mended.iter();
    let mended = mended
        .map(|(key, fault)| format!("{key} contradicts itself ({fault}); the next write of it mends that"));
    unreadable.chain(mended).collect()
}

/// The addresses of all pods that have some of their own.
async fn workloads(store: &Backend) -> Result<Vec<(IpAddr, String)>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("pods cannot be listed: {error}"));
    let Some(store) = store.kubernetes() else {
        return Err(failed(&"etcd does not hold them; check is for Kubernetes datastores"));
    };
    let request = http::Request::get("/api/v1/pods").body(Vec::new()).map_err(|error| failed(&error))?;
    let list: Value = store.client().request(request).await.map_err(|error| failed(&error))?;
    let pods = list.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Ok(pods.iter().flat_map(pod_addresses).collect())
}

fn pod_addresses(pod: &Value) -> Vec<(IpAddr, String)> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let finished = ["Succeeded", "Failed"].contains(&text("/status/phase"));
    let host_network = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true);
    if finished || host_network || text("/spec/nodeName").is_empty() {
        return Vec::new();
    }
    let name = format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"));
    let listed = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    let addresses: BTreeSet<IpAddr> = listed
        .filter_map(|entry| entry.get("ip")?.as_str())
        .chain([text("/status/podIP")])
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.into_iter().map(|address| (address, name.clone())).collect()
}

/// Compares and writes the report.
fn report(inventory: &Inventory, options: &Check) -> String {
    let all = options.show_all_ips;
    let problems_shown = all || options.show_problem_ips;
    let mut text = String::from("Checking IPAM for inconsistencies...\n\n");
    let mut say = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };

    say("Loading all IPAM blocks...".to_owned());
    say(format!("Found {} IPAM blocks.", inventory.blocks.len()));
    let mut allocated: BTreeMap<IpAddr, (&Block, &Attribute)> = BTreeMap::new();
    for one in &inventory.blocks {
        let owner = one.affinity.as_ref().map_or_else(|| "<none>".to_owned(), ToString::to_string);
        say(format!(" IPAM block {} affinity={owner}:", one.cidr));
        for (ordinal, attribute) in block::allocated(one) {
            let Some(address) = one.cidr.address(ordinal) else { continue };
            allocated.insert(address, (one, attribute));
            if all {
                say(format!("  {address} allocated; attrs {}", attributes(attribute)));
            }
        }
    }
    say(format!("IPAM blocks record {} allocations.\n", allocated.len()));

    say("Loading all IPAM pools...".to_owned());
    let active: Vec<Cidr> =
        inventory.pools.iter().filter(|pool| !pool.disabled).map(|pool| pool.cidr).collect();
    active.iter().for_each(|cidr| say(format!("  {cidr}")));
    say(format!("Found {} active IP pools.\n", active.len()));

    let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    say("Loading all nodes.".to_owned());
    for node in &inventory.nodes {
        for address in TUNNELS.iter().filter_map(|key| node.annotations.get(*key)?.parse().ok()) {
            owners.entry(address).or_default().push(format!("Node({})", node.name));
        }
    }
    say(format!("Found {} node tunnel IPs.\n", owners.len()));
    say("Loading all service load balancer IPs.".to_owned());
    say("No configuration for LoadBalancer kubecontroller found, skipping service check\n".to_owned());
    say("Loading all workload endpoints.".to_owned());
    let distinct: BTreeSet<IpAddr> = inventory.workloads.iter().map(|(address, _)| *address).collect();
    for (address, pod) in &inventory.workloads {
        owners.entry(*address).or_default().push(format!("Workload({pod})"));
    }
    say(format!("Found {} workload IPs.", distinct.len()));
    say(format!("Workloads and nodes are using {} IPs.", owners.len()));
    if all {
        for (address, names) in &owners {
            names.iter().for_each(|owner| say(format!("  {address} belongs to {owner}")));
        }
    }
    say("\nLoading all handles".to_owned());
    by_node(&allocated).into_iter().for_each(&mut say);

    say("\nScanning for IPs that are allocated but not actually in use...".to_owned());
    let leaked: Vec<_> = allocated
        .iter()
        .filter(|(address, (_, attribute))| !owners.contains_key(address) && !kept_on_purpose(attribute))
        .collect();
    if problems_shown {
        for (address, (_, attribute)) in &leaked {
            say(format!("  {address} leaked; attrs {}", attributes(attribute)));
        }
    }
    say(format!("Found {} IPs that are allocated in IPAM but not actually in use.", leaked.len()));

    say("Scanning for IPs that are in use by a workload or node but not allocated in IPAM...".to_owned());
    let (mut outside, mut missing) = (0, 0);
    for (address, names) in &owners {
        if problems_shown && names.len() > 1 {
            say(format!("  {address} has multiple owners."));
        }
        if allocated.contains_key(address) {
            continue;
        }
        let inside = active.iter().any(|cidr| cidr.contains(*address));
        *(if inside { &mut missing } else { &mut outside }) += 1;
        if problems_shown {
            let why = if inside {
                "and in active IPAM pool but has no IPAM allocation"
            } else {
                "is not in any active IP pool"
            };
            names.iter().for_each(|owner| say(format!("  {address} in use by {owner} {why}.")));
        }
    }
    say(format!("Found {outside} in-use IPs that are not in active IP pools."));
    say(format!(
        "Found {missing} in-use IPs that are in active IP pools but have no corresponding IPAM allocation.\n"
    ));

    let mentioned: BTreeSet<String> = allocated
        .values()
        .filter_map(|(_, attribute)| attribute.handle_id.as_deref())
        .filter(|handle| !handle.eq_ignore_ascii_case(block::WINDOWS_RESERVED_HANDLE))
        .map(|handle| Handle::object_name(block::sanitized(handle)))
        .collect();
    let known: BTreeSet<String> =
        inventory.handles.iter().map(|handle| Handle::object_name(&handle.id)).collect();
    say("Scanning for IPAM handles with no matching IPs...".to_owned());
    let idle: Vec<&String> = known.difference(&mentioned).collect();
    if all {
        idle.iter().for_each(|handle| say(format!("  {handle} doesn't have any active IPs.")));
    }
    let matched = known.len() - idle.len();
    say(format!("Found {} handles with no matching IPs (and {matched} handles with matches).", idle.len()));
    say("Scanning for IPs with missing handle...".to_owned());
    let unknown: Vec<&String> = mentioned.difference(&known).collect();
    if problems_shown {
        unknown.iter().for_each(|handle| say(format!("  {handle} is in use in a block but doesn't exist.")));
    }
    say(format!("Found {} handles mentioned in blocks with no matching handle resource.", unknown.len()));

    say("Validating IPAMBlock structures...".to_owned());
    let mut invalid = 0;
    for one in &inventory.blocks {
        if let Some(fault) = block::fault(one) {
            invalid += 1;
            say(format!("  IPAMBlock BlockKey(cidr={}) is invalid: {fault}", one.cidr));
        }
    }
    say(format!("Found {invalid} invalid IPAMBlocks."));
    let crossed = crossings(inventory.blocks.iter().map(|one| one.cidr));
    for Crossing { block, other } in &crossed {
        say(format!(
            "  IPAMBlock {block} lies in IPAMBlock {other}: give back what one of them holds, then delete it."
        ));
    }
    if !crossed.is_empty() {
        say(format!(
            "Found {} IPAMBlocks that lie in another; nothing that both have is given out.",
            crossed.len()
        ));
    }
    inventory.odd.iter().for_each(|odd| say(format!("  {odd}")));
    if !inventory.odd.is_empty() {
        say(format!("Found {} records that are not in order.", inventory.odd.len()));
    }
    let odd = invalid + crossed.len() + inventory.odd.len();
    let problems = leaked.len() + outside + missing + idle.len() + odd;
    say(format!("Check complete; found {problems} problems."));
    text
}

/// Whether an allocation that nobody uses is there for a reason: cooling down, or kept by a Windows node.
fn kept_on_purpose(attribute: &Attribute) -> bool {
    attribute.released_at.is_some()
        || attribute
            .handle_id
            .as_deref()
            .is_some_and(|handle| handle.eq_ignore_ascii_case(block::WINDOWS_RESERVED_HANDLE))
}

/// The nodes with most allocations, most first, and the median.
fn by_node(allocated: &BTreeMap<IpAddr, (&Block, &Attribute)>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (one, attribute) in allocated.values() {
        let owner = one.affinity.as_ref().map(|owner| owner.name.as_str()).unwrap_or_default();
        let node = attribute.secondary.get("node").map_or(owner, String::as_str);
        *counts.entry(node).or_insert(0) += 1;
    }
    let mut ranked: Vec<(&str, usize)> = counts.into_iter().collect();
    ranked.sort_by_key(|(node, count)| (std::cmp::Reverse(*count), *node));
    let mut lines = vec![format!("Looking for top (up to {TOP_NODES}) nodes by allocations...")];
    lines.extend(
        ranked.iter().take(TOP_NODES).map(|(node, count)| format!("  {node} has {count} allocations")),
    );
    if let (Some((_, most)), Some((_, median))) = (ranked.first(), ranked.get(ranked.len() / 2)) {
        lines.push(format!("Node with most allocations has {most}; median is {median}"));
    }
    lines
}

fn attributes(attribute: &Attribute) -> String {
    let listed = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    };
    let handle = attribute.handle_id.as_deref().map_or("<none>", block::sanitized);
    let mut text = format!("Main:{handle} Extra:{}", listed(&attribute.secondary));
    if !attribute.alternate.is_empty() {
        text.push_str(&format!(" Alternate:{}", listed(&attribute.alternate)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Owner;
    use datastore::Key;
    use serde_json::json;

    fn inventory() -> Inventory {
        let mut one = block::new_block(
            "10.65.79.0/26".parse().unwrap(),
            &Owner::host("node-a"),
            jiff::Timestamp::UNIX_EPOCH,
        );
        for (address, handle) in [("10.65.79.1", "tunnel"), ("10.65.79.2", "web"), ("10.65.79.3", "leaked")] {
            let attributes = [("node".to_owned(), "node-a".to_owned())].into();
            block::assign(&mut one, address.parse().unwrap(), Some(handle), &attributes, None).unwrap();
        }
        let handle = |id: &str| Handle { id: id.to_owned(), blocks: BTreeMap::new(), deleted: false };
        Inventory {
            blocks: vec![one],
            pools: vec![Pool::with_defaults("p", "10.65.0.0/16".parse().unwrap())],
            nodes: vec![Node {
                name: "node-a".to_owned(),
                annotations: [("projectcalico.org/IPv4VXLANTunnelAddr".to_owned(), "10.65.79.1".to_owned())]
                    .into(),
                ..Node::default()
            }],
            handles: vec![handle("tunnel"), handle("web"), handle("leaked"), handle("idle")],
            workloads: vec![("10.65.79.2".parse().unwrap(), "default/web-0".to_owned())],
            odd: Vec::new(),
        }
    }

    #[test]
    fn the_report_counts_a_leaked_address_and_an_idle_handle() {
        assert_eq!(
            report(&inventory(), &Check { show_problem_ips: true, ..Check::default() }),
            "\
Checking IPAM for inconsistencies...

Loading all IPAM blocks...
Found 1 IPAM blocks.
 IPAM block 10.65.79.0/26 affinity=host:node-a:
IPAM blocks record 3 allocations.

Loading all IPAM pools...
  10.65.0.0/16
Found 1 active IP pools.

Loading all nodes.
Found 1 node tunnel IPs.

Loading all service load balancer IPs.
No configuration for LoadBalancer kubecontroller found, skipping service check

Loading all workload endpoints.
Found 1 workload IPs.
Workloads and nodes are using 2 IPs.

Loading all handles
Looking for top (up to 20) nodes by allocations...
  node-a has 3 allocations
Node with most allocations has 3; median is 3

Scanning for IPs that are allocated but not actually in use...
  10.65.79.3 leaked; attrs Main:leaked Extra:node=node-a
Found 1 IPs that are allocated in IPAM but not actually in use.
Scanning for IPs that are in use by a workload or node but not allocated in IPAM...
Found 0 in-use IPs that are not in active IP pools.
Found 0 in-use IPs that are in active IP pools but have no corresponding IPAM allocation.

Scanning for IPAM handles with no matching IPs...
Found 1 handles with no matching IPs (and 3 handles with matches).
Scanning for IPs with missing handle...
Found 0 handles mentioned in blocks with no matching handle resource.
Validating IPAMBlock structures...
Found 0 invalid IPAMBlocks.
Check complete; found 2 problems.
"
        );
    }

    #[test]
    fn blocks_across_each_other_are_told_with_both_names() {
        let mut inventory = inventory();
        let small = "10.65.79.32/27".parse().unwrap();
        inventory.blocks.push(block::new_block(small, &Owner::host("node-b"), jiff::Timestamp::UNIX_EPOCH));
        let text = report(&inventory, &Check::default());
        assert!(text.contains("IPAMBlock 10.65.79.32/27 lies in IPAMBlock 10.65.79.0/26"), "{text}");
        assert!(text.ends_with("Check complete; found 3 problems.\n"), "{text}");
    }

    #[test]
    fn records_that_are_not_in_order_are_told_with_their_names() {
        let listing = Listing {
            unreadable: vec![Key::Reservation("keep".to_owned())],
            mended: vec![(
                Key::Block("10.65.79.0/26".parse().unwrap()),
                "ordinal 1 is queued twice".to_owned(),
            )],
            ..Listing::default()
        };
        let inventory = Inventory { odd: oddities(&listing), ..inventory() };
        let text = report(&inventory, &Check::default());
        for name in [listing.unreadable[0].to_string(), listing.mended[0].0.to_string()] {
            assert!(text.contains(&name), "{name}: {text}");
        }
        assert!(text.ends_with("Check complete; found 4 problems.\n"), "{text}");
    }

    #[test]
    fn addresses_that_only_cool_down_are_no_problem() {
        let mut inventory = inventory();
        inventory.handles.pop();
        let released =
            block::Release { address: "10.65.79.3".parse().unwrap(), handle: None, sequence: None };
        block::release(&mut inventory.blocks[0], &[released], 60, jiff::Timestamp::UNIX_EPOCH).unwrap();
        inventory.handles.retain(|handle| handle.id != "leaked");
        assert!(report(&inventory, &Check::default()).ends_with("Check complete; found 0 problems.\n"));
    }

    #[test]
    fn only_pods_with_addresses_of_their_own_count() {
        let pod = json!({"metadata": {"namespace": "n", "name": "p"}, "spec": {"nodeName": "x"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
        assert_eq!(pod_addresses(&pod).len(), 2);
        for (pointer, value) in [("/spec/nodeName", json!("")), ("/status/phase", json!("Succeeded"))] {
            let mut pod = pod.clone();
            *pod.pointer_mut(pointer).unwrap() = value;
            assert!(pod_addresses(&pod).is_empty());
        }
        let mut host = pod;
        host["spec"]["hostNetwork"] = json!(true);
        assert!(pod_addresses(&host).is_empty());
    }
}
