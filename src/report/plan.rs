//! Which status is written now. Pure: time and budget are arguments.
//!
//! Transitions go first, those of the longest silent object before those of one that flaps; the rest waits its interval.
//! What the API server refuses waits longer each time, and takes nothing from the transitions of others.
//! Invariant: the writes of a plan never exceed the budget, whatever is dirty.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::{EndpointId, SubscriptionId};
use crate::kubernetes::budget::Bucket;

/// Writes a second, status and Events together, over all replicas, unless configured otherwise.
pub const RATE: u32 = 10;
/// Writes at once, for each a second.
const BURST: u32 = 2;
/// The least time between two routine writes of one object.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// The least time between two transitions of one object: a flapping one is coalesced, a real one still shows in a second.
pub const TRANSITION_GAP: Duration = Duration::from_millis(500);
/// The least time between two writes of an object whose status names a next attempt that is over, or messages that wait
/// where none does: whoever looks at it would be misled. Such writes are routine ones for the budget.
pub const OVERTAKEN_GAP: Duration = Duration::from_secs(2);
/// How long the first routine write of an object waits for more to tell.
const COALESCE: Duration = Duration::from_secs(1);
/// The pause after a write that did not land; after failures it doubles.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest pause after refusals: somebody has to change something first, an admission policy for instance.
const REFUSED_LONGEST: Duration = Duration::from_secs(300);
/// The longest pause while there is no answer: an API server that is back is not to find a status that is long outdated.
const UNANSWERED_LONGEST: Duration = Duration::from_secs(60);

/// An object with a status of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    Endpoint(EndpointId),
    Subscription(SubscriptionId),
}

/// Why an object is to be written, and when it was last.
#[derive(Clone, Copy, Debug)]
pub struct Dirty {
    /// Since when its status is outdated.
    pub since: Instant,
    /// Since when a transition waits to be shown.
    pub urgent: Option<Instant>,
    /// The next attempt that is shown is over, or all that is shown as pending is settled.
    pub overtaken: bool,
    pub last_write: Option<Instant>,
    /// What was tried since and did not land.
    pub tried: Option<Tried>,
}

/// Why a write did not land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It met a newer object.
    Outdated,
    /// The API server answered that it will not have it.
    Refused,
    /// There was no answer.
    Unanswered,
}

/// Tries in a row that did not land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Of the last one: when, and why.
    at: Instant,
    miss: Miss,
    /// How many of them failed; none of those that met a newer object.
    failures: u32,
    not_before: Instant,
}

impl Tried {
    /// One more after those of `before`.
    pub fn after(before: Option<Tried>, miss: Miss, now: Instant) -> Tried {
        let failures = before.map_or(0, |before| before.failures);
        let (failures, longest) = match miss {
            Miss::Outdated => (failures, AGAIN),
            Miss::Refused => (failures.saturating_add(1), REFUSED_LONGEST),
            Miss::Unanswered => (failures.saturating_add(1), UNANSWERED_LONGEST),
        };
        let doubled = AGAIN.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
        Tried {
            at: now,
            miss,
            failures,
            not_before: now + doubled.min(longest),
        }
    }
}

impl Dirty {
    /// Outdated since now, and nothing more.
    pub fn new(now: Instant, last_write: Option<Instant>) -> Dirty {
        Dirty {
            since: now,
            urgent: None,
            overtaken: false,
            last_write,
            tried: None,
        }
    }
}

/// What may be spent.
#[derive(Debug)]
pub struct Allowance {
    /// Writes a second.
    rate: u32,
    all: Bucket,
    /// Routine writes leave half of the burst to transitions.
    routine: Bucket,
}

impl Allowance {
    /// The whole budget of so many writes a second, full.
    pub fn new(rate: u32, now: Instant) -> Allowance {
        let burst = rate.saturating_mul(BURST);
        Allowance {
            rate: rate.max(1),
            all: Bucket::new(rate, burst, now),
            routine: Bucket::new(rate / 2, burst / 2, now),
        }
    }

    /// One more write, an Event for instance, if the budget has it.
    pub fn take(&mut self, now: Instant) -> bool {
        self.all.take(now).is_ok()
    }

    /// The write that was taken is not made.
    pub fn give_back(&mut self) {
        self.all.give_back();
    }
}

