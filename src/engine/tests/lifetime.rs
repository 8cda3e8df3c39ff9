//! An engine's beginning, and an end that nobody asked for.

use super::*;

/// Endpoints that change while an engine starts.
const CHANGING: u32 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_changes_while_the_engine_starts_is_known_to_it_as_it_is_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = SqliteQueue::open(dir.path(), Options::default()).unwrap();
    let queue = Arc::new(queue);
    let fence = queue.claim().await.unwrap();
    let (registry, changes) = Registry::new(1_024);
    let registry = Arc::new(registry);
    let put = |registry: Arc<Registry>, id: u32, generation: i64| async move {
        let mut resolved = resolved(&id.to_string());
        resolved.generation = generation;
        let entry = EndpointEntry {
            id: EndpointId(id),
            key: ResourceKey {
                namespace_uid: "uid".into(),
                name: id.to_string(),
            },
            namespace: "team".into(),
            gauge: registry.gauge(EndpointId(id)),
            state: EndpointState::Usable(Arc::new(resolved)),
        };
        registry.put_endpoint(entry).await;
    };
    for id in 0..CHANGING {
        put(registry.clone(), id, 1).await;
    }
    let started = CancellationToken::new();
    let watch = tokio::spawn({
        let (registry, started) = (registry.clone(), started.clone());
        async move {
            let mut generation = 1;
            while !started.is_cancelled() {
                generation += 1;
                // The last first: whoever walks over all of them meets some on the way.
                for id in (0..CHANGING).rev() {
                    put(registry.clone(), id, generation).await;
                }
            }
        }
    });
    let engine = Engine::start(config(queue, fence, registry.clone(), changes))
        .await
        .unwrap();
    started.cancel();
    watch.await.unwrap();

    let deadline = Instant::now() + PATIENCE;
    let is_older = |id: &u32| {
        let known = engine.core.lock().endpoints.get(&EndpointId(*id))?.entry.clone();
        let newest = registry.endpoint(EndpointId(*id));
        Some(!Arc::ptr_eq(&known?, &newest?))
    };
    while let Some(id) = (0..CHANGING).find(|id| is_older(id) != Some(false)) {
        assert!(
            Instant::now() < deadline,
            "what is known of endpoint {id} stays older than the registry"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_engine_of_which_a_task_panics_says_that_it_cannot_go_on_and_records_what_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Hang]);
    world.send(id, 1).await;
    world
        .until("it is under way", |world| world.script.count("crm") == 1)
        .await;
    let engine = world.engine.take().unwrap();
    assert!(futures::poll!(std::pin::pin!(engine.lost())).is_pending());
    engine
        .core
        .keep_up(&engine.tasks, async { panic!("as a defect would") });
    let why = tokio::time::timeout(PATIENCE, engine.lost()).await.unwrap();
    assert_eq!(why, "a task of the engine ended by itself");

    world.script.set("crm", &[Act::Answer(200)]);
    assert!(engine.drain(PATIENCE).await);
    world.until_counts(id, 0, 0).await;
}

#[tokio::test]
async fn an_engine_whose_store_hands_nothing_on_any_more_cannot_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.queue.close().await;
    let lost = world.engine.as_ref().unwrap().lost();
    tokio::time::timeout(PATIENCE, lost).await.unwrap();
}
