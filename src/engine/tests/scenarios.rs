use super::*;
use crate::schedule::decide::accepted_at;

#[tokio::test]
async fn what_is_stored_is_delivered_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    for _ in 0..20 {
        world.send(id, 50).await;
    }
    world.until_counts(id, 0, 0).await;
    assert_eq!(world.script.count("crm"), 1_000, "each once");
    let view = world.until_delivering(id, Delivering::Succeeding).await;
    assert_eq!(view.last_status, Some(200));
    assert_eq!(view.signing.map(|(key, _)| key).as_deref(), Some("k1"));
    let view = world.until_view(id, "nothing pending", |view| view.pending == 0).await;
    assert_eq!(view.oldest_pending, None);
    assert_eq!(world.registry.gauge(id).pending(), 0);
}

#[tokio::test]
async fn more_than_the_window_holds_comes_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Hang]);
    for _ in 0..4 {
        world.send(id, 500).await;
    }
    world.until_counts(id, 2_000, 0).await;
    assert!(world.script.most_at_once("crm") <= 2);
    world.script.set("crm", &[Act::Answer(200)]);
    world.until_counts(id, 0, 0).await;
    assert_eq!(world.script.count("crm"), 2_000, "each once");
    assert!(world.script.most_at_once("crm") > 2, "the limit grows");
}

#[tokio::test]
async fn one_message_answered_500_five_times_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(500)]);
    world.send(id, 1).await;
    for (made, wait) in [(1, 1), (2, 10), (3, 60), (4, 300)] {
        world
            .until("the attempt was made", |w| w.script.count("crm") == made)
            .await;
        let first = world.until_delivering(id, Delivering::Backoff).await;
        assert!(
            first.retry.is_some(),
            "the transition itself says when it is tried again"
        );
        world.settled().await;
        let view = world
            .until_view(id, "a retry", |view| {
                view.consecutive_failures == made as u32 && view.retry.is_some()
            })
            .await;
        assert_eq!(view.delivering, Delivering::Backoff);
        assert_eq!(view.retry.unwrap().0 as usize, made + 1);
        assert_eq!(view.next_try, view.retry.map(|(_, at)| at));
        world.pass(wait - 1).await;
        assert_eq!(world.script.count("crm"), made, "not before its time");
        world.pass(1).await;
    }
    world.until_counts(id, 0, 1).await;
    assert_eq!(world.script.count("crm"), 5);
    let view = world
        .until_view(id, "a dead letter", |view| view.dead_lettered == 1)
        .await;
    assert_eq!(view.delivering, Delivering::CircuitOpen);
    assert_eq!(view.recent_failures.len(), 5);
}

#[tokio::test]
async fn a_receiver_that_refuses_spends_no_message() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Refuse]);
    world.send(id, 1).await;
    world
        .until("the first attempt was made", |w| w.script.count("crm") == 1)
        .await;
    for wait in [1, 10, 60, 300, 30, 60, 120, 240, 480, 600, 600] {
        world.pass(wait).await;
    }
    assert_eq!(world.script.count("crm"), 12, "five attempts and seven probes");
    world.until_counts(id, 1, 0).await;
    world.until_delivering(id, Delivering::CircuitOpen).await;
    world.script.set("crm", &[Act::Answer(204)]);
    world.pass(600).await;
    world.until_counts(id, 0, 0).await;
    world.until_delivering(id, Delivering::Succeeding).await;
}

#[tokio::test]
async fn an_outage_under_many_messages_probes_one_at_a_time_and_then_sends_all() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(503)]);
    world.send(id, 300).await;
    let view = world.until_delivering(id, Delivering::CircuitOpen).await;
    let probe = view.next_try.unwrap().since(view.last_failure.unwrap().at).as_secs();
    assert!(
        (30..60).contains(&probe),
        "the probe is what is tried next, in {probe} s"
    );
    world.settled().await;
    world.script.forget();
    world.pass(31).await;
    assert_eq!(world.script.count("crm"), 1, "one probe");
    world.script.set("crm", &[Act::Answer(200)]);
    world.pass(61).await;
    world.until_counts(id, 0, 0).await;
    assert_eq!(
        world.script.count("crm"),
        301,
        "all of it, those in backoff too, each once"
    );
}

