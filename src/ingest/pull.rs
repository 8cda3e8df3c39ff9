//! Messages for consumers that ask for them: pulled, waited for and acknowledged.
//!
//! Giving a message changes nothing: it waits in the store, in its order, until it is acknowledged, and is given to whoever
//! asks from a place before it. So there is no lease that could run out too early, a pull costs no write, and what a consumer
//! that died had got is given again at once. Rejected: leases, which cost a write for each message given, and a consumer that
//! guesses how long it will take; several consumers share a subscription's messages by filters instead. Invariant: nothing is
//! given or settled before the API server said that the caller may, and a request that waits holds a place of a bounded
//! number, and no thread.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::given::Page;
use self::query::{Acknowledgement, Query};
use super::Ingest;
use super::auth::{Identity, Rule};
use super::body::Shares;
use super::messages::{in_time, json};
use super::places::{Place, Places};
use super::problem::Problem;
use crate::blocking::beside_the_worker;
use crate::engine::Pair;
use crate::ids::SubscriptionId;
use crate::queue::{Given, Pull, QueueError};
use crate::registry::{Mailbox, NamespaceView, SubscriptionEntry};

mod given;
mod query;

/// Requests that wait: a quarter of all connections, so that they keep no producer out.
const POLLS: usize = 1_024;
/// Of them a namespace's.
const POLLS_OF_NAMESPACE: usize = 128;
/// Pages read and rendered at a time: each is at most some MiB until it is known how large it is.
const PAGES: usize = 8;
/// Of them a namespace's.
const PAGES_EACH: usize = 2;
/// Bytes of events of a page; one message there is in any case.
const PAGE_BYTES: usize = 1 << 20;
/// An acknowledgement: 500 ids and a cursor.
const LARGEST_ACKNOWLEDGEMENT: usize = 64 * 1024;
/// How long an acknowledgement may take; what it had no time for is acknowledged when it is sent again.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(20);

/// Who may wait, and who may read.
pub(super) struct Polls {
    waiting: Arc<Semaphore>,
    namespaces: Shares,
    pages: Places,
}

impl Default for Polls {
    fn default() -> Polls {
        Polls {
            waiting: Arc::new(Semaphore::new(POLLS)),
            namespaces: Shares::of(POLLS_OF_NAMESPACE),
            pages: Places::of(PAGES, PAGES_EACH, Problem::too_many_reads),
        }
    }
}

impl Polls {
    /// A place to wait for messages of a namespace.
    fn wait(&self, namespace_uid: &str, counted: &Gauge) -> Result<Waiting, Problem> {
        let own = self.namespaces.get(namespace_uid).try_acquire_owned();
        let own = own.map_err(|_| Problem::too_many_polls(POLLS_OF_NAMESPACE))?;
        let all = Arc::clone(&self.waiting).try_acquire_owned();
        let all = all.map_err(|_| Problem::busy())?;
        counted.inc();
        Ok(Waiting {
            counted: counted.clone(),
            _places: [own, all],
        })
    }
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    counted: Gauge,
    _places: [OwnedSemaphorePermit; 2],
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.counted.dec();
    }
}

impl Ingest {
    /// Answers with messages that wait, or waits for some. `subscription`: its namespace, and its name.
    pub(super) async fn pull(
        &self,
        identity: &Identity,
        subscription: (&str, &str),
        view: &NamespaceView,
        query: Option<&str>,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let (namespace, name) = subscription;
        let rule = Rule::pull(name);
        if !self.auth.may(identity, namespace, rule).await? {
            return Err(Problem::may_not_pull(identity, namespace, name, rule));
        }
        let id = pulled(view, name)?;
        let query = query::pull(query, id)?;
        let until = Instant::now() + query.wait;
        let mut place = None;
        loop {
            let (entry, mailbox) = self.entry(id, name)?;
            mailbox.pull(self.clock.now());
            // Before the store is looked at: what becomes pending after that look is heard of.
            let mut news = pin!(mailbox.news());
            news.as_mut().enable();
            let page = match entry.spec.suspend {
                true => None,
                false => self.page(&view.uid, &entry, &query).await?,
            };
            if let Some((page, _place)) = page {
                let answer = self.answers.json(identity, &page).await?;
                self.metrics.given.inc_by(page.len());
                return Ok(answer);
            }
            if Instant::now() >= until || self.closing.is_cancelled() {
                let empty = Page::empty(id, query.after, entry.spec.suspend);
                return self.answers.json(identity, &empty).await;
            }
            if place.is_none() {
                place = Some(self.polls.wait(&view.uid, &self.metrics.polls_waiting)?);
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep_until(until) => {}
                () = self.closing.cancelled() => {}
            }
        }
    }

