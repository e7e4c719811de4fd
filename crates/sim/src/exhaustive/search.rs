//! Every order of calls, up to the order of independent ones: a stateless search that runs the world anew for each.
//!
//! Two calls depend on each other when they touch the same record and one of them writes it. Executions that differ in
//! the order of independent neighbours only end alike, so one of each such class is enough. The search runs one
//! execution to its end, looks for pairs of dependent calls that could have come the other way round, and goes back to
//! where that is decided (source sets of Abdulla, Aronis, Jonsson and Sagonas, 2014); sleep sets keep it from running
//! what it has seen. [`Reach::All`] prunes nothing: it is what the pruned search is checked against.

use crate::port::Call;
use api::Owner;
use datastore::{Key, Kind, Scope};
use std::collections::BTreeSet;

/// What becomes of a call in a small world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is made and answered.
    Made,
    /// It takes effect, and its caller dies before the answer.
    Last,
    /// It takes effect, and its caller hears that there was no answer.
    Unanswered,
}

/// A world that can be run any number of times.
pub trait World {
    /// One run of it.
    type Run: Run;

    /// A run that has not begun.
    fn begin(&self) -> Self::Run;
}

/// One run: processes that each wait with a call, or have ended.
pub trait Run {
    /// The call with which each process goes next; `None` for one that has ended.
    fn waiting(&self) -> Vec<Option<Access>>;

    /// What else than being made may become of a process's next call.
    fn faults(&self, process: usize) -> Vec<Fate>;

    /// Lets a process make its next call. Only for one that waits.
    fn step(&mut self, process: usize, fate: Fate);

    /// Whether there is any use in going on.
    fn is_broken(&self) -> bool;
}

/// What a call touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    reads: Vec<Place>,
    writes: Vec<Place>,
    /// Second phase of a delete: what is marked is gone for whoever reads, but not for whoever would write it.
    sweeps: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    One(Key),
    All(Kind),
    /// Affinities of one owner, where they are named per node.
    Of(Owner),
}

impl Place {
    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(one), Self::One(other)) => one == other,
            (Self::All(kind), Self::One(key)) | (Self::One(key), Self::All(kind)) => key.kind() == *kind,
            (Self::Of(owner), Self::One(key)) | (Self::One(key), Self::Of(owner)) => {
                matches!(key, Key::Affinity(of, _) if of == owner)
            }
            // Lists are only read, and reads do not depend on each other.
            (Self::All(_) | Self::Of(_), Self::All(_) | Self::Of(_)) => false,
        }
    }
}

impl Access {
    /// What a datastore call touches.
    pub fn of(call: &Call) -> Self {
        let one = |key: &Key| vec![Place::One(key.clone())];
        let all = |keys: &[Key]| keys.iter().cloned().map(Place::One).collect();
        match call {
            Call::Get(key) => Self { reads: one(key), ..Self::default() },
            Call::List(Scope::All(kind)) => Self { reads: vec![Place::All(*kind)], ..Self::default() },
            Call::List(Scope::AffinitiesOf(owner)) => {
                Self { reads: vec![Place::Of(owner.clone())], ..Self::default() }
            }
            Call::Commit { checked, written } => {
                Self { reads: all(checked), writes: all(written), ..Self::default() }
            }
            Call::Write(key) => Self { writes: one(key), ..Self::default() },
            Call::Sweep(key) => Self { sweeps: one(key), ..Self::default() },
        }
    }

    /// The same call by somebody who hears of every change at the same time.
    pub fn by_whoever_hears(mut self, node: &str) -> Self {
        let kinds = [Kind::Pool, Kind::Block, Kind::Config, Kind::Reservation, Kind::Node];
        self.reads.extend(kinds.map(Place::All));
        self.reads.push(Place::Of(Owner::host(node)));
        self
    }