#[tokio::test]
async fn a_restart_neither_resets_counts_nor_sends_everything_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(400)]);
    world.send(id, 40).await;
    world.until("each was tried", |w| w.script.count("crm") == 40).await;
    world.pass(1).await;
    world
        .until("each was tried twice", |w| w.script.count("crm") == 80)
        .await;
    world.settled().await;
    world.kept().await;
    world.script.forget();

    let world = world.restart(dir.path(), false).await;
    let again = world.endpoint("crm").await;
    assert_eq!(again, id);
    world.until_delivering(id, Delivering::Backoff).await;
    world.pass(9).await;
    assert_eq!(world.script.count("crm"), 0, "due times survive");
    world.script.set("crm", &[Act::Hang]);
    world.clock.advance(Duration::from_secs(2));
    world.until("one is under way", |w| w.script.count("crm") > 0).await;
    assert_eq!(world.script.most_at_once("crm"), 1, "the limit is 1");
    world.script.set("crm", &[Act::Answer(400)]);
    world
        .until("each was tried a third time", |w| w.script.count("crm") == 40)
        .await;
    world.pass(60).await;
    world.until_counts(id, 40, 0).await;
    world.pass(300).await;
    world.until_counts(id, 0, 40).await;
    assert_eq!(
        world.script.count("crm"),
        120,
        "five attempts each, counted over both processes"
    );
}

#[tokio::test]
async fn messages_fresh_in_the_store_are_sent_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Hang]);
    world.send(id, 100).await;
    world.until("some are under way", |w| w.script.count("crm") == 2).await;
    let world = world.restart(dir.path(), false).await;
    world.script.set("crm", &[Act::Answer(200)]);
    world.until_counts(id, 100, 0).await;
    world.endpoint("crm").await;
    world.until_counts(id, 0, 0).await;
    assert_eq!(world.script.count("crm"), 102, "only what was under way goes twice");
}

#[tokio::test]
async fn suspend_holds_and_resuming_sends() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint_with("crm", |endpoint| endpoint.suspend = true).await;
    world.until_delivering(id, Delivering::Suspended).await;
    world.send(id, 30).await;
    world.pass(3_600).await;
    assert_eq!(world.script.count("crm"), 0);
    world.endpoint_with("crm", |endpoint| endpoint.generation = 2).await;
    world.until_counts(id, 0, 0).await;

    let key = ResourceKey {
        namespace_uid: "uid".into(),
        name: "crm".into(),
    };
    world.subscribe(id, key.clone(), true).await;
    world.script.forget();
    world.send(id, 30).await;
    world.pass(3_600).await;
    world.until_counts(id, 30, 0).await;
    assert_eq!(world.script.count("crm"), 0, "a suspended subscription holds too");
    world.subscribe(id, key, false).await;
    world.until_counts(id, 0, 0).await;
    assert_eq!(world.script.count("crm"), 30);
}

#[tokio::test]
async fn gone_disables_until_it_is_enabled_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(410), Act::Answer(200)]);
    world.send(id, 1).await;
    world.until_delivering(id, Delivering::Disabled).await;
    world.pass(24 * 3_600).await;
    world.until_counts(id, 1, 0).await;
    assert_eq!(world.script.count("crm"), 1);

    let world = world.restart(dir.path(), true).await;
    world.endpoint("crm").await;
    world.until_delivering(id, Delivering::Disabled).await;
    world
        .endpoint_with("crm", |endpoint| endpoint.enable_request = Some("now".into()))
        .await;
    world.until_counts(id, 0, 0).await;
    let view = world.until_delivering(id, Delivering::Succeeding).await;
    assert_eq!(view.handled_enable_request.as_deref(), Some("now"));
}

#[tokio::test]
async fn one_made_again_under_the_name_is_not_disabled_and_gets_the_messages() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(410), Act::Answer(200)]);
    world.send(id, 1).await;
    world.until_delivering(id, Delivering::Disabled).await;

    let key = ResourceKey {
        namespace_uid: "uid".into(),
        name: "crm".into(),
    };
    let at = world.clock.now();
    world.put_endpoint(id, key, EndpointState::Deleted { at }).await;
    world
        .endpoint_with("crm", |endpoint| endpoint.uid = "9a71".into())
        .await;
    world.until_counts(id, 0, 0).await;
    world.until_delivering(id, Delivering::Succeeding).await;
    assert_eq!(world.script.count("crm"), 2);
}

