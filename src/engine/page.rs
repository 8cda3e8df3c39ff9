//! Waiting messages: from the store into windows, in due order over an endpoint's subscriptions.
//!
//! Owns which rows of a page are taken; knows no SQL. Invariant: a row that is held here, or that left while the page was
//! read, is never taken from it. A page starts at the earliest due time, never behind a position: a message that was stored
//! while an earlier page was read has an earlier due time than that page's last.

use super::endpoint::{Access, Held};
use super::state::{State, UNRECORDED};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::queue::{Fence, Pending, Queue, QueueError, Window};
use crate::schedule::decide::accepted_at;

/// An endpoint's window, filled up.
const PAGE: usize = 512;
/// Rows a probe is chosen among.
const PROBE_PAGE: usize = 64;
/// Over this many messages in windows, endpoints get small pages.
const CROWDED: i64 = 20_000;
/// A small page.
const PAGE_CROWDED: usize = 16;
/// A message's id knows its second only.
const ID_PRECISION_MILLIS: i64 = 2_000;
/// Messages remembered as failed since older due times stopped counting; beyond, due times count again.
const RETRIED: usize = 10_000;

/// A page to be read.
#[derive(Debug)]
pub(super) struct PageRequest {
    pub endpoint: EndpointId,
    pub subscriptions: Vec<SubscriptionId>,
    /// Rows per subscription: those held come first, and are not counted.
    pub limit: usize,
}

/// The rows of one subscription, in due order.
pub(super) type Rows = (SubscriptionId, Vec<Pending>);

impl State {
    /// The next page to be read; none while outcomes wait for the store, for a page's expired rows become more of them.
    pub fn next_page(&mut self, now: UnixMillis) -> Option<PageRequest> {
        if self.unrecorded() >= UNRECORDED {
            return None;
        }
        let crowded = self.metrics.window.get() > CROWDED;
        while let Some(id) = self.to_page.pop_front() {
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                continue;
            };
            let wanted = match endpoint.access(now) {
                Access::Probe => PROBE_PAGE,
                _ if crowded => PAGE_CROWDED,
                _ => PAGE,
            };
            let mut subscriptions = Vec::new();
            for (subscription, known) in &mut endpoint.subscriptions {
                known.touched = None;
                if known.next_due.is_some() {
                    subscriptions.push(*subscription);
                }
            }
            endpoint.left.clear();
            let limit = endpoint.held.len() + wanted;
            return Some(PageRequest {
                endpoint: id,
                subscriptions,
                limit,
            });
        }
        None
    }

    /// A page could not be read: what is due stays due, and is looked at with the next tick.
    pub fn page_failed(&mut self, request: &PageRequest) {
        if let Some(endpoint) = self.endpoints.get_mut(&request.endpoint) {
            endpoint.paging = false;
            endpoint.left.clear();
        }
    }

    /// A page was read.
    pub fn paged(&mut self, request: &PageRequest, pages: Vec<Rows>, now: UnixMillis) {
        let id = request.endpoint;
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        let access = endpoint.access(now);
        let mut rows: Vec<Pending> = Vec::new();
        let mut complete = true;
        let mut unseen = Vec::new();
        for (subscription, page) in pages {
            // Beyond a full page there may be more, due no earlier than its last row.
            let rest = (page.len() >= request.limit)
                .then(|| page.last().map(|row| row.due))
                .flatten();
            complete &= rest.is_none();
            unseen.push((subscription, rest));
            rows.extend(
                page.into_iter()
                    .filter(|row| !endpoint.held.contains_key(&row.message) && !endpoint.left.contains(&row.message)),
            );
        }
        rows.sort_unstable_by_key(|row| (row.due, row.message));

        let mut over = Vec::new();
        let mut taken = Vec::new();
        let mut room = match access {
            Access::Go { .. } => PAGE.saturating_sub(endpoint.window.len()),
            Access::Probe => usize::from(endpoint.window.is_empty() && endpoint.in_flight == 0),
            Access::Closed { .. } | Access::Unloaded => 0,
        };
        let any = access == Access::Probe && endpoint.probes_any();
        if any {
            // A message never tried, else the one tried longest ago: a poison message must not hold the breaker open.
            rows.sort_by_key(|row| (!never_tried(row), row.due, row.message));
        }
        let mut left_over = false;
        for row in rows {
            let sends = endpoint
                .subscriptions
                .get(&row.subscription)
                .is_some_and(|sub| sub.sends());
            let due = row.due <= now || any;
            let overridden = endpoint.overridden && !endpoint.retried.contains(&row.message);
            if endpoint.is_over(&row, self.synced, now) {
                over.push(row);
            } else if sends && room > 0 && (due || overridden) {
                room -= 1;
                endpoint.held.insert(row.message, row.subscription);
                taken.push(row);
            } else {
                if row.attempts > 0 {
                    endpoint.note_retry(&row);
                }
                left_over |= sends && overridden && row.due > now;
                unseen.push((row.subscription, Some(row.due)));
            }
        }
        let nothing = room > 0 && taken.is_empty() && over.is_empty();
        if endpoint.overridden && ((complete && !left_over) || nothing || endpoint.retried.len() > RETRIED) {
            endpoint.overridden = false;
            endpoint.retried.clear();
        }
        for subscription in &request.subscriptions {
            if let Some(known) = endpoint.subscriptions.get_mut(subscription) {
                known.next_due = known.touched.take();
            }
        }
        for (subscription, due) in unseen {
            if let (Some(known), Some(due)) = (endpoint.subscriptions.get_mut(&subscription), due) {
                known.note_due(due, false);
            }
        }
        // Behind a page of expired rows there are more of them, also where nothing may be sent and no page is asked for.
        endpoint.paging = !complete && !over.is_empty() && !self.draining;
        endpoint.left.clear();
        if endpoint.paging {
            self.to_page.push_back(id);
        }
        for pending in taken {
            endpoint.window.push_back(Held {
                pending,
                event: None,
                fresh: false,
            });
            self.metrics.window.inc();
        }
        if !complete && over.is_empty() {
            self.look_behind(id, now);
        }
        for row in over {
            self.expire(row);
        }
        self.evaluate(id, now);
    }
}

/// Reads a page: each subscription's rows, from its earliest due time.
pub(super) async fn read(queue: &dyn Queue, fence: Fence, request: &PageRequest) -> Result<Vec<Rows>, QueueError> {
    let mut pages = Vec::with_capacity(request.subscriptions.len());
    for subscription in &request.subscriptions {
        let window = Window {
            endpoint: request.endpoint,
            subscription: *subscription,
            after: None,
            until: UnixMillis(i64::MAX),
            limit: request.limit,
        };
        pages.push((*subscription, queue.window(fence, window).await?));
    }
    Ok(pages)
}

/// A message that never was in an attempt is due since its acceptance, or since a replay sent it again; an attempt moves the
/// due time, also where it consumed nothing.
fn never_tried(row: &Pending) -> bool {
    let since = row
        .again
        .map_or(accepted_at(row.message).0 + ID_PRECISION_MILLIS, |again| again.0);
    row.attempts == 0 && row.due.0 <= since
}
