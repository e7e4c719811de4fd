//! Where records stand: Calico's keys in etcd (data model §4 to §10), and the ranges that listings and watches read.

use crate::{Key, Kind, Scope};
use api::wire::SINGLETON;
use api::{Cidr, IpVersion, Owner, OwnerKind};

/// What all whole resources stand under.
pub(super) const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";
/// What the entries of IPAM stand under.
pub(super) const IPAM: &str = "/calico/ipam/v2/";
const POOLS: &str = "/calico/resources/v3/projectcalico.org/ippools/";
const RESERVATIONS: &str = "/calico/resources/v3/projectcalico.org/ipreservations/";
const NODES: &str = "/calico/resources/v3/projectcalico.org/nodes/";
const CLUSTER_INFORMATIONS: &str = "/calico/resources/v3/projectcalico.org/clusterinformations/";
const BLOCKS: &str = "/calico/ipam/v2/assignment/";
const HANDLES: &str = "/calico/ipam/v2/handle/";
const CONFIG: &str = "/calico/ipam/v2/config";
const HOSTS: &str = "/calico/ipam/v2/host/";
const VIRTUALS: &str = "/calico/ipam/v2/virtual/";

/// A name that cannot be a part of a key: it would name another record, or one that no listing finds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {0:?} cannot be a key in etcd: it is empty or has a slash; choose another name")]
pub(super) struct BadName(pub(super) String);

/// The key of a record.
pub(super) fn of(key: &Key) -> Result<String, BadName> {
    let named = |root: &str, name: &str| {
        if name.is_empty() || name.contains('/') {
            return Err(BadName(name.to_owned()));
        }
        Ok(format!("{root}{name}"))
    };
    match key {
        Key::Pool(name) => named(POOLS, name),
        Key::Reservation(name) => named(RESERVATIONS, name),
        Key::Node(name) => named(NODES, name),
        Key::Handle(id) => named(HANDLES, id),
        Key::ClusterInformation => Ok(format!("{CLUSTER_INFORMATIONS}{SINGLETON}")),
        Key::Config => Ok(CONFIG.to_owned()),
        Key::Block(cidr) => Ok(format!("{BLOCKS}{}/block/{}", family(*cidr), segment(*cidr))),
        Key::Affinity(owner, cidr) => {
            let root = named(root_of(owner.kind), &owner.name)?;
            Ok(format!("{root}/{}/block/{}", family(*cidr), segment(*cidr)))
        }
    }
}

/// The record that a key of the records of `kind` names; `None` for what stands there besides.
pub(super) fn read(kind: Kind, path: &str) -> Option<Key> {
    let name = |root: &str| {
        let name = path.strip_prefix(root)?;
        (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
    };
    match kind {
        Kind::Pool => name(POOLS).map(Key::Pool),
        Kind::Reservation => name(RESERVATIONS).map(Key::Reservation),
        Kind::Node => name(NODES).map(Key::Node),
        Kind::Handle => name(HANDLES).map(Key::Handle),
        Kind::ClusterInformation => {
            name(CLUSTER_INFORMATIONS).filter(|name| name == SINGLETON).map(|_| Key::ClusterInformation)
        }
        Kind::Config => (path == CONFIG).then_some(Key::Config),
        Kind::Block => block(path.strip_prefix(BLOCKS)?).map(Key::Block),
        Kind::Affinity => {
            let (kind, rest) = [OwnerKind::Host, OwnerKind::Virtual]
                .into_iter()
                .find_map(|kind| Some((kind, path.strip_prefix(root_of(kind))?)))?;
            let (name, rest) = rest.split_once('/')?;
            if name.is_empty() {
                return None;
            }
            Some(Key::Affinity(Owner { kind, name: name.to_owned() }, block(rest)?))
        }
    }
}

/// From the first key to before the second: everything of `scope`, and nothing of another kind of record.
pub(super) fn range(scope: &Scope) -> Result<(String, String), BadName> {
    let under = |root: &str| (root.to_owned(), after(root));
    Ok(match scope {
        Scope::All(Kind::Pool) => under(POOLS),
        Scope::All(Kind::Reservation) => under(RESERVATIONS),
        Scope::All(Kind::Node) => under(NODES),
        Scope::All(Kind::Handle) => under(HANDLES),
        Scope::All(Kind::ClusterInformation) => under(CLUSTER_INFORMATIONS),
        Scope::All(Kind::Block) => under(BLOCKS),
        Scope::All(Kind::Config) => (CONFIG.to_owned(), format!("{CONFIG}\0")),
        // Both kinds of owner: no other record of Calico stands between them.
        Scope::All(Kind::Affinity) => (HOSTS.to_owned(), after(VIRTUALS)),
        Scope::AffinitiesOf(owner) => {
            if owner.name.is_empty() || owner.name.contains('/') {
                return Err(BadName(owner.name.clone()));
            }
            under(&format!("{}{}/", root_of(owner.kind), owner.name))
        }
    })
}

/// The first key behind all that begin with `root`, which ends in a slash.
pub(super) fn after(root: &str) -> String {
    // '0' follows '/' in ASCII.
    format!("{}0", root.trim_end_matches('/'))
}

fn root_of(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::Host => HOSTS,
        OwnerKind::Virtual => VIRTUALS,
    }
}

