//! What the loader holds of the Secrets and ConfigMaps that one object refers to.
//!
//! Invariant: only values are taken from what was good; whether a Secret may still be used is what its labels and its type
//! say now.

use std::sync::Arc;

use litemap::LiteMap;
use tokio::time::Instant;

use crate::api::conditions::reasons;
use crate::api::names::PREVIOUS;
use crate::api::policy::SecretLabel;
use crate::api::resolve::{Found, Reference, References, Unresolved, Uses};
use crate::api::status::ReferenceStatus;
use crate::watch::fetch;
use crate::watch::material::Material;

/// References, and what was read of them.
#[derive(Debug)]
pub struct Holding {
    pub uses: Uses,
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
            uses: Vec::new(),
            material: Material::new(now),
            good: LiteMap::new(),
            timer: None,
        }
    }

    /// The object changed: what it refers to now, and the versions in its status.
    pub fn observe(&mut self, uses: Uses, versions: &[ReferenceStatus], is_new_spec: bool, now: Instant) {
        self.uses = uses;
        self.uses.shrink_to_fit();
        let wanted: Vec<(Reference, Option<String>)> = self
            .references()
            .map(|reference| {
                (
                    reference.clone(),
                    fetch::version_in(versions, reference.kind.into(), &reference.name),
                )
            })
            .collect();
        self.material.observe(&wanted, is_new_spec, now);
        let is_used = |reference: &Reference| self.uses.iter().any(|(used, _)| used == reference);
        self.good.retain(|reference, _| is_used(reference));
    }

    /// What it refers to.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.uses.iter().map(|(reference, _)| reference)
    }

    /// Where the policy asks for no label any more, has read what was left out for want of it. What failed to be read is
    /// tried again anyway.
    pub fn heed(&mut self, label: SecretLabel, now: Instant) {
        let is_withheld = |reference: &Reference| {
            let found = self.material.value(reference);
            found.is_some_and(|found| found.withheld) && self.material.trouble(reference).is_none()
        };
        let is_due = label == SecretLabel::NotRequired && self.material.is_read();
        if is_due && self.references().any(is_withheld) {
            self.material.reread(now);
        }
    }

    /// Resolves with what was read last, or where that is spoilt with what was good.
    pub fn resolve<T>(
        &mut self,
        label: SecretLabel,
        resolve: impl Fn(&References) -> Result<T, Unresolved>,
    ) -> Result<T, Unresolved> {
        let mut held: LiteMap<Reference, Arc<Found>> = self
            .references()
            .filter_map(|reference| Some((reference.clone(), self.material.value(reference)?.clone())))
            .collect();
        let troubles = self
            .references()
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
                // A key that is used only since then is as it is now; `previous` alone may be missing from what was good.
                let mut data = good.data.clone();
                let is_new = |key: &String| key != PREVIOUS && !good.data.contains_key(key);
                let new = found.data.iter().filter(|(key, _)| is_new(key));
                data.extend(new.map(|(key, value)| (key.clone(), value.clone())));
                found.data = data;
                found.annotations = good.annotations.clone();
            }
        }
        resolve(&fetch::references(label, &held, &LiteMap::new())).map_err(|_| unresolved)
    }

    /// The versions of what was read last.
    pub fn versions(&self) -> Vec<Option<String>> {
        let version = |reference| self.material.version(reference).map(str::to_owned);
        self.references().map(version).collect()
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
