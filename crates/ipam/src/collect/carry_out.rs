//! The datastore calls of the collector's tasks. Each makes sure of what was judged before it writes.

use super::Task;
use crate::administration;
use crate::affinity::{self, ReleaseAffinityError, ReleaseTerms};
use crate::block::{self, Release};
use crate::clock::Clock;
use crate::cold::{self, Pass};
use crate::failure::StoreError;
use crate::guarded::commit_guarded;
use crate::mistake::{Mistake, made};
use crate::plan::{self, Handles};
use crate::release;
use crate::seen::{self, Seen};
use crate::surplus::plan_lowering;
use api::{Affinity, AffinityState, Block, Cidr, Handle, Owner};
use datastore::{Check, CommitError, Datastore, Key, Kind, ReadError, Record, Revision, Scope, Write};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Reads and decisions per task: who loses more races than this waits for the next pass.
const ATTEMPTS: usize = 5;

/// Entries of one handle that are lowered in one task; the next pass finds those that are left.
const ENTRIES: usize = 16;

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done {
        /// Addresses given back.
        released: Vec<IpAddr>,
    },
    /// Things have changed, and nothing was to be done any more.
    Moot,
    /// Somebody was in the way: the next pass looks again.
    Later {
        /// Who or what.
        reason: String,
    },
}

impl Outcome {
    const DONE: Self = Self::Done { released: Vec::new() };

    fn later(reason: impl ToString) -> Self {
        Self::Later { reason: reason.to_string() }
    }
}

/// Carries a task out.
///
/// Datastore calls, where nobody interferes: release: 1 read, 1 read per handle, 1 commit, for a gone node on a store without
/// transactions 1 read more, and 2 reads if the block became empty, or
/// 1 commit more on a store without transactions if it was nobody's;
/// giving up: those of [`affinity::release_affinity`], per block; tidying: 1 read, 1 commit; affinity: 3 reads, 2 commits; handle:
/// 1 read, 1 per block named, 1 commit, and where blocks are gone on a store without transactions 1 commit, 1 list and 1 read of each
/// of these more. Each conflict repeats them, at most five times.
///
/// # Errors
/// [`StoreError`]. The task may be repeated.
///
/// # Cancellation
/// Leaves what the next pass finds again.
pub async fn carry_out<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    task: &Task,
) -> Result<Outcome, StoreError> {
    match task {
        Task::Release { block, releases, gone, cooldown_seconds } => {
            release_leaks(store, clock, *block, releases, gone.as_deref(), *cooldown_seconds).await
        }
        Task::GiveUpNode { owner } => {
            let terms = ReleaseTerms { must_be_empty: true, owner_gone: true, ..ReleaseTerms::default() };
            ended(administration::release_affinities_of(store, clock, owner, terms).await.map(drop))
        }
        Task::GiveUpBlock { owner, block, sequence } => {
            let required_sequence = Some(*sequence);
            let terms = ReleaseTerms { must_be_empty: true, required_sequence, ..ReleaseTerms::default() };
            ended(affinity::release_affinity(store, clock, owner, *block, terms).await)
        }
        Task::Abandon { owner, block } => abandon(store, owner, *block).await,
        Task::Tidy { block, cooldown_seconds } => tidy(store, clock, *block, *cooldown_seconds).await,
        Task::DropAffinity { owner, block, revision } => drop_affinity(store, owner, *block, *revision).await,
        Task::LowerHandle { id, blocks, revision } => lower_handle(store, id, blocks, *revision).await,
    }
}

fn ended(result: Result<(), ReleaseAffinityError>) -> Result<Outcome, StoreError> {
    match result {
        Ok(()) => Ok(Outcome::DONE),
        Err(ReleaseAffinityError::Missing { .. } | ReleaseAffinityError::Taken { .. }) => Ok(Outcome::Moot),
        Err(ReleaseAffinityError::Store(error)) => Err(error),
        Err(other) => Ok(Outcome::later(other)),
    }
}

/// What a commit that did not succeed means for a task that reads before every try.
fn refused(error: CommitError) -> Result<(), StoreError> {
    match error {
        // Whether it happened or not, the next read tells.
        CommitError::Conflict { .. } | CommitError::Unknown { .. } => Ok(()),
        error => Err(error.into()),
    }
}