fn family(cidr: Cidr) -> &'static str {
    match cidr.version() {
        IpVersion::V4 => "ipv4",
        IpVersion::V6 => "ipv6",
    }
}

/// A CIDR as a part of a key (data model §2.2).
fn segment(cidr: Cidr) -> String {
    cidr.to_string().replacen('/', "-", 1)
}

/// The block of `ipv4/block/10.0.0.0-26`, canonical and of the family it stands under.
fn block(path: &str) -> Option<Cidr> {
    let (version, text) = path.split_once("/block/")?;
    let cidr: Cidr = text.replacen('-', "/", 1).parse().ok()?;
    (family(cidr) == version && segment(cidr) == text).then_some(cidr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_those_of_calico() {
        let worker = Owner::host("worker-1");
        let balancer = Owner::virtual_named("load-balancer");
        for (key, path) in [
            (Key::Pool("blue-pool".into()), "/calico/resources/v3/projectcalico.org/ippools/blue-pool"),
            (Key::Reservation("gw".into()), "/calico/resources/v3/projectcalico.org/ipreservations/gw"),
            (Key::Node("n".into()), "/calico/resources/v3/projectcalico.org/nodes/n"),
            (Key::ClusterInformation, "/calico/resources/v3/projectcalico.org/clusterinformations/default"),
            (Key::Config, "/calico/ipam/v2/config"),
            (Key::Block(cidr("10.244.7.64/26")), "/calico/ipam/v2/assignment/ipv4/block/10.244.7.64-26"),
            (
                Key::Block(cidr("fd00:10:244::1c0/122")),
                "/calico/ipam/v2/assignment/ipv6/block/fd00:10:244::1c0-122",
            ),
            (
                Key::Affinity(worker, cidr("10.244.7.64/26")),
                "/calico/ipam/v2/host/worker-1/ipv4/block/10.244.7.64-26",
            ),
            (
                Key::Affinity(balancer, cidr("fd00:10:244::1c0/122")),
                "/calico/ipam/v2/virtual/load-balancer/ipv6/block/fd00:10:244::1c0-122",
            ),
            (Key::Handle("k8s-pod-network.4F2c".into()), "/calico/ipam/v2/handle/k8s-pod-network.4F2c"),
        ] {
            assert_eq!(of(&key).unwrap(), path);
            assert_eq!(read(key.kind(), path), Some(key.clone()));
            let (from, to) = range(&Scope::All(key.kind())).unwrap();
            assert!(from.as_str() <= path && path < to.as_str(), "{key}");
        }
    }

    #[test]
    fn the_affinities_of_an_owner_are_not_those_of_another_whose_name_begins_alike() {
        let (from, to) = range(&Scope::AffinitiesOf(Owner::host("n1"))).unwrap();
        let other = of(&Key::Affinity(Owner::host("n10"), cidr("10.0.0.0/26"))).unwrap();
        assert!(!(from <= other && other < to));
        let (from, to) = range(&Scope::All(Kind::Affinity)).unwrap();
        for stranger in [
            "/calico/ipam/v2/handle/x",
            "/calico/ipam/v2/config",
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26",
        ] {
            assert!(!(from.as_str() <= stranger && stranger < to.as_str()), "{stranger}");
        }
    }

    #[test]
    fn names_that_would_be_other_keys_are_refused() {
        for key in [
            Key::Handle("a/b".into()),
            Key::Pool(String::new()),
            Key::Affinity(Owner::host("n/ipv4/block"), cidr("10.0.0.0/26")),
        ] {
            assert!(of(&key).is_err(), "{key}");
        }
        assert!(range(&Scope::AffinitiesOf(Owner::host(""))).is_err());
    }

    #[test]
    fn what_stands_besides_the_records_is_none() {
        for (kind, path) in [
            (Kind::Affinity, "/calico/ipam/v2/host/worker-1"),
            (Kind::Affinity, "/calico/ipam/v2/host/worker-1/ipv4/block/nonsense"),
            (Kind::Affinity, "/calico/ipam/v2/host/worker-1/ipv6/block/10.0.0.0-26"),
            (Kind::Block, "/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26"),
            (Kind::Block, "/calico/ipam/v2/assignment/ipv4/10.0.0.0-26"),
            (Kind::Pool, "/calico/resources/v3/projectcalico.org/ippools/a/b"),
            (Kind::ClusterInformation, "/calico/resources/v3/projectcalico.org/clusterinformations/other"),
        ] {
            assert_eq!(read(kind, path), None, "{path}");
        }
    }
}
