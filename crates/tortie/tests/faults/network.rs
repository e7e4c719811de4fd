//! One switch, and hosts that are wired to it: each a network namespace with an `eth0`.

use crate::namespace::{Namespace, change, index_of, raise};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use std::fs::File;

/// The network. The test's own namespace is a host of it.
pub(crate) struct Network {
    switch: Namespace,
    hosts: usize,
    _own: Namespace,
}

impl Network {
    pub(crate) fn new() -> Self {
        let switch = Namespace::new();
        switch.run(|| {
            let mut bridge = LinkMessage::default();
            bridge.attributes = vec![
                LinkAttribute::IfName("bridge".to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            ];
            change(RouteNetlinkMessage::NewLink(bridge), NLM_F_CREATE | NLM_F_EXCL);
            raise(index_of("bridge"));
        });
        let own = Namespace(File::open("/proc/thread-self/ns/net").unwrap());
        let network = Self { switch, hosts: 0, _own: own };
        network.wire(&network._own, "172.18.0.1", "port0");
        network
    }

    fn wire(&self, host: &Namespace, address: &str, port: &str) {
        host.wire("eth0", &format!("{address}/16"), &self.switch, port, "");
        self.switch.run(|| {
            let mut link = LinkMessage::default();
            link.header.index = index_of(port);
            link.attributes = vec![LinkAttribute::Controller(index_of("bridge"))];
            change(RouteNetlinkMessage::SetLink(link), 0);
        });
    }

    /// Another host: its namespace, its address, and the switch's port that it is wired to.
    pub(crate) fn host(&mut self) -> (Namespace, String, String) {
        self.hosts += 1;
        let (address, port) = (format!("172.18.1.{}", self.hosts), format!("port{}", self.hosts));
        let host = Namespace::new();
        self.wire(&host, &address, &port);
        (host, address, port)
    }

    /// Takes a port's link down: nothing comes through, and nobody is told.
    pub(crate) fn cut(&self, port: &str) {
        self.switch.run(|| {
            let mut link = LinkMessage::default();
            link.header.index = index_of(port);
            link.header.change_mask = LinkFlags::Up;
            change(RouteNetlinkMessage::SetLink(link), 0);
        });
    }

    /// Sets it up again.
    pub(crate) fn mend(&self, port: &str) {
        self.switch.run(|| raise(index_of(port)));
    }
}
