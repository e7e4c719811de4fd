//! The queue among crashes, torn logs, a store that comes and goes, and a runtime that uses container ids again.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

fn attachment(container: u8) -> Attachment {
    Attachment { network: "net".to_owned(), container: format!("c{container}"), interface: "eth0".to_owned() }
}

fn entry(container: u8, held: Option<Vec<Held>>) -> Entry {
    Entry {
        attachment: attachment(container),
        handle: format!("net.c{container}"),
        held,
        cluster: None,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn held(sequence: u64) -> Option<Vec<Held>> {
    Some(vec![Held { address: IpAddr::from([10, 0, 0, 1]), sequence }])
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn empty() -> ReleaseQueue {
    ReleaseQueue::recover(&[]).0
}

const DEL: RequestId = RequestId(1);
const ADD: RequestId = RequestId(2);

/// A queue that owes one release.
fn owing() -> (ReleaseQueue, Number, Entry) {
    let mut queue = empty();
    let owed = entry(0, held(7));
    let effects = queue.step(at(0), Event::Del(DEL, owed.clone()));
    let [Effect::Append(number, appended)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*appended, owed);
    let effects = queue.step(at(0), Event::Logged(*number, Ok(())));
    let release = Effect::Release(*number, owed.clone());
    assert_eq!(effects, [Effect::Reply(DEL, Verdict::Accepted), release]);
    (queue, *number, owed)
}

fn away() -> Replayed {
    Replayed::Unavailable { reason: "away".to_owned() }
}

fn refused(effects: &[Effect], request: RequestId) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Reply(to, Verdict::TryAgain { .. }) if *to == request))
}

#[test]
fn a_del_is_answered_once_it_is_durable_and_released_and_forgotten_afterwards() {
    let (mut queue, number, _) = owing();
    assert_eq!(queue.len(), 1);
    let effects = queue.step(at(1), Event::Released(number, Replayed::Done));
    assert!(effects.contains(&Effect::Remove(number)), "{effects:?}");
    assert_eq!(queue.step(at(1), Event::Unlogged(number, Ok(()))), []);
    assert!(queue.is_empty());
    assert_eq!(queue.next_deadline(), None);
}

#[test]
fn an_add_waits_for_the_releases_of_its_attachment_and_no_other() {
    let (mut queue, number, _) = owing();
    let proceed = Effect::Reply(ADD, Verdict::Proceed);
    assert_eq!(queue.step(at(0), Event::Add(ADD, attachment(1))), std::slice::from_ref(&proceed));
    assert_eq!(queue.step(at(0), Event::Add(ADD, attachment(0))), []);
    let effects = queue.step(at(1), Event::Released(number, Replayed::Done));
    assert!(!effects.contains(&proceed), "the log still has the release");
    assert_eq!(queue.step(at(1), Event::Unlogged(number, Ok(()))), [proceed]);
}

#[test]
fn an_add_is_refused_while_the_store_is_away_and_tries_it_without_delay() {
    let (mut queue, number, owed) = owing();
    assert_eq!(queue.step(at(0), Event::Add(ADD, attachment(0))), []);
    let effects = queue.step(at(1), Event::Released(number, away()));
    assert!(refused(&effects, ADD), "{effects:?}");
    // The queue rests, but whoever asks for an address now is not to wait for that.
    assert!(queue.next_deadline().is_some_and(|due| due > at(1)));
    let effects = queue.step(at(1), Event::Add(ADD, attachment(0)));
    assert_eq!(effects, [Effect::Release(number, owed)]);
    assert!(refused(&queue.step(at(100), Event::Tick), ADD), "and not for a store that does not answer");
}

#[test]
fn a_release_that_failed_is_tried_again_later_and_at_once_when_the_store_is_back() {
    let (mut queue, number, owed) = owing();
    queue.step(at(1), Event::Released(number, away()));
    assert_eq!(queue.step(at(1), Event::Tick), []);
    let due = queue.next_deadline().unwrap();
    assert_eq!(queue.step(due, Event::Tick), [Effect::Release(number, owed.clone())]);
    queue.step(due, Event::Released(number, away()));
    assert_eq!(queue.step(due, Event::Reachable), [Effect::Release(number, owed)]);
}

