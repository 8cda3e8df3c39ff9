//! Many subscriptions of one endpoint: who is due first, and who is forgotten.

use proptest::prelude::*;

use super::*;
use crate::engine::subscriptions::{Subscription, Subscriptions};
use crate::queue::Backlog;
use crate::registry::Material;
use crate::report::board::Board;

/// As few as meet often, at as few times.
const FEW: u32 = 8;

#[derive(Clone, Copy, Debug)]
enum Step {
    NoteDue(i64, bool),
    PageBegins,
    PageEnds,
    Add(i64, i64),
    Pend(i64),
    Load {
        suspend: bool,
        deleted: bool,
        lacks_secret: bool,
        elsewhere: bool,
    },
    Gone,
    LetPastGo,
}

fn step() -> impl Strategy<Value = (SubscriptionId, Step)> {
    let load = any::<[bool; 4]>().prop_map(|[suspend, deleted, lacks_secret, elsewhere]| Step::Load {
        suspend,
        deleted,
        lacks_secret,
        elsewhere,
    });
    let step = prop_oneof![
        4 => (0..6_i64, any::<bool>()).prop_map(|(due, paging)| Step::NoteDue(due, paging)),
        1 => Just(Step::PageBegins),
        2 => Just(Step::PageEnds),
        1 => (-2..3_i64, -2..3_i64).prop_map(|(held, blocking)| Step::Add(held, blocking)),
        1 => (0..2_i64).prop_map(Step::Pend),
        3 => load,
        1 => Just(Step::Gone),
        1 => Just(Step::LetPastGo),
    ];
    ((0..FEW).prop_map(SubscriptionId), step)
}

