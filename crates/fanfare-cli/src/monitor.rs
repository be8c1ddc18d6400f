//! What a command that runs on serves over HTTP: metrics, health, and what it does.

mod address;
mod page;
mod state;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fanfare::{Broker, CoordinatorHandle, Readiness};
use metrics::gauge;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use self::address::Address;
use crate::exit::Failure;

/// How long the broker may take to answer before it counts as unreachable.
const BROKER_LIMIT: Duration = Duration::from_secs(3);
/// How long a coordinator's loop may take to answer before it counts as dead. It waits for nothing but its own acks.
const LOOP_LIMIT: Duration = Duration::from_secs(30);
/// How often what was measured is summed up, so that it takes no memory where nobody asks for it.
const UPKEEP: Duration = Duration::from_secs(5);
/// Bounds of the histograms, in seconds.
const BUCKETS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0];
/// The text format that Prometheus reads.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is asked about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) role: &'static str,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) readiness: Readiness,
    /// None in a worker.
    pub(crate) coordinator: Option<CoordinatorHandle>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Served {
    subject: Subject,
    metrics: PrometheusHandle,
}

impl Monitor {
    /// Listens where there is an address to listen on, and measures from then on.
    pub(crate) async fn start(address: Option<Address>, subject: Subject) -> Result<Option<Self>, Failure> {
        let Some(Address(address)) = address else { return Ok(None) };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| {
                format!("cannot listen on {address}: give --listen another address, or leave it out")
            })
            .map_err(Failure::bad_input)?;
        let metrics = record(subject.role)?;
        tracing::info!(address = %listener.local_addr().unwrap_or(address), "serving metrics, health and state");
        let served = Served { subject, metrics: metrics.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut due = tokio::time::interval(UPKEEP);
            loop {
                due.tick().await;
                metrics.run_upkeep();
            }
        });
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, routes(served)).await {
                tracing::error!(%error, "metrics, health and state are served no longer");
            }
        });
        Ok(Some(Self { _tasks: tasks }))
    }
}

/// Installs what the parts of Fanfare record into.
fn record(role: &'static str) -> Result<PrometheusHandle, Failure> {
    let builder =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS);
    let metrics = builder
        .and_then(PrometheusBuilder::install_recorder)
        .context("metrics cannot be recorded")
        .map_err(Failure::bad_input)?;
    describe(role);
    Ok(metrics)
}

/// Tells the recorder what there is.
pub(crate) fn describe(role: &'static str) {
    fanfare::describe_metrics();
    metrics::describe_gauge!("fanfare_build_info", "1; its labels tell what runs");
    gauge!("fanfare_build_info", "version" => env!("CARGO_PKG_VERSION"), "role" => role).set(1.0);
}

fn routes(served: Served) -> Router {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/api/state", get(state));
    let routes = match served.subject.coordinator {
        Some(_) => routes.route("/", get(page::page)),
        None => routes,
    };
    routes.with_state(served)
}

async fn metrics(State(served): State<Served>) -> Response {
    text(StatusCode::OK, METRICS_TYPE, served.metrics.render())
}

/// Whether it does anything at all: that this answers shows that the runtime lives, and the loop is asked.
async fn health(State(Served { subject, .. }): State<Served>) -> Response {
    if let Some(coordinator) = &subject.coordinator
        && subject.readiness.hindrances().is_empty()
        && timeout(LOOP_LIMIT, coordinator.ping()).await.is_err()
    {
        let body = format!("the coordinator's loop has not answered within {} s\n", LOOP_LIMIT.as_secs());
        return plain(StatusCode::SERVICE_UNAVAILABLE, body);
    }
    plain(StatusCode::OK, "ok\n".to_owned())
}

async fn readiness(State(Served { subject, .. }): State<Served>) -> Response {
    let hindrances = hindrances(&subject).await;
    if hindrances.is_empty() {
        return plain(StatusCode::OK, "ok\n".to_owned());
    }
    plain(StatusCode::SERVICE_UNAVAILABLE, hindrances.join("\n") + "\n")
}

async fn state(State(Served { subject, .. }): State<Served>) -> Response {
    let body = state::State::of(&subject, hindrances(&subject).await).to_json();
    text(StatusCode::OK, "application/json", body)
}

/// Why it is of no use for now: one reason a line, none where it is.
async fn hindrances(subject: &Subject) -> Vec<String> {
    let broker = match timeout(BROKER_LIMIT, subject.broker.server()).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("the broker has not answered within {} s", BROKER_LIMIT.as_secs())),
    };
    let queues = subject.readiness.hindrances().into_iter().map(|(what, why)| format!("{what}: {why}"));
    broker.into_iter().chain(queues).collect()
}

fn plain(status: StatusCode, body: String) -> Response {
    text(status, "text/plain; charset=utf-8", body)
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body).into_response()
}
