//! Leases: which controller leads, and which dispatchers live and what they have loaded.
//!
//! Every write carries the `resourceVersion` that was read; whether a holder lives is judged on our own monotonic clock
//! since we last saw its Lease change, never by comparing clocks. Invariant: a [`Leadership`] reports itself lost before
//! anybody else may take the Lease over.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::scope::Part;
use super::{RequestError, within};

/// How often a holder renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// A Lease that has not changed for this long has no living holder.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long stops writing: well before [`DEAD_AFTER`], counted from the start of the
/// last renewal that succeeded, so that the next leader never overlaps.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// How often a waiting candidate looks: a vacated Lease is taken over within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The pause after a failed write.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long giving a Lease up may take, all requests together: a process that ends has little time, and one that does not
/// succeed leaves its Lease to run out.
const VACATE_WITHIN: Duration = Duration::from_secs(5);
/// At most one heartbeat write in this time, whatever changes.
const HEARTBEAT_GAP: Duration = Duration::from_secs(1);

/// Label of a dispatcher's Lease.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Its value.
pub const DISPATCHER: &str = "dispatcher";

/// The annotation that carries the last applied `resourceVersion` of a kind (its plural name).
pub fn loaded_annotation(plural: &str) -> String {
    format!("tidings.dev/loaded-{plural}")
}

/// The annotation that carries the digest of the policy by which everything that is loaded was resolved; empty before.
pub const POLICY_ANNOTATION: &str = "tidings.dev/policy";

/// Name of the Lease of the dispatcher with this identity.
pub fn dispatcher_lease_name(identity: &str) -> String {
    format!("tidings-dispatcher-{identity}")
}

/// One Lease and who we are.
#[derive(Clone)]
pub struct Claim {
    pub api: Api<Lease>,
    pub name: String,
    /// Unique to this process: the pod's name.
    pub identity: String,
    pub labels: BTreeMap<String, String>,
}

/// When each Lease was last seen to change.
#[derive(Debug, Default)]
pub struct Liveness {
    seen: HashMap<String, (Mark, Instant)>,
}

type Mark = (Option<String>, Option<Timestamp>);

impl Liveness {
    /// Notes a Lease as it is now, and says whether its holder lives.
    pub fn observe(&mut self, lease: &Lease, now: Instant) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|s| s.holder_identity.clone()).filter(|h| !h.is_empty());
        let held = holder.is_some();
        let mark = (holder, spec.and_then(|s| s.renew_time.as_ref()).map(|t| t.0));
        let entry = self.seen.entry(lease.name_any()).or_insert_with(|| (mark.clone(), now));
        if entry.0 != mark {
            *entry = (mark, now);
        }
        held && now.duration_since(entry.1) < DEAD_AFTER
    }

    /// Forgets Leases that are gone.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.seen.retain(|name, _| exists(name));
    }
}

