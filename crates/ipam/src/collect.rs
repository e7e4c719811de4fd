//! The collector's verdicts as a pure step machine: which addresses, blocks, affinities and handles nobody needs any
//! more (controllers §2, algorithm §18).
//!
//! ```text
//!            Begin              Records               Cluster                     Answers
//!  resting ────────► listing ──────────► looking ──────────────► asking ─────────────────────► resting
//!          ListRecords        ListCluster          Ask (if doubtful)      Do(task), Do(task) …
//! ```
//!
//! The order is the point: nodes and pods are looked at after the records, so that an address whose pod is not there
//! belonged to a pod that is gone, and not to one that the collector has not heard of (whereabouts#176). What would take
//! something from a node or a pod is asked once more, of the authority and not of a cache, and every task is
//! conditional on what was judged: stamp and handle of an address, revision of a record. Whatever is not done now is
//! seen again by the next pass, so that a task that fails needs no memory.
//!
//! One allocation:
//!
//! ```text
//! VALID --pod gone, node alive--> CANDIDATE --still so after the grace period--> CONFIRMED --released--> (none)
//!   ^                                 |                                              |
//!   +-- pod back, or re-assigned -----+        VALID or CANDIDATE --node gone--> CONFIRMED
//! ```
//!
//! [`carry_out`] makes a task's datastore calls; reading the records and asking about nodes and pods is the caller's.

mod addresses;
mod blocks;
mod carry_out;
mod leftovers;
#[cfg(test)]
mod tests;

pub use addresses::{Holder, Leak, POD_UID, Pod, PodName, Pods, needs};
pub use carry_out::{Outcome, carry_out};

use crate::block::{self, Release};
use crate::crossing::{Crossing, crossings};
use crate::explain::as_text;
use crate::seen::Seen;
use api::{Affinity, Block, Cidr, Handle, Owner};
use datastore::Revision;
use jiff::{SignedDuration, Timestamp};
use leftovers::Since;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// How long a record must have stood unchanged before it is taken for a leftover: longer than any operation waits
/// between its writes.
pub const QUIET: SignedDuration = SignedDuration::from_secs(60);

/// What the datastore holds, complete.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Every block.
    pub blocks: BTreeMap<Cidr, Seen<Block>>,
    /// Every affinity.
    pub affinities: Vec<Seen<Affinity>>,
    /// Every handle by id; `None`: not listed this time, and not judged.
    pub handles: Option<BTreeMap<String, Seen<Handle>>>,
    /// How long released addresses cool down.
    pub cooldown_seconds: u32,
}

/// What exists in the cluster, looked at after the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes by name.
    pub nodes: BTreeSet<String>,
    /// Pods.
    pub pods: Pods,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A pass is due. Whatever pass was under way is forgotten.
    Begin {
        /// Judge handles too, which need a list of their own.
        handles: bool,
        /// How long an address may be without its pod. `None` or zero: on living nodes nothing is released.
        grace: Option<SignedDuration>,
    },
    /// The answer to [`Effect::ListRecords`].
    Records(Arc<Records>),
    /// The answer to [`Effect::ListCluster`].
    Cluster(Cluster),
    /// The answer to [`Effect::Ask`].
    Answers(Answers),
    /// Something could not be read: the pass ends and decides nothing.
    Failed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bring [`Event::Records`], read from now on or known to be complete.
    ListRecords {
        /// With handles.
        handles: bool,
    },
    /// Bring [`Event::Cluster`], not older than the records.
    ListCluster,
    /// Ask the authority, not a cache, and bring [`Event::Answers`].
    Ask(Questions),
    /// Carry this out; it may fail.
    Do(Task),
    /// A finding, for the log.
    Note(Note),
}

/// What is to be asked before something is taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Is this node really gone?
    pub nodes: BTreeSet<String>,
    /// What about this pod?
    pub pods: BTreeSet<PodName>,
}

/// What was answered. Who is not named here gave no answer, and keeps what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Nodes that do not exist.
    pub gone: BTreeSet<String>,
    /// Pods as they are; `None`: there is none of that name.
    pub pods: BTreeMap<PodName, Option<Pod>>,
}

