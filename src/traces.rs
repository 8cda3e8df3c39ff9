//! Traces: what OpenTelemetry is told of an event's way, and the context by which producer and receiver are in one trace.
//!
//! Owns how spans are begun, how their context is carried (W3C Trace Context) and how they leave (OTLP over HTTP). What a span
//! is about knows whoever begins it. Nothing of this exists in a process that was given no collector. Invariant: nobody waits
//! for a collector; a span that finds no room on its way there is dropped and counted.

mod collector;
pub mod context;
mod export;
pub mod settings;

use opentelemetry::trace::{SpanBuilder, SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanExporter as _};

pub use self::export::{Exporting, Metrics};
pub use self::settings::Settings;

/// The name of the service, unless the environment has one.
const SERVICE: &str = "tidings-dispatcher";

/// Failed to set traces up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("failed to read {path}: {error}")]
    Certificate { path: String, error: std::io::Error },
    #[error("failed to configure TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// Where spans begin. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces {
    tracer: SdkTracer,
}

impl Traces {
    /// Begins to export, in a task of its own. Endpoint, headers, sampler and resource are those of the environment.
    pub fn start(settings: &Settings, identity: &str, metrics: Metrics) -> Result<(Traces, Exporting), SetupError> {
        let collector = collector::Collector::new(settings)?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .build()?;
        let resource = resource(settings, identity);
        exporter.set_resource(&resource);
        let (queue, exporting) = export::start(exporter, metrics);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_resource(resource)
            .build();
        Ok((Traces::of(&provider), exporting))
    }

    fn of(provider: &SdkTracerProvider) -> Traces {
        let scope = InstrumentationScope::builder("tidings")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Traces {
            tracer: provider.tracer_with_scope(scope),
        }
    }

    /// Begins a span; without a parent it begins a trace. Whether it is recorded the sampler says.
    pub fn begin(&self, span: SpanBuilder, parent: Option<&SpanContext>) -> Span {
        let mut context = Context::new();
        if let Some(parent) = parent {
            context = context.with_remote_span_context(parent.clone());
        }
        self.tracer.build_with_context(span, &context)
    }
}

/// What is said of the process. The environment counts.
fn resource(settings: &Settings, identity: &str) -> Resource {
    let environment: [Box<dyn ResourceDetector>; 2] = [
        Box::new(TelemetryResourceDetector),
        Box::new(EnvResourceDetector::new()),
    ];
    let resource = Resource::builder_empty()
        .with_service_name(SERVICE)
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", identity.to_owned()),
        ])
        .with_detectors(&environment);
    match &settings.service_name {
        Some(name) => resource.with_service_name(name.clone()),
        None => resource,
    }
    .build()
}

/// For tests of those who begin spans: everything is recorded, and kept.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SpanData, SpanProcessor};

    use super::*;

    /// Spans that ended.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Ended(Arc<Mutex<Vec<SpanData>>>);

    impl Ended {
        /// Traces whose spans end here.
        pub(crate) fn traces() -> (Traces, Ended) {
            let ended = Ended::default();
            let provider = SdkTracerProvider::builder().with_span_processor(ended.clone()).build();
            (Traces::of(&provider), ended)
        }

        pub(crate) fn take(&self) -> Vec<SpanData> {
            std::mem::take(&mut *self.0.lock().expect("not poisoned"))
        }
    }

    impl SpanProcessor for Ended {
        fn on_start(&self, _: &mut Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().expect("not poisoned").push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    /// An attribute's value as text.
    pub(crate) fn attribute(span: &SpanData, key: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
        found.map(|attribute| attribute.value.as_str().into_owned())
    }
}