/// What to write now, and when to look again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub writes: Vec<Id>,
    pub next: Option<Instant>,
}

/// Plans at most `most` writes: spends from `allowance` for every one returned.
pub fn plan(dirty: &BTreeMap<Id, Dirty>, now: Instant, allowance: &mut Allowance, most: usize) -> Plan {
    let interval = INTERVAL.max(Duration::from_secs(dirty.len() as u64 / u64::from(allowance.rate)));
    let mut plan = Plan::default();
    let mut transitions = Vec::new();
    let mut routine = Vec::new();
    for (id, state) in dirty {
        let at = state.eligible(interval);
        if at > now {
            plan.look_at(at);
        } else if let Some(urgent) = state.urgent.filter(|_| !state.is_refused()) {
            transitions.push((state.turn(), urgent, *id));
        } else {
            routine.push((state.turn(), state.since, *id));
        }
    }
    transitions.sort();
    routine.sort();
    for (_, _, id) in transitions {
        if plan.writes.len() == most {
            return plan;
        }
        match allowance.all.take(now) {
            Ok(()) => plan.writes.push(id),
            Err(wait) => {
                plan.look_at(now + wait);
                return plan;
            }
        }
    }
    for (_, _, id) in routine {
        if plan.writes.len() == most {
            return plan;
        }
        let taken = allowance.routine.take(now).and_then(|()| allowance.all.take(now));
        match taken {
            Ok(()) => plan.writes.push(id),
            Err(wait) => {
                plan.look_at(now + wait);
                break;
            }
        }
    }
    plan
}

impl Dirty {
    fn eligible(&self, interval: Duration) -> Instant {
        let at = match (self.urgent, self.last_write) {
            (Some(urgent), None) => urgent,
            (Some(urgent), Some(last)) => urgent.max(last + TRANSITION_GAP),
            (None, None) => self.since + COALESCE,
            (None, Some(last)) if self.overtaken => self.since.max(last + OVERTAKEN_GAP),
            (None, Some(last)) => self.since.max(last + interval),
        };
        self.tried.map_or(at, |tried| at.max(tried.not_before))
    }

    /// Who was written or tried longest ago is next.
    fn turn(&self) -> Option<Instant> {
        self.last_write.max(self.tried.map(|tried| tried.at))
    }

    fn is_refused(&self) -> bool {
        self.tried.is_some_and(|tried| tried.miss == Miss::Refused)
    }
}

impl Plan {
    fn look_at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 1_000;
    const STEP: Duration = Duration::from_millis(50);

    fn id(n: u32) -> Id {
        Id::Endpoint(EndpointId(n))
    }

    fn urgent(now: Instant) -> Dirty {
        Dirty {
            since: now,
            urgent: Some(now),
            overtaken: false,
            last_write: None,
            tried: None,
        }
    }

    /// Runs `seconds` with these endpoints changing their reason at every step; counts writes by endpoint.
    fn flap(endpoints: u32, seconds: u32) -> BTreeMap<Id, u32> {
        let start = Instant::now();
        let mut allowance = Allowance::new(RATE, start);
        let mut written: BTreeMap<Id, (Option<Instant>, u32)> = (0..endpoints).map(|n| (id(n), (None, 0))).collect();
        let mut dirty = BTreeMap::new();
        for step in 0..seconds * 20 {
            let now = start + STEP * step;
            for (id, (last_write, _)) in &written {
                dirty.entry(*id).or_insert(Dirty {
                    last_write: *last_write,
                    ..urgent(now)
                });
            }
            for id in plan(&dirty, now, &mut allowance, MANY).writes {
                dirty.remove(&id);
                let entry = written.entry(id).or_default();
                *entry = (Some(now), entry.1 + 1);
            }
        }
        written.into_iter().map(|(id, (_, count))| (id, count)).collect()
    }

    #[test]
    fn fifty_flapping_endpoints_write_no_more_than_the_budget_and_each_gets_its_turn() {
        let seconds = 60;
        let writes = flap(50, seconds);
        let all: u32 = writes.values().sum();
        assert!(all <= RATE * (seconds + BURST), "{all} writes");
        assert!(all >= RATE * seconds, "the budget is used: {all} writes");
        let (least, most) = (writes.values().min(), writes.values().max());
        assert!(
            most.zip(least).is_some_and(|(most, least)| most - least <= 1),
            "{writes:?}"
        );
    }

