//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): from and to headers, an event's attributes and the store. Pure.
//!
//! Invariant: what is not well formed is no context, never an error: a producer's event does not fail for it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TraceFlags};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::event::{Event, TraceContext};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The most bytes of a `tracestate` that are kept and sent on: as many as one must (3.3.1.5). It is optional, so a longer one
/// is left out whole.
const MAX_STATE: usize = 512;

/// Both values, as the specification's own reader asks for them.
struct Pair<'a> {
    parent: &'a str,
    state: &'a str,
}

impl Extractor for Pair<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.parent),
            "tracestate" if (1..=MAX_STATE).contains(&self.state.len()) => Some(self.state),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

fn read(parent: &str, state: &str) -> Option<SpanContext> {
    let context = TraceContextPropagator::new().extract(&Pair { parent, state });
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

/// The context of a request. A `traceparent` that occurs twice is none; `tracestate` may be spread over several headers.
pub fn of_request(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (parent, None) = (parents.next()?.to_str().ok()?, parents.next()) else {
        return None;
    };
    let states: Option<Vec<&str>> = headers
        .get_all(TRACESTATE)
        .iter()
        .map(|value| value.to_str().ok())
        .collect();
    let state = match states.as_deref() {
        Some([state]) => Cow::Borrowed(*state),
        Some(states) => Cow::Owned(states.join(",")),
        None => Cow::Borrowed(""),
    };
    read(parent, &state)
}

/// The context that an event was made in: the distributed tracing extension of CloudEvents.
pub fn of_event(event: &Event) -> Option<SpanContext> {
    let state = event.extension(TRACESTATE.as_str()).unwrap_or_default();
    read(event.extension(TRACEPARENT.as_str())?, state)
}

/// The context of what was stored.
pub fn of_stored(stored: &TraceContext) -> Option<SpanContext> {
    read(&stored.parent, &stored.state)
}

/// What is stored of it.
pub fn stored(context: &SpanContext) -> TraceContext {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    TraceContext {
        parent: format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags),
        state: context.trace_state().header(),
    }
}

/// The headers of a request that goes on with it.
pub fn headers(context: &SpanContext) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let TraceContext { parent, state } = stored(context);
    let state = (!state.is_empty()).then_some((TRACESTATE, state));
    let both = std::iter::once((TRACEPARENT, parent)).chain(state);
    both.filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Data;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn request(headers: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = headers.iter();
        pairs
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).expect("a value"),
                )
            })
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn a_context_goes_through_the_store_into_the_next_request_as_it_came() {
        let came = request(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let kept = stored(&of_request(&came).expect("a context"));
        assert_eq!((kept.parent.as_str(), kept.state.as_str()), (PARENT, "a=1,b=2"));
        let sent: HeaderMap = headers(&of_stored(&kept).expect("a context")).collect();
        assert_eq!(sent, request(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]));
    }

    #[test]
    fn what_is_not_well_formed_is_no_context() {
        for parent in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(of_request(&request(&[("traceparent", parent)])), None, "{parent:?}");
        }
        assert_eq!(of_request(&request(&[("tracestate", "a=1")])), None);
        assert_eq!(
            of_request(&request(&[("traceparent", PARENT), ("traceparent", PARENT)])),
            None,
            "twice"
        );
    }

    #[test]
    fn a_state_that_is_too_long_or_broken_is_left_out_and_the_trace_goes_on() {
        // Each member is well formed, and together they are too long.
        let member = "x".repeat(MAX_STATE / 2 - 10);
        let long = format!("a={member},b={member},c={member}");
        for state in [long, "no pairs".to_owned()] {
            let came = request(&[("traceparent", PARENT), ("tracestate", &state)]);
            let kept = stored(&of_request(&came).expect("a context"));
            assert_eq!((kept.parent.as_str(), kept.state.as_str()), (PARENT, ""));
        }
    }

    #[test]
    fn an_events_own_context_is_its_extension() {
        let mut event = Event {
            id: "a".into(),
            source: "/s".into(),
            r#type: "t".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: vec![
                ("traceparent".into(), PARENT.into()),
                ("tracestate".into(), "a=1".into()),
            ],
            data: Data::None,
        };
        let kept = stored(&of_event(&event).expect("a context"));
        assert_eq!((kept.parent.as_str(), kept.state.as_str()), (PARENT, "a=1"));
        event.extensions.remove(0);
        assert_eq!(of_event(&event), None);
    }
}
