//! Pages over many subscriptions of one endpoint: what is read of each, what is taken, what is given up.

use std::collections::BTreeMap;

use super::*;
use crate::engine::state::UNRECORDED;
use crate::queue::{Pending, Settled};

const QUIET: SubscriptionId = SubscriptionId(2);
/// Subscriptions of one endpoint, more than a page shows.
const MANY: u32 = 200;

fn state(now: UnixMillis, edit: impl FnOnce(&mut ResolvedEndpoint)) -> State {
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    let mut spec = resolved("crm");
    edit(&mut spec);
    load_endpoint(&mut state, ENDPOINT, "crm", EndpointState::Usable(Arc::new(spec)), now);
    state
}

/// What waits in a store of which the test plays the rest.
#[derive(Default)]
struct Waiting {
    rows: BTreeMap<SubscriptionId, BTreeMap<(UnixMillis, MessageId), Pending>>,
    /// Pages, and rows of them, that were read.
    pages: usize,
    read: usize,
    /// The most that a page asked for, beside what was in memory.
    largest: usize,
}

impl Waiting {
    /// `each` messages of every subscription, accepted in turn.
    fn of_many(state: &mut State, each: i64, accepted: UnixMillis) -> Waiting {
        let mut waiting = Waiting::default();
        for id in (0..MANY).map(SubscriptionId) {
            load_subscription(state, id, ENDPOINT, "crm", accepted);
            for number in 0..each {
                let number = number * i64::from(MANY) + i64::from(id.0);
                let due = UnixMillis(accepted.0 + number / 100);
                waiting.add(Pending {
                    subscription: id,
                    due,
                    ..message(number, accepted)
                });
            }
            state.subscription(ENDPOINT, id).pending = each;
        }
        waiting
    }

    fn add(&mut self, row: Pending) {
        let rows = self.rows.entry(row.subscription).or_default();
        rows.insert((row.due, row.message), row);
    }

    fn remove(&mut self, row: &Pending) {
        let rows = self.rows.get_mut(&row.subscription);
        rows.and_then(|rows| rows.remove(&(row.due, row.message)))
            .expect("it waits");
    }

    fn count(&self) -> usize {
        self.rows.values().map(BTreeMap::len).sum()
    }

    /// Reads a page, if one is wanted.
    fn page(&mut self, state: &mut State, now: UnixMillis) -> Option<()> {
        let request = state.next_page(now)?;
        self.pages += 1;
        assert!(self.pages <= 1_000, "there is no end of pages");
        let in_memory = state.endpoints[&ENDPOINT].held.len();
        let asked: usize = request.limits.values().sum();
        self.largest = self.largest.max(asked.saturating_sub(in_memory));
        let of = |(id, limit): (&SubscriptionId, &usize)| {
            let rows = self.rows.get(id).into_iter().flat_map(BTreeMap::values);
            (*id, rows.take(*limit).copied().collect::<Vec<_>>())
        };
        let pages: Vec<_> = request.limits.iter().map(of).collect();
        self.read += pages.iter().map(|(_, rows)| rows.len()).sum::<usize>();
        state.paged(&request, pages, now);
        Some(())
    }

    /// What is in the window is delivered.
    fn deliver(&mut self, state: &mut State, now: UnixMillis) -> Vec<Pending> {
        let endpoint = state.endpoint(ENDPOINT);
        let delivered: Vec<Pending> = endpoint.window.drain(..).map(|held| held.pending).collect();
        for row in &delivered {
            state.endpoint(ENDPOINT).release(row.message);
            self.remove(row);
        }
        state.evaluate(ENDPOINT, now);
        delivered
    }
}

#[test]
fn a_page_over_many_subscriptions_shows_what_there_is_room_for_and_passes_nobody_by() {
    const EACH: i64 = 60;
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(600));
    let mut state = state(now, |_| {});
    let mut waiting = Waiting::of_many(&mut state, EACH, accepted);
    // One has as many as a dozen others, and another begins late.
    for number in 1_000_000..1_000_720 {
        waiting.add(message(number, accepted));
    }
    let late = Pending {
        subscription: SubscriptionId(MANY),
        ..message(2_000_000, now)
    };
    load_subscription(&mut state, late.subscription, ENDPOINT, "crm", now);
    waiting.add(late);
    for id in (0..=MANY).map(SubscriptionId) {
        let first = waiting.rows[&id].values().next().map(|row| row.due);
        note_due(&mut state, id, first.expect("all have some"));
    }
    state.evaluate(ENDPOINT, now);

    let total = waiting.count();
    let mut order: Vec<Pending> = Vec::new();
    while waiting.page(&mut state, now).is_some() {
        order.extend(waiting.deliver(&mut state, now));
    }
    assert_eq!((order.len(), waiting.count()), (total, 0), "each is delivered once");
    assert!(waiting.largest <= 512, "{} rows of a page", waiting.largest);
    assert!(waiting.read <= 2 * total, "{} rows read of {total}", waiting.read);
    let mut last: HashMap<SubscriptionId, (UnixMillis, MessageId)> = HashMap::new();
    let mut latest = UnixMillis::default();
    for row in &order {
        let before = last.insert(row.subscription, (row.due, row.message));
        assert!(before < Some((row.due, row.message)), "of each in its order");
        if row.subscription != late.subscription {
            latest = latest.max(row.due);
        }
        // Sixteen of each are what is due within 32 ms; who has more than others waits behind its own.
        let behind = latest.0 - row.due.0;
        assert!(
            row.subscription == SUBSCRIPTION || behind <= 64,
            "{row:?} comes {behind} ms late"
        );
    }
}

