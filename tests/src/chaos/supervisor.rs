use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use fanfare_protocol::{Prefix, QueueNames};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::post::{Post, Scene};
use super::{ChaosBroker, Dice, Journal, Report, leftovers, post};
use crate::oracle::{Disturbance, Event, Role};

/// How many processes there are of each kind.
const PROCESSES: [(Role, usize); 3] = [(Role::Publisher, 3), (Role::Worker, 3), (Role::Coordinator, 2)];
/// How often processes are looked after.
const TICK: Duration = Duration::from_millis(50);
/// Milliseconds between two faults.
const BETWEEN_FAULTS: (u64, u64) = (400, 2_000);
/// Seconds between two kills of the broker, from when it is back. In between, others are killed without it.
const BETWEEN_BROKER_KILLS: (u64, u64) = (12, 25);
/// The most milliseconds that a post stays vacant.
const VACANT: u64 = 1_500;
/// How long everyone goes on when the faults have stopped: what is invoked then must not be repeated at all.
const CALM: Duration = Duration::from_secs(10);
/// How long everything that is open then may take to end.
const END_LIMIT: Duration = Duration::from_secs(240);
/// Between two looks at the queues. Quorum queues tell what they hold every five seconds.
const LOOK: Duration = Duration::from_secs(6);

/// Shards, where there are any.
const SHARDS: u32 = 3;

/// Where results are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Gathering {
    /// In a queue of each fan-out's own.
    PerCid,
    /// In shards.
    Shared,
    /// As chosen by whose process invokes: some share, and the others do not.
    Both,
}

/// How long chaos lasts, and what chooses it.
#[derive(Debug, Clone)]
pub struct Options {
    /// For how long things are killed.
    pub duration: Duration,
    /// Chooses fan-outs and faults. The same seed chooses the same; what processes make of it is their own.
    pub seed: u64,
    /// Where results are gathered.
    pub aggregation: Gathering,
    /// The program of every process: `env!("CARGO_BIN_EXE_fanfare-test-node")`.
    pub program: PathBuf,
    /// Where journals are kept.
    pub folder: PathBuf,
}

/// Runs it on the broker of the environment.
///
/// # Errors
/// Where it cannot be run, or a process ends by itself.
pub async fn run(options: Options) -> Result<Report> {
    let broker = ChaosBroker::from_environment()?;
    let journal = Journal::create(&options.folder, "chaos")?;
    let prefix = format!("chaos-{}", std::process::id());
    let names = QueueNames::new(Prefix::new(prefix.as_str())?);
    let mut posts = Vec::new();
    for (role, count) in PROCESSES {
        for number in 1..=count {
            let mut arguments = match role {
                Role::Publisher => vec!["--seed".to_owned(), options.seed.to_string()],
                Role::Worker => vec!["--concurrency".to_owned(), "16".to_owned()],
                _ => Vec::new(),
            };
            arguments.extend(options.aggregation.arguments(role, number));
            posts.push(Post::new(role, number, arguments, &broker).await?);
        }
    }
    let scene =
        Scene { program: &options.program, folder: &options.folder, broker: &broker, prefix: &prefix };
    let mut chaos = Chaos {
        scene,
        journal: &journal,
        dice: Dice::new(options.seed, "faults"),
        posts,
        outage: None,
        next_outage: Instant::now(),
    };
    chaos.disturb(options.duration).await?;
    chaos.calm().await?;
    chaos.end(&names).await?;
    leftovers::write(&broker, &names, &journal).await?;
    ensure_no_panic(&options.folder)?;
    Report::of(&options.folder)
}

impl Gathering {
    /// What a process is told of it.
    fn arguments(self, role: Role, number: usize) -> Vec<String> {
        let shares = match self {
            Self::PerCid => return Vec::new(),
            Self::Shared => true,
            Self::Both => number % 2 == 1,
        };
        let mut arguments = vec!["--shards".to_owned(), SHARDS.to_string()];
        arguments.extend((shares && role != Role::Coordinator).then(|| "--shared".to_owned()));
        arguments
    }
}

struct Chaos<'a> {
    scene: Scene<'a>,
    journal: &'a Journal,
    dice: Dice,
    posts: Vec<Post>,
    /// The broker is down.
    outage: Option<JoinHandle<Result<()>>>,
    next_outage: Instant,
}

/// What is done to one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Stop,
    CutOne,
    CutAll,
}

