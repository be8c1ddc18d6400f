//! A cluster whose nodes tests may kill.

use std::io::Write;
use std::thread;

use anyhow::{Context, Result, bail};

use super::doorman::Doorman;
use super::{Broker, End, node};
use crate::process::POLL;
use crate::{interrupt, say};

/// As many as it takes for a majority to survive the loss of one.
const NODES: usize = 3;

/// A cluster that is started when it is first asked for, and ends when this is dropped.
pub(crate) struct Cluster {
    doorman: Doorman,
}

impl Cluster {
    /// Whether this machine has, or may be given, what a cluster is made of.
    pub(crate) fn is_possible() -> bool {
        node::Package::can_be_had()
    }

    pub(crate) fn new() -> Result<Self> {
        Self::of(Vec::new())
    }

    fn of(mut nodes: Vec<Broker>) -> Result<Self> {
        Doorman::new("cluster", move |question| answer(&mut nodes, question)).map(|doorman| Self { doorman })
    }

    /// The shell words that ask for what [`answer`] understands.
    pub(crate) fn command(&self) -> String {
        self.doorman.command()
    }
}

/// Runs a cluster in the foreground, for tests by hand.
pub(super) fn run() -> Result<()> {
    let nodes = Broker::start_cluster(NODES)?;
    let urls = urls(&nodes);
    let cluster = Cluster::of(nodes)?;
    say(format_args!(
        "a cluster of {NODES} nodes; Ctrl-C ends it. `{} kill 0` kills its first node,",
        cluster.command()
    ));
    say(
        "`start 0` starts it again, `control 0` tells its rabbitmqctl. The URLs, for --broker or FANFARE_BROKER:",
    );
    writeln!(std::io::stdout(), "{urls}")?;
    while interrupt::check().is_ok() {
        thread::sleep(POLL);
    }
    Ok(())
}

/// Does what it is asked for. Nodes are counted from 0.
fn answer(nodes: &mut Vec<Broker>, question: &str) -> Result<String> {
    let words: Vec<&str> = question.split(' ').collect();
    match words[..] {
        // Makes sure that all nodes are there, and tells their URLs as one.
        ["start"] if nodes.is_empty() => {
            *nodes = Broker::start_cluster(NODES)?;
            say(format_args!("the tests kill nodes of a cluster of {NODES}, each {}", nodes[0]));
        }
        ["start"] => nodes.iter_mut().try_for_each(Broker::start_again)?,
        ["start", node] => nth(nodes, node)?.start_again()?,
        ["kill", node] => nth(nodes, node)?.end(End::Killed)?,
        // Tells the shell words that run `rabbitmqctl` on a node.
        ["control", node] => return nth(nodes, node)?.control().context("this node was not started here"),
        _ => {
            bail!("only `start`, and `start`, `kill` and `control` with the number of a node, are understood")
        }
    }
    Ok(urls(nodes))
}

fn urls(nodes: &[Broker]) -> String {
    let urls: Vec<_> = nodes.iter().map(Broker::url).collect();
    urls.join(",")
}

fn nth<'a>(nodes: &'a mut [Broker], number: &str) -> Result<&'a mut Broker> {
    let node = number.parse().ok().and_then(|number: usize| nodes.get_mut(number));
    node.with_context(|| format!("there is no node {number}"))
}
