use super::*;

#[tokio::test]
async fn an_endpoint_says_itself_how_old_a_message_may_grow() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let mut ids = Vec::new();
    for (name, hours) in [("short", 1), ("long", 168)] {
        let suspended = |endpoint: &mut ResolvedEndpoint| {
            endpoint.suspend = true;
            endpoint.retry.max_age = Duration::from_secs(hours * 3_600);
        };
        let id = world.endpoint_with(name, suspended).await;
        world.until_delivering(id, Delivering::Suspended).await;
        world.send(id, 5).await;
        ids.push(id);
    }
    world.pass(100 * 3_600).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    core.recount().await;
    world.until_counts(ids[0], 0, 5).await;
    world.until_counts(ids[1], 5, 0).await;
}

#[tokio::test]
async fn a_subscriptions_own_retry_replaces_its_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    let own = |max_age| RetryPolicy {
        schedule: vec![],
        max_age: Duration::from_secs(max_age),
        ..RetryPolicy::default()
    };
    let key = ResourceKey {
        namespace_uid: "uid".into(),
        name: "crm".into(),
    };
    let with = |max_age, suspend| {
        move |spec: &mut ResolvedSubscription| (spec.retry, spec.suspend) = (Some(own(max_age)), suspend)
    };
    world.subscribe_with(id, key.clone(), with(7 * 86_400, false)).await;
    world.script.set("crm", &[Act::Answer(400)]);
    world.send(id, 3).await;
    world.until_counts(id, 0, 3).await;
    assert_eq!(world.script.count("crm"), 3, "one attempt each");

    world.subscribe_with(id, key.clone(), with(7 * 86_400, true)).await;
    world.send(id, 3).await;
    world.pass(4 * 86_400).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    core.recount().await;
    world.settled().await;
    assert_eq!(world.counts(id).await, (3, 3), "older than the endpoint allows");
    world.subscribe_with(id, key, with(3_600, true)).await;
    world
        .until("the shorter age is known", |world| {
            let state = world.engine.as_ref().unwrap().core.lock();
            let age = state.endpoints[&id].max_age(SubscriptionId(id.0), true);
            age == Some(Duration::from_secs(3_600))
        })
        .await;
    core.recount().await;
    world.until_counts(id, 0, 6).await;
}

#[tokio::test]
async fn a_rate_limit_spreads_requests_and_a_restart_begins_with_an_empty_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let limited = |endpoint: &mut ResolvedEndpoint| {
        endpoint.rate = Some(Rate {
            requests: 10,
            per: Duration::from_secs(100),
        });
    };
    let id = world.endpoint_with("crm", limited).await;
    let free = world.endpoint("free").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 50).await;
    world.send(free, 50).await;
    world.until_counts(id, 40, 0).await;
    world.until_counts(free, 0, 0).await;
    for turn in 1..=3 {
        world.clock.advance(Duration::from_secs(10));
        world.until_counts(id, 40 - turn, 0).await;
    }
    assert_eq!(world.script.count("crm"), 13, "ten at once, then one in ten seconds");
    world.kept().await;

    let world = world.restart(dir.path(), true).await;
    world.endpoint_with("crm", limited).await;
    world.until_delivering(id, Delivering::Succeeding).await;
    world.clock.advance(Duration::from_secs(9));
    tokio::time::sleep(TICK).await;
    assert_eq!(world.script.count("crm"), 13);
    world.clock.advance(Duration::from_secs(1));
    world.until_counts(id, 36, 0).await;
    world.clock.advance(Duration::from_secs(1_000));
    world.until_counts(id, 26, 0).await;
    assert_eq!(world.script.count("crm"), 24, "what was not used is not saved up");
}

#[tokio::test]
async fn messages_that_wait_for_their_turn_expire_together() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let limited = |endpoint: &mut ResolvedEndpoint| {
        endpoint.rate = Some(Rate {
            requests: 1,
            per: Duration::from_secs(3_600),
        });
        endpoint.retry.max_age = Duration::from_secs(1_800);
    };
    let id = world.endpoint_with("crm", limited).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 3).await;
    world.until_counts(id, 2, 0).await;
    world.clock.advance(Duration::from_secs(3_600));
    world.until_counts(id, 0, 2).await;
    assert_eq!(world.script.count("crm"), 1);
}

