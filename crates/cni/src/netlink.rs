//! A synchronous netlink socket, bound to the network namespace of the thread that opens it.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// Sequence number of every request: one is under way at a time, and each is read to its end.
const SEQUENCE: u32 = 1;

/// The socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread; it stays there when the thread moves on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::new() })
    }

    /// Makes a change and waits for the kernel's acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.receive(|_| ()).map(|_| ())
    }

    /// Reads a table.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(message, NLM_F_DUMP)?;
        self.receive(|message| message)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = SEQUENCE;
        request.finalize();
        self.buffer.clear();
        self.buffer.resize(request.buffer_len(), 0);
        request.serialize(&mut self.buffer);
        self.socket.send(&self.buffer, 0).map(|_| ())
    }

    /// Reads until the acknowledgement or the end of the dump.
    fn receive<T>(&mut self, mut take: impl FnMut(RouteNetlinkMessage) -> T) -> io::Result<Vec<T>> {
        let malformed = |error: netlink_packet_core::DecodeError| io::Error::other(error.to_string());
        let mut taken = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(malformed)?;
                // Messages are padded to four bytes.
                let length = usize::try_from(message.header.length).unwrap_or(rest.len()).next_multiple_of(4);
                rest = rest.get(length.max(4)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(taken),
                    NetlinkPayload::InnerMessage(message) => taken.push(take(message)),
                    _ => {}
                }
            }
        }
    }
}
