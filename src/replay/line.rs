//! Which Replays run, and which wait for one of them to end. Pure.
//!
//! Invariant: no more run than places, of one namespace as in all; of those that may run next the oldest does, and before
//! all others those that had begun.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kube::ResourceExt;

use crate::api::Replay;
use crate::ids::UnixMillis;

/// Replays of a namespace that run at a time: one team's many leave places to others.
pub(super) const RUNNING_EACH: usize = 4;
/// Replays that run at a time: all share the looks at history with those who read messages, and the writes of status.
pub(super) const RUNNING: usize = 32;

/// Where one stands among those of its namespace: those that had begun before a restart, and then by when they came, by
/// creation or by giving way.
type Place = (bool, i64, String);

fn place(replay: &Replay) -> Place {
    let has_begun = replay.status.as_ref().is_some_and(|status| status.start_time.is_some());
    let created = replay.creation_timestamp().map_or(0, |time| time.0.as_second());
    (!has_begun, created, replay.uid().unwrap_or_default())
}

/// A namespace's.
#[derive(Debug, Default)]
struct Space {
    running: usize,
    waiting: BTreeMap<Place, Arc<Replay>>,
}

/// Those that wait, and how many run.
#[derive(Debug, Default)]
pub(super) struct Line {
    spaces: HashMap<String, Space>,
    /// Of those that wait, by UID: namespace and place.
    places: HashMap<String, (String, Place)>,
    running: usize,
}

impl Line {
    /// It waits, or is the newest form of one that does.
    pub(super) fn put(&mut self, uid: &str, replay: Arc<Replay>) {
        let namespace = replay.namespace().unwrap_or_default();
        let (namespace, place) = self
            .places
            .entry(uid.to_owned())
            .or_insert_with(|| (namespace, place(&replay)));
        let space = self.spaces.entry(namespace.clone()).or_default();
        space.waiting.insert(place.clone(), replay);
    }

    /// It ran, and gave its place to others: it stands behind all that wait by now.
    pub(super) fn put_back(&mut self, uid: &str, replay: Arc<Replay>, now: UnixMillis) {
        let namespace = replay.namespace().unwrap_or_default();
        let place = (true, now.0.div_euclid(1000), uid.to_owned());
        let space = self.spaces.entry(namespace.clone()).or_default();
        space.waiting.insert(place.clone(), replay);
        self.places.insert(uid.to_owned(), (namespace, place));
    }

    /// Whether one that waits would run, did one of this namespace give its place away.
    pub(super) fn is_wanted(&self, namespace: &str) -> bool {
        let waits = |space: &Space| !space.waiting.is_empty();
        let others = || {
            self.spaces
                .values()
                .any(|space| waits(space) && space.running < RUNNING_EACH)
        };
        self.spaces.get(namespace).is_some_and(waits) || (self.running >= RUNNING && others())
    }

    /// It waits no longer.
    pub(super) fn remove(&mut self, uid: &str) {
        if let Some((namespace, place)) = self.places.remove(uid)
            && let Some(space) = self.spaces.get_mut(&namespace)
        {
            space.waiting.remove(&place);
            self.drop_if_empty(&namespace);
        }
    }

    /// The form of one that waits.
    pub(super) fn get(&self, uid: &str) -> Option<&Arc<Replay>> {
        let (namespace, place) = self.places.get(uid)?;
        self.spaces.get(namespace)?.waiting.get(place)
    }

    /// UIDs of all that wait.
    pub(super) fn uids(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }

    /// The next that may run: it counts as running from now on.
    pub(super) fn next(&mut self) -> Option<Arc<Replay>> {
        if self.running >= RUNNING {
            return None;
        }
        let may = self.spaces.values_mut().filter(|space| space.running < RUNNING_EACH);
        let space = may
            .filter(|space| !space.waiting.is_empty())
            .min_by(|a, b| a.waiting.keys().next().cmp(&b.waiting.keys().next()))?;
        let ((_, _, uid), replay) = space.waiting.pop_first()?;
        space.running += 1;
        self.running += 1;
        self.places.remove(&uid);
        Some(replay)
    }