#[test]
fn a_del_of_a_container_whose_add_still_waits_ends_the_add() {
    let (mut queue, ..) = owing();
    queue.step(at(0), Event::Add(ADD, attachment(0)));
    assert!(refused(&queue.step(at(0), Event::Del(DEL, entry(0, held(7)))), ADD));
}

#[test]
fn a_repeated_del_is_one_entry_and_another_allocation_is_another() {
    let (mut queue, ..) = owing();
    let accepted = Effect::Reply(DEL, Verdict::Accepted);
    assert_eq!(queue.step(at(5), Event::Del(DEL, entry(0, held(7)))), [accepted]);
    assert!(matches!(queue.step(at(5), Event::Del(DEL, entry(0, held(9))))[..], [Effect::Append(..)]));
    assert_eq!(queue.len(), 2);
}

#[test]
fn a_del_that_cannot_be_kept_is_refused_and_released_all_the_same() {
    let mut queue = empty();
    let owed = entry(0, held(7));
    queue.step(at(0), Event::Del(DEL, owed.clone()));
    let effects = queue.step(at(0), Event::Logged(Number(1), Err("disk full".to_owned())));
    assert!(refused(&effects, DEL));
    assert!(effects.contains(&Effect::Release(Number(1), owed.clone())), "{effects:?}");
    // The runtime asks again, and the log is asked again.
    assert_eq!(queue.step(at(1), Event::Del(DEL, owed.clone())), [Effect::Append(Number(1), owed)]);
}

#[test]
fn a_del_repeated_after_its_release_is_not_written_behind_the_note_that_it_is_done() {
    let mut queue = empty();
    let owed = entry(0, held(7));
    queue.step(at(0), Event::Del(DEL, owed.clone()));
    queue.step(at(0), Event::Logged(Number(1), Err("disk full".to_owned())));
    let effects = queue.step(at(0), Event::Released(Number(1), Replayed::Done));
    assert!(effects.contains(&Effect::Remove(Number(1))), "{effects:?}");
    let effects = queue.step(at(0), Event::Del(DEL, owed));
    assert_eq!(effects, [Effect::Reply(DEL, Verdict::Accepted)]);
}

#[test]
fn a_release_of_another_cluster_is_dropped() {
    let (mut queue, number, owed) = owing();
    let effects = queue.step(at(0), Event::Released(number, Replayed::Foreign));
    assert_eq!(effects, [Effect::Note(Note::Foreign { handle: owed.handle }), Effect::Remove(number)]);
}

#[test]
fn a_full_queue_refuses_and_a_long_log_is_written_anew() {
    let mut queue = empty();
    for number in 0..u64::try_from(ENTRIES).unwrap() {
        let mut owed = entry(0, held(number));
        owed.attachment.container = number.to_string();
        queue.step(at(0), Event::Del(DEL, owed));
    }
    assert!(refused(&queue.step(at(0), Event::Del(DEL, entry(0, held(0)))), DEL));

    let mut queue = empty();
    let mut rewritten = false;
    for number in 1..400 {
        queue.step(at(0), Event::Del(DEL, entry(0, held(number))));
        queue.step(at(0), Event::Logged(Number(number), Ok(())));
        let effects = queue.step(at(0), Event::Released(Number(number), Replayed::Done));
        rewritten |= effects.contains(&Effect::Rewrite(Vec::new()));
        queue.step(at(0), Event::Unlogged(Number(number), Ok(())));
    }
    assert!(rewritten);
}

