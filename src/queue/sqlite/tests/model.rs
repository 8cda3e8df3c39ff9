//! The store against a simple model of itself, over random steps and restarts.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::ids::EventId;
use crate::queue::DeadReason;

#[derive(Clone, Debug)]
enum Step {
    Accept {
        key: u8,
        targets: Vec<(u8, u8)>,
    },
    Settle {
        which: prop::sample::Index,
        verdict: u8,
        stale: bool,
    },
    Bury {
        endpoint: u8,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let targets = prop::collection::vec((1..4_u8, 0..3_u8), 0..4);
    prop_oneof![
        6 => (0..40_u8, targets).prop_map(|(key, targets)| Step::Accept { key, targets }),
        6 => (any::<prop::sample::Index>(), 0..4_u8, prop::bool::weighted(0.2))
            .prop_map(|(which, verdict, stale)| Step::Settle { which, verdict, stale }),
        1 => (1..4_u8).prop_map(|endpoint| Step::Bury { endpoint }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    keys: HashMap<u8, Accepted>,
    /// Message, its pair, attempts, and the due time where it is known.
    pending: BTreeMap<MessageId, (u32, u32, u16)>,
    dead: u64,
}

impl Model {
    /// What just holds an event beside all that is pending.
    fn quota(&self, new: &NewEvent) -> Quota {
        let size = |event: &StoredEvent| (event.attributes.len() + event.body.len()) as u64;
        let of_key: HashMap<_, _> = self.keys.iter().map(|(key, answer)| (stored_as(answer), key)).collect();
        let pending = self.pending.keys().map(|message| of_key[&message.event()]);
        let bytes: u64 = pending
            .map(|key| size(&new_event(&key.to_string(), vec![]).event))
            .sum();
        let makes = new
            .targets
            .iter()
            .filter(|one| one.placement != Placement::QueueFull)
            .count() as u64;
        Quota {
            messages: Some(self.pending.len() as u64 + makes),
            bytes: Some(bytes + makes * size(&new.event)),
        }
    }
}

fn stored_as(answer: &Accepted) -> EventId {
    match answer {
        Accepted::New { event, .. } | Accepted::Duplicate { event, .. } => *event,
    }
}

async fn compare(queue: &SqliteQueue, fence: Fence, model: &Model) {
    let there = pending(queue, fence).await;
    full_quota(queue, &there, new_event("probe", vec![target(1, 11, Placement::Fresh)])).await;
    let there: BTreeMap<_, _> = there
        .into_iter()
        .map(|(id, one)| (id, (one.endpoint.0, one.subscription.0, one.attempts)))
        .collect();
    assert_eq!(there, model.pending);
    let usage = queue.usage().await.expect("usage");
    assert_eq!((usage.pending, usage.dead), (model.pending.len() as u64, model.dead));
    for pair in queue.backlog(fence).await.expect("backlog") {
        let of_pair = model
            .pending
            .iter()
            .filter(|(_, (ep, sub, _))| (*ep, *sub) == (pair.endpoint.0, pair.subscription.0));
        assert_eq!(pair.oldest, of_pair.clone().map(|(id, _)| *id).next());
        assert_eq!(pair.pending, of_pair.count() as u64);
    }
}

async fn play(steps: Vec<Step>) {
    let dir = Directory::new();
    let mut queue = open(dir.path(), options());
    let mut fence = queue.claim().await.expect("claim");
    three_endpoints(&queue).await;
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Accept { key, targets } => {
                let placements = [Placement::Fresh, Placement::Waiting, Placement::QueueFull];
                let targets: Vec<_> = targets
                    .iter()
                    .map(|(n, placement)| target(u32::from(*n), u32::from(*n) + 10, placements[*placement as usize]))
                    .collect();
                let mut new = new_event(&key.to_string(), targets.clone());
                new.quota = model.quota(&new);
                let answer = queue.accept(vec![new]).await.expect("accept")[0];
                match (answer, model.keys.get(&key)) {
                    (Accepted::Duplicate { event, matched }, Some(first)) => {
                        assert_eq!(*first, Accepted::New { event, matched });
                    }
                    (Accepted::New { event, matched }, None) => {
                        assert_eq!(matched as usize, targets.len());
                        for (ordinal, one) in targets.iter().enumerate() {
                            if one.placement == Placement::QueueFull {
                                model.dead += 1;
                            } else {
                                let id = MessageId::new(event, ordinal as u32);
                                model.pending.insert(id, (one.endpoint.0, one.subscription.0, 0));
                            }
                        }
                        model.keys.insert(key, answer);
                    }
                    (answer, first) => panic!("{answer:?} where the first answer was {first:?}"),
                }
            }
            Step::Settle { which, verdict, stale } => {
                if model.pending.is_empty() {
                    continue;
                }
                let all: Vec<_> = model.pending.iter().map(|(id, of)| (*id, *of)).collect();
                let (message, (endpoint, subscription, attempts)) = all[which.index(all.len())];
                let one = Pending {
                    message,
                    endpoint: EndpointId(endpoint),
                    subscription: SubscriptionId(subscription),
                    attempts: if stale { attempts + 1 } else { attempts },
                    due: UnixMillis(0),
                    again: None,
                };
                let verdict = match verdict {
                    1 => Verdict::Wait {
                        due: UnixMillis(5),
                        attempts: attempts + 1,
                    },
                    2 => Verdict::Dead {
                        reason: DeadReason::Exhausted,
                    },
                    _ => Verdict::Delivered,
                };
                let settled = queue
                    .settle(fence, vec![settlement(one, verdict)])
                    .await
                    .expect("settle")[0];
                assert_eq!(settled, if stale { Settled::Stale } else { Settled::Applied });
                if stale {
                    continue;
                }
                match verdict {
                    Verdict::Wait { attempts, .. } => {
                        model.pending.insert(message, (endpoint, subscription, attempts));
                    }
                    Verdict::Dead { .. } => {
                        model.dead += 1;
                        model.pending.remove(&message);
                    }
                    Verdict::Delivered => drop(model.pending.remove(&message)),
                }
            }
            Step::Bury { endpoint } => {
                let endpoint = u32::from(endpoint);
                let id = Some(EndpointId(endpoint));
                let mut buried = 0;
                loop {
                    let more = queue
                        .bury(fence, id, None, DeadReason::EndpointDeleted, 3)
                        .await
                        .expect("bury");
                    buried += more;
                    if more == 0 {
                        break;
                    }
                }
                let before = model.pending.len();
                model.pending.retain(|_, (ep, ..)| *ep != endpoint);
                assert_eq!(buried, (before - model.pending.len()) as u64);
                model.dead += buried;
            }
            Step::Reopen => {
                queue.close().await;
                drop(queue);
                queue = open(dir.path(), options());
                fence = queue.claim().await.expect("claim");
                compare(&queue, fence, &model).await;
            }
        }
    }
    compare(&queue, fence, &model).await;
    queue.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_a_simple_model(steps in prop::collection::vec(step(), 1..60)) {
        runtime().block_on(play(steps));
    }
}