    #[test]
    fn one_endpoint_alone_shows_its_transition_at_once_and_a_second_one_within_a_second() {
        let now = Instant::now();
        let mut allowance = Allowance::new(RATE, now);
        let mut dirty = BTreeMap::from([(id(1), urgent(now))]);
        assert_eq!(plan(&dirty, now, &mut allowance, MANY).writes, [id(1)]);
        let again = now + STEP;
        dirty.insert(
            id(1),
            Dirty {
                last_write: Some(now),
                ..urgent(again)
            },
        );
        let planned = plan(&dirty, again, &mut allowance, MANY);
        assert_eq!(planned.writes, []);
        let at = planned.next.expect("to be looked at again");
        assert!(at.duration_since(again) < Duration::from_secs(1));
        assert_eq!(plan(&dirty, at, &mut allowance, MANY).writes, [id(1)]);
    }

    #[test]
    fn a_quiet_endpoint_goes_before_those_that_flap() {
        let now = Instant::now();
        let mut allowance = Allowance::new(RATE, now);
        while allowance.take(now) {}
        let later = now + Duration::from_millis(600);
        let mut dirty: BTreeMap<Id, Dirty> = (0..50)
            .map(|n| {
                (
                    id(n),
                    Dirty {
                        last_write: Some(now),
                        ..urgent(now)
                    },
                )
            })
            .collect();
        dirty.insert(id(99), urgent(later));
        assert_eq!(plan(&dirty, later, &mut allowance, MANY).writes.first(), Some(&id(99)));
    }

    /// Runs `seconds` in which the writes of `failing` endpoints all end in `miss`, as one of each did before, while one
    /// endpoint beside them changes its reason each ten seconds. The tries of the failing in each second, and the longest
    /// that a change waited.
    fn beside_failing(failing: u32, miss: Miss, seconds: u32) -> (Vec<u32>, Duration) {
        let start = Instant::now();
        let one = id(failing);
        let mut allowance = Allowance::new(RATE, start);
        let missed = Dirty {
            tried: Some(Tried::after(None, miss, start)),
            ..urgent(start)
        };
        let mut dirty: BTreeMap<Id, Dirty> = (0..failing).map(|n| (id(n), missed)).collect();
        let (mut tries, mut longest, mut last_write) = (vec![0; seconds as usize], Duration::ZERO, None);
        for step in 0..seconds * 20 {
            let now = start + STEP * step;
            if step % 200 == 100 {
                dirty.insert(
                    one,
                    Dirty {
                        last_write,
                        ..urgent(now)
                    },
                );
            }
            for id in plan(&dirty, now, &mut allowance, MANY).writes {
                let before = dirty.remove(&id).expect("what is planned is dirty");
                if id == one {
                    let waited = now.duration_since(before.urgent.expect("a transition"));
                    (longest, last_write) = (longest.max(waited), Some(now));
                    continue;
                }
                tries[step as usize / 20] += 1;
                let again = Dirty {
                    tried: Some(Tried::after(before.tried, miss, now)),
                    ..urgent(before.since)
                };
                dirty.insert(id, again);
            }
        }
        assert!(!dirty.contains_key(&one), "the last change is written");
        (tries, longest)
    }

    #[test]
    fn fifty_endpoints_whose_writes_fail_take_less_each_time_and_delay_no_transition_of_another() {
        for (miss, longest_pause) in [(Miss::Refused, REFUSED_LONGEST), (Miss::Unanswered, UNANSWERED_LONGEST)] {
            let (tries, waited) = beside_failing(50, miss, 1_800);
            assert!(waited <= STEP * 2, "{miss:?}: a change waited {waited:?}");
            let settled: u32 = tries[1_200..].iter().sum();
            let most = 50 * (600 / longest_pause.as_secs() as u32 + 1);
            assert!(settled > 0, "{miss:?}: none is given up");
            assert!(settled <= most, "{miss:?}: {settled} tries in ten minutes");
        }
    }

    #[test]
    fn ten_thousand_endpoints_whose_writes_are_refused_leave_half_of_the_budget() {
        let (tries, waited) = beside_failing(10_000, Miss::Refused, 60);
        assert!(waited <= STEP * 2, "a change waited {waited:?}");
        let tries: u32 = tries.iter().sum();
        assert!(tries <= RATE / 2 * (60 + BURST), "{tries} tries in a minute");
    }