    fn depends_on(&self, other: &Self) -> bool {
        let meet = |one: &[Place], other: &[Place]| {
            one.iter().any(|place| other.iter().any(|with| place.meets(with)))
        };
        meet(&self.writes, &other.writes)
            || meet(&self.writes, &other.reads)
            || meet(&self.reads, &other.writes)
            || meet(&self.sweeps, &other.writes)
            || meet(&self.writes, &other.sweeps)
    }
}

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One execution of each class that ends alike.
    Classes,
    /// Every execution.
    All,
}

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Executions run to their end.
    pub executions: usize,
    /// Executions given up because what was left had been seen.
    pub given_up: usize,
    /// Calls made.
    pub calls: usize,
}

/// A place in an execution: what could have been done there, and what was.
#[derive(Debug)]
struct Node {
    waiting: Vec<Option<Access>>,
    /// Processes to be tried here.
    wanted: BTreeSet<usize>,
    /// Processes tried here.
    done: BTreeSet<usize>,
    /// Processes whose next call would lead to what was seen.
    sleep: BTreeSet<usize>,
    chosen: usize,
    fate: Fate,
    /// What else may become of each process's call.
    faults: Vec<Vec<Fate>>,
    /// What of that is yet to become of the chosen one's.
    left: Vec<Fate>,
    /// For each process, how many of its calls come before the chosen one in every execution of the class.
    clock: Vec<usize>,
    /// How many calls the chosen process has made, this one included.
    own: usize,
}

impl Node {
    fn access(&self) -> &Access {
        static NOTHING: Access = Access { reads: Vec::new(), writes: Vec::new(), sweeps: Vec::new() };
        self.waiting.get(self.chosen).and_then(Option::as_ref).unwrap_or(&NOTHING)
    }
}

/// Runs `world` in every order; `end` sees each execution that came to its end. Stops when `end` answers false.
pub fn explore<W: World>(world: &W, reach: Reach, mut end: impl FnMut(W::Run) -> bool) -> Count {
    let mut count = Count::default();
    let mut stack: Vec<Node> = Vec::new();
    loop {
        let mut run = world.begin();
        for node in &stack {
            run.step(node.chosen, node.fate);
        }
        count.calls += stack.len();
        // The last node is new in this execution: what it races with is not known yet.
        if let Some(last) = stack.len().checked_sub(1) {
            arrive(&mut stack, last, reach);
        }
        let mut complete = true;
        while !run.is_broken() {
            let waiting = run.waiting();
            let sleep = asleep(&stack);
            let enabled = || waiting.iter().enumerate().filter(|(_, call)| call.is_some()).map(|(at, _)| at);
            let Some(first) = enabled().next() else { break };
            let chosen = match reach {
                Reach::All => first,
                Reach::Classes => match enabled().find(|process| !sleep.contains(process)) {
                    Some(process) => process,
                    None => {
                        complete = false;
                        break;
                    }
                },
            };
            let wanted = match reach {
                Reach::All => enabled().collect(),
                Reach::Classes => BTreeSet::from([chosen]),
            };
            let faults: Vec<Vec<Fate>> = (0..waiting.len()).map(|process| run.faults(process)).collect();
            let left = faults.get(chosen).cloned().unwrap_or_default();
            let last = stack.len();
            stack.push(Node {
                waiting,
                wanted,
                done: BTreeSet::new(),
                sleep,
                chosen,
                fate: Fate::Made,
                faults,
                left,
                clock: Vec::new(),
                own: 0,
            });
            arrive(&mut stack, last, reach);
            run.step(chosen, Fate::Made);
            count.calls += 1;
        }
        if complete {
            count.executions += 1;
            if !end(run) {
                return count;
            }
        } else {
            count.given_up += 1;
        }
        if !turn(&mut stack) {
            return count;
        }
    }
}

/// Goes back to the last place where something is left to try. False: everything was.
fn turn(stack: &mut Vec<Node>) -> bool {
    while let Some(node) = stack.last_mut() {
        if let Some(fault) = node.left.pop() {
            node.fate = fault;
            return true;
        }
        node.done.insert(node.chosen);
        let next =
            node.wanted.iter().find(|process| !node.done.contains(process) && !node.sleep.contains(process));
        if let Some(next) = next {
            node.chosen = *next;
            node.fate = Fate::Made;
            node.left = node.faults.get(*next).cloned().unwrap_or_default();
            return true;
        }
        stack.pop();
    }
    false
}

