//! What can go wrong, and what can be going on while it does: the two axes of the coverage table.

use crate::port::Verdict;

/// A fault. The first seven befall a datastore call, the others befall the cluster while operations are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The store refuses to talk.
    Refused,
    /// The request is lost.
    RequestLost,
    /// The reply is lost; the call took effect.
    ReplyLost,
    /// The reply is lost; the call takes effect later.
    Late,
    /// The client dies before its call.
    DeathBefore,
    /// The client dies after its call took effect.
    DeathAfter,
    /// The call waits while others overtake it.
    Delay,
    /// A watch loses its history: everything is listed again.
    WatchLost,
    /// A watch tells something twice.
    WatchRepeats,
    /// A clock jumps forward.
    ClockForward,
    /// A clock jumps back.
    ClockBack,
    /// A node goes, with its pods and processes.
    NodeRemoved,
    /// A node of that name comes back.
    NodeRejoined,
    /// A pool is disabled.
    PoolDisabled,
    /// A pool is deleted.
    PoolDeleted,
    /// A pool is made anew with another block size.
    PoolRecreated,
    /// The cooldown changes.
    CooldownChanged,
    /// Strict affinity is turned on or off.
    StrictChanged,
    /// Reservations change.
    ReservationChanged,
    /// A node is in another zone, for which other pools are.
    ZoneChanged,
    /// A DEL is sent late.
    DelDelayed,
    /// A DEL is sent again, perhaps when its container id is in use again.
    DelRepeated,
    /// A DEL comes while its ADD is under way.
    DelEarly,
    /// A node's agent is restarted.
    AgentRestarted,
    /// The collector is restarted and remembers nothing.
    CollectorRestarted,
    /// A queue's log cannot be written, or the write is done and reported as failed.
    LogFails,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 26] = [
        Self::Refused,
        Self::RequestLost,
        Self::ReplyLost,
        Self::Late,
        Self::DeathBefore,
        Self::DeathAfter,
        Self::Delay,
        Self::WatchLost,
        Self::WatchRepeats,
        Self::ClockForward,
        Self::ClockBack,
        Self::NodeRemoved,
        Self::NodeRejoined,
        Self::PoolDisabled,
        Self::PoolDeleted,
        Self::PoolRecreated,
        Self::CooldownChanged,
        Self::StrictChanged,
        Self::ReservationChanged,
        Self::ZoneChanged,
        Self::DelDelayed,
        Self::DelRepeated,
        Self::DelEarly,
        Self::AgentRestarted,
        Self::CollectorRestarted,
        Self::LogFails,
    ];

    /// Those that befall a call.
    pub const OF_CALLS: [Self; 7] = [
        Self::Refused,
        Self::RequestLost,
        Self::ReplyLost,
        Self::Late,
        Self::DeathBefore,
        Self::DeathAfter,
        Self::Delay,
    ];

    /// The verdict on a call that this befalls; `None` where the call is not made.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Refused => Some(Verdict::Refuse),
            Self::RequestLost => Some(Verdict::LoseRequest),
            Self::ReplyLost => Some(Verdict::LoseReply),
            Self::Late => Some(Verdict::Late),
            Self::DeathAfter => Some(Verdict::DieAfter),
            _ => None,
        }
    }

    /// How people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "store refuses",
            Self::RequestLost => "request lost",
            Self::ReplyLost => "reply lost",
            Self::Late => "takes effect late",
            Self::DeathBefore => "dies before call",
            Self::DeathAfter => "dies after call",
            Self::Delay => "overtaken",
            Self::WatchLost => "watch lost",
            Self::WatchRepeats => "watch repeats",
            Self::ClockForward => "clock forward",
            Self::ClockBack => "clock back",
            Self::NodeRemoved => "node removed",
            Self::NodeRejoined => "node re-joined",
            Self::PoolDisabled => "pool disabled",
            Self::PoolDeleted => "pool deleted",
            Self::PoolRecreated => "pool made anew",
            Self::CooldownChanged => "cooldown changed",
            Self::StrictChanged => "strictness changed",
            Self::ReservationChanged => "reservation changed",
            Self::ZoneChanged => "zone changed",
            Self::DelDelayed => "DEL delayed",
            Self::DelRepeated => "DEL repeated",
            Self::DelEarly => "DEL during ADD",
            Self::AgentRestarted => "agent restarted",
            Self::CollectorRestarted => "collector restarted",
            Self::LogFails => "log write fails",
        }
    }
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A plugin without agent assigns.
    PluginAdd,
    /// A plugin without agent assigns addresses of both families together.
    PluginBoth,
    /// A plugin without agent assigns one particular address.
    PluginExact,
    /// A plugin without agent releases by handle.
    PluginDel,
    /// An agent writes a block that it has.
    AgentBatch,
    /// An agent claims or repairs a block.
    AgentClaim,
    /// An agent takes an empty block from whoever has it.
    AgentReclaim,
    /// An agent reads.
    AgentRead,
    /// The pool controller gives up the blocks of a pool.
    EmptyPool,
    /// The pool controller, or an operator, writes a pool, node or setting.
    Administer,
    /// The collector reads.
    CollectorRead,
    /// The collector takes something away.
    CollectorTask,
    /// A node's queue replays a release.
    QueueRelease,
    /// A virtual machine's address gets another owner.
    MoveOwner,
    /// A peer that behaves like Calico assigns.
    PeerAdd,
    /// Such a peer releases by handle.
    PeerDel,
}

impl Operation {
    /// Whether it serves an ADD, or hands an address on.
    pub fn serves_adds(self) -> bool {
        use Operation::{AgentBatch, AgentClaim, MoveOwner, PluginAdd, PluginBoth, PluginExact};
        matches!(self, PluginAdd | PluginBoth | PluginExact | AgentBatch | AgentClaim | MoveOwner)
    }

    /// Whether a peer does it.
    pub fn is_of_a_peer(self) -> bool {
        matches!(self, Self::PeerAdd | Self::PeerDel)
    }

    /// Every operation.
    pub const ALL: [Self; 16] = [
        Self::PluginAdd,
        Self::PluginBoth,
        Self::PluginExact,
        Self::PluginDel,
        Self::AgentBatch,
        Self::AgentClaim,
        Self::AgentReclaim,
        Self::AgentRead,
        Self::EmptyPool,
        Self::Administer,
        Self::CollectorRead,
        Self::CollectorTask,
        Self::QueueRelease,
        Self::MoveOwner,
        Self::PeerAdd,
        Self::PeerDel,
    ];

    /// How people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PluginAdd => "plugin ADD",
            Self::PluginBoth => "plugin ADD both",
            Self::PluginExact => "plugin ADD one",
            Self::PluginDel => "plugin DEL",
            Self::AgentBatch => "agent batch",
            Self::AgentClaim => "agent claim",
            Self::AgentReclaim => "agent reclaim",
            Self::AgentRead => "agent read",
            Self::EmptyPool => "empty pool",
            Self::Administer => "administer",
            Self::CollectorRead => "collector read",
            Self::CollectorTask => "collector task",
            Self::QueueRelease => "queue release",
            Self::MoveOwner => "move owner",
            Self::PeerAdd => "peer ADD",
            Self::PeerDel => "peer DEL",
        }
    }
}