async fn release_leaks<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cidr: Cidr,
    releases: &[Release],
    gone: Option<&str>,
    cooldown_seconds: u32,
) -> Result<Outcome, StoreError> {
    // A node that is back under its name uses what it had, its tunnel address for one, without writing (calico#3589).
    let gone = gone.filter(|_| !made(Mistake::RejoinedTrusted));
    let checks: Vec<Check> = gone.map(|node| Check::Absent(Key::Node(node.to_owned()))).into_iter().collect();
    for _ in 0..ATTEMPTS {
        let Some(mut block) = seen::block(store, cidr).await? else { return Ok(Outcome::Moot) };
        let now = clock.now();
        block::collect(&mut block.value, cooldown_seconds, now);
        let wanted = still_held(&block.value, releases);
        if wanted.is_empty() {
            return Ok(Outcome::Moot);
        }
        let mut handles = Handles::new();
        for id in wanted.iter().filter_map(|release| release.handle.as_deref()).collect::<BTreeSet<_>>() {
            if let Some(seen) = seen::handle(store, id).await? {
                handles.insert(id.to_owned(), seen);
            }
        }
        let Ok((plan, _)) = plan::plan_release(&block, &wanted, &handles, cooldown_seconds, now) else {
            return Ok(Outcome::Moot);
        };
        // A store without transactions reads the checks after the writes. While they are taken back, somebody may take the address:
        // that is risked only for as long as the write lasts, and not since the node was last seen to be gone.
        if let Some(node) = gone.filter(|_| !store.capabilities().atomic_commit)
            && store.get(&Key::Node(node.to_owned())).await?.is_some()
        {
            return Ok(Outcome::later(format_args!("node {node} is back")));
        }
        match commit_guarded(store, &checks, plan.writes).await {
            Ok(_) => {
                if let Some(block) = &plan.block {
                    // The addresses are given back, whether this succeeds or not (algorithm §12.4).
                    let _ = release::give_up_if_deselected(store, clock, block).await;
                }
                return Ok(Outcome::Done {
                    released: wanted.iter().map(|release| release.address).collect(),
                });
            }
            Err(CommitError::Conflict { key: Key::Node(node), .. }) => {
                return Ok(Outcome::later(format_args!("node {node} is back")));
            }
            Err(error) => refused(error)?,
        }
    }
    Ok(Outcome::later(format_args!("others write block {cidr}")))
}

/// Those of `releases` that still are what was judged; of a handle all or none.
fn still_held(block: &Block, releases: &[Release]) -> Vec<Release> {
    let holds = |release: &Release| {
        let attribute = block::attribute_of(block, release.address);
        let held = attribute
            .filter(|attribute| attribute.released_at.is_none())
            .map(|attribute| attribute.handle_id.as_deref().map(block::sanitized));
        let stamp = block.cidr.ordinal(release.address).map(|ordinal| block::stamp(block, ordinal));
        held == Some(release.handle.as_deref())
            && (stamp == release.sequence || made(Mistake::SequenceUnchecked))
    };
    let kept: BTreeSet<&Option<String>> =
        releases.iter().filter(|release| !holds(release)).map(|release| &release.handle).collect();
    let named = releases.iter().filter(|release| !kept.contains(&release.handle)).cloned();
    let sequence = |release: &Release| release.sequence.filter(|_| !made(Mistake::SequenceUnchecked));
    named.map(|release| Release { sequence: sequence(&release), ..release }).collect()
}

async fn abandon<D: Datastore>(store: &D, owner: &Owner, cidr: Cidr) -> Result<Outcome, StoreError> {
    let checks =
        [Check::Absent(Key::Affinity(owner.clone(), cidr)), Check::Absent(Key::Node(owner.name.clone()))];
    let Some(seen) = seen::block(store, cidr).await? else { return Ok(Outcome::Moot) };
    if seen.value.affinity.as_ref() != Some(owner) {
        return Ok(Outcome::Moot);
    }
    match commit_guarded(store, &checks, vec![plan::disown(seen)]).await {
        Ok(_) => Ok(Outcome::DONE),
        Err(error) => {
            refused(error)?;
            Ok(Outcome::later(format_args!("others write block {cidr}")))
        }
    }
}

async fn tidy<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cidr: Cidr,
    cooldown_seconds: u32,
) -> Result<Outcome, StoreError> {
    let Some(seen) = seen::block(store, cidr).await? else { return Ok(Outcome::Moot) };
    Ok(match cold::collect_cold(store, clock, cooldown_seconds, &seen).await? {
        Pass::Freed(_) | Pass::Deleted => Outcome::DONE,
        // Whoever wrote it has freed what had cooled down.
        Pass::Nothing | Pass::Changed => Outcome::Moot,
    })
}

