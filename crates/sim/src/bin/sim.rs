//! Runs seeds and says what came of them: `cargo xtask sim` calls this in release mode.

#![expect(clippy::print_stdout, reason = "its printing is what it is for")]

use clap::Parser;
use ipam::mistake::{self, Mistake};
use sim::costs::Costs;
use sim::coverage::Coverage;
use sim::exhaustive::long;
use sim::exhaustive::search::Reach;
use sim::room;
use sim::world::{self, End};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Simulates small clusters, one per seed, and judges every step.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seeds simulated at once; each takes a processor. 0: as many as there are processors.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Print the whole trace of this one seed instead.
    #[arg(long)]
    trace: Option<u64>,
    /// Go on after a seed that breaks an invariant, and list all of them at the end.
    #[arg(long)]
    keep_going: bool,
    /// Plant this mistake in the allocator, and look for a seed that finds it: one that is well without it.
    #[arg(long)]
    mistake: Option<Mistake>,
    /// Run the small worlds that are too long for the tests in every order instead.
    #[arg(long)]
    worlds: bool,
    /// Give each of them up after so many seconds, and say so.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Print the names of the mistakes that can be planted, and nothing else.
    #[arg(long)]
    list_mistakes: bool,
}

#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    calls: u64,
    added: u64,
    deleted: u64,
    cut_short: u64,
    coverage: Coverage,
    costs: Costs,
    broken: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, seed: u64, end: &End) {
        self.seeds += 1;
        self.steps += end.steps;
        self.calls += end.calls;
        self.added += end.added;
        self.deleted += end.deleted;
        self.cut_short += end.cut_short;
        self.coverage.add(&end.coverage);
        self.costs.add(&end.costs);
        if let Some(first) = end.broken.first() {
            self.broken.push((seed, first.clone()));
        }
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.calls += other.calls;
        self.added += other.added;
        self.deleted += other.deleted;
        self.cut_short += other.cut_short;
        self.coverage.add(&other.coverage);
        self.costs.add(&other.costs);
        self.broken.extend(other.broken);
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list_mistakes {
        for mistake in Mistake::ALL {
            println!("{mistake}");
        }
        return ExitCode::SUCCESS;
    }
    if arguments.worlds {
        return worlds(Duration::from_secs(arguments.seconds));
    }
    match arguments.trace {
        Some(seed) => trace(seed, arguments.mistake),
        None => seeds(&arguments),
    }
}

/// Runs the long small worlds, one after the other.
fn worlds(patience: Duration) -> ExitCode {
    let mut broken = false;
    for world in long::worlds() {
        println!("{world}");
        let _ = std::io::stdout().flush();
        let begin = Instant::now();
        let found = world.explore_while(Reach::Classes, || begin.elapsed() < patience);
        let (count, seconds) = (found.count, begin.elapsed().as_secs());
        let more = if found.unended { ", and more to run" } else { "" };
        println!(
            "    {} executions, {} calls, {} ends, {seconds} s{more}",
            count.executions,
            count.calls,
            found.ends.len()
        );
        broken |= found.broken.is_some();
        for line in found.broken.into_iter().flatten() {
            println!("    {line}");
        }
    }
    if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn trace(seed: u64, planted: Option<Mistake>) -> ExitCode {
    mistake::make(planted);
    let setting = room::world(planted, seed);
    println!("{setting:#?}");
    let end = world::run_setting(setting, true);
    for line in &end.lines {
        println!("{line}");
    }
    println!("seed {seed}: {} steps, {} calls, digest {:016x}", end.steps, end.calls, end.digest);
    if end.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed with a mistake planted, if there is one. What it breaks without the mistake too is not the mistake's.
fn run(seed: u64, planted: Option<Mistake>) -> End {
    let mut end = world::run_setting(room::world(planted, seed), false);
    if planted.is_some() && !end.broken.is_empty() {
        mistake::make(None);
        if !world::run_setting(room::world(planted, seed), false).broken.is_empty() {
            end.broken.clear();
        }
        mistake::make(planted);
    }
    end
}

fn seeds(arguments: &Arguments) -> ExitCode {
    let jobs = match arguments.jobs {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    let begin = Instant::now();
    let (next, stop) = (AtomicU64::new(arguments.from), AtomicBool::new(false));
    let end = arguments.from.saturating_add(arguments.seeds);
    let total = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for job in 0..jobs {
            let (next, stop, total) = (&next, &stop, &total);
            scope.spawn(move || {
                let mut sum = Sum::default();
                let mut said = Instant::now();
                mistake::make(arguments.mistake);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    sum.add(seed, &run(seed, arguments.mistake));
                    if !sum.broken.is_empty() && !arguments.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if job == 0 && said.elapsed() > Duration::from_secs(5) {
                        said = Instant::now();
                        let (done, seconds) = (seed - arguments.from, begin.elapsed().as_secs());
                        println!("{done} of {} seeds after {seconds} s", arguments.seeds);
                        let _ = std::io::stdout().flush();
                    }
                }
                if let Ok(mut total) = total.lock() {
                    total.merge(sum);
                }
            });
        }
    });
    let Ok(mut sum) = total.into_inner() else { return ExitCode::FAILURE };
    sum.broken.sort();
    report(&sum, begin.elapsed(), jobs, arguments.mistake);
    if arguments.mistake.is_some() {
        // Here a seed that breaks something is what is wanted.
        return if sum.broken.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    if sum.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(sum: &Sum, took: Duration, jobs: usize, planted: Option<Mistake>) {
    println!("{}\n{}", sum.coverage, sum.costs);
    let missed = sum.coverage.missed();
    if !missed.is_empty() {
        let names: Vec<String> =
            missed.iter().map(|(fault, what)| format!("{} × {}", fault.name(), what.name())).collect();
        println!("never met: {}", names.join(", "));
    }
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let per_second = |count: u64| count.saturating_mul(1_000) / milliseconds;
    println!(
        "{} seeds in {}.{:03} s with {jobs} at once: {} seeds/s, {} steps/s, {} datastore calls/s; on average {} steps \
         and {} calls a seed; {} ADDs and {} DELs succeeded, {} were cut short",
        sum.seeds,
        milliseconds / 1_000,
        milliseconds % 1_000,
        per_second(sum.seeds),
        per_second(sum.steps),
        per_second(sum.calls),
        sum.steps / sum.seeds.max(1),
        sum.calls / sum.seeds.max(1),
        sum.added,
        sum.deleted,
        sum.cut_short,
    );
    for (seed, first) in sum.broken.iter().take(40) {
        let option = planted.map_or_else(String::new, |mistake| format!(" --mistake {mistake}"));
        println!("seed {seed}: {first}\n    replay: cargo xtask sim --trace {seed}{option}");
    }
    if let Some(mistake) = planted {
        let seeds = sum.seeds;
        match sum.broken.first() {
            Some((seed, _)) => println!("the mistake {mistake} was found by seed {seed}"),
            None => println!("THE MISTAKE {mistake} WAS NOT FOUND in {seeds} seeds"),
        }
    }
    if sum.broken.len() > 1 {
        println!("{} seeds broke an invariant", sum.broken.len());
    }
}
