//! Everything that a fan-out needs, in this process: broker or connection, worker, coordinator, callbacks.

use std::time::Duration;

use anyhow::anyhow;
use fanfare::services::{self, FILE_STATS, FilePath};
use fanfare::{
    Accepted, Context, Environment, Fanfare, FinalPayload, Registration, ServiceName, System, Target,
    TargetResult, WorkerConfig, service,
};
use fanfare_protocol::QueueSpec;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::files::Entry;
use crate::configuration::Aggregation;
use crate::exit::{Exit, Failure};
use crate::invoke::not_invoked;
use crate::settings::Settings;

const SOURCE: &str = "fanfare.demo";
const ON_TARGET: &str = "demo.progress";
const ON_FINAL: &str = "demo.table";

/// How long a callback may take. It only passes on what it is given.
const CALLBACK_LIMIT: Duration = Duration::from_secs(60);
/// How long worker and coordinator have to stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to delete what was declared on RabbitMQ.
const CLEAN_UP_WITHIN: Duration = Duration::from_secs(10);

/// A worker and a coordinator at work, and what the final callback receives.
pub(super) struct Stage {
    fanfare: Fanfare,
    progress: ProgressBar,
    payloads: mpsc::UnboundedReceiver<FinalPayload>,
    tasks: JoinSet<anyhow::Result<()>>,
    stopping: CancellationToken,
    /// The fan-out that is under way.
    open: Option<Accepted>,
}

impl Stage {
    /// Starts all of it: on a broker in memory, or under a prefix of its own on the broker that the settings name.
    pub(super) async fn set(settings: &Settings, files: usize) -> Result<Self, Failure> {
        let fanfare = if settings.broker.is_none() || settings.is_memory() {
            Fanfare::in_memory()
        } else {
            let unique = System.unique().simple().to_string();
            let prefix = format!("fanfare-demo-{}", &unique[..16]);
            settings.connected_apart("demo", &prefix, Aggregation::PerCid).await?
        };
        let progress = progress_bar(files);
        let (sender, payloads) = mpsc::unbounded_channel();
        let stopping = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let config = WorkerConfig { shutdown_deadline: STOP_WITHIN, ..WorkerConfig::default() };
        let callbacks = [on_target(progress.clone()), on_final(sender)];
        let worker = fanfare.worker_with(config).service(services::file_stats()).services(callbacks);
        let coordinator = fanfare.coordinator();
        let stop = stopping.clone();
        tasks.spawn(async move { Ok(worker.run_until(stop.cancelled_owned()).await?) });
        let stop = stopping.clone();
        tasks.spawn(async move { Ok(coordinator.run_until(stop.cancelled_owned()).await?) });
        Ok(Self { fanfare, progress, payloads, tasks, stopping, open: None })
    }

    /// Counts the files with one fan-out.
    pub(super) async fn count(&mut self, files: &[Entry]) -> Result<FinalPayload, Failure> {
        let targets = files
            .iter()
            .map(|file| Target::new(FILE_STATS, FilePath::from(file.path.as_path())).key(&file.key));
        let fanout = targets.fold(self.fanfare.fanout(SOURCE), fanfare::Fanout::add);
        // The worker may not have declared its queues yet.
        let fanout = fanout.on_target(ON_TARGET).on_final(ON_FINAL).declare_missing();
        self.open = Some(match fanout.invoke().await {
            Ok(accepted) => accepted,
            Err(error) => return Err(not_invoked(&self.fanfare, error).await),
        });
        let payload = tokio::select! {
            payload = self.payloads.recv() => payload.ok_or_else(|| anyhow!("the worker ended early")),
            Some(ended) = self.tasks.join_next() => Err(match ended {
                Ok(Ok(())) => anyhow!("the worker or the coordinator ended early"),
                Ok(Err(error)) => error,
                Err(panicked) => panicked.into(),
            }),
        };
        let payload = payload.map_err(|error| Failure::new(Exit::Failed, error))?;
        self.open = None;
        Ok(payload)
    }

    /// Stops all of it and deletes its queues.
    pub(super) async fn clear(mut self) {
        self.progress.finish_and_clear();
        self.stopping.cancel();
        let stopped = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(2 * STOP_WITHIN, stopped).await;
        let deleted = async {
            for queue in self.queues() {
                if let Err(error) = self.fanfare.broker().delete(&queue.name).await {
                    tracing::warn!(queue = queue.name, %error, "not deleted");
                }
            }
        };
        if tokio::time::timeout(CLEAN_UP_WITHIN, deleted).await.is_err() {
            tracing::warn!(prefix = %self.fanfare.names().prefix(), "not all queues were deleted in time");
        }
        self.fanfare.close().await;
    }

    fn queues(&self) -> Vec<QueueSpec> {
        let names = self.fanfare.names();
        let services = [FILE_STATS, ON_TARGET, ON_FINAL]
            .map(|name| names.service(&ServiceName::new(name).expect("the demo's names keep the rules")));
        let open = self.open.as_ref().map(|open| names.aggregation(&open.cid, open.run));
        open.into_iter().chain(services).chain([names.fanin(), names.dead(), names.parked()]).collect()
    }
}

/// Draws where standard error is a terminal, and nowhere else.
fn progress_bar(files: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} files, {elapsed}  {wide_msg}");
    let style = style.expect("the template is well formed");
    ProgressBar::new(files as u64).with_style(style)
}

fn on_target(progress: ProgressBar) -> Registration {
    service(ON_TARGET, move |context: Context, _: TargetResult| {
        if let Some(key) = context.key() {
            progress.set_message(key.to_string());
        }
        progress.inc(1);
        async { Ok(()) }
    })
    .timeout(CALLBACK_LIMIT)
}

fn on_final(payloads: mpsc::UnboundedSender<FinalPayload>) -> Registration {
    service(ON_FINAL, move |_: Context, payload: FinalPayload| {
        // Nobody takes it any more where the demo was interrupted.
        let _ = payloads.send(payload);
        async { Ok(()) }
    })
    .timeout(CALLBACK_LIMIT)
}
