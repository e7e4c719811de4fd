//! The store is away: what an agent answers then, and that it keeps its word although it is killed.

use crate::agents::Agents;
use crate::load::{Ledger, handle};
use crate::members::{self, Members};
use crate::namespace::alone;
use crate::network::Network;
use crate::{PATIENCE, TURN, judge};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn a_del_while_the_store_is_away_is_kept_by_the_node_and_made_by_the_next_agent() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(etcd) = members::binary() else { return };
    alone("away::a_del_while_the_store_is_away_is_kept_by_the_node_and_made_by_the_next_agent", || {
        let mut network = Network::new();
        let members = Members::start(&etcd, 1, &mut network);
        members.all_serve();
        members.set_up();
        let mut agents = Agents::start(1, &members.endpoints(), &mut network);
        let socket = agents.sockets()[0].clone();
        let ledger = Ledger::default();
        let (kept, gone, later) = ("kept", "gone", "later");
        for container in [kept, gone, later] {
            assert!(ledger.add(&socket, container).is_some(), "{}", ledger.complaints());
        }
        let holding = |containers: &[&str]| {
            let handles: BTreeSet<String> = containers.iter().map(|container| handle(container)).collect();
            judge::only_these_hold(&members.store(), &handles);
        };
        holding(&[kept, gone, later]);

        members.pause(0);
        // Answered with success, first by an agent that has yet to notice, then by one that has never seen the store.
        let accepted = |container| {
            let since = Instant::now();
            while !ledger.try_del(&socket, container) {
                assert!(since.elapsed() < PATIENCE, "an agent without store accepts no DEL");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        accepted(gone);
        agents.restart(0);
        accepted(later);
        // No ADD succeeds, least of all one of a container that something is owed for.
        assert_eq!(ledger.add(&socket, gone), None);
        agents.restart(0);
        members.resume(0);
        members.all_serve();
        holding(&[kept]);

        // What a runtime attaches again under the same id stays.
        let since = Instant::now();
        while ledger.add(&socket, gone).is_none() {
            assert!(since.elapsed() < PATIENCE, "the agent does not serve again");
            std::thread::sleep(Duration::from_millis(20));
        }
        agents.restart(0);
        holding(&[kept, gone]);
        assert_eq!(ledger.complaints(), "");
    });
}
