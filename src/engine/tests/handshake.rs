use std::num::NonZeroU32;

use super::*;

fn asks(endpoint: &mut ResolvedEndpoint) {
    endpoint.handshake = true;
    // One attempt: whatever used one up would end the message.
    endpoint.retry.schedule = vec![];
}

fn all() -> Result<Grant, Refusal> {
    Ok(Grant { per_minute: None })
}

#[tokio::test]
async fn nothing_is_sent_before_the_receiver_agrees_and_asking_uses_up_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.script.consents("crm", Err(Refusal::NoOrigin));
    let id = world.endpoint_with("crm", asks).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 50).await;
    let view = world.until_delivering(id, Delivering::HandshakeRefused).await;
    assert!(
        view.message.contains("WebHook-Allowed-Origin: tidings.dev"),
        "{}",
        view.message
    );
    let failures: Vec<_> = view.recent_failures.iter().map(|failure| failure.reason).collect();
    assert_eq!((failures, view.agreement), (vec!["HandshakeRefused"], None));

    // Asked as a probe is made: after 30 s, 60 s, 120 s.
    for (seconds, asked) in [(31, 2), (31, 2), (30, 3)] {
        world.pass(seconds).await;
        assert_eq!((world.script.asked("crm"), world.script.count("crm")), (asked, 0));
    }
    world.script.consents("crm", all());
    world.pass(121).await;
    world.until_counts(id, 0, 0).await;
    assert_eq!((world.script.asked("crm"), world.script.count("crm")), (4, 50));
    let view = world.until_delivering(id, Delivering::Succeeding).await;
    assert!(view.agreement.is_some());
}

#[tokio::test]
async fn who_agrees_at_once_is_asked_once_however_many_messages_wait() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.script.consents("crm", all());
    let id = world.endpoint_with("crm", asks).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    assert_eq!(world.script.asked("crm"), 0, "nobody is asked about nothing");
    world.send(id, 300).await;
    world.until_counts(id, 0, 0).await;
    assert_eq!((world.script.asked("crm"), world.script.count("crm")), (1, 300));
}

#[tokio::test]
async fn an_allowed_rate_is_obeyed_from_the_first_message_on_and_known_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path()).await;
    let per_minute = NonZeroU32::new(60);
    world.script.consents("crm", Ok(Grant { per_minute }));
    let id = world.endpoint_with("crm", asks).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 3).await;
    for sent in [1, 2, 3, 4] {
        if sent == 4 {
            let view = world.until_view(id, "agreed", |view| view.agreement.is_some()).await;
            assert_eq!(view.agreement.unwrap().grant.per_minute, per_minute);
            world.settled().await;
            world = world.restart(dir.path(), false).await;
            assert_eq!(world.endpoint_with("crm", asks).await, id);
            world.send(id, 1).await;
        }
        if sent > 1 {
            world
                .until("the next waits for its turn", |world| {
                    world.engine.as_ref().unwrap().core.lock().endpoints[&id].paced
                })
                .await;
            assert_eq!(world.script.count("crm"), sent - 1, "none before its turn");
            world.clock.advance(Duration::from_secs(1));
        }
        world
            .until("the next is sent", |world| world.script.count("crm") == sent)
            .await;
    }
    world.until_counts(id, 0, 0).await;
    assert_eq!(world.script.asked("crm"), 1, "what was agreed to is remembered");
}

#[tokio::test]
async fn another_url_is_another_question_and_none_is_asked_of_who_wants_none() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.script.consents("crm", all());
    type Edit = fn(&mut ResolvedEndpoint);
    let steps: [(Edit, usize); 5] = [
        (|_| {}, 1),
        (|endpoint| endpoint.timeout = Duration::from_secs(9), 1),
        (|endpoint| endpoint.target.path = "/other".into(), 2),
        (|endpoint| endpoint.handshake = false, 2),
        (|endpoint| endpoint.target.path = "/other".into(), 3),
    ];
    for (generation, (edit, asked)) in (1..).zip(steps) {
        let id = world
            .endpoint_with("crm", |endpoint| {
                asks(endpoint);
                endpoint.generation = generation;
                edit(endpoint);
            })
            .await;
        world
            .until_view(id, "loaded", |view| view.generation == Some(generation))
            .await;
        world.send(id, 2).await;
        world.until_counts(id, 0, 0).await;
        assert_eq!(world.script.asked("crm"), asked, "generation {generation}");
    }
    assert_eq!(world.script.count("crm"), 10);
}

#[tokio::test]
async fn a_receiver_that_cannot_be_asked_is_one_that_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.script.says("crm", Outcome::Fault(Fault::Refused));
    let id = world.endpoint_with("crm", asks).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 5).await;
    let view = world.until_delivering(id, Delivering::CircuitOpen).await;
    assert!(view.message.contains("Refused"), "{}", view.message);
    // A new spec is tried at once, and what it meets is told.
    world.script.consents("crm", Err(Refusal::OtherOrigin));
    let again = |endpoint: &mut ResolvedEndpoint| {
        asks(endpoint);
        endpoint.generation = 2;
    };
    world.endpoint_with("crm", again).await;
    world.until_delivering(id, Delivering::HandshakeRefused).await;
    assert_eq!((world.script.asked("crm"), world.script.count("crm")), (2, 0));
    world.kept().await;
    let world = world.restart(dir.path(), false).await;
    world.endpoint_with("crm", again).await;
    world.until_delivering(id, Delivering::HandshakeRefused).await;
    assert_eq!(world.script.asked("crm"), 2, "a restart does not ask sooner");
}

#[tokio::test]
async fn a_question_does_not_bring_a_retry_forward() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.script.consents("crm", all());
    world.script.set("crm", &[Act::Answer(400)]);
    let at = |path: &'static str| {
        move |endpoint: &mut ResolvedEndpoint| {
            endpoint.handshake = true;
            endpoint.retry.schedule = vec![Duration::from_secs(300)];
            endpoint.target.path = path.into();
        }
    };
    let id = world.endpoint_with("crm", at("/")).await;
    world.until_delivering(id, Delivering::NoAttempts).await;
    world.send(id, 1).await;
    world.until_delivering(id, Delivering::Backoff).await;
    // As a URL in a Secret changes: no new generation, which would try everything at once.
    world.endpoint_with("crm", at("/other")).await;
    world
        .until("the new URL is loaded", |world| {
            let state = world.engine.as_ref().unwrap().core.lock();
            state.endpoints[&id].health.unanswered().is_some()
        })
        .await;
    world.pass(290).await;
    assert_eq!((world.script.asked("crm"), world.script.count("crm")), (1, 1));
    world.pass(11).await;
    world.until_counts(id, 0, 1).await;
    assert_eq!((world.script.asked("crm"), world.script.count("crm")), (2, 2));
}
