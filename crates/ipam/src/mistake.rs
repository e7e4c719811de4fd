//! Mistakes to be made on purpose, so that the simulator can show that it finds them. None is ever made outside of the
//! feature `mistakes`, which no program of the project turns on: there [`made`] is false at compile time.
//!
//! Each is a rule of the protocol that is left out at one place, chosen so that no unit test notices.
//!
//! ```text
//! TORTIE_MISTAKE=stamp-reissued cargo test -p ipam --lib --features ipam/mistakes    the unit tests with a mistake
//! cargo xtask sim --mistake stamp-reissued --seeds 10000                             the simulator with a mistake
//! cargo xtask mistakes                                                               both, for every mistake
//! ```
//!
//! One test of the library is no unit test but a seeded search (the random acts on the queue of releases): it may find a
//! mistake too.

use std::fmt;
use std::str::FromStr;

macro_rules! mistakes {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mistake {
            $($(#[$doc])* $variant,)*
        }

        impl Mistake {
            /// Every mistake.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name on command lines.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

mistakes! {
    /// A release of leaked addresses does not look at their stamps.
    SequenceUnchecked => "sequence-unchecked",
    /// The block of a batch of several is written before the handles that hold its addresses.
    BlockBeforeHandle => "block-before-handle",
    /// A claim is confirmed from the beginning.
    PendingSkipped => "pending-skipped",
    /// A block is given up without a look at who owns it.
    OwnerUnchecked => "owner-unchecked",
    /// What an agent's batch does to a block, when it both takes and releases, counts before its write is answered.
    ChangedBeforeWritten => "changed-before-written",
    /// A block is made of an affinity that was begun when the pool had another block size.
    StaleAffinityTrusted => "stale-affinity-trusted",
    /// A block is claimed across blocks of another size that nobody owns any more.
    OverlapUnchecked => "overlap-unchecked",
    /// An address of another's block is borrowed while it cools down.
    CooldownIgnored => "cooldown-ignored",
    /// A node that is back under its name is taken for gone, and its own address is answered without a new stamp, which
    /// would keep that out too.
    RejoinedTrusted => "rejoined-trusted",
    /// A block is made of a pool that was made anew meanwhile.
    StalePool => "stale-pool",
    /// A release from the log is replayed onto an address that an ADD of the same container was told in the meantime.
    ReplayedRelease => "replayed-release",
    /// A new block's stamps may be those of an earlier one.
    StampReissued => "stamp-reissued",
    /// A plugin answers what its handle holds already as it was read, without a new life.
    AnsweredUnrenewed => "answered-unrenewed",
    /// Addresses are lent of a block that has just been made under an earlier block size.
    LentYoung => "lent-young",
    /// A handle is collected while the ADD that wrote it is still to write its block.
    HandleCollected => "handle-collected",
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no mistake has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no mistake {name:?}: choose one of {}", names())]
pub struct UnknownMistakeError {
    name: String,
}

fn names() -> String {
    Mistake::ALL.iter().map(|mistake| mistake.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Mistake {
    type Err = UnknownMistakeError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|mistake| mistake.name() == name)
            .ok_or_else(|| UnknownMistakeError { name: name.to_owned() })
    }
}

/// Whether this mistake is to be made here.
#[cfg(not(feature = "mistakes"))]
#[inline(always)]
pub(crate) const fn made(_: Mistake) -> bool {
    false
}

#[cfg(feature = "mistakes")]
mod switch {
    use super::Mistake;
    use std::cell::Cell;

    thread_local! {
        static MADE: Cell<Option<Mistake>> = Cell::new(of_environment());
    }

    /// The mistake to be made while the unit tests run; a name that none has ends them.
    #[cfg(test)]
    fn of_environment() -> Option<Mistake> {
        let name = std::env::var("TORTIE_MISTAKE").ok().filter(|name| !name.is_empty())?;
        Some(name.parse().expect("TORTIE_MISTAKE names a mistake"))
    }

    /// No environment makes a program err.
    #[cfg(not(test))]
    fn of_environment() -> Option<Mistake> {
        None
    }

    pub(crate) fn made(mistake: Mistake) -> bool {
        MADE.get() == Some(mistake)
    }

    /// Makes this mistake from now on in this thread; `None`: no mistake.
    pub fn make(mistake: Option<Mistake>) {
        MADE.set(mistake);
    }
}

#[cfg(feature = "mistakes")]
pub(crate) use switch::made;
#[cfg(feature = "mistakes")]
pub use switch::make;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_found_by_its_name() {
        for mistake in Mistake::ALL {
            assert_eq!(mistake.name().parse(), Ok(*mistake));
        }
        assert!("none".parse::<Mistake>().is_err());
    }
}
