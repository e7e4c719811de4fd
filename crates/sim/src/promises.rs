//! What the world was told: which address belongs to whom by a successful reply, and is not asked back yet.
//!
//! This is the simulator's own truth. It knows nothing of blocks and handles but what the replies said, and every
//! invariant about owners is judged against it.

use api::Cidr;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Number of the attachment it was promised to.
    pub attachment: usize,
    /// Handle that holds it.
    pub handle: String,
    /// Block that it was given of; `None`: none that the store knew.
    pub block: Option<Cidr>,
    /// Stamp of the allocation.
    pub sequence: u64,
}

/// All promises that stand.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    by_address: BTreeMap<IpAddr, Promise>,
}

impl Promises {
    /// A reply said that an address is an attachment's. Answers what is wrong about that, if anything.
    pub fn give(&mut self, address: IpAddr, promise: Promise) -> Option<String> {
        let wrong =
            self.by_address.get(&address).filter(|held| held.attachment != promise.attachment).map(|held| {
                format!("1: {address} was given to {} while {} has it", promise.handle, held.handle)
            });
        self.by_address.insert(address, promise);
        wrong
    }

    /// An attachment asked for its addresses to be taken back, or ceased to be.
    pub fn take_back(&mut self, attachment: usize) {
        self.by_address.retain(|_, held| held.attachment != attachment);
    }

    /// Whose an address is.
    pub fn of(&self, address: IpAddr) -> Option<&Promise> {
        self.by_address.get(&address)
    }

    /// The promises of addresses of this block, whatever other block lies across it.
    pub fn of_block(&self, block: Cidr) -> impl Iterator<Item = (&IpAddr, &Promise)> {
        let among = self.by_address.range(block.network()..=block.last());
        among.filter(move |(_, promise)| promise.block == Some(block))
    }

    /// Addresses of one attachment.
    pub fn addresses_of(&self, attachment: usize) -> impl Iterator<Item = IpAddr> {
        self.by_address.iter().filter(move |(_, held)| held.attachment == attachment).map(|(at, _)| *at)
    }

    /// How many stand.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether nobody was promised anything.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_promised_to_one_attachment_until_it_is_taken_back() {
        let mut promises = Promises::default();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let block: Cidr = "10.0.0.0/30".parse().unwrap();
        let to = |attachment| Promise {
            attachment,
            handle: format!("h{attachment}"),
            block: Some(block),
            sequence: 1,
        };
        assert_eq!(promises.give(address, to(1)), None);
        assert_eq!(promises.give(address, to(1)), None);
        assert_eq!(promises.of_block(block).count(), 1);
        assert_eq!(promises.of_block("10.0.0.0/29".parse().unwrap()).count(), 0);
        assert!(promises.give(address, to(2)).is_some_and(|wrong| wrong.starts_with("1:")));
        promises.take_back(2);
        assert_eq!(promises.give(address, to(3)), None);
    }
}