#[test]
fn of_many_subscriptions_no_more_expires_at_once_than_of_one() {
    const EACH: i64 = 120;
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(100 * 3_600));
    let mut state = state(accepted, |spec| spec.suspend = true);
    let mut waiting = Waiting::of_many(&mut state, EACH, accepted);
    state.endpoint(ENDPOINT).oldest = Some(message(0, accepted).message);
    // One has many that are young in front of its own.
    let young: Vec<Pending> = (0..700)
        .map(|number| Pending {
            again: Some(now),
            due: UnixMillis(accepted.0 - 1),
            ..message(5_000_000 + number, accepted)
        })
        .collect();
    young.iter().for_each(|row| waiting.add(*row));
    state.sweep_expired(ENDPOINT, now);

    let mut expired = 0;
    loop {
        while waiting.page(&mut state, now).is_some() {}
        assert!(state.unrecorded() < UNRECORDED + 512, "{} wait", state.unrecorded());
        let outcomes = std::mem::take(&mut state.outbox);
        if outcomes.is_empty() {
            break;
        }
        expired += outcomes.len();
        for outcome in &outcomes {
            let rows = waiting.rows.get_mut(&outcome.subscription).expect("it is known");
            rows.retain(|(_, message), _| *message != outcome.message);
        }
        state.recorded(&outcomes, &vec![Settled::Applied; outcomes.len()], now);
    }
    assert_eq!(
        expired,
        (MANY as i64 - 1) as usize * EACH as usize,
        "all but those behind young ones"
    );
    assert!(waiting.largest <= 512, "{} rows of a page", waiting.largest);
    assert!(state.endpoints[&ENDPOINT].looks.is_empty());
    state.endpoint(ENDPOINT).oldest = Some(message(0, accepted).message);
    state.sweep_expired(ENDPOINT, now);
    while waiting.page(&mut state, now).is_some() {}
    assert!(
        state.hiding_old.contains(&ENDPOINT),
        "they are looked for where no page shows them"
    );
}

#[test]
fn what_expires_of_one_page_is_bounded_though_it_shows_more() {
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(100 * 3_600));
    let mut state = state(now, |_| {});
    load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
    let rows: Vec<Pending> = (0..2_000).map(|number| message(number, accepted)).collect();
    note_due(&mut state, SUBSCRIPTION, now);
    state.evaluate(ENDPOINT, now);
    let request = state.next_page(now).expect("something is due");
    state.paged(&request, vec![(SUBSCRIPTION, rows.clone())], now);
    assert_eq!(state.outbox.len(), 512);
    assert!(state.endpoints[&ENDPOINT].window.is_empty(), "none is started");
    let request = state.next_page(now).expect("there are more");
    state.paged(&request, vec![(SUBSCRIPTION, rows)], now);
    assert_eq!(state.outbox.len(), 1_024);
}

#[test]
fn a_suspended_subscriptions_messages_expire_though_others_keep_the_endpoint_busy() {
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(100 * 3_600));
    let mut state = state(now, |_| {});
    load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
    let mut entry = subscription_entry(&state.registry, QUIET, ENDPOINT, resource_key("quiet"));
    Arc::make_mut(&mut entry.spec).suspend = true;
    state.subscription_changed(Arc::new(entry), now);
    let old = Pending {
        subscription: QUIET,
        ..message(1, accepted)
    };
    state.subscription(ENDPOINT, QUIET).pending = 1;
    state.endpoint(ENDPOINT).oldest = Some(old.message);
    note_due(&mut state, QUIET, accepted);
    note_due(&mut state, SUBSCRIPTION, now);
    state.evaluate(ENDPOINT, now);
    let request = state.next_page(now).expect("something is due");
    assert!(
        request.limits.keys().eq(&[SUBSCRIPTION]),
        "nothing of the other may be sent"
    );

    // While that page is read it is time to look for what is too old.
    state.sweep_expired(ENDPOINT, now);
    state.paged(&request, vec![(SUBSCRIPTION, vec![message(2, now)])], now);
    let request = state.next_page(now).expect("it is looked at");
    assert!(request.limits.contains_key(&QUIET));
    state.paged(&request, vec![(QUIET, vec![old])], now);
    assert_eq!(state.outbox[0].message, old.message);
}

#[test]
fn after_an_outage_all_is_sent_at_once_also_what_is_behind_others_that_failed_since() {
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(600));
    let mut state = state(now, |_| {});
    let mut waiting = Waiting::default();
    state.endpoint(ENDPOINT).override_due_times();
    for id in (0..MANY).map(SubscriptionId) {
        load_subscription(&mut state, id, ENDPOINT, "crm", now);
        for number in 0..50 {
            // Forty failed since, and are due soon; the others are due in an hour, if due times count.
            let wait = if number < 40 { 10 } else { 3_600 };
            let row = Pending {
                subscription: id,
                due: now.plus(Duration::from_secs(wait)),
                attempts: 1,
                ..message(i64::from(id.0) * 50 + number, accepted)
            };
            waiting.add(row);
            if number < 40 {
                state.endpoint(ENDPOINT).retried.insert(row.message, id);
            }
        }
        note_due(&mut state, id, now.plus(Duration::from_secs(10)));
    }
    state.evaluate(ENDPOINT, now);
    let mut sent = 0;
    while waiting.page(&mut state, now).is_some() {
        sent += waiting.deliver(&mut state, now).len();
    }
    assert_eq!((sent, waiting.count()), (MANY as usize * 10, MANY as usize * 40));
    let endpoint = &state.endpoints[&ENDPOINT];
    assert!(!endpoint.overridden, "from now on due times count");
    assert_eq!(endpoint.next_due(), Some(now.plus(Duration::from_secs(10))));
}