/// Processes whose next call was tried before and is not touched by what was done since.
fn asleep(stack: &[Node]) -> BTreeSet<usize> {
    let Some(last) = stack.last() else { return BTreeSet::new() };
    let independent = |process: &usize| {
        let call = last.waiting.get(*process).and_then(Option::as_ref);
        *process != last.chosen && call.is_some_and(|call| !call.depends_on(last.access()))
    };
    last.sleep.union(&last.done).copied().filter(independent).collect()
}

/// Sets the clock of the node at `at` and has the other order of each race that ends in it tried.
fn arrive(stack: &mut [Node], at: usize, reach: Reach) {
    let (before, rest) = stack.split_at_mut(at);
    let Some(node) = rest.first_mut() else { return };
    let processes = node.waiting.len();
    let mut clock = vec![0; processes];
    let mut races = Vec::new();
    let own = before.iter().filter(|earlier| earlier.chosen == node.chosen).count() + 1;
    for (index, earlier) in before.iter().enumerate().rev() {
        let known = clock.get(earlier.chosen).copied().unwrap_or(0) >= earlier.own;
        let same = earlier.chosen == node.chosen;
        if known || !(same || earlier.access().depends_on(node.access())) {
            continue;
        }
        if !same {
            // Nothing that comes between ties them: they could have come the other way round.
            races.push(index);
        }
        for (mine, theirs) in clock.iter_mut().zip(&earlier.clock) {
            *mine = (*mine).max(*theirs);
        }
        if let Some(mine) = clock.get_mut(earlier.chosen) {
            *mine = (*mine).max(earlier.own);
        }
    }
    node.own = own;
    node.clock = clock;
    if let Some(mine) = node.clock.get_mut(node.chosen) {
        *mine = own;
    }
    if reach == Reach::All {
        return;
    }
    let (chosen, clock) = (node.chosen, node.clock.clone());
    for race in races {
        let initials = initials(before, race, chosen, &clock);
        let Some(place) = before.get_mut(race) else { continue };
        if initials.is_disjoint(&place.wanted)
            && let Some(first) = initials.first()
        {
            place.wanted.insert(*first);
        }
    }
}

