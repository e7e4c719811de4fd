//! A synchronous netlink socket, bound to the network namespace of the thread that opens it.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// Room for one datagram of the kernel: a dump comes in pieces of at most this many bytes.
const DATAGRAM: usize = 32 * 1024;

/// The socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
}

/// A change that the kernel refused, of several that were sent together.
#[derive(Debug, thiserror::Error)]
#[error("change {index} was refused")]
pub struct Refused {
    /// Position of the first that was refused. Those after it may have been made.
    pub index: usize,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread; it stays there when the thread moves on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Makes a change and waits for the kernel's acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.change_all(vec![(message, flags)]).map_err(|refused| refused.source)
    }

    /// Makes several changes, in order, by one call of the kernel. A refused one does not keep it from the next.
    ///
    /// # Errors
    /// The first refusal.
    pub fn change_all(&mut self, changes: Vec<(RouteNetlinkMessage, u16)>) -> Result<(), Refused> {
        let count = changes.len();
        let at = |index: usize| move |source: io::Error| Refused { index, source };
        self.send(changes.into_iter().map(|(message, flags)| (message, NLM_F_ACK | flags))).map_err(at(0))?;
        let mut first = None;
        for index in 0..count {
            // The kernel acknowledges in order, each in a datagram of its own.
            match self.receive(|_| ()) {
                Err(error) if first.is_none() => first = Some(Refused { index, source: error }),
                _ => {}
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Reads a table.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(std::iter::once((message, NLM_F_DUMP)))?;
        self.receive(|message| message)
    }

    fn send(&mut self, messages: impl Iterator<Item = (RouteNetlinkMessage, u16)>) -> io::Result<()> {
        self.buffer.clear();
        for (message, flags) in messages {
            let mut request = NetlinkMessage::from(message);
            request.header.flags = NLM_F_REQUEST | flags;
            request.finalize();
            let begin = self.buffer.len();
            // Messages begin at multiples of four bytes.
            self.buffer.resize(begin + request.buffer_len().next_multiple_of(4), 0);
            request.serialize(self.buffer.get_mut(begin..).unwrap_or_default());
        }
        self.socket.send(&self.buffer, 0).map(|_| ())
    }

    /// Reads until an acknowledgement or the end of a dump.
    fn receive<T>(&mut self, mut take: impl FnMut(RouteNetlinkMessage) -> T) -> io::Result<Vec<T>> {
        let malformed = |error: netlink_packet_core::DecodeError| io::Error::other(error.to_string());
        let mut taken = Vec::new();
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(malformed)?;
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
