//! When to read what an endpoint refers to, and what of it to keep. Pure: time is an argument.
//!
//! One [`Material`] an endpoint. Generic over the reference and its value, so that nothing here can look into a Secret.
//! Invariant: a read that failed takes nothing away; what was read last stays until something newer is read.

use std::time::Duration;

use litemap::LiteMap;
use tokio::time::Instant;

/// After a change, a 403 is taken for a grant that has not reached every API server yet.
pub const PROPAGATION: Duration = Duration::from_secs(30);
/// The first pause after such a 403; doubles.
const DENIED_FIRST: Duration = Duration::from_millis(100);
/// The longest pause while a grant may be on its way.
const DENIED_LONGEST: Duration = Duration::from_secs(2);
/// The first pause when the API server gave no usable answer; doubles.
const AWAY_FIRST: Duration = Duration::from_millis(500);
/// The longest one.
const AWAY_LONGEST: Duration = Duration::from_secs(30);
/// How often something missing is looked for without being told of a change.
const MISSING: Duration = Duration::from_secs(60);
/// A receiver's 401 or 403 makes us read anew at most this often.
const REFRESH: Duration = Duration::from_secs(30);
/// How long an endpoint without its Secret is held back from the engine: a new one gets its Secret and grant within this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// 404.
    Missing,
    /// 403.
    Denied,
    /// No usable answer.
    Away,
}

/// One read: its reference, and the version and value, or why not.
pub type Read<R, V> = (R, Result<(String, V), Trouble>);

/// What is known of an endpoint's references.
#[derive(Debug)]
pub struct Material<R, V> {
    held: LiteMap<R, (String, V)>,
    trouble: LiteMap<R, Trouble>,
    /// Versions in status that were acted upon: the controller may lag behind what was read.
    acted: LiteMap<R, String>,
    running: bool,
    again: bool,
    /// No read that began since the last news has ended: what is held may be older than the spec, or than the version in
    /// status.
    unread: bool,
    /// The change that the current tries belong to.
    since: Instant,
    tries: u32,
    next: Option<Instant>,
    refreshed: Option<Instant>,
    born: Instant,
}

impl<R: Ord + Clone, V> Material<R, V> {
    /// Nothing read yet, and due at once.
    pub fn new(now: Instant) -> Self {
        Material {
            held: LiteMap::new(),
            trouble: LiteMap::new(),
            acted: LiteMap::new(),
            running: false,
            again: false,
            unread: true,
            since: now,
            tries: 0,
            next: Some(now),
            refreshed: None,
            born: now,
        }
    }

    /// The object changed: reads when its spec is new, when it refers to something unread, or when the versions in its
    /// status are not those that were read.
    pub fn observe(&mut self, wanted: &[(R, Option<String>)], is_new_spec: bool, now: Instant) {
        let is_wanted = |reference: &R| wanted.iter().any(|(r, _)| r == reference);
        self.held.retain(|reference, _| is_wanted(reference));
        self.trouble.retain(|reference, _| is_wanted(reference));
        self.acted.retain(|reference, _| is_wanted(reference));
        let mut read = is_new_spec;
        for (reference, version) in wanted {
            read |= !self.held.contains_key(reference) && !self.trouble.contains_key(reference);
            let Some(version) = version else { continue };
            let is_news = self.held.get(reference).is_none_or(|(held, _)| held != version);
            if is_news && self.acted.get(reference) != Some(version) {
                self.acted.insert(reference.clone(), version.clone());
                read = true;
            }
        }
        if read && !wanted.is_empty() {
            self.ask(now);
        }
        self.unread |= read;
        if wanted.is_empty() {
            (self.next, self.unread) = (None, false);
        }
    }

    /// The receiver answered 401 or 403. Whether it will be read anew.
    pub fn refresh(&mut self, now: Instant) -> bool {
        let allowed = self.refreshed.is_none_or(|last| now.duration_since(last) >= REFRESH);
        if allowed {
            self.refreshed = Some(now);
            self.ask(now);
        }
        allowed
    }

    /// What is held is not all that may be read by now.
    pub fn reread(&mut self, now: Instant) {
        self.unread = true;
        self.ask(now);
    }

    /// When to read next; none while a read runs or nothing is to be read.
    pub fn due(&self) -> Option<Instant> {
        if self.running { None } else { self.next }
    }

    /// Puts off the read that is due.
    pub fn not_before(&mut self, at: Instant) {
        self.next = self.next.map(|next| next.max(at));
    }

    /// A read begins.
    pub fn start(&mut self) {
        self.running = true;
        self.next = None;
    }

