//! Namespaces that go, with what was kept of them.

use super::*;
use crate::matching::Index;
use crate::registry::NamespaceView;

fn view(uid: &str) -> NamespaceView {
    NamespaceView {
        uid: uid.into(),
        subscriptions: Arc::new(Index::new([])),
        pulled: Arc::default(),
        types: Arc::default(),
        rules: Arc::default(),
    }
}

#[tokio::test]
async fn what_is_kept_of_a_namespace_goes_when_it_is_gone_and_what_was_pending_was_buried() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Clock::manual(UnixMillis::now().plus(Duration::from_secs(60))));
    let world = World::open_as(dir.path(), Arc::default(), clock, Options::default(), |config| {
        config.sees_all = true;
    })
    .await;
    let id = world.endpoint("crm").await;
    let existing = ["uid", "other"].map(|uid| (uid.to_owned(), Some(view(uid))));
    world.registry.put_namespaces(existing);
    world.registry.set_synced().await;
    let delivered = world.send(id, 1).await[0];
    world.until_delivering(id, Delivering::Succeeding).await;
    world.kept().await;

    let suspended = EndpointState::Unusable {
        reason: "SecretNotFound",
        message: String::new(),
        generation: 1,
        suspend: false,
        max_age: Duration::from_secs(72 * 3600),
    };
    world.put_endpoint(id, resource_key("crm"), suspended).await;
    world.send(id, 1).await;
    world.until_counts(id, 1, 0).await;
    let at = world.clock.now();
    world
        .put_endpoint(id, resource_key("crm"), EndpointState::Deleted { at })
        .await;
    // It is not all that is looked for: the namespace is still there.
    for _ in 0..3 {
        world.pass(BURY_AFTER.as_secs()).await;
    }
    world.until_counts(id, 0, 1).await;
    let kept = |world: &World| {
        let queue = world.queue.clone();
        async move { queue.event(delivered.event()).await.unwrap().is_some() }
    };
    assert!(kept(&world).await);

    world.registry.put_namespaces([("uid".to_owned(), None)]);
    let deadline = Instant::now() + PATIENCE;
    while world.counts(id).await != (0, 0) || kept(&world).await {
        assert!(Instant::now() < deadline, "it is still kept");
        world.pass(BURY_AFTER.as_secs()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(world.queue.namespaces(world.fence).await.unwrap().is_empty());
    while !world.queue.endpoint_states(world.fence).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "its state is still kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