impl Chaos<'_> {
    /// Strikes at random, until the time is over.
    async fn disturb(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        let mut next = self.later(BETWEEN_FAULTS);
        self.next_outage = Instant::now() + Duration::from_secs(self.dice.between(5, 12));
        while Instant::now() < end {
            self.look().await?;
            if Instant::now() >= next {
                next = self.later(BETWEEN_FAULTS);
                self.strike()?;
            }
            if Instant::now() >= self.next_outage && self.outage.is_none() {
                self.kill_broker()?;
            }
            sleep(TICK).await;
        }
        Ok(())
    }

    /// Lets everyone come back and go on without faults, and then stops the publishers.
    async fn calm(&mut self) -> Result<()> {
        while self.outage.is_some() || !self.posts.iter().all(Post::runs) {
            self.look().await?;
            sleep(TICK).await;
        }
        let end = Instant::now() + CALM;
        while Instant::now() < end {
            self.look().await?;
            sleep(TICK).await;
        }
        self.stop(&[Role::Publisher]).await
    }

    /// Waits until nothing is open any more, and stops everyone. What does not end in time, the oracle finds.
    async fn end(&mut self, names: &QueueNames) -> Result<()> {
        let until = Instant::now() + END_LIMIT;
        let mut quiet = 0;
        while quiet < 2 && Instant::now() < until {
            let look_again = Instant::now() + LOOK;
            while Instant::now() < look_again {
                self.look_at(&[Role::Worker, Role::Coordinator])?;
                sleep(TICK).await;
            }
            let busy = leftovers::busy(self.scene.broker, names).await?;
            quiet = if busy { 0 } else { quiet + 1 };
        }
        self.stop(&[Role::Worker, Role::Coordinator]).await
    }

    async fn look(&mut self) -> Result<()> {
        if self.outage.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(outage) = self.outage.take()
        {
            outage.await?.context("the broker did not come back")?;
            let (least, most) = BETWEEN_BROKER_KILLS;
            self.next_outage = Instant::now() + Duration::from_secs(self.dice.between(least, most));
        }
        self.look_at(&[Role::Publisher, Role::Worker, Role::Coordinator])
    }

    /// Looks after the processes of some roles.
    fn look_at(&mut self, roles: &[Role]) -> Result<()> {
        for post in self.posts.iter_mut().filter(|post| roles.contains(&post.role())) {
            post.look(self.journal)?;
            post.fill(&self.scene)?;
        }
        Ok(())
    }

    fn strike(&mut self) -> Result<()> {
        let role = self.dice.weighted(&[(2, Role::Publisher), (3, Role::Worker), (4, Role::Coordinator)]);
        let fault = self.dice.weighted(&[
            (12, Fault::Kill),
            (2, Fault::Stop),
            (4, Fault::CutOne),
            (2, Fault::CutAll),
        ]);
        let vacant = Duration::from_millis(self.dice.below(VACANT));
        let (which, nth) = (self.dice.index(), self.dice.index());
        let mut posts: Vec<&mut Post> =
            self.posts.iter_mut().filter(|post| post.role() == role && post.runs()).collect();
        let Some(which) = which.checked_rem(posts.len()) else { return Ok(()) };
        let post = &mut posts[which];
        match fault {
            Fault::Kill => post.kill(self.journal, Disturbance::Killed, Instant::now() + vacant),
            Fault::Stop => post.stop(),
            Fault::CutOne => post.cut(self.journal, Some(nth)),
            Fault::CutAll => post.cut(self.journal, None),
        }
    }

    fn kill_broker(&mut self) -> Result<()> {
        let (role, how) = (Role::Broker, Disturbance::Killed);
        self.journal.write(Event::Disturbed { role, name: "broker".to_owned(), how })?;
        let broker = self.scene.broker.clone();
        self.outage = Some(tokio::spawn(async move { broker.kill_and_start().await }));
        Ok(())
    }

    /// Asks the processes of some roles to stop, and waits until they have.
    async fn stop(&mut self, roles: &[Role]) -> Result<()> {
        let mut posts: Vec<&mut Post> =
            self.posts.iter_mut().filter(|post| roles.contains(&post.role())).collect();
        posts.iter_mut().try_for_each(|post| post.stop())?;
        while !posts.iter().all(|post| post.is_vacant()) {
            posts.iter_mut().try_for_each(|post| post.look(self.journal))?;
            sleep(TICK).await;
        }
        Ok(())
    }

    fn later(&mut self, (least, most): (u64, u64)) -> Instant {
        Instant::now() + Duration::from_millis(self.dice.between(least, most))
    }
}

/// lapin's own thread panics where the runtime ends while it still connects: its process is at its end then.
fn has_panicked(output: &str) -> bool {
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        let is_at_end = line.contains("thread 'lapin-io-loop'")
            && lines.peek().is_some_and(|reason| {
                reason.starts_with("Task did not complete") && reason.ends_with("was cancelled")
            });
        if line.contains("panicked at") && !is_at_end {
            return true;
        }
    }
    false
}

/// A panic in a task does not end its process, and is a defect whatever else comes of it.
fn ensure_no_panic(folder: &Path) -> Result<()> {
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        let text = std::fs::read(&path)?;
        let is_output = path.extension().is_some_and(|extension| extension == post::OUTPUT);
        let has_panicked = is_output && has_panicked(&String::from_utf8_lossy(&text));
        ensure!(!has_panicked, "a process has panicked: see {}", path.display());
    }
    Ok(())
}
