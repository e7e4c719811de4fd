//! The nftables script of a node: masquerading of what leaves the pools, and who may send VXLAN (dataplane §7).
//!
//! The script is text, so that a person can read it and a test can pin it. It replaces our table in one transaction;
//! other tables are not named in it. Every rule carries the script's hash, by which a listing shows whether it is ours.

use crate::desired::{FAMILIES, vxlan_device_name};
use crate::inputs::{Inputs, is_routed};
use api::{Cidr, IpVersion};
use sha1::{Digest as _, Sha1};
use std::fmt::Write as _;

/// Name of our table, one a family.
pub(crate) const TABLE: &str = "calico";

/// Characters of the hash that stand in the rules' comments.
const HASH_LENGTH: usize = 16;

/// Placeholder that the hash takes the place of, so that it covers everything else.
const HASH: &str = "@HASH@";

/// The script for both families. IPv6 has a table only when there is an IPv6 pool; without, a stale one is removed.
pub(crate) fn script(inputs: &Inputs) -> String {
    let mut text = String::new();
    for version in FAMILIES {
        let family = family(version);
        let needed =
            version == IpVersion::V4 || inputs.pools.iter().any(|pool| pool.cidr.version() == version);
        // Declaring before deleting makes the deletion succeed where there is no table yet.
        let _ = writeln!(text, "table {family} {TABLE}\ndelete table {family} {TABLE}");
        if needed {
            table(&mut text, inputs, version);
        }
    }
    let digest = Sha1::digest(&text);
    let hash: String = digest.iter().take(HASH_LENGTH / 2).map(|byte| format!("{byte:02x}")).collect();
    text.replace(HASH, &hash)
}

/// Whether a listing of our tables holds every rule of a script: the same number of comments with its hash.
pub(crate) fn is_current(script: &str, listing: &str) -> bool {
    let Some((_, after)) = script.split_once("comment \"tortie:") else { return false };
    let Some(hash) = after.get(..HASH_LENGTH) else { return false };
    listing.matches(hash).count() == script.matches(hash).count()
}

/// The family of a line that opens one of the script's tables.
pub(crate) fn listed_family(line: &str) -> Option<&'static str> {
    FAMILIES.map(family).into_iter().find(|family| line == format!("table {family} {TABLE} {{"))
}

/// nft's word for a family.
pub(crate) fn family(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "ip",
        IpVersion::V6 => "ip6",
    }
}

