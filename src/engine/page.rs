//! Waiting messages: from the store into windows, in due order over an endpoint's subscriptions.
//!
//! Owns which rows of a page are taken; knows no SQL. Invariant: a row that is held here, or that left while the page was
//! read, is never taken from it. A page starts at the earliest due time, never behind a position: a message that was stored
//! while an earlier page was read has an earlier due time than that page's last.

use super::endpoint::{Access, Endpoint, Held};
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
            let waiting = endpoint.subscriptions.iter();
            let waiting = waiting.filter(|(_, known)| known.next_due().is_some());
            let subscriptions: Vec<SubscriptionId> = waiting.map(|(id, _)| *id).collect();
            for id in &subscriptions {
                endpoint.subscriptions.page_begins(*id);
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
        let Taken { start, over, complete } = endpoint.take(request, pages, self.synced, now);
        // Behind a page of expired rows there are more of them, also where nothing may be sent and no page is asked for.
        endpoint.paging = !complete && !over.is_empty() && !self.draining;
        if endpoint.paging {
            self.to_page.push_back(id);
        }
        for pending in start {
            endpoint.held.insert(pending.message, pending.subscription);
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

/// What is taken of a page.
#[derive(Default)]
struct Taken {
    /// To be started, in this order.
    start: Vec<Pending>,
    /// Too old.
    over: Vec<Pending>,
    /// There is nothing behind the page.
    complete: bool,
}

impl Endpoint {
    /// Takes what there is room for, and notes of the rest when it is due.
    fn take(&mut self, request: &PageRequest, pages: Vec<Rows>, synced: bool, now: UnixMillis) -> Taken {
        let access = self.access(now);
        let mut room = match access {
            Access::Go { .. } => PAGE.saturating_sub(self.window.len()),
            Access::Probe => usize::from(self.window.is_empty() && self.in_flight == 0),
            Access::Closed { .. } | Access::Unloaded => 0,
        };
        let any = access == Access::Probe && self.probes_any();
        let mut taken = Taken {
            complete: true,
            ..Taken::default()
        };
        let mut rows: Vec<Pending> = Vec::new();
        for (subscription, page) in pages {
            if self.subscriptions.get(&subscription).is_none() {
                continue;
            }
            self.subscriptions.page_ends(subscription);
            // Beyond a full page there may be more, due no earlier than its last row.
            if let Some(last) = page.last().filter(|_| page.len() >= request.limit) {
                taken.complete = false;
                self.subscriptions.note_due(subscription, last.due, false);
            }
            let in_memory = |row: &Pending| self.held.contains_key(&row.message) || self.left.contains(&row.message);
            rows.extend(page.into_iter().filter(|row| !in_memory(row)));
        }
        self.left.clear();
        if any {
            // A message never tried, else the one tried longest ago: a poison message must not hold the breaker open.
            rows.sort_unstable_by_key(|row| (!never_tried(row), row.due, row.message));
        } else {
            rows.sort_unstable_by_key(|row| (row.due, row.message));
        }

        let mut left_over = false;
        for row in rows {
            let Some(known) = self.subscriptions.get(&row.subscription) else {
                continue;
            };
            let sends = known.sends();
            let overridden = self.overridden && !self.retried.contains(&row.message);
            if self.is_over(&row, synced, now) {
                taken.over.push(row);
            } else if sends && room > 0 && (row.due <= now || any || overridden) {
                room -= 1;
                taken.start.push(row);
            } else {
                left_over |= sends && overridden && row.due > now;
                self.stays(&row);
            }
        }
        let nothing = room > 0 && taken.start.is_empty() && taken.over.is_empty();
        if self.overridden && ((taken.complete && !left_over) || nothing || self.retried.len() > RETRIED) {
            self.overridden = false;
            self.retried.clear();
        }
        taken
    }

    /// A row of a page stays in the store.
    fn stays(&mut self, row: &Pending) {
        if row.attempts > 0 {
            self.note_retry(row);
        }
        self.subscriptions.note_due(row.subscription, row.due, false);
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
