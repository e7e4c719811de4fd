//! Writes that happen after nobody waits for their answer any more, reads that are older than a request, and time.

use super::*;
use crate::agent::held::held;

/// The writes of the last commit, made now. Answers whether they could still be made.
fn happens_late(bench: &Bench, writes: &[Write]) -> bool {
    block_on(bench.store.commit(&[], writes)).is_ok()
}

#[test]
fn address_that_a_late_del_could_free_is_answered_after_its_block_was_written() {
    let mut bench = bench_on(&store(), "n1");
    let address = bench.address("a");
    bench.faults = [Some(Fault::LostRequest)].into();
    bench.mute = true;
    assert_eq!(refusal(bench.del("a")).code, TRY_AGAIN);
    let late = bench.commits.last().unwrap().clone();
    bench.mute = false;
    assert_eq!(bench.address("a"), address);
    assert!(!happens_late(&bench, &late));
    bench.check();
}

#[test]
fn del_of_an_add_that_may_still_happen_keeps_it_from_happening() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("first");
    bench.faults = [Some(Fault::LostRequest)].into();
    bench.mute = true;
    assert_eq!(refusal(bench.add("a")).code, TRY_AGAIN);
    let late = bench.commits.last().unwrap().clone();
    bench.mute = false;
    assert_eq!(bench.del("a"), Reply::Deleted);
    assert!(!happens_late(&bench, &late));
    bench.check();
}

#[test]
fn answer_to_an_older_read_of_a_handle_does_not_hide_what_was_written_since() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    let read = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Read { ticket, key: Key::Handle(_) } => Some(*ticket),
            _ => None,
        })
    };
    // A DEL asks for the handle, and is told to try again before the answer comes.
    let (id, del) = bench.del_event("a");
    let ticket = read(&bench.agent.step(bench.now, del)).unwrap();
    bench.now = bench.agent.next_deadline().unwrap();
    bench.run(vec![Event::Tick]);
    assert_eq!(refusal(bench.replies[&id].clone()).code, TRY_AGAIN);
    bench.address("a");
    // The block loses its owner: only the handle still leads to the address.
    let stored = block_on(bench.store.get(&Key::Block(bench.blocks()[0].cidr))).unwrap().unwrap();
    let Record::Block(mut found) = stored.record else { panic!() };
    (found.affinity, found.claim_time) = (None, None);
    block::advance(&mut found);
    put(&bench.store, Record::Block(found));
    bench.run(vec![Event::Read(ticket, Ok(None))]);
    assert_eq!(bench.del("a"), Reply::Deleted);
    assert!(bench.blocks().iter().all(|found| block::count_of(found, "net.a") == 0));
}

#[test]
fn job_of_the_agents_own_ends_when_its_time_is_up() {
    let mut bench = bench_on(&store(), "n1");
    let (id, event) = bench.add_event("a");
    let effects = bench.agent.step(bench.now, event);
    let Some(Effect::Commit { ticket, .. }) = effects.last() else { panic!("{effects:?}") };
    let gone = CommitError::Unknown { key: Key::Config, reason: "gone".to_owned() };
    bench.agent.step(bench.now, Event::Committed(*ticket, Err(gone)));
    // None of its reads is ever answered.
    bench.now = bench.agent.next_deadline().unwrap();
    let effects = bench.agent.step(bench.now, Event::Tick);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Reply { request, .. } if request.0 == id)),
        "{effects:?}"
    );
    assert_eq!(bench.agent.waiting(), 1, "what the commit may have left is released");
    bench.now = bench.agent.next_deadline().unwrap();
    bench.agent.step(bench.now, Event::Tick);
    assert_eq!((bench.agent.waiting(), bench.agent.next_deadline()), (0, None));
}

#[test]
fn nobody_waits_longer_because_the_clock_was_set_back() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    let (_, event) = bench.add_event("a");
    bench.agent.step(bench.now, event);
    let patience = bench.agent.next_deadline().unwrap().duration_since(bench.now);
    bench.now = bench.now.checked_sub(SignedDuration::from_hours(1)).unwrap();
    bench.agent.step(bench.now, Event::Tick);
    assert_eq!(bench.agent.next_deadline().unwrap().duration_since(bench.now), patience);
}

#[test]
fn what_a_failed_add_left_goes_back_before_the_add_that_came_after_it_is_answered() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("first");
    bench.now = bench.now.checked_add(SignedDuration::from_secs(1)).unwrap();
    let (first, event) = bench.add_event("a");
    let effects = bench.agent.step(bench.now, event);
    let Some(Effect::Commit { ticket, checks, writes }) = effects.last().cloned() else { panic!() };
    block_on(bench.store.commit(&checks, &writes)).unwrap();
    let gone = CommitError::Unknown { key: Key::Config, reason: "gone".to_owned() };
    let effects = bench.agent.step(bench.now, Event::Committed(ticket, Err(gone)));
    let late = bench.agent.next_deadline().unwrap();
    bench.now = late.checked_sub(SignedDuration::from_secs(1)).unwrap();
    let (second, event) = bench.add_event("a");
    bench.agent.step(bench.now, event);
    bench.now = late;
    let mut events = vec![Event::Tick];
    events.extend(effects.into_iter().filter_map(|effect| bench.perform(effect)));
    bench.run(events);
    assert_eq!(refusal(bench.replies[&first].clone()).code, TRY_AGAIN);
    let Reply::Added(taken) = &bench.replies[&second] else { panic!("{:?}", bench.replies[&second]) };
    assert!(bench.blocks().iter().any(|found| held(found, "net.a", None).any(|at| at == taken[0].ordinal)));
    bench.check();
}

#[test]
fn one_read_without_answer_fails_nobody() {
    let mut bench = bench_on(&store(), "n1");
    let address = bench.address("a");
    // One that knows nothing but the store reads the handle.
    let mut bench = bench_on(&bench.store.clone(), "n1");
    let (again, event) = bench.add_event("a");
    let effects = bench.agent.step(bench.now, event);
    let Some(Effect::Read { ticket, key }) = effects.last().cloned() else { panic!("{effects:?}") };
    let gone = ReadError::Unavailable { what: key.to_string(), reason: "gone".to_owned() };
    bench.run(vec![Event::Read(ticket, Err(gone))]);
    let Reply::Added(taken) = &bench.replies[&again] else { panic!("{:?}", bench.replies[&again]) };
    assert_eq!(taken[0].address, address);
}

#[test]
fn handles_that_somebody_else_released_are_let_go() {
    let store = store();
    let (mut bench, mut other) = (bench_on(&store, "n1"), bench_on(&store, "n1"));
    for number in 0..400 {
        let container = format!("c{number}");
        bench.address(&container);
        other.run(Vec::new());
        assert_eq!(other.del(&container), Reply::Deleted);
        bench.run(Vec::new());
    }
    assert!(bench.agent.handles.len() < 200, "{}", bench.agent.handles.len());
}

/// Two pods of one container id: the DEL of the first never came.
#[test]
fn address_that_is_answered_again_is_of_the_pod_that_asks() {
    let mut bench = bench_on(&store(), "n1");
    let address = bench.address("a");
    let (id, add) = bench.add_event("a");
    let Event::Add(request, mut demand) = add else { panic!() };
    demand.attributes.insert("pod".to_owned(), "second".to_owned());
    bench.run(vec![Event::Add(request, demand)]);
    assert!(matches!(&bench.replies[&id], Reply::Added(taken) if taken[0].address == address));
    let held = block::attribute_of(&bench.blocks()[0], address).cloned();
    assert_eq!(held.unwrap().secondary["pod"], "second");
    bench.check();
}