fn table(text: &mut String, inputs: &Inputs, version: IpVersion) {
    let (family, device, port) = (family(version), vxlan_device_name(version), inputs.settings.vxlan_port);
    let (prefix, kind) = match version {
        IpVersion::V4 => ("cali40", "ipv4_addr"),
        IpVersion::V6 => ("cali60", "ipv6_addr"),
    };
    let comment = format!("comment \"tortie:{HASH}\"");
    let pools = || inputs.pools.iter().filter(|pool| pool.cidr.version() == version && is_routed(pool));
    let masquerading: Vec<Cidr> = pools().filter(|pool| pool.nat_outgoing).map(|pool| pool.cidr).collect();
    let hosts = |with_own: bool| {
        inputs
            .nodes
            .iter()
            .filter(move |(name, _)| with_own || **name != inputs.node)
            .filter_map(move |(_, node)| Some(Cidr::from(node.address(version)?.address)))
    };
    let external = inputs.settings.external_nodes.iter().copied().filter(|cidr| cidr.version() == version);
    let has_masquerade = !masquerading.is_empty();

    let _ = writeln!(text, "table {family} {TABLE} {{");
    set(text, &format!("{prefix}masq-ipam-pools"), kind, masquerading);
    set(text, &format!("{prefix}network-ip-pools"), kind, pools().map(|pool| pool.cidr).collect());
    if inputs.settings.exempt_hosts {
        set(text, &format!("{prefix}all-hosts-net"), kind, hosts(true).collect());
    }
    set(text, &format!("{prefix}all-vxlan-net"), kind, hosts(false).chain(external).collect());

    // VXLAN is not tracked: a tunnel is one long flow per pair of nodes and port, and conntrack gains nothing by it.
    chain(
        text,
        "raw-PREROUTING",
        "type filter hook prerouting priority -300; policy accept;",
        &[
            format!("udp dport {port} notrack {comment}"),
            // A pod sends from its own address only: the route back must lead to the interface the packet came by.
            format!("iifname \"cali*\" fib saddr . mark . iif oif 0 drop {comment}"),
        ],
    );
    chain(
        text,
        "raw-OUTPUT",
        "type filter hook output priority -300; policy accept;",
        &[format!("udp dport {port} notrack {comment}")],
    );
    chain(
        text,
        "filter-INPUT",
        "type filter hook input priority 0; policy accept;",
        &[
            format!(
                "udp dport {port} fib daddr type local {family} saddr @{prefix}all-vxlan-net accept {comment}"
            ),
            format!("udp dport {port} fib daddr type local drop {comment}"),
        ],
    );
    // 110 is after kube-proxy's 100: its own masquerading decides first, and destinations are judged after DNAT.
    chain(
        text,
        "nat-POSTROUTING",
        "type nat hook postrouting priority 110; policy accept;",
        &[format!("jump nat-cali-POSTROUTING {comment}")],
    );
    // A local process that talks to a ClusterIP chose its source before the destination was known; out of the tunnel
    // it must carry the tunnel's address, or answers would not come back by it. UDP keeps off the VXLAN port.
    let (low, high) = widest_ports_without(port);
    let fix_up = format!("oifname \"{device}\" fib saddr . oif type != local fib saddr type local");
    chain(
        text,
        "nat-cali-POSTROUTING",
        "",
        &[
            format!("jump nat-cali-nat-outgoing {comment}"),
            format!("{fix_up} meta l4proto udp masquerade to :{low}-{high} fully-random {comment}"),
            format!("{fix_up} masquerade fully-random {comment}"),
        ],
    );
    let exempt = match inputs.settings.exempt_hosts {
        true => format!(" {family} daddr != @{prefix}all-hosts-net"),
        false => String::new(),
    };
    let outgoing = format!(
        "{family} saddr @{prefix}masq-ipam-pools {family} daddr != @{prefix}network-ip-pools{exempt} masquerade \
         fully-random {comment}"
    );
    chain(
        text,
        "nat-cali-nat-outgoing",
        "",
        if has_masquerade { std::slice::from_ref(&outgoing) } else { &[] },
    );
    text.push_str("}\n");
}

/// The wider of the port ranges below and above a port.
fn widest_ports_without(port: u16) -> (u16, u16) {
    let below = (1024, port.saturating_sub(1));
    let above = (port.saturating_add(1), u16::MAX);
    let width = |(low, high): (u16, u16)| high.saturating_sub(low);
    if width(below) > width(above) { below } else { above }
}

/// One set of networks. Those inside others are left out: a set with intervals refuses overlaps.
fn set(text: &mut String, name: &str, kind: &str, mut members: Vec<Cidr>) {
    members.sort_unstable();
    members.dedup();
    let outermost: Vec<String> = members
        .iter()
        .filter(|member| !members.iter().any(|other| other != *member && other.contains_cidr(**member)))
        .map(ToString::to_string)
        .collect();
    let _ = writeln!(text, "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval");
    if !outermost.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", outermost.join(", "));
    }
    text.push_str("\t}\n");
}

fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    for line in Some(hook).filter(|hook| !hook.is_empty()).into_iter().chain(rules.iter().map(String::as_str))
    {
        let _ = writeln!(text, "\t\t{line}");
    }
    text.push_str("\t}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flushed_chain_is_noticed() {
        let script = script(&Inputs::default());
        assert!(is_current(&script, &script));
        let flushed: String =
            script.lines().filter(|line| !line.contains("notrack")).map(|line| format!("{line}\n")).collect();
        assert!(!is_current(&script, &flushed));
        assert!(!is_current(&script, ""));
    }

    #[test]
    fn the_udp_range_avoids_the_tunnel_port() {
        assert_eq!(widest_ports_without(4789), (4790, 65535));
        assert_eq!(widest_ports_without(60000), (1024, 59999));
        assert_eq!(widest_ports_without(65535), (1024, 65534));
    }
}