/// Deletes an affinity that has stood still since it was judged, if its block is not its owner's.
///
/// It is marked first and the block read after that: whoever claims the block in between writes the affinity too, which makes
/// the delete fail. So the delete depends on nothing but the affinity. If it depended on the block, whatever anybody wrote there
/// would make a store without transactions take it back, and the affinity would stay beside another owner's block for as
/// long as that is in use.
async fn drop_affinity<D: Datastore>(
    store: &D,
    owner: &Owner,
    cidr: Cidr,
    revision: Revision,
) -> Result<Outcome, StoreError> {
    let found: Option<Seen<Affinity>> = seen::affinity(store, owner, cidr).await?;
    let Some(found) = found.filter(|found| found.value.owner == *owner && found.version.revision == revision)
    else {
        return Ok(Outcome::Moot);
    };
    let later = || Ok(Outcome::later(format_args!("others write the affinity of {owner} for {cidr}")));
    let is_owners =
        |block: Option<Seen<Block>>| block.is_some_and(|block| block.value.affinity.as_ref() == Some(owner));
    let mut going = found;
    if going.value.state != AffinityState::PendingDeletion {
        if is_owners(seen::block(store, cidr).await?) {
            return Ok(Outcome::Moot);
        }
        let mark = plan::affinity_write(&going, AffinityState::PendingDeletion);
        let version = match store.commit(&[], std::slice::from_ref(&mark)).await {
            Ok(versions) => versions.into_iter().next(),
            Err(error) => {
                refused(error)?;
                None
            }
        };
        let Some(version) = version else { return later() };
        going.value.state = AffinityState::PendingDeletion;
        going.version = version;
    }
    if is_owners(seen::block(store, cidr).await?) {
        return Ok(Outcome::Moot);
    }
    match store.commit(&[], &[Write::Delete(Record::Affinity(going.value), going.version)]).await {
        Ok(_) => Ok(Outcome::DONE),
        Err(error) => {
            refused(error)?;
            later()
        }
    }
}

/// Lowers a handle that has stood still since it was judged.
///
/// An ADD that was paused between its handle and its block must not find its handle gone: the blocks are written too (see
/// [`plan_lowering`]). Where there is no block, the commit holds only as long as there is none; on a store without transactions,
/// which looks after it has written, the handle is written first, unchanged (see [`claim_is_kept_out`]).
async fn lower_handle<D: Datastore>(
    store: &D,
    id: &str,
    suspect: &BTreeSet<Cidr>,
    revision: Revision,
) -> Result<Outcome, StoreError> {
    let found: Option<Seen<Handle>> = seen::handle(store, id).await?;
    let Some(mut handle) = found.filter(|found| found.version.revision == revision) else {
        return Ok(Outcome::Moot);
    };
    let (mut blocks, mut gone) = (Vec::new(), Vec::new());
    // Blocks are read after the handle: whoever counts on it has written it again since, or wrote its block before.
    let mut unreadable = None;
    for cidr in handle.value.blocks.keys().filter(|cidr| suspect.contains(cidr)) {
        if blocks.len() + gone.len() == ENTRIES {
            break;
        }
        match seen::block(store, *cidr).await {
            // What it holds of the handle nobody knows; that is no reason to leave the other entries.
            Err(error @ ReadError::Malformed { .. }) => unreadable = Some(error),
            Err(error) => return Err(error.into()),
            Ok(Some(seen)) => blocks.push(seen),
            Ok(None) => gone.push(*cidr),
        }
    }
    if !gone.is_empty()
        && !store.capabilities().atomic_commit
        && !claim_is_kept_out(store, &mut handle, &gone).await?
    {
        return Ok(Outcome::later(format_args!("a block that handle {id} counts is being made")));
    }
    let Some(writes) = plan_lowering(&handle, blocks, &gone) else {
        return unreadable.map_or(Ok(Outcome::Moot), |error| Err(error.into()));
    };
    let checks: Vec<Check> = gone.into_iter().map(|cidr| Check::Absent(Key::Block(cidr))).collect();
    match store.commit(&checks, &writes).await {
        Ok(_) => Ok(Outcome::DONE),
        Err(error) => {
            refused(error)?;
            Ok(Outcome::later(format_args!("others write what handle {id} counts")))
        }
    }
}

/// Keeps out whoever may be about to make one of these blocks with addresses of this handle in it, on a store without transactions.
///
/// A claim writes the affinity, looks whether its handle is as it wrote it, and makes the block. The handle is written here, unchanged:
/// who looks after that stops. Who looked before has its affinity there, or its block. False: there is one.
///
/// Datastore calls: 1 commit, 1 list of affinities, and 1 read per block.
async fn claim_is_kept_out<D: Datastore>(
    store: &D,
    handle: &mut Seen<Handle>,
    gone: &[Cidr],
) -> Result<bool, StoreError> {
    let write = Write::Update(Record::Handle(handle.value.clone()), handle.version.clone());
    match store.commit(&[], &[write]).await {
        Ok(versions) => {
            let Some(version) = versions.into_iter().next() else { return Ok(false) };
            handle.version = version;
        }
        Err(error) => {
            refused(error)?;
            return Ok(false);
        }
    }
    let affinities = store.list(&Scope::All(Kind::Affinity)).await?;
    let keys = affinities.items.iter().map(|stored| stored.record.key()).chain(affinities.unreadable);
    if keys.into_iter().any(|key| matches!(key, Key::Affinity(_, cidr) if gone.contains(&cidr))) {
        return Ok(false);
    }
    for cidr in gone {
        if seen::block(store, *cidr).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}
