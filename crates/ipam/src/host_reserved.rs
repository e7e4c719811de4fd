//! Ordinals that a host keeps for itself in every block that it makes, as Windows nodes must (algorithm §2.1, §6, §23).

use crate::block;
use api::{Attribute, Block, Cidr, IpVersion};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a host keeps of each of its blocks: the first `start` and the last `end` ordinals.
///
/// They are ordinary allocations under one handle that has no object of its own. Only who makes a block reserves in it;
/// a block that is there is used as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReserved {
    /// Ordinals kept at the start; 3 on Windows.
    pub start: u32,
    /// Ordinals kept at the end; 1 on Windows.
    pub end: u32,
    /// Handle they are kept under, [`block::WINDOWS_RESERVED_HANDLE`] on Windows: only with that one does a block count as
    /// empty that has nothing else in it.
    pub handle: String,
    /// What `note` in their attributes says.
    pub note: String,
}

/// A reservation that reserves nothing, or more than any block has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a host cannot keep {start} + {end} ordinals of each block: keep at least one, and fewer than a block has"
)]
pub struct HostReservedError {
    /// Ordinals at the start.
    pub start: u32,
    /// Ordinals at the end.
    pub end: u32,
}

impl HostReserved {
    /// What Windows nodes keep of each IPv4 block.
    pub fn windows() -> Self {
        Self {
            start: 3,
            end: 1,
            handle: block::WINDOWS_RESERVED_HANDLE.to_owned(),
            note: "windows host rsvd".to_owned(),
        }
    }

    /// Whether this is what Windows nodes keep, which need strict affinity.
    pub fn is_windows(&self) -> bool {
        self.handle.eq_ignore_ascii_case(block::WINDOWS_RESERVED_HANDLE)
    }

    /// How many ordinals are kept of a block.
    fn kept(&self) -> u64 {
        u64::from(self.start) + u64::from(self.end)
    }
}

/// The longest prefix of blocks in which this is kept and something is left: 32 or 128 where nothing is kept.
///
/// # Errors
/// [`HostReservedError`] if nothing or too much would be kept.
pub fn max_prefix(version: IpVersion, reserved: Option<&HostReserved>) -> Result<u8, HostReservedError> {
    let Some(reserved) = reserved else { return Ok(version.bits()) };
    let kept = reserved.kept();
    let length = u64::BITS - kept.leading_zeros();
    u32::from(version.bits())
        .checked_sub(length)
        .filter(|prefix| *prefix > 0 && kept > 0)
        .and_then(|prefix| u8::try_from(prefix).ok())
        .ok_or(HostReservedError { start: reserved.start, end: reserved.end })
}

/// Keeps the host's ordinals in a block that has just been made. They have no stamps and no handle object.
///
/// A block that is smaller than what is kept is kept whole.
pub fn keep(block: &mut Block, reserved: &HostReserved) {
    let size = block.cidr.size();
    let end = size.saturating_sub(u128::from(reserved.end));
    let is_kept = |ordinal: u32| ordinal < reserved.start || u128::from(ordinal) >= end;
    let index = block.attributes.len();
    let mut any = false;
    for (ordinal, slot) in (0_u32..).zip(Arc::make_mut(&mut block.allocations)) {
        if is_kept(ordinal) && slot.is_none() {
            *slot = Some(index);
            any = true;
        }
    }
    if any {
        block.unallocated.retain(|ordinal| !is_kept(*ordinal));
        let attribute = Attribute {
            handle_id: Some(reserved.handle.clone()),
            secondary: BTreeMap::from([("note".to_owned(), reserved.note.clone())]),
            ..Attribute::default()
        };
        Arc::make_mut(&mut block.attributes).push(attribute.into());
    }
}

/// How many ordinals of a block of this size are left for others.
pub fn left_of(cidr: Cidr, reserved: &HostReserved) -> u128 {
    cidr.size().saturating_sub(u128::from(reserved.kept()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Owner;
    use jiff::Timestamp;

    fn made(cidr: &str, start: u32, end: u32) -> Block {
        let owner = Owner::host("w");
        let mut block = block::new_block(cidr.parse().unwrap(), &owner, Timestamp::UNIX_EPOCH);
        keep(&mut block, &HostReserved { start, end, ..HostReserved::windows() });
        block
    }

    #[test]
    fn a_windows_block_is_that_of_the_data_model() {
        let block = made("10.244.7.64/29", 3, 1);
        let spec = block.spec_v1();
        assert_eq!(spec["allocations"].to_string(), "[0,0,0,null,null,null,null,0]");
        assert_eq!(spec["unallocated"].to_string(), "[3,4,5,6]");
        assert_eq!(
            spec["attributes"].to_string(),
            r#"[{"handle_id":"windows-reserved-ipam-handle","secondary":{"note":"windows host rsvd"}}]"#
        );
        assert_eq!(spec["sequenceNumberForAllocation"].to_string(), "{}");
        assert!(block::is_empty(&block));
        assert_eq!(block::fault(&block), None);
    }

    #[test]
    fn sixty_of_a_windows_block_of_sixty_four_are_usable() {
        let block = made("10.0.0.0/26", 3, 1);
        assert_eq!(block::free_count(&block, &crate::ReservationSet::default()), 60);
        assert_eq!(left_of(block.cidr, &HostReserved::windows()), 60);
    }

    #[test]
    fn a_block_smaller_than_what_is_kept_is_kept_whole_and_sound() {
        for (start, end) in [(9, 0), (0, 9), (2, 2), (u32::MAX, u32::MAX), (3, 3)] {
            let block = made("10.0.0.0/30", start, end);
            assert!(block.unallocated.is_empty(), "{start} {end}");
            assert_eq!(block::fault(&block), None, "{start} {end}");
        }
        assert!(made("10.0.0.0/30", 0, 0).attributes.is_empty());
    }

    #[test]
    fn blocks_must_be_larger_than_what_is_kept_of_them() {
        let at_most = |version, start, end| {
            max_prefix(version, Some(&HostReserved { start, end, ..HostReserved::windows() })).ok()
        };
        for (start, end, v4, v6) in [
            (3, 1, Some(29), Some(125)),
            (3, 0, Some(30), Some(126)),
            (1, 0, Some(31), Some(127)),
            (0, 2, Some(30), Some(126)),
            (0, 0, None, None),
            (u32::MAX, u32::MAX, None, Some(95)),
            (u32::MAX, 0, None, Some(96)),
            (1 << 30, 0, Some(1), Some(97)),
        ] {
            assert_eq!(at_most(IpVersion::V4, start, end), v4, "{start} + {end}");
            assert_eq!(at_most(IpVersion::V6, start, end), v6, "{start} + {end}");
        }
        assert_eq!(max_prefix(IpVersion::V4, None), Ok(32));
        assert_eq!(max_prefix(IpVersion::V6, None), Ok(128));
    }
}
