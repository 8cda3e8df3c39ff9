//! What is traced of a producer's request: the request itself, and each of its events being stored.
//!
//! Names and attributes are OpenTelemetry's semantic conventions for HTTP servers, messaging and CloudEvents. Invariant: of
//! an event its id and type are shown, of a URL its path; nothing of data, query or headers.

use std::time::SystemTime;

use http::Method;
use http::request::Parts;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status};
use opentelemetry_sdk::trace::Span;

use super::parse::Events;
use crate::event::TraceContext;
use crate::queue::Accepted;
use crate::traces::{Traces, context};

const NAME: &str = "POST /v1/namespaces/{namespace}/events";
const ROUTE: &str = "/v1/namespaces/{namespace}/events";

/// The longest path that a namespace can have, and some: longer ones are refused, and would only fill the queue of spans.
const MAX_PATH: usize = 128;

/// Where the spans of requests begin.
pub struct Requests {
    pub traces: Traces,
    /// Whether producers post by HTTPS.
    pub https: bool,
}

/// A request to publish, while it is answered.
pub(super) struct Publishing {
    traces: Traces,
    began: SystemTime,
    attributes: Vec<KeyValue>,
    /// The producer's.
    caller: Option<SpanContext>,
    /// Begun when the events are known, for one of them may tell what it is part of.
    request: Option<Span>,
    events: Vec<Span>,
}

impl Requests {
    /// None of a request that publishes nothing.
    pub(super) fn begin(&self, head: &Parts) -> Option<Box<Publishing>> {
        let path = head.uri.path();
        if head.method != Method::POST || !path.ends_with("/events") || path.len() > MAX_PATH {
            return None;
        }
        let scheme = if self.https { "https" } else { "http" };
        Some(Box::new(Publishing {
            traces: self.traces.clone(),
            began: SystemTime::now(),
            attributes: vec![
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("http.route", ROUTE),
                KeyValue::new("url.scheme", scheme),
                KeyValue::new("url.path", path.to_owned()),
            ],
            caller: context::of_request(&head.headers),
            request: None,
            events: Vec::new(),
        }))
    }
}

impl Publishing {
    /// The request's span, made anew of the same parts each time.
    fn request(&self, parent: Option<&SpanContext>) -> Span {
        let span = SpanBuilder::from_name(NAME)
            .with_kind(SpanKind::Server)
            .with_start_time(self.began)
            .with_attributes(self.attributes.clone());
        self.traces.begin(span, parent)
    }

