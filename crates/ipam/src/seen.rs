//! Records as read, with the version that a write of them is conditional on, and typed reads of a store.

use api::{Affinity, Block, Cidr, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation};
use datastore::{Datastore, Key, Kind, ReadError, Record, Scope, Stored, Version};
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
    let mut found: Vec<Seen<Block>> = list(store, &Scope::All(Kind::Block)).await?;
    found.retain(|seen| !seen.value.deleted);
    Ok(found)
}
