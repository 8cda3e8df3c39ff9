//! An outage as it is promised: an hour, 10,000 messages, and the default schedule.

use std::collections::BTreeSet;

use super::*;
use crate::queue::Window;

const MESSAGES: usize = 10_000;
/// Of them, those that wait when it begins: many times a window.
const BEFORE: usize = 4_000;
const MINUTES: usize = 60;

/// The receiver hangs, is down like this for an hour, and is well again.
async fn an_hour_of(down: Act) {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world
        .endpoint_with("crm", |endpoint| endpoint.retry = RetryPolicy::default())
        .await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Hang]);
    let mut sent: BTreeSet<MessageId> = world.send(id, BEFORE).await.into_iter().collect();
    world
        .until("some are under way", |world| world.script.count("crm") > 0)
        .await;
    world.script.set("crm", &[down]);
    world.until_delivering(id, Delivering::CircuitOpen).await;
    for _ in 0..MINUTES {
        sent.extend(world.send(id, (MESSAGES - BEFORE) / MINUTES).await);
        world.pass(60).await;
    }
    assert_eq!(sent.len(), MESSAGES);
    assert_eq!(world.counts(id).await, (MESSAGES as u64, 0), "all of them wait");
    let opened = BreakerPolicy::default().open_after;
    let requests = world.script.count("crm");
    assert!(
        requests < opened as usize + 20,
        "{requests} requests: the breaker's and some probes"
    );
    let everything = Window {
        endpoint: id,
        subscription: SubscriptionId(id.0),
        after: None,
        until: UnixMillis(i64::MAX),
        limit: usize::MAX,
    };
    let waiting = world.queue.window(world.fence, everything).await.unwrap();
    let spent: Vec<u16> = waiting
        .iter()
        .map(|one| one.attempts)
        .filter(|spent| *spent > 0)
        .collect();
    assert_eq!(waiting.len(), MESSAGES);
    assert_eq!(
        spent,
        vec![1; opened as usize],
        "only the failures that opened the breaker are attempts"
    );

    world.script.forget();
    world.script.set("crm", &[Act::Answer(200)]);
    // The longest that a probe waits.
    world.clock.advance(BreakerPolicy::default().probe_after_max);
    world.until_counts(id, 0, 0).await;
    let seen = world.script.seen.lock().unwrap().clone();
    let delivered: BTreeSet<MessageId> = seen.iter().map(|(_, message)| *message).collect();
    assert_eq!((seen.len(), delivered == sent), (MESSAGES, true), "each once");
}

#[tokio::test]
async fn a_receiver_that_refuses_connections_for_an_hour_loses_no_message_and_spends_no_attempt_of_any() {
    an_hour_of(Act::Refuse).await;
}

#[tokio::test]
async fn a_receiver_that_is_not_available_for_an_hour_loses_no_message_and_spends_no_attempt_of_any() {
    an_hour_of(Act::Answer(503)).await;
}
