//! Records as read, with the version that a write of them is conditional on, and typed reads of a store.

mod in_turn;

pub(crate) use in_turn::InTurn;

use crate::block;
use crate::plan::Handles;
use api::{Affinity, Block, Cidr, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation};
use datastore::{Datastore, Key, Kind, ReadError, Record, Scope, Stored, Version, Write};
use futures::future::join_all;
use jiff::Timestamp;

/// A record of known kind as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// Content.
    pub value: T,
    /// State it was read in.
    pub version: Version,
    /// When it was created, where the store knows.
    pub created: Option<Timestamp>,
}

impl<T> Seen<T> {
    /// Content and version as a commit has just written them.
    pub fn written(value: T, version: Version, created: Option<Timestamp>) -> Self {
        Self { value, version, created }
    }
}

/// Records that can be taken out of a [`Record`].
pub trait Recorded: Sized {
    /// The content, if the record is of this kind.
    fn from_record(record: Record) -> Option<Self>;
}

macro_rules! recorded {
    ($($kind:ident => $content:ty),* $(,)?) => {
        $(impl Recorded for $content {
            fn from_record(record: Record) -> Option<Self> {
                match record {
                    Record::$kind(content) => Some(content),
                    _ => None,
                }
            }
        })*
    };
}

recorded! {
    Pool => Pool,
    Block => Block,
    Affinity => Affinity,
    ClusterInformation => ClusterInformation,
    Handle => Handle,
    Config => IpamConfig,
    Reservation => Reservation,
    Node => Node,
}

impl<T: Recorded> Seen<T> {
    /// The record, if it is of this kind.
    pub fn from_stored(stored: Stored) -> Option<Self> {
        Some(Self { value: T::from_record(stored.record)?, version: stored.version, created: stored.created })
    }
}

/// Reads one record of known kind.
///
/// # Errors
/// [`ReadError`].
pub async fn get<T: Recorded, D: Datastore>(store: &D, key: &Key) -> Result<Option<Seen<T>>, ReadError> {
    Ok(store.get(key).await?.and_then(Seen::from_stored))
}

/// Reads all records of a scope.
///
/// # Errors
/// [`ReadError`].
pub async fn list<T: Recorded, D: Datastore>(store: &D, scope: &Scope) -> Result<Vec<Seen<T>>, ReadError> {
    Ok(store.list(scope).await?.items.into_iter().filter_map(Seen::from_stored).collect())
}

/// Reads all reservations. One that cannot be understood fails the read: what it keeps back would be handed out.
///
/// # Errors
/// [`ReadError`].
pub async fn reservations<D: Datastore>(store: &D) -> Result<Vec<Seen<Reservation>>, ReadError> {
    let listing = store.list(&Scope::All(Kind::Reservation)).await?;
    if let Some(key) = listing.unreadable.first() {
        let reason = "the addresses that it reserves are not known; correct it or delete it".to_owned();
        return Err(ReadError::Malformed { what: key.to_string(), reason });
    }
    Ok(listing.items.into_iter().filter_map(Seen::from_stored).collect())
}

/// Reads a block; one marked deleted counts as absent.
///
/// # Errors
/// [`ReadError`].
pub async fn block<D: Datastore>(store: &D, cidr: Cidr) -> Result<Option<Seen<Block>>, ReadError> {
    let found: Option<Seen<Block>> = get(store, &Key::Block(cidr)).await?;
    Ok(found.filter(|seen| !seen.value.deleted))
}

/// Reads the affinity object for `cidr`, which may be another owner's where affinities are named per block.
///
/// # Errors
/// [`ReadError`].
pub async fn affinity<D: Datastore>(
    store: &D,
    owner: &Owner,
    cidr: Cidr,
) -> Result<Option<Seen<Affinity>>, ReadError> {
    let found: Option<Seen<Affinity>> = get(store, &Key::Affinity(owner.clone(), cidr)).await?;
    Ok(found.filter(|seen| !seen.value.deleted))
}

/// Reads a handle.
///
/// # Errors
/// [`ReadError`].
pub async fn handle<D: Datastore>(store: &D, id: &str) -> Result<Option<Seen<Handle>>, ReadError> {
    let found: Option<Seen<Handle>> = get(store, &Key::Handle(id.to_owned())).await?;
    Ok(found.filter(|seen| !seen.value.deleted))
}

/// Reads the configuration; the default where there is none, which is never written.
///
/// # Errors
/// [`ReadError`].
pub async fn config<D: Datastore>(store: &D) -> Result<IpamConfig, ReadError> {
    let found: Option<Seen<IpamConfig>> = get(store, &Key::Config).await?;
    Ok(found.map(|seen| seen.value).unwrap_or_default())
}

/// Reads all pools, in pool order.
///
/// # Errors
/// [`ReadError`].
pub async fn pools<D: Datastore>(store: &D) -> Result<Vec<Seen<Pool>>, ReadError> {
    list(store, &Scope::All(Kind::Pool)).await
}

