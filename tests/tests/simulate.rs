//! Runs seeds of the simulation on all processors, up to the first violation: `cargo xtask simulate`.

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use fanfare_tests::oracle::Verdict;
use fanfare_tests::simulation::{Defect, simulate};

/// Runs the simulation.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The first of them; alone where `--seeds` is left out.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes the trace of the first seed, whether it violates anything or not.
    #[arg(long)]
    trace: bool,
    /// Runs on in spite of violations, and counts them.
    #[arg(long)]
    keep_going: bool,
    /// Puts this mistake in.
    #[arg(long)]
    defect: Option<Defect>,
}

/// Seeds that are run where it is not said how many.
const SEEDS: u64 = 2_000;

/// After which a seed counts as hanging: an ordinary one takes a small part of a second.
const SEED_LIMIT: Duration = Duration::from_secs(180);

#[derive(Default)]
struct Progress {
    next: AtomicU64,
    steps: AtomicU64,
    stop: AtomicBool,
    /// What all seeds add up to, and those that violated something.
    sum: Mutex<(Verdict, Vec<u64>)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or(0);
    let seeds = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { SEEDS });
    if arguments.trace {
        return show(&arguments, first);
    }
    let started = Instant::now();
    let progress = Progress::default();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&progress, first, seeds, &arguments));
        }
    });
    let (verdict, violated) = progress.sum.into_inner().expect("no thread panics while it holds this lock");
    let ran = progress.next.into_inner().min(seeds);
    let seconds = started.elapsed().as_secs_f64();
    let steps = progress.steps.into_inner();
    #[expect(clippy::cast_precision_loss, reason = "it is shown in whole numbers")]
    let (seeds_per_second, steps_per_second) = (ran as f64 / seconds, steps as f64 / seconds);
    if let (Some(seed), false) = (violated.iter().min(), arguments.keep_going) {
        return show(&arguments, *seed);
    }
    say(format_args!("{verdict}"));
    say(format_args!(
        "{ran} seeds from {first} on in {seconds:.1} s: {seeds_per_second:.0} seeds and {steps_per_second:.0} steps per second"
    ));
    if violated.is_empty() {
        ExitCode::SUCCESS
    } else {
        say(format_args!("{} seeds violate something: {violated:?}", violated.len()));
        ExitCode::FAILURE
    }
}

/// Runs seeds until there are none left, or one violates something.
fn work(progress: &Progress, first: u64, seeds: u64, arguments: &Arguments) {
    while !progress.stop.load(Ordering::Relaxed) {
        let n = progress.next.fetch_add(1, Ordering::Relaxed);
        if n >= seeds {
            return;
        }
        let seed = first + n;
        let (done, hangs) = std::sync::mpsc::channel::<()>();
        let watch = thread::spawn(move || {
            if hangs.recv_timeout(SEED_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                say(format_args!("seed {seed} hangs: virtual time stands still"));
                std::process::exit(1);
            }
        });
        let outcome = simulate(seed, arguments.defect, false);
        drop(done);
        watch.join().expect("the watch does not panic");
        progress.steps.fetch_add(outcome.steps, Ordering::Relaxed);
        let mut sum = progress.sum.lock().expect("no thread panics while it holds this lock");
        if !outcome.verdict.violations.is_empty() {
            sum.1.push(seed);
            if !arguments.keep_going {
                progress.stop.store(true, Ordering::Relaxed);
            }
        }
        sum.0.add(outcome.verdict);
    }
}

/// Shows all that is known of one seed.
fn show(arguments: &Arguments, seed: u64) -> ExitCode {
    let outcome = simulate(seed, arguments.defect, true);
    for line in &outcome.trace {
        say(format_args!("{line}"));
    }
    say(format_args!("{}", outcome.verdict));
    if outcome.verdict.violations.is_empty() {
        say(format_args!(
            "seed {seed} violates nothing, in {} steps and {:?} of virtual time",
            outcome.steps, outcome.took
        ));
        return ExitCode::SUCCESS;
    }
    let defect = arguments.defect.and_then(|defect| defect.to_possible_value());
    let defect = defect.map(|defect| format!(" --defect {}", defect.get_name())).unwrap_or_default();
    say(format_args!(
        "seed {seed} violates the guarantees; the same again: cargo xtask simulate --seed {seed} --trace{defect}"
    ));
    ExitCode::FAILURE
}

fn say(line: std::fmt::Arguments<'_>) {
    // Where nobody reads any more, there is nobody to tell.
    let _ = writeln!(stdout(), "{line}");
}
