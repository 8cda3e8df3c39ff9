//! What a leader remembers of each object while it leads. Losing it costs reads and a wait, never a wrong write.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::time::Instant;

use super::context::Key;
use super::fleet::Fleet;

/// What was asked of an object: its generation and the annotations that ask for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub uid: String,
    pub generation: i64,
    pub requests: Vec<Option<String>>,
}

/// What is remembered of one object.
#[derive(Clone, Debug)]
pub struct Seen {
    asked: Asked,
    /// When it was asked: what was read before is too old for it.
    pub since: Instant,
    /// The version that every dispatcher must have applied; none when resourceVersions are no numbers.
    version: Option<u64>,
    /// Public id and fingerprint of the signing key seen last.
    pub key: Option<(String, String)>,
    /// Whether the last Event about its Ready said what is wrong.
    pub told_of_trouble: bool,
}

impl Seen {
    /// Whether every living dispatcher has what makes the object ready.
    pub fn is_loaded(&self, plural: &str, namespace: &str, fleet: &Fleet) -> bool {
        // Versions that are no numbers cannot be compared: any version a dispatcher reports must do.
        fleet.has_loaded(plural, namespace, self.version.unwrap_or(0))
    }
}

/// All objects.
#[derive(Debug, Default)]
pub struct Memory {
    seen: Mutex<HashMap<Key, Seen>>,
}

impl Memory {
    /// Takes note of an object as it is now; `resource_version` counts only when the generation is new.
    pub fn see(&self, key: &Key, asked: Asked, resource_version: Option<&str>, now: Instant) -> Seen {
        self.locked(|seen| {
            let version = || resource_version.and_then(|v| v.parse().ok());
            let entry = seen.entry(key.clone()).or_insert_with(|| Seen {
                asked: asked.clone(),
                since: now,
                version: version(),
                key: None,
                told_of_trouble: false,
            });
            if entry.asked.uid != asked.uid || entry.asked.generation != asked.generation {
                entry.version = version();
            }
            if entry.asked != asked {
                entry.asked = asked;
                entry.since = now;
            }
            entry.clone()
        })
    }

    /// A dispatcher must have applied this version, too: what it reads was granted or changed only now.
    pub fn require(&self, key: &Key, resource_version: Option<&str>) {
        if let Some(version) = resource_version.and_then(|v| v.parse().ok()) {
            self.update(key, |seen| seen.version = Some(version));
        }
    }

    /// Whether the last Event about its Ready said what is wrong.
    pub fn told_of_trouble(&self, key: &Key) -> bool {
        self.locked(|seen| seen.get(key).is_some_and(|entry| entry.told_of_trouble))
    }

    /// Changes what is remembered, if anything is.
    pub fn update(&self, key: &Key, f: impl FnOnce(&mut Seen)) {
        self.locked(|seen| {
            if let Some(entry) = seen.get_mut(key) {
                f(entry);
            }
        });
    }

    /// The object is gone.
    pub fn forget(&self, key: &Key) {
        self.locked(|seen| seen.remove(key));
    }

    fn locked<T>(&self, f: impl FnOnce(&mut HashMap<Key, Seen>) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(|e| e.into_inner()))
    }
}
