//! What a command that runs on serves over HTTP: metrics, health, and a page that shows fan-outs.

mod address;
mod fan_out;
mod guard;
mod looks;
mod page;
mod parked;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fanfare::{Broker, Cid, CoordinatorHandle, Operator, Readiness, RunId};
use metrics::gauge;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use self::address::Address;
use self::looks::Looks;
use self::parked::Parked;
use self::state::Memory;
use crate::exit::Failure;

/// How long the broker may take to answer before it counts as unreachable.
const BROKER_LIMIT: Duration = Duration::from_secs(3);
/// How long who looks waits for the coordinator of this process.
const LOOP_PATIENCE: Duration = Duration::from_secs(3);
const SILENT_LOOP: &str =
    "the coordinator of this process does not answer: it waits for the broker, or stops";
/// How long a coordinator's loop may take to answer before it counts as dead. It waits for nothing but its own acks.
const LOOP_LIMIT: Duration = Duration::from_secs(30);
/// How old what a page shows may be: who looks within that sees the same.
const PAUSE: Duration = Duration::from_secs(2);
/// The same of parked messages, since whoever looks at them takes them for a moment.
const PARKED_PAUSE: Duration = Duration::from_secs(10);
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
    /// None in what is no coordinator.
    pub(crate) coordinator: Option<CoordinatorHandle>,
    /// Who asks what the page shows. None in a worker, which has no page.
    pub(crate) operator: Option<Operator>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Served {
    subject: Arc<Subject>,
    metrics: PrometheusHandle,
    looks: Arc<Looks>,
    memory: Arc<Memory>,
}

impl Monitor {
    /// Listens where there is an address to listen on.
    pub(crate) async fn start_if_any(
        address: Option<Address>,
        subject: Subject,
    ) -> Result<Option<Self>, Failure> {
        match address {
            Some(address) => Self::start(address, subject).await.map(Some),
            None => Ok(None),
        }
    }

    /// Listens, and measures from then on.
    pub(crate) async fn start(Address(address): Address, subject: Subject) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}: give --listen another address"))
            .map_err(Failure::bad_input)?;
        let address = listener.local_addr().unwrap_or(address);
        let metrics = record(subject.role)?;
        tracing::info!(%address, "serving metrics, health and state");
        let served = Served {
            subject: Arc::new(subject),
            metrics: metrics.clone(),
            looks: Arc::default(),
            memory: Arc::default(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut due = tokio::time::interval(UPKEEP);
            loop {
                due.tick().await;
                metrics.run_upkeep();
            }
        });
        let routes = routes(served).layer(middleware::from_fn_with_state(address, guard::check));
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!(%error, "metrics, health and state are served no longer");
            }
        });
        Ok(Self { address, _tasks: tasks })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
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
    let mut routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/api/state", get(state));
    if served.subject.operator.is_some() {
        routes = routes.route("/", get(page::page)).route("/api/fan-out", get(fan_out));
        // A coordinator's own user may not look at what is parked.
        if served.subject.coordinator.is_none() {
            routes = routes.route("/api/parked", get(parked));
        }
    }
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

async fn state(State(served): State<Served>) -> Response {
    let Served { subject, memory, looks, .. } = served;
    let look = async move { state::State::of(&subject, &memory, hindrances(&subject).await).await };
    told(looks.at("state".to_owned(), PAUSE, look).await)
}

/// Named by a query: browsers and proxies take a CID such as `..` out of a path.
async fn fan_out(State(served): State<Served>, RawQuery(query): RawQuery) -> Response {
    let Served { subject, looks, .. } = served;
    let query = query.unwrap_or_default();
    let value =
        |name: &str| form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|it| it.1);
    let cid = value("cid").and_then(|cid| Cid::new(cid).ok());
    let run = value("run").and_then(|run| run.parse::<RunId>().ok());
    let (Some(cid), Some(run)) = (cid, run) else {
        return plain(StatusCode::NOT_FOUND, "no fan-out has this CID and run\n".to_owned());
    };
    let what = format!("{cid} {run}");
    told(looks.at(what, PAUSE, async move { fan_out::Shown::of(&subject, &cid, run).await }).await)
}

async fn parked(State(served): State<Served>) -> Response {
    let Served { subject, looks, .. } = served;
    let Some(operator) = subject.operator.clone() else { return StatusCode::NOT_FOUND.into_response() };
    told(looks.at("parked".to_owned(), PARKED_PAUSE, async move { Parked::of(&operator).await }).await)
}

/// What a look has come to.
fn told(look: Option<Arc<str>>) -> Response {
    match look {
        Some(body) => text(StatusCode::OK, "application/json", body.to_string()),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "too many look at different fan-outs\n".to_owned()),
    }
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
