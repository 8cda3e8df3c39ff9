//! What the loader holds of the Secrets and ConfigMaps that one object refers to.
//!
//! Invariant: only values are taken from what was good; whether a Secret may still be used is what its labels and its type
//! say now.

use std::sync::Arc;

use litemap::LiteMap;
use tokio::time::Instant;

use crate::api::conditions::reasons;
use crate::api::policy::SecretLabel;
use crate::api::resolve::{Found, Reference, References, Unresolved};
use crate::api::status::ReferenceStatus;
use crate::watch::fetch;
use crate::watch::material::Material;

/// References, and what was read of them.
#[derive(Debug)]
pub struct Holding {
    pub references: Vec<Reference>,
    pub material: Material<Reference, Arc<Found>>,
    /// The values with which the object was last usable.
    good: LiteMap<Reference, Arc<Found>>,
    /// Where it stands in the loader's timers.
    pub timer: Option<Instant>,
}

impl Holding {
    /// Nothing read yet.
    pub fn new(now: Instant) -> Holding {
        Holding {
            references: Vec::new(),
            material: Material::new(now),
            good: LiteMap::new(),
            timer: None,
        }
    }

    /// The object changed: what it refers to now, and the versions in its status.
    pub fn observe(
        &mut self,
        references: Vec<Reference>,
        versions: &[ReferenceStatus],
        is_new_spec: bool,
        now: Instant,
    ) {
        self.references = references;
        self.references.shrink_to_fit();
        let wanted: Vec<(Reference, Option<String>)> = self
            .references
            .iter()
            .map(|reference| {
                (
                    reference.clone(),
                    fetch::version_in(versions, reference.kind.into(), &reference.name),
                )
            })
            .collect();
        self.material.observe(&wanted, is_new_spec, now);
        self.good.retain(|reference, _| self.references.contains(reference));
    }

    /// Resolves with what was read last, or where that is spoilt with what was good.
    pub fn resolve<T>(
        &mut self,
        label: SecretLabel,
        resolve: impl Fn(&References) -> Result<T, Unresolved>,
    ) -> Result<T, Unresolved> {
        let mut held: LiteMap<Reference, Arc<Found>> = self
            .references
            .iter()
            .filter_map(|reference| Some((reference.clone(), self.material.value(reference)?.clone())))
            .collect();
        let troubles = self
            .references
            .iter()
            .filter_map(|reference| Some((reference.clone(), self.material.trouble(reference)?)))
            .collect();
        let unresolved = match resolve(&fetch::references(label, &held, &troubles)) {
            Ok(resolved) => {
                self.good = held;
                return Ok(resolved);
            }
            Err(unresolved) => unresolved,
        };
        if !is_spoilt(unresolved.reason) || self.good.is_empty() {
            return Err(unresolved);
        }
        for (reference, good) in &self.good {
            if let Some(found) = held.get_mut(reference) {
                let found = Arc::make_mut(found);
                found.data = good.data.clone();
                found.annotations = good.annotations.clone();
            }
        }
        resolve(&fetch::references(label, &held, &LiteMap::new())).map_err(|_| unresolved)
    }

    /// The versions of what was read last.
    pub fn versions(&self) -> Vec<Option<String>> {
        let version = |reference| self.material.version(reference).map(str::to_owned);
        self.references.iter().map(version).collect()
    }
}

/// Whether a value is there but no good: then the last good one stays in use. One that may no longer be used at all is
/// another matter.
fn is_spoilt(reason: &str) -> bool {
    [
        reasons::SECRET_INVALID,
        reasons::SECRET_KEY_MISSING,
        reasons::CONFIG_MAP_INVALID,
        reasons::CONFIG_MAP_KEY_MISSING,
    ]
    .contains(&reason)
}
