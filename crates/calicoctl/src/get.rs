//! `get`: the resources that address management knows, as tables, YAML or JSON (calicoctl §7).

use crate::arguments::Get;
use crate::failure::Failure;
use crate::table::spaced;
use api::{IpamConfig, Pool};
use datastore::{Datastore, Kind, Record, Scope, Stored};
use serde_json::{Map, Value, json};

/// A kind that can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    kind: Kind,
    /// `kind` of the objects in the group projectcalico.org/v3.
    name: &'static str,
    narrow: &'static [&'static str],
    wide: &'static [&'static str],
}

const LISTED: [(&[&str], Listed); 5] = [
    (
        &["ippool", "ippools", "ipp", "ipps", "pool", "pools"],
        Listed {
            kind: Kind::Pool,
            name: "IPPool",
            narrow: &["NAME", "CIDR", "SELECTOR"],
            wide: &[
                "NAME",
                "CIDR",
                "NAT",
                "IPIPMODE",
                "VXLANMODE",
                "DISABLED",
                "DISABLEBGPEXPORT",
                "SELECTOR",
                "ASSIGNMENTMODE",
            ],
        },
    ),
    (
        &["ipreservation", "ipreservations", "reservation", "reservations"],
        Listed {
            kind: Kind::Reservation,
            name: "IPReservation",
            narrow: &["NAME"],
            wide: &["NAME", "CIDRS"],
        },
    ),
    (
        &["ipamconfiguration", "ipamconfigurations", "ipamconfig", "ipamconfigs"],
        Listed {
            kind: Kind::Config,
            name: "IPAMConfiguration",
            narrow: &["NAME", "STRICTAFFINITY", "AUTOALLOCATEBLOCKS"],
            wide: &["NAME", "STRICTAFFINITY", "AUTOALLOCATEBLOCKS", "MAXBLOCKSPERHOST"],
        },
    ),
    (
        &["node", "nodes", "no", "nos"],
        Listed { kind: Kind::Node, name: "Node", narrow: &["NAME"], wide: &["NAME", "ASN", "IPV4", "IPV6"] },
    ),
    (
        &["clusterinformation", "clusterinformations", "clusterinfo", "clusterinfos"],
        Listed {
            kind: Kind::ClusterInformation,
            name: "ClusterInformation",
            narrow: &["NAME", "CLUSTERGUID", "CALICOVERSION", "DATASTOREREADY"],
            wide: &["NAME", "CLUSTERGUID", "CALICOVERSION", "DATASTOREREADY"],
        },
    ),
];

/// Runs the command.
pub(crate) async fn run<D: Datastore>(store: &D, options: &Get) -> Result<String, Failure> {
    let wanted = options.kind.to_lowercase();
    let (_, listed) = LISTED
        .iter()
        .find(|(names, _)| names.contains(&wanted.as_str()))
        .ok_or_else(|| Failure::new(format!("resource type '{}' is not supported", options.kind)))?;
    if !["ps", "wide", "yaml", "yml", "json"].contains(&options.output.as_str()) {
        return Err(Failure::new(format!("unrecognized output format '{}'", options.output)));
    }
    let listing = store
        .list(&Scope::All(listed.kind))
        .await
        .map_err(|error| Failure::new(format!("failed to get resources: {error}")))?;
    render(listed, listing.items, options)
}

fn render(listed: &Listed, all: Vec<Stored>, options: &Get) -> Result<String, Failure> {
    let mut errors = String::new();
    let found: Vec<Stored> = if options.names.is_empty() {
        all
    } else {
        let mut found = Vec::new();
        for name in &options.names {
            match all.iter().find(|stored| name_of(&stored.record) == name.as_str()) {
                Some(stored) => found.push(stored.clone()),
                None => errors.push_str(&format!("resource does not exist: {}({name})\n", listed.name)),
            }
        }
        found
    };
    let text = match options.output.as_str() {
        "yaml" | "yml" => yaml(&document(listed, &found, options.names.len()))?,
        "json" => format!("{:#}\n", document(listed, &found, options.names.len())),
        format => tables(listed, &found, format == "wide", options.names.is_empty()),
    };
    if errors.is_empty() { Ok(text) } else { Err(Failure::after(text, errors)) }
}