#[tokio::test]
async fn endpoints_that_hang_do_not_stop_another() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let mut hanging = Vec::new();
    for number in 0..20 {
        let name = format!("hangs-{number}");
        world.script.set(&name, &[Act::Hang]);
        let id = world.endpoint(&name).await;
        world.until_delivering(id, Delivering::NoAttempts).await;
        world.send(id, 100).await;
        hanging.push(id);
    }
    let healthy = world.endpoint("healthy").await;
    world.until_delivering(healthy, Delivering::NoAttempts).await;
    world.send(healthy, 500).await;
    world.until_counts(healthy, 0, 0).await;
    for id in hanging {
        assert_eq!(world.counts(id).await, (100, 0));
    }
}

#[tokio::test]
async fn a_drain_hands_nothing_back_twice() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let quick = world.endpoint("quick").await;
    let hangs = world.endpoint("hangs").await;
    world.script.set("hangs", &[Act::Hang]);
    world.until_delivering(quick, Delivering::NoAttempts).await;
    world.until_delivering(hangs, Delivering::NoAttempts).await;
    world.send(quick, 400).await;
    world.send(hangs, 3).await;
    world
        .until("the hanging ones are under way", |w| w.script.count("hangs") == 2)
        .await;
    let world = world.restart(dir.path(), true).await;
    world.script.set("hangs", &[Act::Answer(200)]);
    world.endpoint("quick").await;
    world.endpoint("hangs").await;
    world.until_counts(quick, 0, 0).await;
    world.until_counts(hangs, 0, 0).await;
    assert_eq!(world.script.count("quick"), 400, "each once over both processes");
    assert_eq!(world.script.count("hangs"), 5, "what was cut off is sent again");
}

#[tokio::test]
async fn messages_expire_after_three_days_without_an_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint_with("crm", |endpoint| endpoint.suspend = true).await;
    world.until_delivering(id, Delivering::Suspended).await;
    for _ in 0..4 {
        world.send(id, 500).await;
    }
    world.pass(72 * 3_600 + 60).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    core.recount().await;
    world.settled().await;
    assert_eq!(world.counts(id).await, (0, 2_000), "one look finds all of them");
    assert_eq!(world.script.count("crm"), 0);
}

#[tokio::test]
async fn a_message_expires_in_its_time_also_behind_many_younger_ones_that_are_due_earlier() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let late = |endpoint: &mut ResolvedEndpoint| endpoint.retry.schedule = vec![Duration::from_secs(100 * 3_600)];
    let id = world.endpoint_with("crm", late).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(400)]);
    let old = world.send(id, 1).await[0];
    world.until_delivering(id, Delivering::Backoff).await;
    world.settled().await;
    world.endpoint_with("crm", |endpoint| endpoint.suspend = true).await;
    world.until_delivering(id, Delivering::Suspended).await;
    // Ids tell the second.
    let second = accepted_at(old).plus(Duration::from_secs(1));
    world.until("the second is over", |_| UnixMillis::now() > second).await;
    let younger = world.send(id, 600).await[0];
    assert!(accepted_at(old) < accepted_at(younger));

    let expires = accepted_at(old).plus(Duration::from_secs(72 * 3_600));
    world.clock.advance(expires.since(world.clock.now()));
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    core.recount().await;
    world.until_counts(id, 600, 1).await;
}

#[tokio::test]
async fn a_deleted_endpoint_is_buried_after_five_minutes_unless_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let mut ids = Vec::new();
    for name in ["back", "gone"] {
        let id = world.endpoint_with(name, |endpoint| endpoint.suspend = true).await;
        world.until_delivering(id, Delivering::Suspended).await;
        world.send(id, 5).await;
        let key = ResourceKey {
            namespace_uid: "uid".into(),
            name: name.into(),
        };
        let at = world.clock.now();
        world.put_endpoint(id, key, EndpointState::Deleted { at }).await;
        ids.push(id);
    }
    world.clock.advance(Duration::from_secs(299));
    world.endpoint("back").await;
    world.clock.advance(Duration::from_secs(60));
    world.until_counts(ids[0], 0, 0).await;
    tokio::time::sleep(TICK * 2).await;
    assert_eq!(
        world.counts(ids[1]).await,
        (5, 0),
        "before every watch has synced absence means nothing"
    );
    world.registry.set_synced().await;
    world.until_counts(ids[1], 0, 5).await;
    assert_eq!(world.script.count("back"), 5);
    assert_eq!(world.script.count("gone"), 0);
}

