//! Waiting messages: from the store into windows, a share of each of an endpoint's subscriptions, those first that are due
//! first.
//!
//! Owns which rows are read and which of them are taken; knows no SQL. Invariant: a row that is held here, or that left while
//! the page was read, is never taken from it. A page starts at the earliest due time, never behind a position: a message that
//! was stored while an earlier page was read has an earlier due time than that page's last.
//!
//! A page shows about as many rows as there is room for. What it leaves in the store stays due, so who was passed by is among
//! the first of the next page. Rejected: the strict order of due times, for which every subscription's rows would have to be
//! read as far as one alone might fill the page.

use std::collections::{BTreeSet, HashMap};

use super::endpoint::{Access, Endpoint, Held};
use super::state::{State, UNRECORDED};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::queue::{Fence, Pending, Queue, QueueError, Window};
use crate::schedule::decide::accepted_at;

/// An endpoint's window, filled up.
const PAGE: usize = 512;
/// Rows a probe is chosen among.
const PROBE_PAGE: usize = 64;
/// Subscriptions of a page of what is due: of a full one each has 16 rows, so that one with many is not read row by row.
const SPREAD: usize = 32;
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
    /// Whose rows, and how many of each at most: those that cannot be taken come first, and are not counted.
    pub limits: HashMap<SubscriptionId, usize>,
    /// It shows something of everyone that may send.
    whole: bool,
    /// It shows what may not be sent, too, and goes on with those of whom more may be too old.
    looks: bool,
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
            let access = endpoint.access(now);
            let wanted = match access {
                Access::Probe => PROBE_PAGE,
                _ if crowded => PAGE_CROWDED,
                _ => PAGE,
            };
            let looks = !endpoint.looks.is_empty();
            let (subscriptions, whole) = match looks {
                true => {
                    let others = endpoint.looks.len().saturating_sub(wanted);
                    (endpoint.looks.split_off(others), false)
                }
                false => endpoint.sending(access, SPREAD.min(wanted), now),
            };
            let limits = endpoint.limits(&subscriptions, wanted);
            for id in subscriptions {
                endpoint.subscriptions.page_begins(id);
            }
            endpoint.left.clear();
            return Some(PageRequest {
                endpoint: id,
                limits,
                whole,
                looks,
            });
        }
        None
    }

    /// Has pages read of everyone's messages that wait, whether they may be sent or not.
    pub fn look_at_waiting(&mut self, id: EndpointId) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.looks = endpoint.waiting();
            if !std::mem::replace(&mut endpoint.paging, true) {
                self.to_page.push_back(id);
            }
        }
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
        let Taken {
            start,
            over,
            expiring,
            behind,
        } = endpoint.take(request, pages, self.synced, now);
        let complete = behind.is_empty();
        // Behind expired rows there are more of them, also where nothing may be sent and no page is asked for.
        let goes_on = !complete && !over.is_empty();
        if request.looks {
            endpoint.looks.extend(behind.intersection(&expiring));
        }
        endpoint.paging = (goes_on || !endpoint.looks.is_empty()) && !self.draining;
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
    /// Too old: no more than a page's, for each becomes an outcome that waits for the store.
    over: Vec<Pending>,
    /// Of whom some are too old.
    expiring: BTreeSet<SubscriptionId>,
    /// Of whom there may be more behind the page.
    behind: BTreeSet<SubscriptionId>,
}

impl Endpoint {
    /// Everyone of whom something may wait.
    fn waiting(&self) -> Vec<SubscriptionId> {
        let all = self.subscriptions.iter();
        let waiting = all.filter(|(_, known)| known.pending > 0 || known.next_due().is_some());
        waiting.map(|(id, _)| *id).collect()
    }

    /// Of whom something may be started, who is due first comes first, and whether these are all: so many of those that are
    /// due, or of all where any message will do for a probe. Where older due times do not count, all unless so many are due.
    fn sending(&self, access: Access, most: usize, now: UnixMillis) -> (Vec<SubscriptionId>, bool) {
        let ever = UnixMillis(i64::MAX);
        let any = access == Access::Probe && self.probes_any();
        let until = if any { ever } else { now };
        let first: Vec<_> = self.subscriptions.due(until).take(most).collect();
        match self.overridden && first.len() < most {
            true => (self.subscriptions.due(ever).collect(), true),
            false => (first, false),
        }
    }

    /// An equal share for each. What is in memory is not counted, nor what failed since older due times stopped counting: of
    /// everyone it shows something that can be taken, if there is any.
    fn limits(&self, subscriptions: &[SubscriptionId], wanted: usize) -> HashMap<SubscriptionId, usize> {
        let share = (wanted / subscriptions.len().max(1)).max(1);
        let mut limits: HashMap<_, _> = subscriptions.iter().map(|id| (*id, share)).collect();
        let retried = self.retried.values().filter(|_| self.overridden);
        for of in self.held.values().chain(retried) {
            if let Some(limit) = limits.get_mut(of) {
                *limit += 1;
            }
        }
        limits
    }

    /// Takes what there is room for, and notes of the rest when it is due.
    fn take(&mut self, request: &PageRequest, pages: Vec<Rows>, synced: bool, now: UnixMillis) -> Taken {
        let access = self.access(now);
        let mut room = match access {
            Access::Go { .. } => PAGE.saturating_sub(self.window.len()),
            Access::Probe => usize::from(self.window.is_empty() && self.in_flight == 0),
            Access::Closed { .. } | Access::Unloaded => 0,
        };
        let any = access == Access::Probe && self.probes_any();
        let mut taken = Taken::default();
        let mut rows: Vec<Pending> = Vec::new();
        for (subscription, page) in pages {
            if self.subscriptions.get(&subscription).is_none() {
                continue;
            }
            self.subscriptions.page_ends(subscription);
            // Beyond a full page there may be more, due no earlier than its last row.
            let limit = request.limits.get(&subscription);
            if let Some(last) = page.last().filter(|_| limit.is_some_and(|limit| page.len() >= *limit)) {
                taken.behind.insert(subscription);
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
            let overridden = self.overridden && !self.retried.contains_key(&row.message);
            if self.is_over(&row, synced, now) {
                taken.expiring.insert(row.subscription);
                if taken.over.len() < PAGE {
                    taken.over.push(row);
                } else {
                    taken.behind.insert(row.subscription);
                    self.stays(&row);
                }
            } else if sends && room > 0 && (row.due <= now || any || overridden) {
                room -= 1;
                taken.start.push(row);
            } else {
                left_over |= sends && overridden && row.due > now;
                self.stays(&row);
            }
        }
        // Who had a full page may have more that is to be sent now: its limit passed over what waits for its own time.
        let is_all = request.whole && taken.behind.is_empty() && !left_over;
        if self.overridden && (is_all || self.retried.len() > RETRIED) {
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
    let mut pages = Vec::with_capacity(request.limits.len());
    for (subscription, limit) in &request.limits {
        let window = Window {
            endpoint: request.endpoint,
            subscription: *subscription,
            after: None,
            until: UnixMillis(i64::MAX),
            limit: *limit,
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