/// Reads all blocks, those marked deleted left out (quirk Q15).
///
/// # Errors
/// [`ReadError`].
pub async fn blocks<D: Datastore>(store: &D) -> Result<Vec<Seen<Block>>, ReadError> {
    Ok(all_blocks(store).await?.blocks)
}

/// Every block that there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllBlocks {
    /// Those that make sense.
    pub blocks: Vec<Seen<Block>>,
    /// Those that cannot be understood. They may be full of addresses: nothing is to be put in their place.
    pub unreadable: Vec<Cidr>,
}

/// Reads all blocks, for whoever wants to make one where there is none.
///
/// # Errors
/// [`ReadError`].
pub async fn all_blocks<D: Datastore>(store: &D) -> Result<AllBlocks, ReadError> {
    let listing = store.list(&Scope::All(Kind::Block)).await?;
    let mut blocks: Vec<Seen<Block>> = listing.items.into_iter().filter_map(Seen::from_stored).collect();
    blocks.retain(|seen| !seen.value.deleted);
    let cidr_of = |key: Key| match key {
        Key::Block(cidr) => Some(cidr),
        _ => None,
    };
    Ok(AllBlocks { blocks, unreadable: listing.unreadable.into_iter().filter_map(cidr_of).collect() })
}

/// How many records are read at the same time at most.
///
/// Below thirty, up to which `join_all` asks each of its futures whenever it is asked itself: a simulator that hands out
/// turns relies on it.
pub const TOGETHER: usize = 24;

/// Reads blocks, [`TOGETHER`] at a time; one that is not there, is marked deleted or cannot be understood is `None`.
///
/// Datastore calls: 1 per block, in 1 trip per [`TOGETHER`].
///
/// # Errors
/// [`ReadError`] of the first that the store did not answer.
pub async fn blocks_of<D: Datastore>(
    store: &D,
    cidrs: &[Cidr],
) -> Result<Vec<Option<Seen<Block>>>, ReadError> {
    let read = each_block(store, cidrs).await.into_iter();
    read.map(|read| match read {
        Err(ReadError::Malformed { .. }) => Ok(None),
        read => read,
    })
    .collect()
}

/// Reads blocks, [`TOGETHER`] at a time, each with its own answer: for whoever must know which cannot be understood.
///
/// Datastore calls: 1 per block, in 1 trip per [`TOGETHER`].
pub async fn each_block<D: Datastore>(
    store: &D,
    cidrs: &[Cidr],
) -> Vec<Result<Option<Seen<Block>>, ReadError>> {
    let mut found = Vec::with_capacity(cidrs.len());
    for some in cidrs.chunks(TOGETHER) {
        found.extend(join_all(some.iter().map(|cidr| block(store, *cidr))).await);
    }
    found
}

/// The handle of one operation, kept in hand over its commits so that it is read once.
#[derive(Clone, Debug)]
pub struct HandleInHand {
    /// Sanitised id; `None` for an anonymous operation.
    id: Option<String>,
    /// `None`: to be read before it is relied on.
    seen: Option<Option<Seen<Handle>>>,
}

impl HandleInHand {
    /// The handle of this id, not read yet. Without an id, or with an empty one, there is nothing to read.
    pub fn unread(id: Option<&str>) -> Self {
        let id = id.map(block::sanitized).filter(|id| !id.is_empty()).map(str::to_owned);
        let seen = id.is_none().then_some(None);
        Self { id, seen }
    }

    /// Its sanitised id.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Reads it if it is not known.
    ///
    /// Datastore calls: at most 1.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn look<D: Datastore>(&mut self, store: &D) -> Result<(), ReadError> {
        if let (None, Some(id)) = (&self.seen, &self.id) {
            self.seen = Some(handle(store, id).await?);
        }
        Ok(())
    }

    /// What is known of it, as plans want it.
    pub fn handles(&self) -> Handles {
        match (&self.id, &self.seen) {
            (Some(id), Some(Some(seen))) => Handles::from([(id.clone(), seen.clone())]),
            _ => Handles::new(),
        }
    }

    /// The record, if it is known to exist.
    pub fn record(&self) -> Option<&Handle> {
        self.seen().map(|seen| &seen.value)
    }

    /// The record with its version, if it is known to exist.
    pub fn seen(&self) -> Option<&Seen<Handle>> {
        self.seen.as_ref()?.as_ref()
    }

    /// Makes it be read again before it is relied on.
    pub fn forget(&mut self) {
        if self.id.is_some() {
            self.seen = None;
        }
    }

    /// Takes over what a commit wrote of it.
    pub fn wrote(&mut self, writes: &[Write], versions: &[Version]) {
        for (write, version) in writes.iter().zip(versions) {
            let Record::Handle(handle) = write.record() else { continue };
            if self.id.as_deref() == Some(handle.id.as_str()) {
                self.seen = Some(match write {
                    Write::Delete(..) => None,
                    _ => Some(Seen::written(handle.clone(), version.clone(), None)),
                });
            }
        }
    }
}