/// Something to take away, with the state that it must still be in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "task")]
pub enum Task {
    /// Give back addresses of one block, each only if its stamp and handle still are these.
    Release {
        /// The block.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
        /// The addresses.
        #[serde(serialize_with = "addresses_of")]
        releases: Vec<Release>,
        /// Only while there is no node of this name.
        gone: Option<String>,
        /// How long they cool down.
        cooldown_seconds: u32,
    },
    /// Give up all empty blocks and all affinities of a node that is gone.
    GiveUpNode {
        /// The node as owner.
        #[serde(serialize_with = "as_text")]
        owner: Owner,
    },
    /// Take a block from an owner that is gone and has no affinity for it.
    Abandon {
        /// The owner.
        #[serde(serialize_with = "as_text")]
        owner: Owner,
        /// The block.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
    },
    /// Give up an empty block.
    GiveUpBlock {
        /// Its owner.
        #[serde(serialize_with = "as_text")]
        owner: Owner,
        /// The block.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
        /// The sequence number it must still have.
        sequence: u64,
    },
    /// Free what has cooled down in a block that nobody writes, and delete it if nobody owns it and nothing is in it.
    Tidy {
        /// The block.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
        /// How long addresses cool down.
        cooldown_seconds: u32,
    },
    /// Delete an affinity whose block does not exist, or is not its owner's.
    DropAffinity {
        /// Whose.
        #[serde(serialize_with = "as_text")]
        owner: Owner,
        /// For which block.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
        /// The revision it must still have.
        #[serde(serialize_with = "number_of")]
        revision: Revision,
    },
    /// Lower a handle's counts to what the blocks say, and delete it if nothing is left.
    LowerHandle {
        /// The handle.
        id: String,
        /// Blocks in which it seems to count too much; the others are not looked at.
        #[serde(serialize_with = "as_texts")]
        blocks: BTreeSet<Cidr>,
        /// The revision it must still have.
        #[serde(serialize_with = "number_of")]
        revision: Revision,
    },
}

fn addresses_of<S: Serializer>(releases: &[Release], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(releases.iter().map(|release| release.address))
}

fn number_of<S: Serializer>(revision: &Revision, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(revision.0)
}

fn as_texts<S: Serializer>(cidrs: &BTreeSet<Cidr>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(cidrs.iter().map(Cidr::to_string))
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { block, releases, gone, .. } => {
                write!(f, "release {} addresses without owner in block {block}", releases.len())?;
                gone.as_ref().map_or(Ok(()), |node| write!(f, " of deleted node {node}"))
            }
            Self::GiveUpNode { owner } => write!(f, "give up the blocks of deleted node {}", owner.name),
            Self::Abandon { owner, block } => write!(f, "take block {block} from {owner}, which is gone"),
            Self::GiveUpBlock { owner, block, .. } => write!(f, "give up empty block {block} of {owner}"),
            Self::Tidy { block, .. } => write!(f, "free what has cooled down in block {block}"),
            Self::DropAffinity { owner, block, .. } => {
                write!(f, "delete the affinity of {owner} for {block}, which is not its block")
            }
            Self::LowerHandle { id, .. } => write!(f, "lower handle {id} to what the blocks say"),
        }
    }
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Note {
    /// An address looks as if nobody needed it, for the first time.
    Suspected {
        /// The address.
        address: IpAddr,
        /// Of this node.
        node: String,
        /// Held by this handle.
        handle: String,
    },
    /// An address is given back, and this is why.
    Condemned {
        /// The address.
        address: IpAddr,
        /// Of this node.
        node: String,
        /// Held by this handle.
        handle: String,
        /// What the authority said of its node or pod.
        reason: String,
    },
    /// An address was about to be given back, and is needed or of unknown use after all.
    Spared {
        /// The address.
        address: IpAddr,
    },
    /// A block makes no sense, and nothing in it is touched.
    Malformed {
        /// The block.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
        /// What is wrong with it.
        fault: String,
    },
    /// A block lies in another: nobody but an operator can say which is right.
    Crossed {
        /// The smaller.
        #[serde(serialize_with = "as_text")]
        block: Cidr,
        /// The one around it.
        #[serde(serialize_with = "as_text")]
        other: Cidr,
    },
}

/// What a pass wants done, before it has asked.
#[derive(Debug, Default)]
struct Verdicts {
    leaks: Vec<Leak>,
    /// Nodes that seem gone and hold nothing that is needed.
    gone: BTreeSet<String>,
    /// Blocks of such nodes that no affinity leads to.
    abandoned: Vec<(Owner, Cidr)>,
    /// Tasks that depend on nobody's answer.
    tasks: Vec<Task>,
}

/// Where a pass is.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    Resting,
    Listing,
    Looking(Arc<Records>),
    Asking(Verdicts, u32),
}

/// The collector: what it remembers between passes is since when something has looked superfluous.
#[derive(Debug, Default)]
pub struct Collector {
    phase: Phase,
    grace: Option<SignedDuration>,
    suspects: BTreeMap<addresses::Incarnation, Timestamp>,
    empty_since: BTreeMap<Cidr, Timestamp>,
    idle_affinities: BTreeMap<(Owner, Cidr), Since>,
    idle_handles: BTreeMap<String, Since>,
    /// The last handle that was judged where there were too many for one pass; the next pass goes on after it.
    judged_to: Option<String>,
}