/// What happens next in the property.
#[derive(Clone, Debug)]
enum Act {
    Del {
        container: u8,
        known: bool,
    },
    Add {
        container: u8,
    },
    /// Performs one effect that waits.
    Perform {
        which: usize,
        fate: Fate,
    },
    Store {
        up: bool,
    },
    Tick {
        seconds: i64,
    },
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Well,
    /// The log takes this many bytes and fails; the store answers nothing and does nothing.
    Fails(usize),
    /// The log takes this many bytes and the process dies; the store does it, and its answer is lost.
    Dies(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let fate = prop_oneof![
        6 => Just(Fate::Well),
        1 => (0_usize..400).prop_map(Fate::Fails),
        1 => (0_usize..400).prop_map(Fate::Dies),
    ];
    prop_oneof![
        3 => (0_u8..2, any::<bool>()).prop_map(|(container, known)| Act::Del { container, known }),
        3 => (0_u8..2).prop_map(|container| Act::Add { container }),
        12 => (0_usize..8, fate).prop_map(|(which, fate)| Act::Perform { which, fate }),
        1 => any::<bool>().prop_map(|up| Act::Store { up }),
        1 => (0_i64..40).prop_map(|seconds| Act::Tick { seconds }),
        1 => Just(Act::Crash),
    ]
}

/// One node: its log, its queue, a store of two addresses, and a runtime.
struct World {
    log: Vec<u8>,
    queue: ReleaseQueue,
    waiting: VecDeque<Effect>,
    /// ADDs that may be served, not yet in the store.
    serving: Vec<u8>,
    now: Timestamp,
    up: bool,
    /// Holder and stamp of each address.
    store: BTreeMap<IpAddr, (String, u64)>,
    stamp: u64,
    requests: BTreeMap<RequestId, (u8, Vec<Held>)>,
    request: u64,
    /// Promised and not asked back.
    live: BTreeMap<u8, Held>,
    /// A DEL was asked for.
    asked: BTreeSet<Held>,
    /// A DEL was answered with success.
    owed: BTreeSet<Held>,
    freed: usize,
}

impl World {
    fn new() -> Self {
        Self {
            log: Vec::new(),
            queue: empty(),
            waiting: VecDeque::new(),
            serving: Vec::new(),
            now: at(0),
            up: true,
            store: BTreeMap::new(),
            stamp: 0,
            requests: BTreeMap::new(),
            request: 0,
            live: BTreeMap::new(),
            asked: BTreeSet::new(),
            owed: BTreeSet::new(),
            freed: 0,
        }
    }

    fn holds(&self, container: u8) -> Vec<Held> {
        let handle = format!("net.c{container}");
        let of = self.store.iter().filter(|(_, (holder, _))| *holder == handle);
        of.map(|(address, (_, sequence))| Held { address: *address, sequence: *sequence }).collect()
    }

    fn step(&mut self, event: Event) {
        for effect in self.queue.step(self.now, event) {
            match effect {
                Effect::Reply(request, verdict) => {
                    let Some((container, held)) = self.requests.remove(&request) else {
                        panic!("answered twice: {request:?}")
                    };
                    match verdict {
                        Verdict::Accepted => self.owed.extend(held),
                        Verdict::Proceed => self.serving.push(container),
                        Verdict::TryAgain { .. } => {}
                    }
                }
                Effect::Note(_) => {}
                effect => self.waiting.push_back(effect),
            }
        }
    }

    fn request(&mut self, container: u8, held: Vec<Held>) -> RequestId {
        self.request += 1;
        self.requests.insert(RequestId(self.request), (container, held));
        RequestId(self.request)
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Del { container, known } => {
                self.serving.retain(|served| *served != container);
                self.live.remove(&container);
                let held = self.holds(container);
                self.asked.extend(&held);
                let request = self.request(container, held.clone());
                self.step(Event::Del(request, entry(container, known.then_some(held))));
            }
            Act::Add { container } if self.live.contains_key(&container) => {}
            Act::Add { container } => {
                let request = self.request(container, Vec::new());
                self.step(Event::Add(request, attachment(container)));
            }
            Act::Perform { which, fate } => self.perform(which, fate),
            Act::Store { up } => {
                self.up = up;
                if up {
                    self.step(Event::Reachable);
                }
            }
            Act::Tick { seconds } => {
                self.now += SignedDuration::from_secs(seconds);
                self.step(Event::Tick);
            }
            Act::Crash => self.crash(),
        }
    }

    fn crash(&mut self) {
        self.waiting.clear();
        self.serving.clear();
        self.requests.clear();
        let (queue, effects) = ReleaseQueue::recover(&self.log);
        self.queue = queue;
        self.waiting.extend(effects.into_iter().filter(|effect| !matches!(effect, Effect::Note(_))));
        self.step(Event::Tick);
    }

