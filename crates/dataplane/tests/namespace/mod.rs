//! Network namespaces for tests, without root: a test runs itself again in namespaces of its own.
//!
//! Nothing is mounted or named, so nothing can be left behind: namespaces live as long as the files and threads that
//! hold them.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;

/// Set in the process that runs inside.
const INSIDE: &str = "TORTIE_TEST_INSIDE";

/// Runs `body` in a user namespace, a network namespace and a mount namespace of its own, in a process of its own.
///
/// `name` is the test's own name. Where namespaces are not permitted, says so and runs nothing.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return body();
    }
    let ways: [&[&str]; 2] = [&["--user", "--map-root-user", "--net", "--mount"], &["--net", "--mount"]];
    let permitted = |way: &&&[&str]| {
        Command::new("unshare").args(**way).arg("true").output().is_ok_and(|out| out.status.success())
    };
    let Some(way) = ways.iter().find(permitted) else {
        eprintln!("skipped {name}: this machine permits no network namespaces (unshare --user --net)");
        return;
    };
    let status = Command::new("unshare")
        .args(*way)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespaces");
}

/// A network namespace that lives as long as this.
#[derive(Debug)]
pub(crate) struct Namespace(pub(crate) File);

impl Namespace {
    /// Makes a namespace, with its loopback up.
    #[expect(unsafe_code, reason = "namespaces can only be left by an unsafe call")]
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            // SAFETY: only the network namespace is left; no file descriptor becomes invisible to other threads.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let file = File::open("/proc/thread-self/ns/net").unwrap();
            raise(1);
            file
        })
        .join()
        .unwrap();
        Self(file)
    }

    /// Runs `body` on a thread in this namespace. Sockets and processes made there stay there.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                body()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Makes a veth pair: `own` here with its address, `other` in another namespace with its.
    pub(crate) fn wire(&self, own: &str, own_address: &str, other: &Namespace, name: &str, address: &str) {
        self.run(|| {
            let mut peer = LinkMessage::default();
            peer.attributes =
                vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::NetNsFd(other.0.as_raw_fd())];
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName(own.to_owned()),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Veth),
                    LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
                ]),
            ];
            change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL);
        });
        self.run(|| give(own, own_address));
        other.run(|| give(name, address));
    }
}

/// Index of an interface of the calling thread's namespace.
pub(crate) fn index_of(name: &str) -> u32 {
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    rustix::net::netdevice::name_to_index(socket, name).unwrap()
}

/// Sends one change to the kernel of the calling thread's namespace; it must succeed.
pub(crate) fn change(message: RouteNetlinkMessage, flags: u16) {
    let socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    let told = format!("{message:?}");
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    socket.send(&buffer, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).unwrap();
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => {}
        other => panic!("{told}: {other:?}"),
    }
}

/// Sets an interface up.
pub(crate) fn raise(index: u32) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    change(RouteNetlinkMessage::SetLink(link), 0);
}

/// Gives an interface an address (`172.18.0.2/16`; empty: none) and sets it up.
pub(crate) fn give(interface: &str, address: &str) {
    let index = index_of(interface);
    if let Some((address, prefix)) = address.split_once('/') {
        let address: IpAddr = address.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix.parse().unwrap();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE);
    }
    raise(index);
}