    /// The events are known and about to be stored: where each of them stands in its trace, to be stored with it.
    ///
    /// The trace is the request's, whose context is that of this hop. Where it has none, one event's own context counts; and
    /// in a batch each event's own, for then they are of different traces.
    pub(super) fn storing(&mut self, namespace: &str, events: &Events) -> Vec<TraceContext> {
        let owns: Vec<Option<SpanContext>> = events.as_slice().iter().map(context::of_event).collect();
        let only = match (events, &owns[..]) {
            (Events::One(_), [own]) => own.as_ref(),
            _ => None,
        };
        let request = self.request(self.caller.as_ref().or(only));
        let here = request.span_context().clone();
        let begun = events.as_slice().iter().zip(&owns).map(|(event, own)| {
            let (parent, link) = match own {
                Some(own) if own.trace_id() == here.trace_id() => (&here, None),
                Some(own) if self.caller.is_none() => (own, Some(&here)),
                Some(own) => (&here, Some(own)),
                None => (&here, None),
            };
            let span = SpanBuilder::from_name("enqueue")
                .with_kind(SpanKind::Producer)
                .with_links(link.map(|to| Link::with_context(to.clone())).into_iter().collect())
                .with_attributes([
                    KeyValue::new("messaging.system", "tidings"),
                    KeyValue::new("messaging.operation.name", "enqueue"),
                    KeyValue::new("messaging.operation.type", "send"),
                    KeyValue::new("messaging.destination.name", namespace.to_owned()),
                    KeyValue::new("cloudevents.event_id", event.id.clone()),
                    KeyValue::new("cloudevents.event_type", event.r#type.clone()),
                ]);
            self.traces.begin(span, Some(parent))
        });
        self.events = begun.collect();
        self.request = Some(request);
        let contexts = self.events.iter().map(|span| context::stored(span.span_context()));
        contexts.collect()
    }

    /// They are stored, durably.
    pub(super) fn stored(&mut self, accepted: &[Accepted]) {
        for (mut span, accepted) in self.events.drain(..).zip(accepted) {
            let (matched, duplicate) = match accepted {
                Accepted::New { matched, .. } => (matched, false),
                Accepted::Duplicate { matched, .. } => (matched, true),
            };
            span.set_attribute(KeyValue::new("tidings.messages", i64::from(*matched)));
            span.set_attribute(KeyValue::new("tidings.duplicate", duplicate));
            span.end();
        }
    }

    /// The answer is known.
    pub(super) fn answered(mut self, status: http::StatusCode) {
        let error = KeyValue::new("error.type", status.as_str().to_owned());
        for mut span in self.events.drain(..) {
            // Not stored.
            span.set_attribute(error.clone());
            span.set_status(Status::error(""));
            span.end();
        }
        let request = self.request.take();
        let mut request = request.unwrap_or_else(|| self.request(self.caller.as_ref()));
        request.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            request.set_attribute(error);
            request.set_status(Status::error(""));
        }
        request.end();
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};
    use opentelemetry::trace::TraceId;
    use opentelemetry_sdk::trace::SpanData;

    use super::*;
    use crate::event::{Data, Event};
    use crate::ids::EventId;
    use crate::traces::testing::{Ended, attribute};

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OTHER: &str = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01";

    fn event(id: &str, traceparent: Option<&str>) -> Event {
        let own = traceparent.map(|value| ("traceparent".to_owned(), value.to_owned()));
        Event {
            id: id.into(),
            source: "/agents/voice?token=s3cret".into(),
            r#type: "lead.qualified".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: own.into_iter().collect(),
            data: Data::None,
        }
    }