    fn perform(&mut self, which: usize, fate: Fate) {
        if let Some(container) = self.serving.pop() {
            self.serve(container);
            return;
        }
        let first_of_log = self.waiting.iter().position(Effect::is_of_log);
        let ready: Vec<usize> = (0..self.waiting.len())
            .filter(|index| !self.waiting[*index].is_of_log() || Some(*index) == first_of_log)
            .collect();
        let Some(index) = ready.get(which % ready.len().max(1)) else { return };
        match self.waiting.remove(*index).unwrap() {
            Effect::Append(number, entry) => {
                let result = self.write(&log::append(number, &entry), fate);
                self.after(fate, Event::Logged(number, result));
            }
            Effect::Remove(number) => {
                let result = self.write(&log::remove(number), fate);
                self.after(fate, Event::Unlogged(number, result));
            }
            Effect::Rewrite(entries) => {
                let failed = matches!(fate, Fate::Fails(_) | Fate::Dies(200..));
                if !failed {
                    self.log = log::whole(&entries);
                }
                let result = if failed { Err("disk full".to_owned()) } else { Ok(()) };
                self.after(fate, Event::Rewritten(result));
            }
            Effect::Release(number, entry) => {
                let done = self.up && !matches!(fate, Fate::Fails(_));
                if done {
                    self.free(&entry);
                }
                let outcome = if done { Replayed::Done } else { away() };
                self.after(fate, Event::Released(number, outcome));
            }
            effect => panic!("{effect:?}"),
        }
    }

    fn after(&mut self, fate: Fate, event: Event) {
        if matches!(fate, Fate::Dies(_)) {
            self.crash();
        } else {
            self.step(event);
        }
    }

    fn write(&mut self, record: &[u8], fate: Fate) -> Result<(), String> {
        let (Fate::Fails(length) | Fate::Dies(length)) = fate else {
            self.log.extend(record);
            return Ok(());
        };
        self.log.extend(&record[..length.min(record.len())]);
        Err("disk full".to_owned())
    }

    /// What `replay` does.
    fn free(&mut self, entry: &Entry) {
        let container = if entry.handle == "net.c0" { 0 } else { 1 };
        for held in entry.held.clone().unwrap_or_else(|| self.holds(container)) {
            if self.store.get(&held.address) == Some(&(entry.handle.clone(), held.sequence)) {
                assert!(!self.live.values().any(|live| *live == held), "freed under its owner: {held:?}");
                assert!(self.asked.contains(&held), "nobody asked for {held:?}");
                self.store.remove(&held.address);
                self.freed += 1;
            }
        }
    }

    /// What the agent does with an ADD: the same attachment gets the same address again.
    fn serve(&mut self, container: u8) {
        if !self.up {
            return;
        }
        let found = self.holds(container).first().copied();
        let held = found.or_else(|| {
            let address = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
            let address = address.into_iter().find(|address| !self.store.contains_key(address))?;
            self.stamp += 1;
            self.store.insert(address, (format!("net.c{container}"), self.stamp));
            Some(Held { address, sequence: self.stamp })
        });
        if let Some(held) = held {
            assert!(!self.owed.contains(&held), "given back and given out again: {held:?}");
            self.live.insert(container, held);
        }
    }

    /// No more faults: everything owed is released.
    fn come_to_rest(&mut self) {
        self.up = true;
        self.step(Event::Reachable);
        for _ in 0..1_000 {
            if self.waiting.is_empty() && self.serving.is_empty() {
                let Some(due) = self.queue.next_deadline() else { break };
                self.now = self.now.max(due);
                self.step(Event::Tick);
            }
            self.perform(0, Fate::Well);
        }
        assert_eq!(self.queue.len(), 0);
        assert_eq!(log::decode(&self.log).entries, BTreeMap::new());
        for held in &self.owed {
            let found = self.store.get(&held.address);
            assert!(found.is_none_or(|(_, stamp)| *stamp != held.sequence), "lost the release of {held:?}");
        }
        for (container, live) in &self.live {
            assert!(self.holds(*container).contains(live), "{live:?} was taken from c{container}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_release_is_lost_and_none_frees_what_was_given_out_again(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.come_to_rest();
    }
}