#[tokio::test]
async fn as_many_are_under_way_as_the_endpoint_allows() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint_with("crm", |endpoint| endpoint.max_in_flight = 1).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 200).await;
    world.until_counts(id, 0, 0).await;
    assert_eq!((world.script.count("crm"), world.script.most_at_once("crm")), (200, 1));
}

#[tokio::test]
async fn what_a_receiver_refuses_for_good_is_a_dead_letter_after_one_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let never = |endpoint: &mut ResolvedEndpoint| endpoint.retry.never_retry = vec![422];
    let id = world.endpoint_with("crm", never).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(422)]);
    world.send(id, 20).await;
    world.until_counts(id, 0, 20).await;
    assert_eq!(world.script.count("crm"), 20);
    let view = world
        .until_view(id, "dead letters", |view| view.dead_lettered == 20)
        .await;
    assert_eq!(view.delivering, Delivering::Backoff, "the breaker does not count them");
}

#[tokio::test]
async fn a_probe_that_closes_the_breaker_with_a_failure_of_its_own_waits_for_its_backoff() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world
        .endpoint_with("crm", |endpoint| endpoint.breaker.open_after = 1)
        .await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(503)]);
    world.send(id, 1).await;
    world.until_delivering(id, Delivering::CircuitOpen).await;
    world.script.set("crm", &[Act::Answer(400)]);
    world.pass(30).await;
    world.until_delivering(id, Delivering::Backoff).await;
    world.settled().await;
    assert_eq!(world.script.count("crm"), 2, "the attempt and the probe");
    world.pass(9).await;
    assert_eq!(world.script.count("crm"), 2, "the second wait is ten seconds");
    world.pass(1).await;
    assert_eq!(world.script.count("crm"), 3);
}

#[tokio::test]
async fn an_endpoint_that_fails_for_as_long_as_it_says_is_disabled_and_keeps_its_messages() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let mut ids = Vec::new();
    for (name, hours) in [("two-hours", Some(2)), ("never", None)] {
        let after = |endpoint: &mut ResolvedEndpoint| {
            endpoint.disable_after = hours.map(|hours| Duration::from_secs(hours * 3_600));
        };
        let id = world.endpoint_with(name, after).await;
        world.until_delivering(id, Delivering::NoAttempts).await;
        world.script.set(name, &[Act::Answer(503)]);
        world.send(id, 3).await;
        ids.push(id);
    }
    // A probe every ten minutes, each of which fails.
    for _ in 0..11 {
        world.pass(600).await;
    }
    for id in &ids {
        world.until_delivering(*id, Delivering::CircuitOpen).await;
    }
    world.pass(600).await;
    let view = world.until_delivering(ids[0], Delivering::Disabled).await;
    assert!(view.message.contains("disableAfter"), "{}", view.message);
    let [tried, never] = ["two-hours", "never"].map(|name| world.script.count(name));
    world.script.set("two-hours", &[Act::Answer(200)]);
    world.pass(1_200).await;
    world.until_counts(ids[0], 3, 0).await;
    assert_eq!(world.script.count("two-hours"), tried, "nobody has enabled it");
    world.until_delivering(ids[1], Delivering::CircuitOpen).await;
    assert!(world.script.count("never") > never, "it is tried for ever");
}

#[tokio::test]
async fn each_step_over_many_endpoints_has_a_time_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    let ids: Vec<EndpointId> = (1_000..1_003).flat_map(|id| [EndpointId(id); AT_ONCE]).collect();
    let mut times = Vec::new();
    let walk = core.each(&ids, |_, id, now| times.push((id, now)));
    let time_passes = async {
        loop {
            world.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = walk => {}
        () = time_passes => unreachable!(),
    }
    times.dedup();
    assert_eq!(times.len(), 3, "those of a step have one time");
    assert!(
        times.is_sorted_by(|(_, before), (_, after)| before < after),
        "{times:?}"
    );
}

#[tokio::test]
async fn a_reason_that_was_posted_is_not_urgent_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    let (board, now) = (Board::default(), world.clock.now());
    let mut state = core.lock();
    let mut posted_at = |turned: bool, seconds| {
        if turned {
            state.endpoints.get_mut(&id).unwrap().posted = None;
        }
        state.post_urgent(&board, id, now.plus(Duration::from_secs(seconds)));
        state.endpoints[&id].posted.unwrap().1.0 - now.0
    };
    assert!(posted_at(false, 1) <= 0, "nothing has turned");
    assert_eq!(posted_at(true, 2), 2_000);
    assert_eq!(posted_at(false, 3), 2_000, "a second time for the same");
}