    /// Spans of one request by name, and what is stored with its events.
    fn spans(caller: Option<&str>, events: Events, status: StatusCode) -> (SpanData, Vec<SpanData>, Vec<TraceContext>) {
        let (traces, ended) = Ended::traces();
        let requests = Requests { traces, https: true };
        let mut request = Request::post("/v1/namespaces/sales/events?type=s3cret")
            .body(())
            .expect("a request");
        if let Some(caller) = caller {
            request
                .headers_mut()
                .insert("traceparent", caller.parse().expect("a value"));
        }
        let mut publishing = requests.begin(&request.into_parts().0).expect("it publishes");
        let stored = publishing.storing("sales", &events);
        if status.is_success() {
            let new = |_: &Event| Accepted::New {
                event: EventId(1),
                matched: 2,
            };
            publishing.stored(&events.as_slice().iter().map(new).collect::<Vec<_>>());
        }
        publishing.answered(status);
        let mut all = ended.take();
        let request = all.pop().expect("the request ends last");
        let shown = format!("{all:?} {request:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        (request, all, stored)
    }

    fn trace(parent: &str) -> TraceId {
        TraceId::from_hex(&parent[3..35]).expect("a trace")
    }

    fn child_of(child: &SpanData, parent: &SpanData) -> bool {
        (child.parent_span_id, child.span_context.trace_id())
            == (parent.span_context.span_id(), parent.span_context.trace_id())
    }

    #[test]
    fn an_event_is_in_the_trace_of_its_request_and_what_is_stored_goes_on_from_its_span() {
        let (request, events, stored) = spans(Some(CALLER), Events::One(event("a", None)), StatusCode::ACCEPTED);
        assert_eq!(request.span_context.trace_id(), trace(CALLER));
        assert_eq!(request.parent_span_id.to_string(), CALLER[36..52]);
        assert_eq!(request.name, "POST /v1/namespaces/{namespace}/events");
        assert_eq!(request.span_kind, SpanKind::Server);
        assert_eq!(
            attribute(&request, "url.path").as_deref(),
            Some("/v1/namespaces/sales/events")
        );
        assert_eq!(attribute(&request, "http.response.status_code").as_deref(), Some("202"));
        assert!(child_of(&events[0], &request), "{events:?}");
        assert_eq!(attribute(&events[0], "tidings.messages").as_deref(), Some("2"));
        let wanted = format!("00-{}-{}-01", trace(CALLER), events[0].span_context.span_id());
        assert_eq!(
            stored,
            [TraceContext {
                parent: wanted,
                state: String::new()
            }]
        );
    }

    #[test]
    fn without_a_header_one_events_own_context_counts_and_with_one_it_is_linked() {
        let (request, events, _) = spans(None, Events::One(event("a", Some(OTHER))), StatusCode::ACCEPTED);
        assert_eq!(request.span_context.trace_id(), trace(OTHER));
        assert!(child_of(&events[0], &request) && events[0].links.is_empty());

        let (request, events, _) = spans(Some(CALLER), Events::One(event("a", Some(OTHER))), StatusCode::ACCEPTED);
        assert_eq!(request.span_context.trace_id(), trace(CALLER));
        assert!(child_of(&events[0], &request));
        assert_eq!(events[0].links[0].span_context.trace_id(), trace(OTHER));
    }

    #[test]
    fn events_of_a_batch_are_each_in_the_trace_they_were_made_in() {
        let batch = vec![event("a", Some(CALLER)), event("b", Some(OTHER)), event("c", None)];
        let (request, events, stored) = spans(None, Events::Batch(batch), StatusCode::ACCEPTED);
        assert_eq!(events[0].span_context.trace_id(), trace(CALLER));
        assert_eq!(events[1].span_context.trace_id(), trace(OTHER));
        assert_eq!(events[1].links[0].span_context, request.span_context);
        assert!(child_of(&events[2], &request));
        assert!(stored[1].parent.contains(&trace(OTHER).to_string()), "{stored:?}");
    }

    #[test]
    fn what_was_not_stored_is_an_error_and_what_was_refused_is_the_producers() {
        let (request, events, _) = spans(None, Events::One(event("a", None)), StatusCode::SERVICE_UNAVAILABLE);
        for span in [&request, &events[0]] {
            assert_eq!(attribute(span, "error.type").as_deref(), Some("503"));
            assert!(matches!(span.status, Status::Error { .. }));
        }
        let (traces, ended) = Ended::traces();
        let requests = Requests { traces, https: false };
        let request = Request::post("/v1/namespaces/sales/events")
            .body(())
            .expect("a request");
        requests
            .begin(&request.into_parts().0)
            .expect("it publishes")
            .answered(StatusCode::FORBIDDEN);
        let refused = ended.take().pop().expect("a span");
        assert_eq!(
            (attribute(&refused, "error.type"), refused.status.clone()),
            (None, Status::Unset)
        );
        assert_eq!(refused.parent_span_id.to_string(), "0000000000000000");
    }

    #[test]
    fn a_request_that_publishes_nothing_is_not_traced() {
        let (traces, _) = Ended::traces();
        let requests = Requests { traces, https: false };
        let long = format!("/v1/namespaces/{}/events", "x".repeat(MAX_PATH));
        for (method, path) in [
            ("POST", &*long),
            ("GET", "/v1/namespaces/sales/events"),
            ("POST", "/v1/namespaces/sales/subscriptions/a/ack"),
        ] {
            let request = Request::builder().method(method).uri(path).body(()).expect("a request");
            assert!(requests.begin(&request.into_parts().0).is_none(), "{method} {path}");
        }
    }
}
