//! From spans that ended to the collector: a bounded queue, and one task that takes batches of it.
//!
//! Knows nothing of what spans are about. Rejected: the SDK's own batch processor, which blocks a thread and tells nobody how
//! much it drops. Invariant: every span that ended is counted once, as exported or as dropped, but for those a process that
//! ends could not send in time.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Spans that wait: of about a kilobyte each, so 8 MiB. At 5,000 spans a second a collector may be away for a second or two.
const QUEUE: usize = 8_192;
/// Spans of one request, as the SDKs have it: half a megabyte.
const BATCH: usize = 512;
/// How long a span waits for others to go with it.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

const QUEUE_FULL: Reason = Reason { reason: "QueueFull" };
const EXPORT_FAILED: Reason = Reason { reason: "ExportFailed" };

/// What became of spans; clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    exported: Counter,
    dropped: Family<Reason, Counter>,
}

impl Metrics {
    /// Registers everything under `tidings_traces_...`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        for reason in [QUEUE_FULL, EXPORT_FAILED] {
            metrics.dropped.get_or_create_owned(&reason);
        }
        let registry = registry.sub_registry_with_prefix("tidings_traces");
        registry.register(
            "spans_exported",
            "Spans that the collector took",
            metrics.exported.clone(),
        );
        registry.register(
            "spans_dropped",
            "Spans that it did not get, by reason",
            metrics.dropped.clone(),
        );
        metrics
    }

    fn dropped(&self, reason: Reason, spans: usize) {
        self.dropped.get_or_create(&reason).inc_by(spans as u64);
    }
}

/// Where spans end: the queue's near side.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    metrics: Metrics,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        // What is recorded and not sampled is for processors of other kinds.
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.metrics.dropped(QUEUE_FULL, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task on the queue's far side.
#[derive(Debug)]
pub struct Exporting {
    task: JoinHandle<()>,
    ending: CancellationToken,
}

impl Exporting {
    /// Sends what waits, for at most `within`, and ends. What ends later is dropped.
    pub async fn finish(mut self, within: Duration) {
        self.ending.cancel();
        if timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the last spans could not be exported in time");
        }
    }
}

/// Begins to export. Must be called within a Tokio runtime.
pub(super) fn start<E: SpanExporter + 'static>(exporter: E, metrics: Metrics) -> (Queue, Exporting) {
    let (sender, spans) = mpsc::channel(QUEUE);
    let ending = CancellationToken::new();
    let task = tokio::spawn(export(spans, exporter, metrics.clone(), ending.clone()));
    let queue = Queue { spans: sender, metrics };
    (queue, Exporting { task, ending })
}

async fn export<E: SpanExporter>(
    mut spans: mpsc::Receiver<SpanData>,
    exporter: E,
    metrics: Metrics,
    ending: CancellationToken,
) {
    let mut away = false;
    loop {
        let batch = next(&mut spans, &ending).await;
        if batch.is_empty() {
            return;
        }
        let size = batch.len();
        match exporter.export(batch).await {
            Ok(()) => {
                metrics.exported.inc_by(size as u64);
                if std::mem::take(&mut away) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                metrics.dropped(EXPORT_FAILED, size);
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "failed to export spans; they are dropped until the collector takes them again");
                }
            }
        }
    }
}

/// The next batch: full, or as old as [`LINGER`]; at the end whatever is left, and then none.
async fn next(spans: &mut mpsc::Receiver<SpanData>, ending: &CancellationToken) -> Vec<SpanData> {
    let mut batch = Vec::new();
    let waited = ending.run_until_cancelled(spans.recv_many(&mut batch, BATCH)).await;
    let full_by = Instant::now() + LINGER;
    while waited.is_some() && batch.len() < BATCH {
        let room = BATCH - batch.len();
        let more = timeout_at(full_by, spans.recv_many(&mut batch, room));
        match ending.run_until_cancelled(more).await {
            Some(Ok(1..)) => {}
            _ => return batch,
        }
    }
    if waited.is_none() {
        spans.close();
        spans.recv_many(&mut batch, BATCH).await;
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use opentelemetry::trace::{Span as _, SpanBuilder};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::traces::Traces;

    /// A way to a collector that can be shut.
    #[derive(Clone, Debug, Default)]
    struct Way {
        shut: Arc<AtomicBool>,
        hangs: Arc<AtomicBool>,
        came: Arc<AtomicUsize>,
        largest: Arc<AtomicUsize>,
    }

    impl SpanExporter for Way {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.shut.load(Ordering::Relaxed) {
                return Err(OTelSdkError::InternalFailure("shut".into()));
            }
            self.came.fetch_add(batch.len(), Ordering::Relaxed);
            self.largest.fetch_max(batch.len(), Ordering::Relaxed);
            Ok(())
        }
    }

    fn started(way: &Way) -> (Traces, Exporting, Metrics) {
        let metrics = Metrics::default();
        let (queue, exporting) = start(way.clone(), metrics.clone());
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        (Traces::of(&provider), exporting, metrics)
    }

    fn spans(traces: &Traces, count: usize) {
        for _ in 0..count {
            traces.begin(SpanBuilder::from_name("one"), None).end();
        }
    }

    fn dropped(metrics: &Metrics, reason: Reason) -> u64 {
        metrics.dropped.get_or_create(&reason).get()
    }

    #[tokio::test(start_paused = true)]
    async fn spans_go_in_batches_and_the_last_before_the_end() {
        let way = Way::default();
        let (traces, exporting, metrics) = started(&way);
        spans(&traces, 3 * BATCH + 7);
        exporting.finish(Duration::from_secs(2)).await;
        assert_eq!(way.came.load(Ordering::Relaxed), 3 * BATCH + 7);
        assert_eq!(way.largest.load(Ordering::Relaxed), BATCH);
        assert_eq!(metrics.exported.get(), 3 * BATCH as u64 + 7);
        spans(&traces, 1);
        assert_eq!(dropped(&metrics, QUEUE_FULL), 1, "what ends after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn one_span_alone_waits_for_others_no_longer_than_it_must() {
        let way = Way::default();
        let (traces, _exporting, metrics) = started(&way);
        spans(&traces, 1);
        tokio::time::sleep(LINGER / 2).await;
        assert_eq!(metrics.exported.get(), 0);
        tokio::time::sleep(LINGER).await;
        assert_eq!(metrics.exported.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_dropped_and_counted_and_nobody_waits() {
        let way = Way::default();
        way.hangs.store(true, Ordering::Relaxed);
        let (traces, exporting, metrics) = started(&way);
        spans(&traces, QUEUE + 5);
        assert_eq!(dropped(&metrics, QUEUE_FULL), 5);
        let began = Instant::now();
        exporting.finish(Duration::from_secs(2)).await;
        assert_eq!(
            began.elapsed(),
            Duration::from_secs(2),
            "a collector that hangs holds up no end"
        );
        assert_eq!(metrics.exported.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_collector_does_not_take_is_counted_and_the_next_goes_when_it_is_back() {
        let way = Way::default();
        way.shut.store(true, Ordering::Relaxed);
        let (traces, exporting, metrics) = started(&way);
        spans(&traces, 3);
        tokio::time::sleep(LINGER * 2).await;
        assert_eq!((dropped(&metrics, EXPORT_FAILED), metrics.exported.get()), (3, 0));
        way.shut.store(false, Ordering::Relaxed);
        spans(&traces, 2);
        exporting.finish(Duration::from_secs(2)).await;
        assert_eq!((dropped(&metrics, EXPORT_FAILED), metrics.exported.get()), (3, 2));
    }
}