impl Collector {
    /// Addresses that look as if nobody needed them.
    pub fn suspects(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.suspects.keys().map(|(address, _)| *address)
    }

    /// Takes one event in and answers what is to be done. An event that the present phase does not wait for is ignored.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        match (std::mem::take(&mut self.phase), event) {
            (_, Event::Begin { handles, grace }) => {
                self.phase = Phase::Listing;
                self.grace = grace.filter(|grace| grace.is_positive());
                vec![Effect::ListRecords { handles }]
            }
            (_, Event::Failed) => Vec::new(),
            (Phase::Listing, Event::Records(records)) => {
                self.phase = Phase::Looking(records);
                vec![Effect::ListCluster]
            }
            (Phase::Looking(records), Event::Cluster(cluster)) => self.judge(now, &records, &cluster),
            (Phase::Asking(verdicts, cooldown_seconds), Event::Answers(answers)) => {
                conclude(verdicts, &answers, cooldown_seconds)
            }
            (phase, _) => {
                self.phase = phase;
                Vec::new()
            }
        }
    }

    fn judge(&mut self, now: Timestamp, records: &Records, cluster: &Cluster) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (cidr, seen) in &records.blocks {
            if let Some(fault) = block::fault(&seen.value) {
                effects.push(Effect::Note(Note::Malformed { block: *cidr, fault }));
            }
        }
        let crossed = crossings(records.blocks.keys().copied());
        let note = |Crossing { block, other }| Effect::Note(Note::Crossed { block, other });
        effects.extend(crossed.into_iter().map(note));
        let mut verdicts = Verdicts::default();
        self.judge_addresses(now, records, cluster, &mut verdicts, &mut effects);
        self.judge_blocks(now, records, cluster, &mut verdicts);
        self.judge_affinities(now, records, &mut verdicts.tasks);
        self.judge_handles(now, records, &mut verdicts.tasks);
        let pods = verdicts.leaks.iter().filter_map(|leak| leak.pod.clone()).collect();
        let doubtful = verdicts.leaks.iter().filter(|leak| leak.node_gone).map(|leak| leak.node.clone());
        let nodes = verdicts.gone.iter().cloned().chain(doubtful).collect();
        let questions = Questions { nodes, pods };
        if questions == Questions::default() {
            effects.extend(conclude(verdicts, &Answers::default(), records.cooldown_seconds));
        } else {
            self.phase = Phase::Asking(verdicts, records.cooldown_seconds);
            effects.push(Effect::Ask(questions));
        }
        effects
    }
}

/// Turns verdicts into tasks, as far as the answers bear them out.
fn conclude(verdicts: Verdicts, answers: &Answers, cooldown_seconds: u32) -> Vec<Effect> {
    let mut effects = Vec::new();
    let (borne_out, refuted): (Vec<Leak>, Vec<Leak>) =
        verdicts.leaks.into_iter().partition(|leak| leak.is_borne_out(answers));
    // What one owner got is given back together or not at all.
    let kept: BTreeSet<&str> = refuted.iter().map(Leak::handle).collect();
    let mut by_block: BTreeMap<(Cidr, Option<String>), Vec<Release>> = BTreeMap::new();
    for leak in &borne_out {
        if kept.contains(leak.handle()) {
            effects.push(Effect::Note(Note::Spared { address: leak.release.address }));
            continue;
        }
        effects.push(Effect::Note(Note::Condemned {
            address: leak.release.address,
            node: leak.node.clone(),
            handle: leak.handle().to_owned(),
            reason: leak.reason(answers),
        }));
        let gone = leak.node_gone.then(|| leak.node.clone());
        by_block.entry((leak.block, gone)).or_default().push(leak.release.clone());
    }
    effects.extend(refuted.iter().map(|leak| Effect::Note(Note::Spared { address: leak.release.address })));
    effects.extend(by_block.into_iter().map(|((block, gone), releases)| {
        Effect::Do(Task::Release { block, releases, gone, cooldown_seconds })
    }));
    let gone = verdicts.gone.into_iter().filter(|node| answers.gone.contains(node));
    effects.extend(gone.map(|node| Effect::Do(Task::GiveUpNode { owner: Owner::host(node) })));
    let abandoned = verdicts.abandoned.into_iter().filter(|(owner, _)| answers.gone.contains(&owner.name));
    effects.extend(abandoned.map(|(owner, block)| Effect::Do(Task::Abandon { owner, block })));
    effects.extend(verdicts.tasks.into_iter().map(Effect::Do));
    effects
}
