//! The trace that a message belongs to. Without the feature `opentelemetry` there is none.

#[cfg(feature = "opentelemetry")]
pub use traced::{begin, current, fail};
#[cfg(not(feature = "opentelemetry"))]
pub use untraced::{begin, current, fail};

#[cfg(feature = "opentelemetry")]
mod traced {
    use fanfare_protocol::TraceParent;
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    /// The span at hand, where it is recorded.
    #[must_use]
    pub fn current() -> Option<TraceParent> {
        let context = Span::current().context();
        let span = context.span().span_context().clone();
        span.is_valid().then(|| TraceParent {
            trace: span.trace_id().to_bytes(),
            span: span.span_id().to_bytes(),
            flags: span.trace_flags().to_u8(),
        })
    }

    /// Puts a span that has just been made under the one that a message names, gives it the name that people see, and links it to
    /// others.
    pub fn begin(
        span: &Span,
        name: impl FnOnce() -> String,
        parent: Option<TraceParent>,
        links: &[TraceParent],
    ) {
        if let Some(parent) = parent {
            // It fails where nobody records the span.
            let _ = span.set_parent(Context::new().with_remote_span_context(remote(&parent)));
        }
        for link in links {
            span.add_link(remote(link));
        }
        let context = span.context();
        let recorded = context.span();
        if recorded.is_recording() {
            recorded.update_name(name());
        }
    }

    /// Says that what the span at hand stands for has failed.
    pub fn fail(exception: &str) {
        let span = Span::current();
        span.set_attribute("exception.message", exception.to_owned());
        span.set_status(Status::error(exception.to_owned()));
    }

    fn remote(parent: &TraceParent) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(parent.trace),
            SpanId::from_bytes(parent.span),
            TraceFlags::new(parent.flags),
            true,
            TraceState::NONE,
        )
    }
}

#[cfg(not(feature = "opentelemetry"))]
mod untraced {
    use fanfare_protocol::TraceParent;
    use tracing::Span;

    /// The span at hand, where it is recorded.
    #[must_use]
    pub const fn current() -> Option<TraceParent> {
        None
    }

    /// Puts a span that has just been made under the one that a message names, gives it the name that people see, and links it to
    /// others.
    pub fn begin(_: &Span, _: impl FnOnce() -> String, _: Option<TraceParent>, _: &[TraceParent]) {}

    /// Says that what the span at hand stands for has failed.
    pub const fn fail(_: &str) {}
}