#[tokio::test]
async fn of_many_who_are_gone_and_left_nothing_each_is_buried_at_its_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let at = world.clock.now();
    for id in 1..=50 {
        world.registry.subscription_gone(SubscriptionId(id), at).await;
    }
    world.registry.set_synced().await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    while !core.lock().synced {
        tokio::task::yield_now().await;
    }
    world.clock.advance(Duration::from_secs(600));
    let mut burial = std::pin::pin!(graves::bury(&core));
    let mut turns = 0;
    while futures::poll!(burial.as_mut()).is_pending() {
        turns += 1;
    }
    assert_eq!(turns, 50, "others have their turn after each");
}

#[tokio::test]
async fn a_suspended_endpoint_says_so_also_when_it_could_not_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    let key = ResourceKey {
        namespace_uid: "uid".into(),
        name: "crm".into(),
    };
    for (suspend, shown) in [(false, Delivering::SecretUnavailable), (true, Delivering::Suspended)] {
        let state = EndpointState::Unusable {
            reason: "SecretNotFound",
            message: "the Secret is missing".into(),
            generation: 2,
            suspend,
            max_age: Duration::from_secs(72 * 3_600),
        };
        world.put_endpoint(id, key.clone(), state).await;
        world.until_delivering(id, shown).await;
    }
}

#[tokio::test]
async fn what_was_blocked_is_looked_at_anew_when_the_policy_opens_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world.endpoint("crm").await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Blocked]);
    world.send(id, 1).await;
    let view = world.until_delivering(id, Delivering::Blocked).await;
    // Where names of the inside lead is nothing for tenants.
    assert!(
        view.message.contains("(private)") && !view.message.contains("10."),
        "{}",
        view.message
    );
    world.settled().await;
    world.script.set("crm", &[Act::Answer(200)]);
    world.endpoint("crm").await;
    world.pass(60).await;
    assert_eq!(
        world.script.count("crm"),
        1,
        "the same policy: looked at every five minutes"
    );

    let open = EgressRules {
        open_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        ..EgressRules::default()
    };
    world
        .endpoint_with("crm", |resolved| resolved.egress = Arc::new(open))
        .await;
    world.until_counts(id, 0, 0).await;
    assert_eq!(world.script.count("crm"), 2);
}

#[tokio::test]
async fn an_attempt_that_panics_is_not_counted_and_its_endpoint_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let one = |endpoint: &mut ResolvedEndpoint| {
        endpoint.max_in_flight = 1;
        // Whatever used an attempt up would end the message.
        endpoint.retry.schedule = vec![];
    };
    let id = world.endpoint_with("crm", one).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Panic, Act::Answer(200)]);
    let poison = world.send(id, 1).await[0];
    world.until("it was tried", |w| w.script.count("crm") == 1).await;
    world.settled().await;
    world.send(id, 5).await;
    world.pass(2).await;
    world.until_counts(id, 1, 0).await;
    assert_eq!(world.script.count("crm"), 6, "the others went meanwhile, and it waits");
    world.pass(30).await;
    world.until_counts(id, 0, 0).await;
    let last = world.script.seen.lock().unwrap().last().cloned();
    assert_eq!(last, Some(("crm".to_owned(), poison)));
}

#[tokio::test]
async fn probes_that_panic_rest_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let id = world
        .endpoint_with("crm", |endpoint| endpoint.breaker.open_after = 1)
        .await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.script.set("crm", &[Act::Answer(503)]);
    world.send(id, 1).await;
    world.until_delivering(id, Delivering::CircuitOpen).await;
    world.script.set("crm", &[Act::Panic]);
    world.pass(31).await;
    assert_eq!(world.script.count("crm"), 2, "the attempt and a probe");
    world.pass(1).await;
    assert_eq!(world.script.count("crm"), 3);
    world.script.set("crm", &[Act::Answer(200)]);
    world.pass(1).await;
    world.until_counts(id, 0, 0).await;
}
