//! What waits for consumers.

use super::*;
use crate::api::resolve::PullPolicy;
use crate::queue::{Place, Pull, Quota, Target};
use crate::registry::Mailbox;
use crate::report::board::{SubscriptionView, Unconsumed};

/// A subscription that is pulled, and where its messages are.
struct Pulled {
    of: Pair,
    mailbox: Arc<Mailbox>,
}

const POLICY: PullPolicy = PullPolicy {
    max_age: Duration::from_secs(3_600),
    retention: Duration::from_secs(3_600),
};

async fn pulled(world: &World) -> Pulled {
    let key = |name: &str| ResourceKey {
        namespace_uid: "uid".into(),
        name: name.into(),
    };
    let endpoint = world.queue.intern_endpoints(vec![key("leads/pull")]).await.unwrap()[0];
    let state = EndpointState::Pulled(POLICY);
    world.put_endpoint(endpoint, key("leads/pull"), state).await;
    let subscription = world.queue.intern_subscriptions(vec![key("leads")]).await.unwrap()[0];
    let mailbox = world.registry.mailbox(subscription);
    let mut entry = subscription_entry(&world.registry, subscription, endpoint, key("leads"));
    entry.mailbox = Some(mailbox.clone());
    world.registry.put_subscription(Arc::new(entry)).await;
    let of = Pair { endpoint, subscription };
    Pulled { of, mailbox }
}

impl Pulled {
    async fn send(&self, world: &World, count: usize) {
        let events = (0..count).map(|_| {
            let mut dedupe = [0; 16];
            dedupe[..8].copy_from_slice(&world.events.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            let placement = world.registry.gauge(self.of.endpoint).place_to_be_pulled(1_000_000);
            NewEvent {
                namespace_uid: "uid".into(),
                dedupe,
                event: Arc::new(queue::StoredEvent {
                    attributes: Bytes::from_static(b"{}"),
                    body: Bytes::new(),
                }),
                targets: vec![Target {
                    subscription: self.of.subscription,
                    endpoint: self.of.endpoint,
                    placement,
                    order: None,
                }],
                quota: Quota::default(),
            }
        });
        world.queue.accept(events.collect()).await.unwrap();
    }

    async fn given(&self, world: &World, limit: usize) -> Vec<queue::Pending> {
        let pull = Pull {
            endpoint: self.of.endpoint,
            subscription: self.of.subscription,
            after: Place::START,
            limit,
            bytes: usize::MAX,
        };
        let given = world.queue.pull(pull).await.unwrap();
        given.messages.into_iter().map(|(pending, _)| pending).collect()
    }

    /// What the board says of the subscription, once it is as it must be.
    async fn until_view(&self, world: &World, holds: impl Fn(&SubscriptionView) -> bool) -> SubscriptionView {
        let wait = async {
            loop {
                let posted = world.board.take().await;
                assert!(
                    !posted.endpoints.contains_key(&self.of.endpoint),
                    "there is no such endpoint to be told of"
                );
                if let Some((view, _)) = posted.subscriptions.get(&self.of.subscription)
                    && holds(view)
                {
                    return view.clone();
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the board never said so")
    }
}

#[tokio::test]
async fn what_is_pulled_waits_in_the_store_alone_and_is_gone_once_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let leads = pulled(&world).await;
    let heard = leads.mailbox.news();
    tokio::pin!(heard);
    heard.as_mut().enable();
    leads.send(&world, 1_200).await;
    tokio::time::timeout(PATIENCE, heard).await.expect("its bell rings");
    let view = leads.until_view(&world, |view| view.pending == 1_200).await;
    assert!(view.oldest_pending.is_some() && view.unconsumed.is_none());
    {
        let state = world.engine.as_ref().unwrap().core.lock();
        let endpoint = &state.endpoints[&leads.of.endpoint];
        assert!(endpoint.window.is_empty() && endpoint.held.is_empty() && endpoint.retries.is_empty());
        assert_eq!((endpoint.capacity, endpoint.timer), (0, None));
        assert!(state.timers.is_empty() && state.to_page.is_empty() && state.outbox.is_empty());
    }

    let consumed = world.engine.as_ref().unwrap().consumed();
    let given = leads.given(&world, 1_100).await;
    let some = [given[1].message, given[700].message];
    assert_eq!(consumed.acknowledge(leads.of, &some).await.unwrap(), 2);
    assert_eq!(consumed.acknowledge(leads.of, &some).await.unwrap(), 0, "once");
    let until = Place::of(&given[1_099]);
    let (a, b) = tokio::join!(
        consumed.acknowledge_until(leads.of, Place::of(&given[599])),
        consumed.acknowledge_until(leads.of, until)
    );
    assert_eq!(
        a.unwrap() + b.unwrap(),
        1_098,
        "of two at once each has all that it named"
    );
    assert_eq!(consumed.acknowledge_until(leads.of, until).await.unwrap(), 0);
    assert_eq!(world.counts(leads.of.endpoint).await, (100, 0));
    leads.until_view(&world, |view| view.pending == 100).await;
    assert_eq!(world.registry.gauge(leads.of.endpoint).pending(), 100);

    let world = world.restart(dir.path(), false).await;
    let leads = pulled(&world).await;
    let left = leads.given(&world, 500).await;
    assert_eq!(left.len(), 100);
    assert!(left.iter().all(|one| Place::of(one) > until), "none comes again");
    leads.until_view(&world, |view| view.pending == 100).await;
    let state = world.engine.as_ref().unwrap().core.lock();
    assert_eq!(state.endpoints[&leads.of.endpoint].capacity, 0);
}

#[tokio::test]
async fn what_nobody_acknowledges_is_shown_and_given_up_at_its_age() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    world.registry.set_synced().await;
    let leads = pulled(&world).await;
    leads.send(&world, 700).await;
    leads.until_view(&world, |view| view.pending == 700).await;
    let core = Arc::clone(&world.engine.as_ref().unwrap().core);
    let look = async |seconds: u64| {
        world.pass(seconds).await;
        core.recount().await;
        core.step(|state| state.look_at_consumers(core.clock.now()));
    };
    look(301).await;
    let alone = |why| move |view: &SubscriptionView| view.unconsumed == Some(why);
    leads.until_view(&world, alone(Unconsumed::NotPulled)).await;
    leads.mailbox.pull(world.clock.now());
    look(1).await;
    leads.until_view(&world, alone(Unconsumed::NotAcknowledged)).await;
    let first = leads.given(&world, 1).await[0].message;
    let consumed = world.engine.as_ref().unwrap().consumed();
    assert_eq!(consumed.acknowledge(leads.of, &[first]).await.unwrap(), 1);
    leads.until_view(&world, |view| view.unconsumed.is_none()).await;

    look(3_600).await;
    world.until_counts(leads.of.endpoint, 0, 699).await;
    let view = leads.until_view(&world, |view| view.dead_lettered == 699).await;
    assert_eq!(view.last_dead_letter.map(|(_, reason)| reason), Some("Expired"));
    assert_eq!(view.pending, 0);
}
