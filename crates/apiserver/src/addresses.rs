//! Cluster addresses and node ports of services.

use crate::objects;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use storage::Store;

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Which addresses and node ports are given out. Kept in memory; at start it is read from the services.
#[derive(Debug)]
pub struct Addresses {
    network: u32,
    size: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: BTreeSet<u32>,
    ports: BTreeSet<u16>,
    next: u32,
}

impl Addresses {
    /// The range `cidr`, less what the stored services hold. `None` when it is no IPv4 range.
    pub fn new(cidr: &str, store: &Store) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let length: u32 = length.parse().ok().filter(|length| (8..=30).contains(length))?;
        let size = 1_u32 << (32 - length);
        let addresses = Self { network: u32::from(address) & !(size - 1), size, taken: Mutex::default() };
        for (_, entry) in store.list("/core/services/", None, 0).entries {
            let service = objects::decode(&entry);
            if let Some(address) = service["spec"]["clusterIP"].as_str() {
                addresses.take(address);
            }
            for port in ports(&service) {
                addresses.take_port(port);
            }
        }
        Some(addresses)
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first address, which the service `kubernetes` has.
    pub fn first(&self) -> String {
        Ipv4Addr::from(self.network + 1).to_string()
    }

    /// Takes a given address. False: it is taken already. One outside the range is not ours to take.
    pub fn take(&self, address: &str) -> bool {
        let Ok(address) = address.parse::<Ipv4Addr>() else { return true };
        !self.contains(address) || self.taken().addresses.insert(u32::from(address))
    }

    /// Whether an address is in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address).checked_sub(self.network).is_some_and(|offset| offset < self.size)
    }

    /// Takes any free address; the first sixteen are left for those who ask by address. `None`: all are taken.
    pub fn allocate(&self) -> Option<String> {
        let mut taken = self.taken();
        let reserved = 16.min(self.size / 4).max(1);
        let span = self.size - reserved - 1;
        let start = taken.next;
        let found = (0..span)
            .map(|step| self.network + reserved + (start + step) % span)
            .find(|address| !taken.addresses.contains(address))?;
        taken.next = (found - self.network - reserved + 1) % span;
        taken.addresses.insert(found);
        Some(Ipv4Addr::from(found).to_string())
    }

    /// Takes a given node port. False: it is taken already.
    pub fn take_port(&self, port: u16) -> bool {
        self.taken().ports.insert(port)
    }

    /// Takes any free node port.
    pub fn allocate_port(&self) -> Option<u16> {
        let mut taken = self.taken();
        let found = NODE_PORTS.into_iter().find(|port| !taken.ports.contains(port))?;
        taken.ports.insert(found);
        Some(found)
    }

    /// Gives back what a service held.
    pub fn release(&self, service: &Value) {
        let mut taken = self.taken();
        if let Some(address) =
            service["spec"]["clusterIP"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok())
        {
            taken.addresses.remove(&u32::from(address));
        }
        for port in ports(service) {
            taken.ports.remove(&port);
        }
    }
}

/// Node ports of a service.
pub fn ports(service: &Value) -> impl Iterator<Item = u16> {
    service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok())
        .filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_given_once_and_again_after_release() {
        let store = Store::in_memory().unwrap();
        let addresses = Addresses::new("10.0.0.0/28", &store).unwrap();
        assert!(addresses.take(&addresses.first()));
        assert!(!addresses.take("10.0.0.1"));
        let mut given: Vec<String> = std::iter::from_fn(|| addresses.allocate()).collect();
        assert_eq!(given.len(), 11);
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 11);
        addresses.release(&json!({"spec": {"clusterIP": "10.0.0.9"}}));
        assert_eq!(addresses.allocate().as_deref(), Some("10.0.0.9"));
        assert!(Addresses::new("fd00::/64", &store).is_none());
    }
}
