//! Runs the simulation.

use anyhow::{Result, bail};
use clap::Args;

use crate::environment;
use crate::process::Group;

/// Options of `cargo xtask simulate`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask simulate --seeds 2000            up to the first violation, whose trace is shown
  cargo xtask simulate --seed 41 --trace       one seed, with all that happened
  cargo xtask simulate --seeds 20000 --keep-going
  cargo xtask simulate --defect no-fence       with a mistake put in: `--defect ?` lists them")]
pub(crate) struct Options {
    /// How many seeds to run: none would find nothing, and pass.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,

    /// The first of them; alone where `--seeds` is left out.
    #[arg(long)]
    seed: Option<u64>,

    /// Shows all that happened under the first seed, whether it violates anything or not.
    #[arg(long)]
    trace: bool,

    /// Runs on in spite of violations, and counts them.
    #[arg(long)]
    keep_going: bool,

    /// Puts a mistake into what is simulated, to see what comes of it.
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
}

/// Runs seeds, and fails at the first that violates a guarantee.
pub(crate) fn run(options: Options) -> Result<()> {
    let mut command = environment::cargo();
    // The workspace's features are those of `cargo test`, so that nothing is built a second time.
    command.args(["test", "--locked", "--workspace", "--quiet", "--test", "simulate", "--"]);
    for (name, value) in [("--seeds", options.seeds), ("--seed", options.seed)] {
        command.args(value.map(|value| format!("{name}={value}")));
    }
    command.args(options.trace.then_some("--trace"));
    command.args(options.keep_going.then_some("--keep-going"));
    command.args(options.defect.map(|name| format!("--defect={name}")));
    if Group::spawn(&mut command)?.wait(None)?.success() { Ok(()) } else { bail!("the simulation failed") }
}