/// That this process leads. Dropping it without [`Leadership::vacate`] leaves the Lease to run out.
#[derive(Debug)]
pub struct Leadership {
    /// Cancelled when the Lease could not be kept: stop writing at once.
    pub lost: CancellationToken,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Leadership {
    /// Gives the Lease up, so that the next leader need not wait for it to run out.
    pub async fn vacate(self) {
        self.stop.cancel();
        // Ends within [`VACATE_WITHIN`]; a panic in it has nothing left to vacate.
        let _ = self.task.await;
    }
}

/// Waits until this process leads; none when `shutdown` came first.
pub async fn lead(claim: Claim, shutdown: &CancellationToken) -> Option<Leadership> {
    let mut liveness = Liveness::default();
    loop {
        let started = Instant::now();
        match try_acquire(&claim, &mut liveness).await {
            Ok(Some(lease)) => {
                tracing::info!(lease = claim.name, identity = claim.identity, "leading");
                let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
                let task = tokio::spawn(keep(claim, lease, started, lost.clone(), stop.clone()));
                return Some(Leadership { lost, stop, task });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(lease = claim.name, %error, "failed to acquire the Lease"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// One look: takes the Lease when nobody living holds it.
async fn try_acquire(claim: &Claim, liveness: &mut Liveness) -> Result<Option<Lease>, RequestError> {
    let taken = match within(claim.api.get_opt(&claim.name)).await? {
        None => {
            within(
                claim
                    .api
                    .create(&PostParams::default(), &claim.lease(None, &BTreeMap::new())),
            )
            .await
        }
        // A predecessor of the same identity cannot be alive beside us: identities are unique to a process.
        Some(lease) if liveness.observe(&lease, Instant::now()) && !claim.holds(&lease) => return Ok(None),
        Some(lease) => claim.write(Some(&lease), &BTreeMap::new()).await,
    };
    match taken {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if error.is_conflict() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renews until stopped, then vacates; cancels `lost` when it cannot.
async fn keep(claim: Claim, mut lease: Lease, started: Instant, lost: CancellationToken, stop: CancellationToken) {
    let mut renewed = started;
    let mut next = RENEW_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep_until(renewed + GIVE_UP_AFTER) => {
                tracing::error!(lease = claim.name, "could not renew the Lease in time: no longer leading");
                lost.cancel();
                return;
            }
            attempt = async { tokio::time::sleep(next).await; let at = Instant::now(); (at, claim.write(Some(&lease), &BTreeMap::new()).await) } => {
                let (at, result) = attempt;
                match result {
                    Ok(written) => { lease = written; renewed = at; next = RENEW_EVERY; }
                    Err(error) => {
                        tracing::warn!(lease = claim.name, %error, "failed to renew the Lease");
                        next = RETRY_AFTER;
                        if error.is_conflict() || error.code() == Some(404) {
                            let read = within(claim.api.get(&claim.name));
                            let read = tokio::time::timeout_at(renewed + GIVE_UP_AFTER, read);
                            match stop.run_until_cancelled(read).await {
                                Some(Ok(Ok(current))) if claim.holds(&current) => lease = current,
                                Some(Ok(Ok(_))) => { lost.cancel(); return; }
                                Some(Ok(Err(error))) if error.code() == Some(404) => { lost.cancel(); return; }
                                // No answer in time, and the end, are the arms above.
                                Some(Ok(Err(_)) | Err(_)) | None => {}
                            }
                        }
                    }
                }
            }
        }
    }
    claim.vacate_in_time(lease).await;
}

/// Keeps a Lease that only says "I live, and this is what I have loaded": renewed every [`RENEW_EVERY`], and when
/// `annotations` change, at most once a second. Vacates it on `shutdown`. The API server being away stops nothing.
pub async fn heartbeat(
    claim: Claim,
    mut annotations: watch::Receiver<BTreeMap<String, String>>,
    shutdown: CancellationToken,
) {
    let mut lease: Option<Lease> = None;
    loop {
        let wanted = annotations.borrow_and_update().clone();
        let mut pause = HEARTBEAT_GAP;
        match beat(&claim, lease.take(), &wanted).await {
            Ok(written) => lease = Some(written),
            Err(error) => {
                tracing::warn!(lease = claim.name, %error, "failed to renew the Lease");
                pause = RETRY_AFTER;
            }
        }
        let failed = lease.is_none();
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        if failed {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(RENEW_EVERY - HEARTBEAT_GAP) => {}
            // A dropped sender changes nothing any more: only the clock renews.
            Ok(()) = annotations.changed() => {}
        }
    }
    if let Some(lease) = lease {
        claim.vacate_in_time(lease).await;
    }
}

async fn beat(claim: &Claim, known: Option<Lease>, wanted: &BTreeMap<String, String>) -> Result<Lease, RequestError> {
    if let Some(known) = known {
        match claim.write(Some(&known), wanted).await {
            Err(error) if error.is_conflict() || error.code() == Some(404) => {}
            other => return other,
        }
    }
    let current = within(claim.api.get_opt(&claim.name)).await?;
    claim.write(current.as_ref(), wanted).await
}

impl Claim {
    /// Whether the Lease names us.
    fn holds(&self, lease: &Lease) -> bool {
        lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) == Some(self.identity.as_str())
    }

    /// Creates the Lease, or replaces exactly the one given.
    async fn write(
        &self,
        known: Option<&Lease>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Lease, RequestError> {
        let lease = self.lease(known, annotations);
        match known {
            Some(_) => within(self.api.replace(&self.name, &PostParams::default(), &lease)).await,
            None => within(self.api.create(&PostParams::default(), &lease)).await,
        }
    }

    /// Gives the Lease up, or leaves it to run out.
    async fn vacate_in_time(&self, known: Lease) {
        match tokio::time::timeout(VACATE_WITHIN, self.vacate(known)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "failed to vacate the Lease"),
            Err(_late) => tracing::warn!(lease = self.name, "could not vacate the Lease in time"),
        }
    }

    /// Gives the Lease up, unless it is another's by now or gone.
    async fn vacate(&self, known: Lease) -> Result<(), RequestError> {
        let given_up = self.give_up(known).await;
        if !given_up.as_ref().is_err_and(RequestError::is_conflict) {
            return given_up;
        }
        // A renewal that nobody waited for any more may have been carried out.
        match within(self.api.get_opt(&self.name)).await? {
            Some(current) if self.holds(&current) => self.give_up(current).await,
            _ => Ok(()),
        }
    }

    async fn give_up(&self, mut lease: Lease) -> Result<(), RequestError> {
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = None;
        }
        match within(self.api.replace(&self.name, &PostParams::default(), &lease)).await {
            Err(error) if error.code() == Some(404) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn lease(&self, known: Option<&Lease>, annotations: &BTreeMap<String, String>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = known.and_then(|l| l.spec.clone()).unwrap_or_default();
        let ours = known.is_some_and(|l| self.holds(l));
        let mut metadata = known.map(|l| l.metadata.clone()).unwrap_or_else(|| ObjectMeta {
            name: Some(self.name.clone()),
            ..ObjectMeta::default()
        });
        metadata.managed_fields = None;
        metadata.labels.get_or_insert_default().extend(self.labels.clone());
        metadata.annotations.get_or_insert_default().extend(annotations.clone());
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DEAD_AFTER.as_secs()).ok(),
                acquire_time: if ours { before.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(known.is_some() && !ours)),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// A kind of which everything in a part is loaded, up to a version.
pub type LoadedPart = (String, Part);

/// What a living dispatcher has loaded, from its Lease's annotations: plural kind and part to `resourceVersion`.
pub fn loaded(lease: &Lease) -> BTreeMap<LoadedPart, u64> {
    let annotations = lease.annotations().iter();
    let versions = annotations.flat_map(|(key, text)| {
        let plural = key.strip_prefix("tidings.dev/loaded-").unwrap_or_default();
        let of_part = move |text: &str| {
            let (part, version) = match text.split_once('=') {
                Some((namespace, version)) => (Part::One(namespace.into()), version),
                None => (Part::All, text),
            };
            Some(((plural.to_owned(), part), version.parse().ok()?))
        };
        text.split(',').filter(|_| !plural.is_empty()).filter_map(of_part)
    });
    versions.collect()
}

/// The digest of the policy that a living dispatcher goes by, from its Lease's annotations.
pub fn policy(lease: &Lease) -> Option<&str> {
    let digest = lease.annotations().get(POLICY_ANNOTATION)?;
    Some(digest.as_str()).filter(|digest| !digest.is_empty())
}

/// The text of an annotation of a kind: a version, or `namespace=version` for each namespace that is watched.
pub fn shown<'a>(versions: impl Iterator<Item = (&'a Part, u64)>) -> String {
    let each = versions.map(|(part, version)| match part {
        Part::All => version.to_string(),
        Part::One(namespace) => format!("{namespace}={version}"),
    });
    each.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt as _;
    use kube::Client;
    use kube::client::Body;

    use super::*;

    fn lease(holder: Option<&str>, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some("l".into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_holder_is_dead_fifteen_seconds_after_its_lease_last_changed_whatever_its_clock_says() {
        let mut liveness = Liveness::default();
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        assert!(
            liveness.observe(&lease(Some("a"), 0), start),
            "first sight, decades old by its own clock"
        );
        assert!(liveness.observe(&lease(Some("a"), 0), after(14)));
        assert!(!liveness.observe(&lease(Some("a"), 0), after(15)));
        assert!(
            liveness.observe(&lease(Some("a"), 1), after(16)),
            "it renewed after all"
        );
        assert!(!liveness.observe(&lease(None, 1), after(17)), "vacated");
        assert!(liveness.observe(&lease(Some("b"), 1), after(18)), "taken over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_read_after_a_conflict_is_given_up_as_early_as_one_that_cannot_be_renewed() {
        let refusing = tower::service_fn(|request: http::Request<Body>| async move {
            if request.method() == http::Method::GET {
                std::future::pending::<()>().await;
            }
            let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Conflict","message":"changed","code":409}"#;
            let response = http::Response::builder()
                .status(409)
                .body(Body::from(status.as_bytes().to_vec()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        });
        let claim = Claim {
            api: Api::namespaced(Client::new(refusing, "tidings-system"), "tidings-system"),
            name: "l".into(),
            identity: "a".into(),
            labels: BTreeMap::new(),
        };
        let (started, lost) = (Instant::now(), CancellationToken::new());
        let kept = keep(
            claim,
            lease(Some("a"), 0),
            started,
            lost.clone(),
            CancellationToken::new(),
        );
        kept.await;
        assert!(lost.is_cancelled());
        let took = started.elapsed();
        assert!(took < GIVE_UP_AFTER + RETRY_AFTER, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_left_to_run_out_when_the_api_server_is_silent_at_the_end() {
        let client = crate::kubernetes::silent_client();
        let claim = Claim {
            api: Api::namespaced(client, "tidings-system"),
            name: "l".into(),
            identity: "a".into(),
            labels: BTreeMap::new(),
        };
        let (begin, lost, stop) = (Instant::now(), CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(keep(claim, lease(Some("a"), 0), begin, lost.clone(), stop.clone()));
        // Within a renewal that gets no answer.
        tokio::time::sleep(RENEW_EVERY + RETRY_AFTER).await;
        let ending = Instant::now();
        Leadership { lost, stop, task }.vacate().await;
        let took = ending.elapsed();
        assert!(took < VACATE_WITHIN + RETRY_AFTER, "{took:?}");
    }

    /// A claim of `a` at an API server that has one Lease, and that Lease.
    fn claim_of(stored: Lease) -> (Claim, Arc<Mutex<Lease>>) {
        let stored = Arc::new(Mutex::new(stored));
        let server = Arc::clone(&stored);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let stored = Arc::clone(&server);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut stored = stored.lock().unwrap();
                if !body.is_empty() {
                    let put: Lease = serde_json::from_slice(&body).unwrap();
                    if put.metadata.resource_version != stored.metadata.resource_version {
                        let conflict = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Conflict","message":"changed","code":409}"#;
                        let response = http::Response::builder().status(409);
                        return Ok::<_, std::convert::Infallible>(
                            response.body(Body::from(conflict.as_bytes().to_vec())).unwrap(),
                        );
                    }
                    *stored = put;
                    stored.metadata.resource_version = Some("9".into());
                }
                let found = serde_json::to_vec(&*stored).unwrap();
                Ok(http::Response::new(Body::from(found)))
            }
        });
        let client = Client::new(service, "tidings-system");
        let claim = Claim {
            api: Api::namespaced(client, "tidings-system"),
            name: "l".into(),
            identity: "a".into(),
            labels: BTreeMap::new(),
        };
        (claim, stored)
    }

    #[tokio::test]
    async fn a_lease_that_a_dropped_renewal_changed_is_vacated_all_the_same_and_one_of_another_is_not() {
        let at = |holder: &str, version: &str| {
            let mut lease = lease(Some(holder), 0);
            lease.metadata.resource_version = Some(version.into());
            lease
        };
        for (holder, left) in [("a", None), ("b", Some("b"))] {
            let (claim, stored) = claim_of(at(holder, "2"));
            claim.vacate(at("a", "1")).await.unwrap();
            let stored = stored.lock().unwrap();
            let kept = stored.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            assert_eq!(kept, left);
        }
    }

    #[test]
    fn loaded_versions_are_read_from_annotations_and_only_when_they_are_numbers() {
        let mut l = lease(Some("a"), 0);
        l.metadata.annotations = Some(BTreeMap::from([
            (loaded_annotation("webhookendpoints"), "42".to_owned()),
            (loaded_annotation("eventtypes"), "x".to_owned()),
            ("other".to_owned(), "1".to_owned()),
        ]));
        assert_eq!(
            loaded(&l),
            BTreeMap::from([(("webhookendpoints".to_owned(), Part::All), 42)])
        );
    }

    #[test]
    fn where_namespaces_are_watched_each_has_a_version_of_its_own() {
        let parts = ["sales", "shop"].map(|name| Part::One(name.into()));
        let text = shown(parts.iter().zip([7, 0]));
        assert_eq!(text, "sales=7,shop=0");
        let mut l = lease(None, 0);
        l.metadata.annotations = Some([(loaded_annotation("eventtypes"), text)].into());
        let [sales, shop] = parts.map(|part| ("eventtypes".to_owned(), part));
        assert_eq!(loaded(&l), BTreeMap::from([(sales, 7), (shop, 0)]));
    }
}
