//! A kube watcher as whole steps: a complete list, or one object put or gone.
//!
//! Invariant: a partial list is never seen; what is missing from [`Step::Listed`] is gone, and nothing else is.

use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, Event};
use prometheus_client::metrics::counter::Counter;

use crate::kubernetes::slim;

/// The pause after the first failed list or watch.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: what was applied during an outage of the API server is loaded this soon after it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Without an error for this long, the next one begins with [`FIRST_PAUSE`] again.
const CALM: Duration = Duration::from_secs(60);

/// Doubling pauses, without end.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        Some(pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// One step of a watch.
#[derive(Debug)]
pub enum Step<K> {
    /// Everything there is: at the start, and whenever the watch had to begin anew.
    Listed(Vec<K>),
    Put(Box<K>),
    Gone(Box<K>),
}

/// Turns watcher events into steps, forever.
pub fn steps<K, S>(plural: &'static str, events: S, errors: Counter) -> impl Stream<Item = Step<K>>
where
    K: Resource + Clone + Debug + Send + 'static,
    S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
{
    let mut listing = Vec::new();
    calm(plural, events, errors).filter_map(move |event| futures::future::ready(collect(&mut listing, event)))
}

/// Watcher events without errors, which are counted, logged and waited out.
pub fn calm<K, S>(plural: &'static str, events: S, errors: Counter) -> impl Stream<Item = Event<K>>
where
    K: Resource + Clone + Debug + Send + 'static,
    S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
{
    let backoff = ResetTimerBackoff::new(Pauses::default(), CALM);
    events.backoff(backoff).modify(slim).filter_map(move |event| {
        let event = event.map_err(|error| {
            errors.inc();
            tracing::warn!(plural, %error, "failed to watch; what is loaded stays in use");
        });
        futures::future::ready(event.ok())
    })
}

fn collect<K: Resource>(listing: &mut Vec<K>, event: Event<K>) -> Option<Step<K>> {
    match event {
        Event::Init => {
            listing.clear();
            None
        }
        Event::InitApply(object) => {
            listing.push(object);
            None
        }
        Event::InitDone => Some(Step::Listed(std::mem::take(listing))),
        Event::Apply(object) => Some(Step::Put(Box::new(object))),
        Event::Delete(object) => Some(Step::Gone(Box::new(object))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Namespace;

    #[test]
    fn a_list_is_one_step_and_an_interrupted_one_is_none() {
        let object = |name: &str| {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.into());
            namespace
        };
        let mut listing = Vec::new();
        for event in [
            Event::Init,
            Event::InitApply(object("a")),
            Event::Init,
            Event::InitApply(object("b")),
        ] {
            assert!(collect(&mut listing, event).is_none());
        }
        match collect(&mut listing, Event::InitDone) {
            Some(Step::Listed(list)) => assert_eq!(list, vec![object("b")]),
            other => panic!("{other:?}"),
        }
        assert!(listing.is_empty());
        assert!(matches!(
            collect(&mut listing, Event::Delete(object("b"))),
            Some(Step::Gone(_))
        ));
    }
}