fn play(all: &mut Subscriptions, registry: &Registry, id: SubscriptionId, step: Step) {
    all.get_or_make(id, || Subscription::new(ENDPOINT, None));
    match step {
        Step::NoteDue(due, paging) => all.note_due(id, UnixMillis(due), paging),
        Step::PageBegins => all.page_begins(id),
        Step::PageEnds => all.page_ends(id),
        Step::Add(held, blocking) => all.add_ordered(id, held, blocking),
        Step::Pend(pending) => all.get_mut(&id).unwrap().pending = pending,
        Step::Load {
            suspend,
            deleted,
            lacks_secret,
            elsewhere,
        } => {
            let endpoint = EndpointId(ENDPOINT.0 + u32::from(elsewhere));
            let mut entry = subscription_entry(registry, id, endpoint, resource_key("crm"));
            Arc::make_mut(&mut entry.spec).suspend = suspend;
            entry.deleted = deleted.then_some(UnixMillis(1));
            if lacks_secret {
                entry.material = Material::Missing("SecretNotFound");
            }
            all.load(id, &Arc::new(entry));
        }
        Step::Gone => all.set_gone(id),
        Step::LetPastGo => drop(all.let_past_go()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_and_the_sums_are_what_a_walk_over_all_finds(
        steps in prop::collection::vec(step(), 1..80),
        until in (0..6_i64).prop_map(UnixMillis),
    ) {
        let (registry, _changes) = Registry::new(8);
        let mut all = Subscriptions::default();
        for (id, step) in steps {
            play(&mut all, &registry, id, step);
            let sending = all.iter().filter(|(_, known)| known.sends());
            let mut walked: Vec<_> = sending.filter_map(|(id, known)| Some((known.next_due()?, *id))).collect();
            walked.sort_unstable();
            prop_assert_eq!(all.next_due(), walked.first().map(|(due, _)| *due));
            let due = walked.iter().filter(|(due, _)| *due <= until).map(|(_, id)| *id);
            prop_assert_eq!(all.due(until).collect::<Vec<_>>(), due.collect::<Vec<_>>());
            let sum = |of: fn(&Subscription) -> i64| all.values().map(|known| of(known).max(0)).sum::<i64>();
            prop_assert_eq!(all.ordered(), (sum(Subscription::held), sum(Subscription::blocking)));
        }
    }
}

fn state() -> (State, UnixMillis) {
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    let now = UnixMillis::now();
    let usable = EndpointState::Usable(Arc::new(resolved("crm")));
    load_endpoint(&mut state, ENDPOINT, "crm", usable, now);
    (state, now)
}

/// What a count of the store finds, with the passing of time that follows it.
fn counted(state: &mut State, backlogs: &[Backlog], now: UnixMillis) {
    state.counted(ENDPOINT, backlogs, now);
    state.post_all(&Board::default(), now);
    state.reclaim(ENDPOINT, now, BURY_AFTER);
}

fn backlog(id: SubscriptionId, pending: u64, dead: u64) -> Backlog {
    Backlog {
        endpoint: ENDPOINT,
        subscription: id,
        pending,
        dead,
        held: 0,
        blocking: 0,
        min_due: None,
        oldest: None,
    }
}

#[tokio::test]
async fn a_deleted_subscription_is_forgotten_when_nothing_of_it_is_left_and_made_anew_when_it_comes_back() {
    let (mut state, now) = state();
    let entry = |state: &State, deleted| {
        let mut entry = subscription_entry(&state.registry, SUBSCRIPTION, ENDPOINT, resource_key("leads"));
        entry.deleted = deleted;
        Arc::new(entry)
    };
    let is_known = |state: &State| {
        let known = state.endpoints[&ENDPOINT].subscriptions.get(&SUBSCRIPTION).is_some();
        assert_eq!(known, state.homes.contains_key(&SUBSCRIPTION));
        known
    };
    let lives = entry(&state, None);
    state.subscription_changed(lives, now);
    counted(&mut state, &[], now);
    assert!(is_known(&state), "it may get messages");

    let deleted = entry(&state, Some(now));
    state.registry.put_subscription(Arc::clone(&deleted)).await;
    state.subscription_changed(deleted, now);
    for (pending, dead) in [(1, 0), (0, 1)] {
        counted(&mut state, &[backlog(SUBSCRIPTION, pending, dead)], now);
        assert!(is_known(&state), "{pending} pending, {dead} dead letters");
    }
    state.counted(ENDPOINT, &[], now);
    state.reclaim(ENDPOINT, now, BURY_AFTER);
    assert!(is_known(&state), "that nothing is left of it was not shown");
    counted(&mut state, &[], now);
    assert!(!is_known(&state));
    assert!(state.registry.subscription(SUBSCRIPTION).is_none());

    let back = entry(&state, None);
    state.subscription_changed(back, now);
    note_due(&mut state, SUBSCRIPTION, now);
    assert_eq!(state.endpoints[&ENDPOINT].next_due(), Some(now));
}

#[tokio::test]
async fn what_came_back_before_the_engine_heard_of_it_stays_in_the_registry() {
    let (mut state, now) = state();
    let mut entry = subscription_entry(&state.registry, SUBSCRIPTION, ENDPOINT, resource_key("leads"));
    let back = Arc::new(entry.clone());
    entry.deleted = Some(now);
    state.subscription_changed(Arc::new(entry), now);
    state.registry.put_subscription(Arc::clone(&back)).await;
    counted(&mut state, &[], now);
    assert!(state.homes.is_empty());
    let known = state.registry.subscription(SUBSCRIPTION);
    assert!(known.is_some_and(|known| Arc::ptr_eq(&known, &back)));
}

#[test]
fn of_a_subscription_that_was_deleted_while_no_dispatcher_ran_nothing_stays_either() {
    let (mut state, now) = state();
    state.counted(ENDPOINT, &[backlog(SUBSCRIPTION, 1, 0)], now);
    state.subscription_gone(SUBSCRIPTION, now);
    counted(&mut state, &[backlog(SUBSCRIPTION, 0, 1)], now);
    assert!(state.homes.contains_key(&SUBSCRIPTION));
    counted(&mut state, &[], now);
    assert!(state.homes.is_empty() && state.endpoints[&ENDPOINT].subscriptions.keys().next().is_none());
}