/// One table for a listing, one per name otherwise.
fn tables(listed: &Listed, found: &[Stored], wide: bool, listing: bool) -> String {
    let header = if wide { listed.wide } else { listed.narrow };
    let rows: Vec<Vec<String>> =
        found.iter().map(|stored| header.iter().map(|title| cell(&stored.record, title)).collect()).collect();
    if listing {
        return spaced(header, &rows);
    }
    rows.into_iter().map(|row| spaced(header, &[row])).collect()
}

fn yaml(document: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(document)
        .map_err(|error| Failure::new(format!("no YAML can be made of it: {error}")))
}

/// One object if one was asked for by name, else a list.
fn document(listed: &Listed, found: &[Stored], named: usize) -> Value {
    let mut items: Vec<Value> = found.iter().map(|stored| object(listed, stored)).collect();
    match (named, items.len()) {
        (1, 1) => items.remove(0),
        (1.., 0) => Value::Null,
        _ => json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": format!("{}List", listed.name),
            "metadata": {},
            "items": items,
        }),
    }
}

/// A record as an object of projectcalico.org/v3, the form that calicoctl has always shown.
fn object(listed: &Listed, stored: &Stored) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(name_of(&stored.record)));
    metadata.insert("resourceVersion".to_owned(), json!(stored.version.revision.0.to_string()));
    if let Some(uid) = &stored.version.uid {
        metadata.insert("uid".to_owned(), json!(uid));
    }
    if let Some(created) = stored.created {
        metadata.insert(
            "creationTimestamp".to_owned(),
            json!(created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        );
    }
    json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": listed.name,
        "metadata": metadata,
        "spec": spec(&stored.record),
    })
}

fn spec(record: &Record) -> Value {
    match record {
        Record::Pool(pool) => pool.spec_v1(),
        Record::Reservation(reservation) => reservation.spec_v1(),
        Record::Config(config) => config.spec_v1(),
        Record::ClusterInformation(information) => information.spec_v1(),
        Record::Node(node) => {
            let addresses: Vec<Value> = node
                .internal_ips
                .iter()
                .map(|address| json!({"address": address.to_string(), "type": "InternalIP"}))
                .collect();
            let mut spec = Map::from_iter([("addresses".to_owned(), json!(addresses))]);
            let annotated = |key: &str| node.annotations.get(&format!("projectcalico.org/{key}"));
            if let Some(address) = annotated("IPv4Address") {
                spec.insert("bgp".to_owned(), json!({ "ipv4Address": address }));
            }
            if let Some(address) = annotated("IPv4VXLANTunnelAddr") {
                spec.insert("ipv4VXLANTunnelAddr".to_owned(), json!(address));
            }
            Value::Object(spec)
        }
        Record::Block(_) | Record::Affinity(_) | Record::Handle(_) => Value::Null,
    }
}

fn name_of(record: &Record) -> &str {
    match record {
        Record::Pool(pool) => &pool.name,
        Record::Reservation(reservation) => &reservation.name,
        Record::Node(node) => &node.name,
        _ => api::wire::SINGLETON,
    }
}

fn cell(record: &Record, title: &str) -> String {
    match (record, title) {
        (record, "NAME") => name_of(record).to_owned(),
        (Record::Pool(pool), title) => pool_cell(pool, title),
        (Record::Config(config), title) => config_cell(config, title),
        (Record::Reservation(reservation), "CIDRS") => {
            let cidrs: Vec<String> = reservation.cidrs.iter().map(ToString::to_string).collect();
            shortened(&cidrs.join(","))
        }
        (Record::Node(node), "ASN") => {
            let bgp = node.annotations.keys().any(|key| key.starts_with("projectcalico.org/IPv"));
            if bgp { "(64512)".to_owned() } else { String::new() }
        }
        (Record::Node(node), "IPV4" | "IPV6") => {
            let key = if title == "IPV4" { "IPv4Address" } else { "IPv6Address" };
            node.annotations.get(&format!("projectcalico.org/{key}")).cloned().unwrap_or_default()
        }
        (Record::ClusterInformation(information), title) => match title {
            "CLUSTERGUID" => information.cluster_guid.clone(),
            "CALICOVERSION" => information.calico_version.clone(),
            _ => information.datastore_ready.to_string(),
        },
        _ => String::new(),
    }
}