    #[test]
    fn pauses_after_failures_double_up_to_their_longest_and_a_newer_object_is_met_again_after_a_second() {
        let now = Instant::now();
        let pauses = |misses: &[Miss]| -> Vec<u64> {
            let mut tried = None;
            let pause = |miss: &Miss| {
                let next = Tried::after(tried, *miss, now);
                tried = Some(next);
                next.not_before.duration_since(now).as_secs()
            };
            misses.iter().map(pause).collect()
        };
        assert_eq!(
            pauses(&[Miss::Refused; 11]),
            [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        );
        assert_eq!(pauses(&[Miss::Unanswered; 8]), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(&[Miss::Outdated; 5]), [1; 5]);
        assert_eq!(
            pauses(&[Miss::Refused, Miss::Refused, Miss::Outdated, Miss::Refused]),
            [1, 2, 1, 4]
        );
    }

    #[test]
    fn no_more_is_planned_than_may_be_under_way() {
        let now = Instant::now();
        let dirty: BTreeMap<Id, Dirty> = (0..100).map(|n| (id(n), urgent(now))).collect();
        let mut allowance = Allowance::new(1_000, now);
        assert_eq!(plan(&dirty, now, &mut allowance, 16).writes.len(), 16);
        assert_eq!(plan(&dirty, now, &mut allowance, 0), Plan::default());
    }

    #[test]
    fn nothing_dirty_writes_nothing_and_asks_for_no_second_look() {
        let now = Instant::now();
        assert_eq!(
            plan(&BTreeMap::new(), now, &mut Allowance::new(RATE, now), MANY),
            Plan::default()
        );
    }

    #[test]
    fn routine_writes_keep_their_interval_and_leave_room_for_transitions() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut allowance = Allowance::new(RATE, now);
        let routine = |last_write| Dirty {
            since: now - COALESCE,
            urgent: None,
            overtaken: false,
            last_write,
            tried: None,
        };
        let mut dirty: BTreeMap<Id, Dirty> = (0..100).map(|n| (id(n), routine(None))).collect();
        dirty.insert(id(200), routine(Some(now - Duration::from_secs(29))));
        let planned = plan(&dirty, now, &mut allowance, MANY);
        assert_eq!(planned.writes.len(), (RATE * BURST / 2) as usize);
        assert!(!planned.writes.contains(&id(200)));
        let transition = BTreeMap::from([(id(300), urgent(now))]);
        assert_eq!(plan(&transition, now, &mut allowance, MANY).writes, [id(300)]);
    }

    #[test]
    fn a_next_attempt_that_is_over_is_corrected_within_seconds_out_of_the_routine_budget() {
        let now = Instant::now() + Duration::from_secs(60);
        let written = |id, ago, overtaken| {
            let dirty = Dirty {
                since: now - Duration::from_secs(1),
                urgent: None,
                overtaken,
                last_write: Some(now - ago),
                tried: None,
            };
            (id, dirty)
        };
        let dirty = BTreeMap::from([
            written(id(1), OVERTAKEN_GAP, true),
            written(id(2), OVERTAKEN_GAP / 2, true),
            written(id(3), OVERTAKEN_GAP, false),
        ]);
        assert_eq!(plan(&dirty, now, &mut Allowance::new(RATE, now), MANY).writes, [id(1)]);
        let many: BTreeMap<Id, Dirty> = (0..100).map(|n| written(id(n), OVERTAKEN_GAP, true)).collect();
        let planned = plan(&many, now, &mut Allowance::new(RATE, now), MANY);
        assert_eq!(planned.writes.len(), (RATE * BURST / 2) as usize);
    }

    #[test]
    fn many_dirty_objects_stretch_the_interval() {
        let now = Instant::now() + Duration::from_secs(600);
        let written = |ago| Dirty {
            since: now,
            urgent: None,
            overtaken: false,
            last_write: Some(now - Duration::from_secs(ago)),
            tried: None,
        };
        let dirty: BTreeMap<Id, Dirty> = (0..1000).map(|n| (id(n), written(99))).collect();
        assert_eq!(
            plan(&dirty, now, &mut Allowance::new(RATE, now), MANY).writes,
            [],
            "1,000 objects at 10 a second: 100 s each"
        );
    }
}