/// Who could go first at `race` in an execution in which the call of `last` comes before the one that was made there.
fn initials(before: &[Node], race: usize, last: usize, clock: &[usize]) -> BTreeSet<usize> {
    let Some(raced) = before.get(race) else { return BTreeSet::new() };
    let follows = |clock: &[usize]| clock.get(raced.chosen).copied().unwrap_or(0) >= raced.own;
    // The calls since then that do not depend on it, and the one that is to come before it.
    let mut rest: Vec<(usize, usize, &[usize])> = before
        .iter()
        .skip(race + 1)
        .filter(|node| !follows(&node.clock))
        .map(|node| (node.chosen, node.own, node.clock.as_slice()))
        .collect();
    rest.push((last, usize::MAX, clock));
    let mut found = BTreeSet::new();
    for (index, (process, _, clock)) in rest.iter().enumerate() {
        let first = rest
            .iter()
            .take(index)
            .all(|(earlier, own, _)| earlier != process && clock.get(*earlier).copied().unwrap_or(0) < *own);
        if first {
            found.insert(*process);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes that read and write numbered cells; the end is what every cell holds and every process has read.
    struct Cells {
        programs: Vec<Vec<(usize, bool)>>,
        deaths: usize,
    }

    struct CellRun<'a> {
        of: &'a Cells,
        at: Vec<usize>,
        cells: Vec<usize>,
        read: Vec<Vec<usize>>,
        deaths: usize,
        writes: usize,
    }

    fn key(cell: usize) -> Key {
        Key::Handle(cell.to_string())
    }

    impl<'a> World for &'a Cells {
        type Run = CellRun<'a>;

        fn begin(&self) -> CellRun<'a> {
            let processes = self.programs.len();
            CellRun {
                of: self,
                at: vec![0; processes],
                cells: vec![0; 4],
                read: vec![Vec::new(); processes],
                deaths: self.deaths,
                writes: 0,
            }
        }
    }

    impl Run for CellRun<'_> {
        fn waiting(&self) -> Vec<Option<Access>> {
            let calls = self.of.programs.iter().zip(&self.at).map(|(program, at)| program.get(*at));
            calls
                .map(|call| {
                    let (cell, write) = call?;
                    Some(Access::of(&if *write { Call::Write(key(*cell)) } else { Call::Get(key(*cell)) }))
                })
                .collect()
        }

        fn faults(&self, process: usize) -> Vec<Fate> {
            let call = self.of.programs[process].get(self.at[process]);
            if self.deaths > 0 && call.is_some_and(|(_, write)| *write) { vec![Fate::Last] } else { vec![] }
        }

        fn step(&mut self, process: usize, fate: Fate) {
            let (cell, write) = self.of.programs[process][self.at[process]];
            if write {
                self.writes += 1;
                // What is written depends on what was read, as it does in a protocol.
                let sum: usize = self.read[process].iter().sum();
                self.cells[cell] = 31 * self.cells[cell] + 7 * sum + process + 1;
            } else {
                self.read[process].push(self.cells[cell]);
            }
            self.at[process] += 1;
            if fate == Fate::Last {
                self.deaths -= 1;
                self.at[process] = usize::MAX;
            }
        }

        fn is_broken(&self) -> bool {
            false
        }
    }

    /// What the cells hold at the end, and what every process has read.
    type End = (Vec<usize>, Vec<Vec<usize>>);

    fn ends(world: &Cells, reach: Reach) -> (BTreeSet<End>, Count) {
        let mut found = BTreeSet::new();
        let count = explore(&world, reach, |run| {
            found.insert((run.cells, run.read));
            true
        });
        (found, count)
    }

    #[test]
    fn the_pruned_search_reaches_every_end_that_the_whole_one_does() {
        let programs: [&[&[(usize, bool)]]; 5] = [
            &[&[(0, true), (1, true)], &[(1, false), (0, true)]],
            &[&[(0, false), (0, true)], &[(0, false), (0, true)], &[(0, false), (1, true)]],
            &[&[(0, true), (1, false), (2, true)], &[(1, true), (2, false)], &[(2, true), (0, false)]],
            &[&[(0, false), (1, false), (2, true)], &[(3, false), (2, false)], &[(1, true), (3, true)]],
            &[&[(0, true), (0, true)], &[(1, true), (1, true)], &[(2, true), (2, true)]],
        ];
        for programs in programs {
            for deaths in 0..3 {
                let programs = programs.iter().map(|program| program.to_vec()).collect();
                let world = Cells { programs, deaths };
                let (all, unpruned) = ends(&world, Reach::All);
                let (classes, pruned) = ends(&world, Reach::Classes);
                assert_eq!(all, classes, "{:?} {deaths}", world.programs);
                assert!(pruned.executions < unpruned.executions, "{pruned:?} {unpruned:?}");
            }
        }
    }

    #[test]
    fn what_is_independent_is_run_once() {
        let programs = (0..4).map(|process| vec![(process, true); 5]).collect();
        let (_, count) = ends(&Cells { programs, deaths: 0 }, Reach::Classes);
        assert_eq!((count.executions, count.given_up), (1, 0));
    }

    #[test]
    fn two_writers_of_one_cell_are_run_in_both_orders() {
        let programs = vec![vec![(0, true)], vec![(0, true)]];
        let (_, count) = ends(&Cells { programs, deaths: 0 }, Reach::Classes);
        assert_eq!((count.executions, count.given_up), (2, 0));
    }
}
