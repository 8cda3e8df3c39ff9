//! How far the dispatchers are with an object, and what it still waits for. Pure.

use super::fleet::Fleet;
use super::memory::Seen;

/// How far the dispatchers are.
pub struct Standing<'a> {
    /// They may read everything the object names.
    pub granted: bool,
    pub namespace: &'a str,
    pub fleet: Fleet,
    /// Digest of the policy that the object was resolved by here.
    pub policy: &'a str,
    pub seen: &'a Seen,
}

impl Standing<'_> {
    /// What an object of this kind that can be used still waits for; `references_are_told` says whether its status has the
    /// versions of what it names.
    pub fn waits_for(&self, plural: &str, references_are_told: bool, generation: i64) -> Option<String> {
        if self.fleet.live == 0 {
            Some("no dispatcher is running: its Lease in Tidings' namespace would say so".to_owned())
        } else if !self.granted {
            Some("the dispatcher is being given access to the Secrets that are named".to_owned())
        } else if !self.fleet.goes_by(self.policy) {
            Some("the dispatcher does not go by the same policy yet: a changed file reaches both processes in a minute or two".to_owned())
        } else if !references_are_told || !self.seen.is_loaded(plural, self.namespace, &self.fleet) {
            Some(format!("the dispatcher is loading generation {generation}"))
        } else {
            None
        }
    }
}