    /// One that ran has ended.
    pub(super) fn ended(&mut self, namespace: &str) {
        self.running = self.running.saturating_sub(1);
        if let Some(space) = self.spaces.get_mut(namespace) {
            space.running = space.running.saturating_sub(1);
            self.drop_if_empty(namespace);
        }
    }

    fn drop_if_empty(&mut self, namespace: &str) {
        let is_empty = |space: &Space| space.running == 0 && space.waiting.is_empty();
        if self.spaces.get(namespace).is_some_and(is_empty) {
            self.spaces.remove(namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replay(namespace: &str, name: &str, second: u32, begun: bool) -> Arc<Replay> {
        let mut object = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay",
            "metadata": {"name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"),
                "creationTimestamp": format!("2026-11-25T08:00:{second:02}Z")},
            "spec": {"selector": {"endpointRef": {"name": "crm"}}}});
        if begun {
            object["status"] = json!({"startTime": "2026-11-25T08:01:00Z"});
        }
        Arc::new(serde_json::from_value(object).expect("a Replay"))
    }

    fn put(line: &mut Line, replay: Arc<Replay>) {
        line.put(&replay.uid().expect("a UID"), replay);
    }

    fn started(line: &mut Line) -> Vec<String> {
        std::iter::from_fn(|| line.next())
            .map(|replay| replay.name_any())
            .collect()
    }

    #[test]
    fn so_many_of_a_namespace_run_oldest_first_and_the_next_when_one_has_ended() {
        let mut line = Line::default();
        for second in (0..7).rev() {
            put(&mut line, replay("team", &format!("r{second}"), second, second == 6));
        }
        put(&mut line, replay("other", "o", 50, false));
        assert_eq!(
            started(&mut line),
            ["r6", "r0", "r1", "r2", "o"],
            "what had begun goes on first"
        );
        line.ended("team");
        // A newer form stands where the one before did, and what is gone is passed over.
        put(&mut line, replay("team", "r4", 4, true));
        line.remove("team-r3");
        assert_eq!(line.uids().count(), 2);
        assert_eq!(started(&mut line), ["r4"]);
        assert!(line.get("team-r4").is_none() && line.get("team-r5").is_some());
    }

    #[test]
    fn one_that_gives_way_stands_behind_those_that_wait_and_before_those_that_come_later() {
        let mut line = Line::default();
        for second in 0..5 {
            put(&mut line, replay("team", &format!("r{second}"), second, false));
        }
        assert!(line.is_wanted("team") && !line.is_wanted("other"), "{line:?}");
        assert_eq!(started(&mut line).len(), RUNNING_EACH);
        assert!(line.is_wanted("team"), "r4 waits for a place");
        let at = UnixMillis(
            replay("team", "now", 30, false)
                .creation_timestamp()
                .unwrap()
                .0
                .as_millisecond(),
        );
        line.ended("team");
        line.put_back("team-r0", replay("team", "r0", 0, true), at);
        put(&mut line, replay("team", "later", 40, false));
        assert_eq!(started(&mut line), ["r4"]);
        for next in ["r0", "later"] {
            line.ended("team");
            assert_eq!(started(&mut line), [next]);
        }
        assert!(!line.is_wanted("team"), "nobody waits");
    }

    #[test]
    fn a_place_is_wanted_by_others_where_all_are_taken() {
        let mut line = Line::default();
        for namespace in 0..=RUNNING {
            put(&mut line, replay(&format!("n{namespace}"), "r", 0, false));
        }
        assert_eq!(started(&mut line).len(), RUNNING);
        assert!(line.is_wanted("n0"), "another namespace's waits");
    }

    #[test]
    fn so_many_run_in_all() {
        let mut line = Line::default();
        for namespace in 0..RUNNING {
            for second in 0..2 {
                put(
                    &mut line,
                    replay(&format!("n{namespace}"), &format!("r{second}"), second, false),
                );
            }
        }
        assert_eq!(started(&mut line).len(), RUNNING);
        line.ended("n0");
        assert_eq!(started(&mut line), ["r1"], "one for one");
        (0..RUNNING).for_each(|namespace| line.ended(&format!("n{namespace}")));
        assert_eq!(started(&mut line).len(), RUNNING - 1);
    }
}