fn pool_cell(pool: &Pool, title: &str) -> String {
    match title {
        "CIDR" => pool.cidr.to_string(),
        "NAT" => pool.nat_outgoing.to_string(),
        "IPIPMODE" => pool.ipip_mode.as_str().to_owned(),
        "VXLANMODE" => pool.vxlan_mode.as_str().to_owned(),
        "DISABLED" => pool.disabled.to_string(),
        "DISABLEBGPEXPORT" => pool.disable_bgp_export.to_string(),
        "SELECTOR" => pool.node_selector.clone(),
        "ASSIGNMENTMODE" => pool.assignment_mode.as_str().to_owned(),
        _ => String::new(),
    }
}

fn config_cell(config: &IpamConfig, title: &str) -> String {
    match title {
        "STRICTAFFINITY" => config.strict_affinity.to_string(),
        "AUTOALLOCATEBLOCKS" => config.auto_allocate_blocks.to_string(),
        "MAXBLOCKSPERHOST" => config.max_blocks_per_host.to_string(),
        _ => String::new(),
    }
}

/// Cut at 80 characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some(_) => format!("{}...", text.chars().take(77).collect::<String>()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::{Revision, Version};

    fn pool() -> Stored {
        let mut pool = Pool::with_defaults("default-ipv4-ippool", "192.168.0.0/16".parse().unwrap());
        pool.vxlan_mode = api::Encapsulation::CrossSubnet;
        pool.nat_outgoing = true;
        Stored {
            record: Record::Pool(pool),
            version: Version { revision: Revision(42), uid: Some("u".to_owned()) },
            created: Some(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    fn get(names: &[&str], output: &str) -> Result<String, Failure> {
        let options = Get {
            kind: "ippools".to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            output: output.to_owned(),
        };
        render(&LISTED[0].1, vec![pool()], &options)
    }

    #[test]
    fn pools_have_a_narrow_and_a_wide_table() {
        assert_eq!(
            get(&[], "ps").unwrap(),
            "NAME                  CIDR             SELECTOR   \ndefault-ipv4-ippool   192.168.0.0/16   all()      \n\n"
        );
        assert_eq!(
            get(&[], "wide").unwrap(),
            "NAME                  CIDR             NAT     IPIPMODE   VXLANMODE     DISABLED   DISABLEBGPEXPORT   SELECTOR   ASSIGNMENTMODE   \n\
             default-ipv4-ippool   192.168.0.0/16   true    Never      CrossSubnet   false      false              all()      Automatic        \n\n"
        );
    }

    #[test]
    fn a_missing_name_is_told_after_what_was_found() {
        let failure = get(&["default-ipv4-ippool", "x"], "ps").unwrap_err();
        assert!(failure.printed().contains("192.168.0.0/16"));
        assert_eq!(failure.sentence(), "resource does not exist: IPPool(x)\n");
    }

    #[test]
    fn one_name_is_an_object_and_none_a_list() {
        let one: Value = serde_json::from_str(&get(&["default-ipv4-ippool"], "json").unwrap()).unwrap();
        assert_eq!(one["kind"], "IPPool");
        assert_eq!(one["spec"]["vxlanMode"], "CrossSubnet");
        let all = get(&[], "yaml").unwrap();
        assert!(all.contains("kind: IPPoolList"), "{all}");
        assert!(
            all.contains("creationTimestamp: \"1970-01-01T00:00:00Z\"")
                || all.contains("creationTimestamp: 1970"),
            "{all}"
        );
    }
}