    /// A read ended; a failed one is tried again after `pace` at the earliest, unless it is asked for. Values of references
    /// that are no longer wanted are dropped by the next [`Material::observe`].
    pub fn finish(&mut self, reads: Vec<Read<R, V>>, now: Instant, pace: Duration) {
        self.running = false;
        for (reference, result) in reads {
            match result {
                Ok(read) => {
                    self.trouble.remove(&reference);
                    self.held.insert(reference, read);
                }
                Err(trouble) => {
                    self.trouble.insert(reference, trouble);
                }
            }
        }
        self.next = if std::mem::take(&mut self.again) {
            Some(now)
        } else {
            self.unread = false;
            self.retry(now).map(|at| at.max(now + pace))
        };
        self.tries = self.tries.saturating_add(1);
    }

    /// The value last read.
    pub fn value(&self, reference: &R) -> Option<&V> {
        self.held.get(reference).map(|(_, value)| value)
    }

    /// The version of the value last read.
    pub fn version(&self, reference: &R) -> Option<&str> {
        self.held.get(reference).map(|(version, _)| version.as_str())
    }

    /// Whether every one of these was read as of the last change, or nothing more is to be expected soon.
    pub fn is_settled<'a>(&self, wanted: impl IntoIterator<Item = &'a R>, now: Instant) -> bool
    where
        R: 'a,
    {
        now.duration_since(self.born) >= PATIENCE
            || wanted.into_iter().all(|reference| {
                self.held.contains_key(reference) || self.trouble.get(reference) == Some(&Trouble::Missing)
            })
    }

    /// Whether everything has been tried since the spec, or a version in status, changed: only then does the endpoint count
    /// as loaded, or a POST after Ready could still be signed with the key before.
    pub fn is_read(&self) -> bool {
        !self.unread
    }

    /// When [`Material::is_settled`] turns true by time alone.
    pub fn settles_at(&self) -> Instant {
        self.born + PATIENCE
    }

    /// Why this one could not be read the last time.
    pub fn trouble(&self, reference: &R) -> Option<Trouble> {
        self.trouble.get(reference).copied()
    }

    fn ask(&mut self, now: Instant) {
        self.since = now;
        self.tries = 0;
        if self.running {
            self.again = true;
        } else {
            self.next = Some(now);
        }
    }

    fn retry(&self, now: Instant) -> Option<Instant> {
        let has = |trouble| self.trouble.values().any(|t| *t == trouble);
        let doubled = |first: Duration, longest: Duration| first.saturating_mul(1 << self.tries.min(16)).min(longest);
        if has(Trouble::Denied) && now.duration_since(self.since) < PROPAGATION {
            Some(now + doubled(DENIED_FIRST, DENIED_LONGEST))
        } else if has(Trouble::Away) {
            Some(now + doubled(AWAY_FIRST, AWAY_LONGEST))
        } else if self.trouble.is_empty() {
            None
        } else {
            Some(now + MISSING)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tested = Material<&'static str, u8>;
    const KEY: &str = "key";

    fn wanted(version: Option<&str>) -> Vec<(&'static str, Option<String>)> {
        vec![(KEY, version.map(str::to_owned))]
    }

    fn ok(version: &str, value: u8) -> Vec<Read<&'static str, u8>> {
        vec![(KEY, Ok((version.to_owned(), value)))]
    }

    fn read(material: &mut Tested, reads: Vec<Read<&'static str, u8>>, now: Instant) {
        material.start();
        material.finish(reads, now, Duration::ZERO);
    }

    #[test]
    fn what_is_read_is_not_read_again_until_status_names_another_version() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        material.observe(&wanted(None), true, now);
        assert_eq!(material.due(), Some(now));
        read(&mut material, ok("5", 1), now);
        assert_eq!((material.value(&KEY), material.due()), (Some(&1), None));
        material.observe(&wanted(Some("5")), false, now);
        assert_eq!(material.due(), None);
        material.observe(&wanted(Some("9")), false, now);
        assert_eq!(material.due(), Some(now));
        read(&mut material, ok("10", 2), now);
        material.observe(&wanted(Some("9")), false, now);
        assert_eq!(material.due(), None, "the controller lags: once is enough");
    }

    #[test]
    fn a_failed_read_keeps_the_last_good_value() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        read(&mut material, ok("5", 1), now);
        for trouble in [Trouble::Missing, Trouble::Denied, Trouble::Away] {
            read(&mut material, vec![(KEY, Err(trouble))], now);
            assert_eq!(material.value(&KEY), Some(&1));
            assert!(material.is_settled([&KEY], now));
            assert!(material.due().is_some(), "and is tried again");
        }
    }

    #[test]
    fn a_403_soon_after_a_change_is_tried_again_quickly_and_later_slowly() {
        let start = Instant::now();
        let mut material = Tested::new(start);
        let (mut now, mut reads) = (start, 0);
        while now.duration_since(start) < PROPAGATION {
            read(&mut material, vec![(KEY, Err(Trouble::Denied))], now);
            now = material.due().expect("tried again");
            reads += 1;
        }
        assert!((15..30).contains(&reads), "{reads} reads in {PROPAGATION:?}");
        read(&mut material, vec![(KEY, Err(Trouble::Denied))], now);
        assert_eq!(material.due(), Some(now + MISSING));
        material.observe(&wanted(Some("7")), false, now);
        assert_eq!(
            material.due(),
            Some(now),
            "a version in status means that somebody could read it"
        );
    }

    #[test]
    fn a_new_endpoint_is_settled_when_read_or_known_missing_or_after_its_patience() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        assert!(!material.is_settled([&KEY], now));
        read(&mut material, vec![(KEY, Err(Trouble::Denied))], now);
        assert!(!material.is_settled([&KEY], now));
        assert!(material.is_settled([&KEY], material.settles_at()));
        read(&mut material, vec![(KEY, Err(Trouble::Missing))], now);
        assert!(material.is_settled([&KEY], now));
        assert!(Tested::new(now).is_settled([], now), "nothing to read");
    }

    #[test]
    fn a_refusing_receiver_causes_one_read_in_thirty_seconds() {
        let start = Instant::now();
        let mut material = Tested::new(start);
        read(&mut material, ok("5", 1), start);
        let reads = (0..60)
            .filter(|second| material.refresh(start + Duration::from_secs(*second)))
            .count();
        assert_eq!(reads, 2);
    }

    #[test]
    fn a_change_during_a_read_is_read_after_it() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        material.start();
        material.observe(&wanted(Some("6")), false, now);
        assert_eq!(material.due(), None);
        material.finish(ok("5", 1), now, Duration::ZERO);
        assert_eq!(material.due(), Some(now));
    }

    #[test]
    fn a_new_spec_counts_as_loaded_only_after_a_read_that_began_after_it() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        read(&mut material, ok("5", 1), now);
        assert!(material.is_read());
        material.start();
        material.observe(&wanted(None), true, now);
        material.finish(ok("5", 1), now, Duration::ZERO);
        assert!(!material.is_read(), "that read began before");
        read(&mut material, vec![(KEY, Err(Trouble::Denied))], now);
        assert!(
            material.is_read(),
            "a failure is an answer too: the last good value stays"
        );
    }

    #[test]
    fn a_new_version_in_status_counts_as_loaded_only_after_a_read_that_began_after_it() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        read(&mut material, ok("5", 1), now);
        material.start();
        material.observe(&wanted(Some("6")), false, now);
        assert!(!material.is_read(), "told, and not read");
        material.finish(ok("5", 1), now, Duration::ZERO);
        assert!(!material.is_read(), "that read began before");
        read(&mut material, ok("6", 2), now);
        assert!(material.is_read());
        for (version, trouble) in [("7", Trouble::Missing), ("8", Trouble::Denied), ("9", Trouble::Away)] {
            material.observe(&wanted(Some(version)), false, now);
            assert!(!material.is_read(), "{version}");
            read(&mut material, vec![(KEY, Err(trouble))], now);
            material.observe(&wanted(Some(version)), false, now);
            assert!(
                material.is_read(),
                "{trouble:?} is an answer: Ready does not hang on it"
            );
        }
    }

    #[test]
    fn where_many_wait_guesses_are_spread_and_what_status_tells_is_read_at_once() {
        let (now, pace) = (Instant::now(), Duration::from_secs(20));
        let mut material = Tested::new(now);
        material.observe(&wanted(None), true, now);
        material.not_before(now + pace);
        assert_eq!(material.due(), Some(now + pace), "the controller has not looked at it");
        material.observe(&wanted(Some("5")), false, now);
        assert_eq!(material.due(), Some(now));
        material.start();
        material.finish(vec![(KEY, Err(Trouble::Denied))], now, pace);
        assert_eq!(material.due(), Some(now + pace), "asked for by nobody");
        material.observe(&wanted(Some("6")), false, now);
        assert_eq!(material.due(), Some(now));
        read(&mut material, ok("6", 1), now);
        assert_eq!(material.due(), None);
    }

    #[test]
    fn a_dropped_reference_is_forgotten() {
        let now = Instant::now();
        let mut material = Tested::new(now);
        read(&mut material, ok("5", 1), now);
        material.observe(&[], true, now);
        assert_eq!((material.value(&KEY), material.due()), (None, None));
    }
}
