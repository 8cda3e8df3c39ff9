//! Events with more messages than one transaction makes.

use super::*;

const EVENTS: u64 = 3;
const MESSAGES: u64 = 16_000;
const ALL: u64 = EVENTS * MESSAGES;
/// Messages of a wide event that are made in one commit.
const CHUNK: u64 = crate::queue::ROUTE_AT_ONCE as u64;

fn wide_event(number: u64, placement: Placement) -> NewEvent {
    let targets = (0..MESSAGES as u32).map(|n| target(1, n, placement));
    new_event(&number.to_string(), targets.collect())
}

fn wide(placement: Placement) -> Vec<NewEvent> {
    (0..EVENTS).map(|number| wide_event(number, placement)).collect()
}

fn limited(limit: u64) -> Options {
    Options {
        store_limit: Some(limit),
        ..options()
    }
}

async fn made(queue: &SqliteQueue) -> u64 {
    queue.usage().await.expect("usage").pending
}

async fn until_made(queue: &SqliteQueue, at_least: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while made(queue).await < at_least {
        assert!(Instant::now() < deadline, "{} of {at_least}", made(queue).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each has a commit of its own.
async fn commits(queue: &SqliteQueue) {
    for _ in 0..20 {
        queue.claim().await.expect("claim");
    }
}

#[tokio::test]
async fn an_engine_that_falls_behind_is_not_buried_in_further_messages_of_wide_events() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let mut arrivals = queue.arrivals().expect("arrivals");
    queue.accept(wide(Placement::Waiting)).await.expect("accept");
    until_made(&queue, 32_000).await;
    commits(&queue).await;
    let waiting = made(&queue).await;
    assert!(waiting < 32_000 + 4 * CHUNK, "{waiting}");

    let mut seen = 0;
    while seen < ALL {
        seen += arrivals.recv().await.expect("arrivals").len() as u64;
    }
    assert_eq!((seen, made(&queue).await), (ALL, ALL));
}

#[tokio::test]
async fn a_full_store_makes_no_further_messages_until_there_is_room() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    queue.accept(wide(Placement::Waiting)).await.expect("accept");
    queue.close().await;
    drop(queue);

    let queue = open(dir.path(), limited(1));
    let before = made(&queue).await;
    commits(&queue).await;
    assert_eq!(made(&queue).await, before);
    queue.close().await;
    drop(queue);

    let queue = open(dir.path(), options());
    until_made(&queue, ALL).await;
    assert!(before < ALL);
}

#[tokio::test]
async fn a_place_in_memory_that_a_process_lent_is_none_of_the_next_ones() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    queue.accept(wide(Placement::Fresh)).await.expect("accept");
    queue.close().await;
    drop(queue);
    let fresh = async |queue: &SqliteQueue| {
        let fence = queue.claim().await.expect("claim");
        let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
        fresh.len() as u64
    };
    let queue = open(dir.path(), limited(1));
    let before = made(&queue).await;
    assert_eq!(fresh(&queue).await, before);
    queue.close().await;
    drop(queue);

    let queue = open(dir.path(), options());
    queue
        .accept(vec![wide_event(EVENTS, Placement::Fresh)])
        .await
        .expect("accept");
    until_made(&queue, ALL + MESSAGES).await;
    assert_eq!(fresh(&queue).await, before + MESSAGES, "its own alone");
}
