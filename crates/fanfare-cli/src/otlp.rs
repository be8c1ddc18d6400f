//! Spans go to an OpenTelemetry collector over OTLP, where OTEL_EXPORTER_OTLP_ENDPOINT says that there is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Chain, Context};
use async_trait::async_trait;
use bytes::Bytes;
use fanfare_broker::amqp::redacted;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// The variables that say where spans go; the first is for all that OpenTelemetry sends.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// How long a collector may take for one batch. What it does not take in time is lost.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const MOST_BYTES: usize = 64 * 1024;

/// Sends spans until it is ended.
pub(crate) struct Export(SdkTracerProvider);

impl Export {
    /// None where there is nobody to send to. Everything else is taken from OpenTelemetry's own variables.
    pub(crate) fn start() -> anyhow::Result<Option<Self>> {
        if !ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Courier::new()?)
            .build()
            .with_context(|| format!("spans cannot be sent to where {} says", ENDPOINTS[0]))?;
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name("fanfare"),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// What records Fanfare's own spans, whatever is logged.
    pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let tracer: SdkTracer = self.0.tracer("fanfare");
        OpenTelemetryLayer::new(tracer)
            .with_location(false)
            .with_threads(false)
            .with_filter(Targets::new().with_target("fanfare", LevelFilter::INFO))
    }

    /// Sends what is left.
    pub(crate) async fn end(self) {
        // It waits for the thread that sends, which needs this runtime.
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LIMIT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "not all spans were sent");
        }
    }
}

/// Posts batches on this runtime, for the exporter's own thread.
#[derive(Debug)]
struct Courier {
    runtime: Handle,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    losses: Arc<Losses>,
}

impl Courier {
    fn new() -> anyhow::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .context("the system's certificates cannot be read")?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            runtime: Handle::current(),
            client: Client::builder(TokioExecutor::new()).build(connector),
            losses: Arc::default(),
        })
    }
}

#[async_trait]
impl HttpClient for Courier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, losses) = (self.client.clone(), Arc::clone(&self.losses));
        // All of it on the runtime, which the thread that asks does not know.
        let posting = self.runtime.spawn(async move {
            let collector = redacted(&request.uri().to_string());
            let posted = in_time(async move {
                let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
                let body = Limited::new(body, MOST_BYTES).collect().await?.to_bytes();
                Ok(Response::from_parts(head, body))
            })
            .await;
            losses.see(&collector, &posted);
            posted
        });
        posting.await?
    }
}

/// Says in the log when spans begin to be lost, and when they are sent again: the exporter keeps both to itself.
#[derive(Debug, Default)]
struct Losses {
    losing: AtomicBool,
}

impl Losses {
    fn see(&self, collector: &str, posted: &Result<Response<Bytes>, HttpError>) {
        let reason = match posted {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            // By itself, the error of a client says only that it could not connect.
            Err(error) => {
                Some(Chain::new(error.as_ref()).map(ToString::to_string).collect::<Vec<_>>().join(": "))
            }
        };
        let was_losing = self.losing.swap(reason.is_some(), Ordering::Relaxed);
        match reason {
            Some(reason) if !was_losing => tracing::warn!(
                "spans are lost: {collector} does not take them: {reason}; see that a collector listens there, or unset {}",
                ENDPOINTS[0]
            ),
            None if was_losing => tracing::info!("{collector} takes spans again"),
            _ => {}
        }
    }
}

/// Fails what takes too long.
async fn in_time(
    posting: impl Future<Output = Result<Response<Bytes>, HttpError>>,
) -> Result<Response<Bytes>, HttpError> {
    tokio::time::timeout(LIMIT, posting).await?
}
