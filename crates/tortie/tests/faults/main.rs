//! Eight agents under load over a real etcd whose members are killed, paused and cut off: nothing that was answered is
//! lost, nothing is given twice, nothing is left behind, and work goes on after every fault.
//!
//! Every agent and every member of etcd is a process in a network namespace of its own, wired to one switch; nothing of the
//! host changes and no root is needed. A run is short unless `TORTIE_FAULTS_SECONDS` says how long faults are to be made;
//! `cargo xtask faults` sets it, and reads the figures that `TORTIE_FAULTS_REPORT` names a file for.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod agents;
mod away;
mod judge;
mod load;
mod members;
#[path = "../../../dataplane/tests/namespace/mod.rs"]
mod namespace;
mod network;
mod probe;
mod report;

use agents::Agents;
use load::Load;
use members::Members;
use namespace::alone;
use network::Network;
use report::Report;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Agents.
const AGENTS: usize = 8;

/// Shortest time that a fault lasts in a long run.
const LASTING: Duration = Duration::from_secs(3);

/// How long anything may take before it counts as stuck: far more than it should, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// One run at a time: two would measure each other.
static TURN: Mutex<()> = Mutex::new(());

/// What is done to the store or an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The leader is killed, and started again.
    LeaderKilled,
    /// The leader stands still.
    LeaderPaused,
    /// The leader's link is down.
    LeaderCutOff,
    /// Another member stands still.
    MemberPaused,
    /// Another member's link is down.
    MemberCutOff,
    /// An agent is killed, and started again.
    AgentKilled,
    /// The only server is killed and started again from its disk.
    Restarted,
}

impl Fault {
    fn text(self) -> &'static str {
        match self {
            Self::LeaderKilled => "leader killed",
            Self::LeaderPaused => "leader paused",
            Self::LeaderCutOff => "leader cut off",
            Self::MemberPaused => "member paused",
            Self::MemberCutOff => "member cut off",
            Self::AgentKilled => "agent killed",
            Self::Restarted => "server restarted",
        }
    }
}

/// The leader is killed again and again, and something else happens in between.
const OF_THREE: [Fault; 10] = [
    Fault::LeaderKilled,
    Fault::AgentKilled,
    Fault::LeaderPaused,
    Fault::MemberCutOff,
    Fault::LeaderKilled,
    Fault::LeaderCutOff,
    Fault::LeaderKilled,
    Fault::MemberPaused,
    Fault::LeaderKilled,
    Fault::LeaderKilled,
];

const OF_ONE: [Fault; 1] = [Fault::Restarted];

#[test]
fn members_are_killed_paused_and_cut_off_and_every_answer_holds() {
    run("members_are_killed_paused_and_cut_off_and_every_answer_holds", 3, &OF_THREE, 10);
}

#[test]
fn the_only_server_is_restarted_from_its_disk_and_every_answer_holds() {
    run("the_only_server_is_restarted_from_its_disk_and_every_answer_holds", 1, &OF_ONE, 3);
}

/// Makes faults for `seconds`, unless told otherwise, and at least one.
fn run(name: &str, size: usize, faults: &[Fault], seconds: u64) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(etcd) = members::binary() else { return };
    alone(name, || {
        let told = std::env::var("TORTIE_FAULTS_SECONDS").ok().and_then(|text| text.parse().ok());
        let length = Duration::from_secs(told.unwrap_or(seconds));
        let lasting = told.map_or(Duration::ZERO, |_| LASTING);
        let mut network = Network::new();
        let mut members = Members::start(&etcd, size, &mut network);
        members.all_serve();
        members.set_up();
        let mut agents = Agents::start(AGENTS, &members.endpoints(), &mut network);
        let load = Load::start(agents.sockets());
        let mut report = Report::new(size);
        let begun = Instant::now();
        for (round, fault) in faults.iter().cycle().enumerate() {
            if round > 0 && begun.elapsed() >= length {
                break;
            }
            strike(*fault, round, &mut members, &mut agents, &network, &load, &mut report);
            std::thread::sleep(lasting);
        }
        report.lasted = begun.elapsed();
        let outcome = load.finish();
        members.all_serve();
        judge::comes_to_rest(&members.store(), &outcome);
        report.finish(&outcome);
    });
}

/// Makes one fault, watches every agent go on, takes the fault back, and waits until all members serve again.
fn strike(
    fault: Fault,
    round: usize,
    members: &mut Members,
    agents: &mut Agents,
    network: &Network,
    load: &Load,
    report: &mut Report,
) {
    let leader = members.leader();
    // Each kind of fault takes turns by itself.
    let turn = report.times(fault);
    let other = (leader + 1 + turn % 2) % members.count();
    let agent = turn % AGENTS;
    match fault {
        Fault::LeaderKilled => members.kill(leader),
        Fault::Restarted => {
            members.kill(leader);
            members.run(leader);
        }
        Fault::LeaderPaused => members.pause(leader),
        Fault::MemberPaused => members.pause(other),
        Fault::LeaderCutOff => network.cut(members.port(leader)),
        Fault::MemberCutOff => network.cut(members.port(other)),
        Fault::AgentKilled => agents.restart(agent),
    }
    let since = Instant::now();
    let resumed = probe::all(agents.sockets(), round, since, load);
    report.note(fault, &resumed);
    // Not only the probes: every agent's own runtimes go on, while the fault lasts.
    load.goes_on(&load.served());
    match fault {
        Fault::LeaderKilled => members.run(leader),
        Fault::LeaderPaused => members.resume(leader),
        Fault::MemberPaused => members.resume(other),
        Fault::LeaderCutOff => network.mend(members.port(leader)),
        Fault::MemberCutOff => network.mend(members.port(other)),
        Fault::AgentKilled | Fault::Restarted => {}
    }
    members.all_serve();
    judge::is_sound(&members.store());
}
