use super::*;
use crate::api::resolve::{Fifo, FifoKey};

const KEYS: [&str; 4] = ["a", "b", "c", "d"];

/// An endpoint that orders its messages; `edit` as for others.
async fn fifo(world: &World, blocks: bool, edit: impl FnOnce(&mut ResolvedEndpoint)) -> EndpointId {
    fifo_named(world, "crm", blocks, edit).await
}

async fn fifo_named(world: &World, name: &str, blocks: bool, edit: impl FnOnce(&mut ResolvedEndpoint)) -> EndpointId {
    let key = ResourceKey {
        namespace_uid: "uid".into(),
        name: name.into(),
    };
    let id = world.queue.intern_endpoints(vec![key]).await.unwrap()[0];
    let fifo = Fifo {
        key: FifoKey::Usual,
        blocks,
    };
    world.registry.order(id).store(Some(Arc::new(fifo)));
    let id = world.endpoint_with(name, edit).await;
    world
        .until("the endpoint is loaded", |world| {
            let state = world.engine.as_ref().unwrap().core.lock();
            state
                .endpoints
                .get(&id)
                .is_some_and(|endpoint| endpoint.entry.is_some())
        })
        .await;
    id
}

fn in_turn(count: usize) -> Vec<Option<&'static str>> {
    (0..count).map(|n| Some(KEYS[n % KEYS.len()])).collect()
}

/// Whether no message was sent before the one accepted before it with the same key was sent for the last time.
fn in_order(seen: &[(String, MessageId)], sent: &[MessageId]) -> bool {
    (0..KEYS.len()).all(|key| {
        let of_key: Vec<_> = sent.iter().skip(key).step_by(KEYS.len()).collect();
        let requests = seen.iter().filter(|(_, message)| of_key.contains(&message));
        requests.is_sorted_by_key(|(_, message)| *message)
    })
}

#[tokio::test]
async fn a_message_that_fails_is_not_overtaken_by_those_of_its_key_and_holds_up_no_other_key() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = fifo(&world, true, |_| {}).await;
    world
        .script
        .set("crm", &[Act::Answer(400), Act::Answer(400), Act::Answer(200)]);
    let sent = world.send_each(id, in_turn(40)).await;
    // Two keys wait for a second attempt, the others are done.
    world.until_counts(id, 20, 0).await;
    let waits = |view: &EndpointView| (view.pending, view.held, view.blocked_keys) == (20, 18, 0);
    world.until_view(id, "what is held", waits).await;
    world.pass(1).await;
    world.until_counts(id, 0, 0).await;
    let seen = world.script.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 42);
    assert!(in_order(&seen, &sent), "{seen:?}");
    world.until_view(id, "nothing is held", |view| view.held == 0).await;
}

#[tokio::test]
async fn an_order_outlives_a_process_that_dies_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path()).await;
    let mut sent = Vec::new();
    for drain in [true, false] {
        let id = fifo(&world, true, |_| {}).await;
        world.script.set(
            "crm",
            &[Act::Answer(200), Act::Answer(400), Act::Answer(200), Act::Hang],
        );
        sent.extend(world.send_each(id, in_turn(40)).await);
        world
            .until("some hang", |world| {
                let under_way = world.script.under_way.lock().unwrap();
                under_way.get("crm").is_some_and(|(now, _)| *now > 0)
            })
            .await;
        world = world.restart(dir.path(), drain).await;
        world.script.set("crm", &[Act::Answer(200)]);
    }
    let id = fifo(&world, true, |_| {}).await;
    world.pass(1).await;
    world.until_counts(id, 0, 0).await;
    let seen = world.script.seen.lock().unwrap().clone();
    assert!(in_order(&seen, &sent), "{seen:?}");
}

#[tokio::test]
async fn a_dead_letter_blocks_its_key_until_the_spec_says_to_skip() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let never = |endpoint: &mut ResolvedEndpoint| endpoint.retry.never_retry = vec![422];
    let id = fifo(&world, true, never).await;
    world.script.set("crm", &[Act::Answer(422), Act::Answer(200)]);
    let sent = world.send_each(id, in_turn(12)).await;
    world.until_counts(id, 2, 1).await;
    let blocked = |view: &EndpointView| (view.held, view.blocked_keys) == (2, 1);
    world.until_view(id, "a blocked key", blocked).await;
    world.pass(3_600).await;
    assert_eq!(world.counts(id).await, (2, 1), "it waits");

    fifo(&world, false, |endpoint| {
        never(endpoint);
        endpoint.generation = 2;
    })
    .await;
    world.until_counts(id, 0, 1).await;
    world
        .until_view(id, "no blocked key", |view| view.blocked_keys == 0)
        .await;
    world.script.set("crm", &[Act::Answer(422), Act::Answer(200)]);
    world.send_each(id, in_turn(12)).await;
    world.until_counts(id, 0, 2).await;
    let seen = world.script.seen.lock().unwrap().clone();
    assert!(in_order(&seen, &sent), "{seen:?}");
}

