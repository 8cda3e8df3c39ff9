//! What is traced of an attempt: the request to the receiver, as part of the trace in which its event was stored.
//!
//! Names and attributes are OpenTelemetry's semantic conventions for HTTP clients; what those have no word for begins with
//! `tidings.`. Invariant: of a URL the origin is shown and no more, for path and query may be secret; nothing of the answer
//! but its status.

use http::{HeaderName, HeaderValue, Method};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status};
use opentelemetry_sdk::trace::Span;

use super::state::Job;
use crate::api::resolve::Host;
use crate::delivery::{AttemptResult, Outcome};
use crate::event::format::trace_context;
use crate::queue::StoredEvent;
use crate::traces::{Traces, context};

/// The span of an attempt under way; dropped before its end it was cut off.
pub(super) struct Attempt(Span);

impl Attempt {
    /// None where the event was stored without a trace.
    pub(super) fn begin(traces: &Traces, job: &Job, event: &StoredEvent, method: &Method) -> Option<Box<Attempt>> {
        let parent = context::of_stored(&trace_context(event)?)?;
        let target = &job.endpoint.target;
        let host = match &target.host {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
        };
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.as_str().to_owned()),
            KeyValue::new("server.address", host),
            KeyValue::new("server.port", i64::from(target.port)),
            KeyValue::new("url.full", target.origin.clone()),
            KeyValue::new("messaging.system", "tidings"),
            KeyValue::new("messaging.message.id", job.pending.message.to_string()),
            KeyValue::new("tidings.namespace", job.endpoint.namespace.clone()),
            KeyValue::new("tidings.endpoint", job.endpoint.name.clone()),
            KeyValue::new("tidings.subscription", job.subscription.key.name.clone()),
            KeyValue::new("tidings.attempt", i64::from(job.pending.attempts) + 1),
        ];
        if job.pending.attempts > 0 {
            let again = i64::from(job.pending.attempts);
            attributes.push(KeyValue::new("http.request.resend_count", again));
        }
        let span = SpanBuilder::from_name(method.as_str().to_owned())
            .with_kind(SpanKind::Client)
            .with_attributes(attributes);
        Some(Box::new(Attempt(traces.begin(span, Some(&parent)))))
    }

    /// What tells the receiver of it.
    pub(super) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        context::headers(self.0.span_context())
    }

    pub(super) fn ended(mut self, result: &AttemptResult) {
        if let Outcome::Status { code, .. } = &result.outcome {
            let code = KeyValue::new("http.response.status_code", i64::from(*code));
            self.0.set_attribute(code);
        }
        match error(&result.outcome) {
            Some(error) => self.failed(error),
            None => self.0.end(),
        }
    }

    fn failed(&mut self, error: String) {
        self.0.set_attribute(KeyValue::new("error.type", error));
        self.0.set_status(Status::error(""));
        self.0.end();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.0.is_recording() {
            self.failed("CutOff".to_owned());
        }
    }
}

/// Why it is not a success: a status that is none, or a reason.
fn error(outcome: &Outcome) -> Option<String> {
    match outcome {
        _ if outcome.is_success() => None,
        Outcome::Status { code: 200..=299, .. } => Some("NotSuccessful".to_owned()),
        Outcome::Status { code, .. } => Some(code.to_string()),
        Outcome::Fault(fault) => Some(fault.reason().to_owned()),
        Outcome::Blocked { .. } => Some("Blocked".to_owned()),
        Outcome::Ours(fault) => Some(fault.reason().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry_sdk::trace::SpanData;

    use super::*;
    use crate::delivery::{Fault, Judged, OurFault};
    use crate::traces::testing::{Ended, attribute};

    /// The span of an attempt that came to this, or was cut off.
    fn span(outcome: Option<Outcome>) -> SpanData {
        let (traces, ended) = Ended::traces();
        let attempt = Attempt(traces.begin(SpanBuilder::from_name("POST"), None));
        let took = Duration::ZERO;
        match outcome {
            Some(outcome) => attempt.ended(&AttemptResult { took, outcome }),
            None => drop(attempt),
        }
        let mut spans = ended.take();
        assert_eq!(spans.len(), 1, "it ends once");
        spans.remove(0)
    }

    fn status(code: u16, judged: Judged) -> Option<Outcome> {
        Some(Outcome::Status {
            code,
            retry_after: None,
            judged,
            excerpt: Some("of the answer".into()),
        })
    }

    #[test]
    fn a_span_says_how_its_attempt_ended_and_nothing_of_the_answer() {
        for (outcome, code, error) in [
            (status(204, Judged::ByStatus), Some("204"), None),
            (status(200, Judged::Failure), Some("200"), Some("NotSuccessful")),
            (status(302, Judged::ByStatus), Some("302"), Some("302")),
            (status(404, Judged::Success), Some("404"), None),
            (status(503, Judged::ByStatus), Some("503"), Some("503")),
            (Some(Outcome::Fault(Fault::Certificate)), None, Some("Certificate")),
            (Some(Outcome::Ours(OurFault::DnsDown)), None, Some("DnsDown")),
            (None, None, Some("CutOff")),
        ] {
            let span = span(outcome.clone());
            assert_eq!(
                attribute(&span, "http.response.status_code").as_deref(),
                code,
                "{outcome:?}"
            );
            assert_eq!(attribute(&span, "error.type").as_deref(), error, "{outcome:?}");
            assert_eq!(
                matches!(span.status, Status::Error { .. }),
                error.is_some(),
                "{outcome:?}"
            );
            assert!(!format!("{span:?}").contains("of the answer"), "{span:?}");
        }
    }
}