    /// The messages to be given now, if there are any, and the place that they hold until they are on their way.
    async fn page(
        &self,
        namespace_uid: &str,
        entry: &SubscriptionEntry,
        query: &Query,
    ) -> Result<Option<(Page, Place)>, Problem> {
        let place = self.polls.pages.take(namespace_uid).await?;
        let mut after = query.after;
        loop {
            let pull = Pull {
                endpoint: entry.endpoint,
                subscription: entry.id,
                after,
                limit: query.limit,
                bytes: PAGE_BYTES,
            };
            let Given { messages, more } = in_time(self.queue.pull(pull)).await?;
            let Some((last, _)) = messages.last() else {
                return Ok(None);
            };
            after = crate::queue::Place::of(last);
            let (page, unrenderable) = beside_the_worker(|| Page::new(entry, &messages, more));
            if !unrenderable.is_empty() {
                let recorded = in_time(self.consumed.unrenderable(unrenderable)).await;
                recorded?;
            }
            if page.len() > 0 || !more {
                return Ok((page.len() > 0).then_some((page, place)));
            }
        }
    }

    /// Settles messages that a consumer has.
    pub(super) async fn acknowledge(
        &self,
        identity: &Identity,
        subscription: (&str, &str),
        view: &NamespaceView,
        head: &http::request::Parts,
        body: &mut Incoming,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let (namespace, name) = subscription;
        let rule = Rule::acknowledge(name);
        if !self.auth.may(identity, namespace, rule).await? {
            return Err(Problem::may_not_pull(identity, namespace, name, rule));
        }
        let id = pulled(view, name)?;
        let (entry, _) = self.entry(id, name)?;
        let limit = LARGEST_ACKNOWLEDGEMENT;
        let (body, _room) = self.bodies.read(identity, &head.headers, body, limit).await?;
        let Acknowledgement { until, ids } = query::acknowledgement(&body, id)?;
        let of = Pair {
            endpoint: entry.endpoint,
            subscription: id,
        };
        let settle = async {
            let mut acknowledged = self.consumed.acknowledge(of, &ids).await?;
            if let Some(until) = until {
                acknowledged += self.consumed.acknowledge_until(of, until).await?;
            }
            Ok::<_, QueueError>(acknowledged)
        };
        let settled = match tokio::time::timeout(ACKNOWLEDGE_WITHIN, settle).await {
            Ok(settled) => settled,
            Err(_late) => return Err(Problem::busy()),
        };
        let acknowledged = settled.map_err(|error| {
            tracing::warn!(%error, "failed to acknowledge messages");
            Problem::not_acknowledged(&error)
        })?;
        self.metrics.messages_acknowledged.inc_by(acknowledged);
        Ok(json(&given::Acknowledged { acknowledged }))
    }

    /// The subscription as it is now.
    fn entry(&self, id: SubscriptionId, name: &str) -> Result<(Arc<SubscriptionEntry>, Arc<Mailbox>), Problem> {
        let entry = self.registry.subscription(id).filter(|entry| entry.deleted.is_none());
        let entry = entry.ok_or_else(|| Problem::no_subscription(name))?;
        let mailbox = entry.mailbox.clone().ok_or_else(|| Problem::is_pushed(name))?;
        Ok((entry, mailbox))
    }
}

/// The subscription of this name whose messages are pulled.
fn pulled(view: &NamespaceView, name: &str) -> Result<SubscriptionId, Problem> {
    view.pulled.get(name).copied().ok_or_else(|| {
        let mut all = view.subscriptions.iter();
        match all.any(|(spec, _)| spec.name == name) {
            true => Problem::is_pushed(name),
            false => Problem::no_subscription(name),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_waits_in_so_many_places_and_takes_none_from_others() {
        let (polls, counted) = (Polls::default(), Gauge::default());
        let wait = |namespace: &str| polls.wait(namespace, &counted);
        let mut places: Vec<_> = (0..POLLS_OF_NAMESPACE).map(|_| wait("a").unwrap()).collect();
        let refused = wait("a").unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.reason), (429, "TooManyPolls"));
        assert!(refused.retry_after.is_some());
        places.pop();
        places.push(wait("a").expect("one was given back"));
        let others = (0..POLLS - POLLS_OF_NAMESPACE).map(|n| wait(&(n % 50).to_string()).unwrap());
        places.extend(others);
        let refused = wait("b").unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.reason), (503, "Busy"));
        assert!(refused.retry_after.is_some());
        assert_eq!(counted.get(), POLLS as i64);
        drop(places);
        assert_eq!(counted.get(), 0);
    }
}