#[tokio::test]
async fn an_order_counts_from_when_messages_are_accepted_with_it_not_from_when_all_else_of_the_spec_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    // The entry stays as it is: a new Secret of the endpoint is not read yet.
    let fifo = Fifo {
        key: FifoKey::Usual,
        blocks: true,
    };
    world.registry.order(id).store(Some(Arc::new(fifo)));
    world.script.set("crm", &[Act::Answer(400), Act::Answer(200)]);
    world.send_each(id, vec![Some("a"); 5]).await;
    world
        .until_view(id, "all but one are held", |view| (view.pending, view.held) == (5, 4))
        .await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    core.recount().await;
    assert_eq!(crate::engine::order::release(&core).await, 0);
    world.settled().await;
    assert_eq!(world.script.count("crm"), 1, "nothing overtakes the one that failed");
    world.pass(1).await;
    world.until_counts(id, 0, 0).await;
}

#[tokio::test]
async fn messages_that_are_held_when_the_order_is_given_up_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = fifo(&world, true, |endpoint| endpoint.max_in_flight = 1).await;
    world.script.set("crm", &[Act::Answer(400)]);
    world.send_each(id, vec![Some("a"); 10]).await;
    let held = world.until_view(id, "what is held", |view| view.held == 9);
    held.await;
    world.settled().await;
    assert_eq!(world.script.count("crm"), 1);

    world.registry.order(id).store(None);
    world.script.set("crm", &[Act::Answer(200)]);
    world.endpoint_with("crm", |endpoint| endpoint.generation = 2).await;
    world.until_counts(id, 0, 0).await;
    // Accepted with the order that was given up just now.
    world.script.set("crm", &[Act::Answer(400), Act::Answer(200)]);
    world.send_each(id, vec![Some("a"); 10]).await;
    world.until_counts(id, 1, 0).await;
    world.pass(1).await;
    world.until_counts(id, 0, 0).await;
}

/// So many that they are let go in many steps.
const MANY: usize = 30_000;

#[tokio::test]
async fn many_messages_that_an_endpoint_lets_go_hold_up_no_other_one() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let large = fifo_named(&world, "large", true, |_| {}).await;
    let small = fifo_named(&world, "small", true, |_| {}).await;
    assert!(large < small, "whoever goes by ids comes to the large one first");
    for name in ["large", "small"] {
        world.script.set(name, &[Act::Answer(400)]);
    }
    for _ in 0..3 {
        world.send_each(large, vec![Some("a"); MANY / 3]).await;
    }
    world.send_each(small, vec![Some("a"); 20]).await;
    let held = |view: &EndpointView| view.held as usize == MANY - 1;
    world.until_view(large, "what is held", held).await;
    world.until_view(small, "what is held", |view| view.held == 19).await;
    world.settled().await;

    world.script.set("large", &[Act::Hang]);
    world.script.set("small", &[Act::Answer(200)]);
    for (id, name) in [(large, "large"), (small, "small")] {
        world.registry.order(id).store(None);
        world.endpoint_with(name, |endpoint| endpoint.generation = 2).await;
    }
    world.until_counts(small, 0, 0).await;
    let backlog = world.queue.backlog(world.fence).await.unwrap();
    let held = backlog.iter().find(|pair| pair.endpoint == large).map(|pair| pair.held);
    assert!(
        held > Some(0),
        "the small one's were all sent before the large one's were let go"
    );
    let none = |view: &EndpointView| view.held == 0;
    world.until_view(large, "all were let go", none).await;
    world.script.set("large", &[Act::Answer(200)]);
    world
        .until("some of them are sent", |world| world.script.count("large") > 100)
        .await;
}

#[tokio::test]
async fn what_is_held_for_too_long_is_given_up_and_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let never = |endpoint: &mut ResolvedEndpoint| endpoint.retry.never_retry = vec![422];
    let id = fifo(&world, true, never).await;
    world.script.set("crm", &[Act::Answer(422), Act::Answer(200)]);
    world.send_each(id, vec![Some("a"); 5]).await;
    world.until_counts(id, 4, 1).await;
    world.pass(73 * 3_600).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    core.recount().await;
    world.until_counts(id, 0, 5).await;
    core.recount().await;
    let view = world
        .until_view(id, "all of them", |view| view.dead_lettered == 5)
        .await;
    assert_eq!((view.held, view.blocked_keys), (0, 1), "only the first was next");
    assert_eq!(world.script.count("crm"), 1);
}
