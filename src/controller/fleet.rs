//! Which dispatchers live and what all of them have loaded. Pure but for the clock given to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::kubernetes::lease::{self, Liveness, LoadedPart};

/// What every living replica has applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Living replicas.
    pub live: usize,
    /// For each kind (plural) and part the lowest `resourceVersion` over the living replicas; what one of them has not
    /// loaded is absent.
    loaded: BTreeMap<LoadedPart, u64>,
    /// Digest of the policy that all of them go by; none while they do not agree.
    policy: Option<String>,
}

impl Fleet {
    /// The fleet as the Leases show it.
    pub fn of(leases: &[Arc<Lease>], liveness: &mut Liveness, now: Instant) -> Fleet {
        let mut fleet = Fleet::default();
        for lease in leases {
            if !liveness.observe(lease, now) {
                continue;
            }
            let loaded = lease::loaded(lease);
            let policy =
                lease::policy(lease).filter(|policy| fleet.live == 0 || fleet.policy.as_deref() == Some(policy));
            fleet.policy = policy.map(str::to_owned);
            fleet.loaded = match fleet.live {
                0 => loaded,
                _ => fleet
                    .loaded
                    .into_iter()
                    .filter_map(|(kind, version)| {
                        let here = *loaded.get(&kind)?;
                        Some((kind, version.min(here)))
                    })
                    .collect(),
            };
            fleet.live += 1;
        }
        liveness.retain(|name| leases.iter().any(|l| l.name_any() == name));
        fleet
    }

    /// Whether at least one replica lives and all of them have resolved everything by the policy of this digest.
    pub fn goes_by(&self, policy: &str) -> bool {
        self.live > 0 && self.policy.as_deref() == Some(policy)
    }

    /// Whether at least one replica lives and all of them have applied `version` of this kind in the namespace.
    pub fn has_loaded(&self, plural: &str, namespace: &str, version: u64) -> bool {
        let mut of_namespace = self
            .loaded
            .iter()
            .filter(|((kind, part), _)| kind == plural && part.has(namespace));
        self.live > 0 && of_namespace.any(|(_, loaded)| *loaded >= version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use std::time::Duration;

    fn replica(name: &str, holder: Option<&str>, endpoints: Option<&str>) -> Arc<Lease> {
        let mut lease = Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        lease.metadata.name = Some(name.to_owned());
        lease.metadata.annotations =
            endpoints.map(|v| BTreeMap::from([(lease::loaded_annotation("webhookendpoints"), v.to_owned())]));
        Arc::new(lease)
    }

    #[test]
    fn a_version_is_loaded_when_every_living_replica_has_passed_it() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        let kind = "webhookendpoints";
        let of = |leases: &[Arc<Lease>], liveness: &mut Liveness, now| Fleet::of(leases, liveness, now);
        assert!(!of(&[], &mut liveness, now).has_loaded(kind, "team", 0), "no replica");
        let a = replica("a", Some("a"), Some("10"));
        let b = replica("b", Some("b"), Some("9"));
        let both = of(&[a.clone(), b.clone()], &mut liveness, now);
        assert!(both.has_loaded(kind, "team", 9) && !both.has_loaded(kind, "team", 10));
        assert!(!both.has_loaded("eventtypes", "team", 1));
        let starting = replica("c", Some("c"), None);
        assert!(
            !of(&[a.clone(), starting], &mut liveness, now).has_loaded(kind, "team", 1),
            "one has loaded nothing yet"
        );
        let vacated = replica("b", None, Some("1"));
        assert!(of(&[a, vacated], &mut liveness, now).has_loaded(kind, "team", 10));
        let later = now + Duration::from_secs(60);
        let renewed = replica("a", Some("a2"), Some("10"));
        assert!(
            of(&[renewed.clone(), b.clone()], &mut liveness, now).live == 2,
            "b was forgotten with its Lease"
        );
        let mut liveness = Liveness::default();
        of(std::slice::from_ref(&b), &mut liveness, now);
        assert!(
            of(&[renewed, b], &mut liveness, later).has_loaded(kind, "team", 10),
            "b is dead by then"
        );
    }

    #[test]
    fn a_policy_counts_when_every_living_replica_goes_by_it() {
        let by = |name: &str, holder: Option<&str>, policy: &str| {
            let mut lease = Lease::clone(&replica(name, holder, None));
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(lease::POLICY_ANNOTATION.to_owned(), policy.to_owned());
            Arc::new(lease)
        };
        let (mut liveness, now) = (Liveness::default(), Instant::now());
        let mut goes_by = |leases: &[Arc<Lease>]| Fleet::of(leases, &mut liveness, now).goes_by("p1");
        let live = |name: &'static str, policy: &str| by(name, Some(name), policy);
        assert!(!goes_by(&[]) && !goes_by(&[replica("a", Some("a"), None)]));
        assert!(!goes_by(&[live("a", "")]) && !goes_by(&[live("a", "p2")]));
        assert!(goes_by(&[live("a", "p1")]) && goes_by(&[live("a", "p1"), live("b", "p1")]));
        for others in [["p1", "p2", "p1"], ["p2", "p1", "p1"], ["p1", "p1", ""]] {
            let [a, b, c] = others;
            assert!(!goes_by(&[live("a", a), live("b", b), live("c", c)]), "{others:?}");
        }
        assert!(goes_by(&[live("a", "p1"), by("b", None, "p2")]), "vacated");
    }

    #[test]
    fn a_version_loaded_in_one_namespace_is_not_loaded_in_another() {
        let mut liveness = Liveness::default();
        let a = replica("a", Some("a"), Some("sales=10,shop=3"));
        let fleet = Fleet::of(&[a], &mut liveness, Instant::now());
        let loaded = |namespace, version| fleet.has_loaded("webhookendpoints", namespace, version);
        assert!(loaded("sales", 10) && loaded("shop", 3) && !loaded("shop", 4));
        assert!(!loaded("other", 1), "nothing is known of what is not watched");
    }
}
