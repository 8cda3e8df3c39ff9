//! Brings the generated signing Secret about: carries out what [`super::rotation`] decides, one write at a time.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch as KubePatch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Resource, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;

use super::decoration::Decoration;
use super::generated_secret;
use super::rotation::{self, Requests, Rotation, Situation, State, Step, decide};
use super::secret::{KeyMaterial, Patch, SecretError, SigningSecret, new_secret};
use crate::api::WebhookEndpoint;
use crate::api::endpoint::DeletionPolicy;
use crate::api::names::{REVOKE_PREVIOUS_REQUESTED, ROTATE_REQUESTED};
use crate::api::resolve::{Reference, scheme};
use crate::controller::FIELD_MANAGER;
use crate::controller::context::{Context, Key};
use crate::controller::memory::Seen;
use crate::controller::references::{self, Found, Wanted};
use crate::controller::work::Error;
use crate::kubernetes::events::{Happening, Kind as EventKind};
use crate::kubernetes::{RequestError, within};
use crate::signing::Scheme;

/// More steps than any way through the machine has; past it the next reconcile goes on.
const STEPS: usize = 6;
/// Overlap where the spec has no `rotation`: the schema's default.
const DEFAULT_OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// Characters of the API server's answer that are told.
const TOLD_LONGEST: usize = 300;
/// No key's text has fewer characters without a break.
const KEY_SHORTEST: usize = 32;

/// How the endpoint's signing stands.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one a reconcile, and it is nearly always the large one"
)]
pub enum Signing {
    /// It names a Secret of its own, or signs nothing.
    Foreign,
    /// The generated Secret, as it is now.
    Generated {
        name: String,
        secret: SigningSecret,
        state: State,
        rotation: Rotation,
        /// When the next step is due.
        until: Option<Timestamp>,
    },
    /// It cannot be read or is no signing Secret: resolving says why. Nothing is written.
    Unusable { name: String },
    /// The API server refuses what is due: a quota, an admission policy, a template it does not take.
    Refused { name: String, error: Error },
}

impl Signing {
    /// How long until the next step is due by time.
    pub fn due(&self, now: Timestamp) -> Option<Duration> {
        match self {
            Signing::Generated { until: Some(until), .. } => {
                Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
            }
            _ => None,
        }
    }

    /// What the API server said when it refused what is due.
    pub fn refused(&self) -> Option<String> {
        let Signing::Refused { name, error } = self else {
            return None;
        };
        let said = &error.refusal()?.message;
        Some(format!("the API server refuses to write Secret {name}: {said}"))
    }
}

/// An answer to a write of key material, as it may be logged and told.
fn for_everybody(error: RequestError) -> RequestError {
    match error {
        RequestError::Api(kube::Error::Api(status)) => RequestError::Api(kube::Error::Api(Box::new(Status {
            message: told(&status.reason, &status.message),
            details: None,
            ..*status
        }))),
        other => other,
    }
}

/// What an API server said about a Secret, for everybody to read: it may quote what was to be written, so one that
/// holds anything that could be a key, as text or as base64 or hexadecimal, is left out.
fn told(reason: &str, message: &str) -> String {
    let could_be_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_');
    let mut runs = message.split(|c| !could_be_key(c));
    if message.is_empty() || runs.any(|run| run.len() >= KEY_SHORTEST) {
        return reason.to_owned();
    }
    message.chars().take(TOLD_LONGEST).collect()
}

/// Takes every step that is due.
pub async fn bring_about(
    context: &Context,
    key: &Key,
    endpoint: &WebhookEndpoint,
    seen: &Seen,
) -> Result<Signing, Error> {
    let Some(name) = generated_secret(endpoint) else {
        return Ok(Signing::Foreign);
    };
    match take_steps(context, key, endpoint, seen, name.clone()).await {
        Err(error) if error.refusal().is_some() => Ok(Signing::Refused { name, error }),
        taken => taken,
    }
}

async fn take_steps(
    context: &Context,
    key: &Key,
    endpoint: &WebhookEndpoint,
    seen: &Seen,
    name: String,
) -> Result<Signing, Error> {
    let desk = Desk {
        context,
        endpoint,
        reference: references::Key {
            namespace: endpoint.namespace().unwrap_or_default(),
            reference: Reference::secret(&name),
        },
        scheme: scheme(endpoint),
        decoration: decoration(endpoint),
    };
    let mut found = desk.read(seen.since).await?;
    for _ in 0..STEPS {
        let object = match found {
            Found::Signing(object) => Some(object),
            Found::Denied | Found::Values(_) => return Ok(Signing::Unusable { name }),
            // What the API server's cache does not have may exist all the same.
            Found::Missing => match desk.read_newest().await? {
                Found::Signing(object) => Some(object),
                Found::Denied | Found::Values(_) => return Ok(Signing::Unusable { name }),
                Found::Missing => None,
            },
        };
        let secret = match object
            .as_deref()
            .map(|object| SigningSecret::parse(object, desk.scheme))
            .transpose()
        {
            Ok(secret) => secret,
            Err(SecretError) => return Ok(Signing::Unusable { name }),
        };
        let rotation = rotation_of(endpoint);
        let requests = requests_of(endpoint);
        let now = context.now();
        let (state, step) = decide(Situation {
            secret: secret.as_ref(),
            rotation,
            requests,
            acknowledged: acknowledged(endpoint),
            known_before: known_before(endpoint),
            now,
        });
        if let (Step::Wait { until }, Some(secret), Some(object)) = (&step, secret.clone(), &object) {
            if let Some(patch) = Patch::of_public_key(&secret) {
                found = desk.patch(&patch.to_merge_patch(&secret.resource_version)).await?;
                continue;
            }
            if let Some(patch) = desk.decoration.missing_from(object) {
                found = desk.patch(&patch).await?;
                continue;
            }
            desk.note_edit(key, seen, &secret).await;
            return Ok(Signing::Generated {
                name,
                secret,
                state,
                rotation,
                until: *until,
            });
        }
        let Some(patch) = Patch::of(&step, secret.as_ref(), requests, now, || new_key(desk.scheme)) else {
            return Err(Error::Outdated);
        };
        found = match &secret {
            None => desk.create(&new_secret(&name, &patch, &desk.decoration)).await?,
            Some(secret) => desk.patch(&patch.to_merge_patch(&secret.resource_version)).await?,
        };
        desk.tell(&step, &found).await;
    }
    Err(Error::Outdated)
}

/// Where the steps are carried out.
struct Desk<'a> {
    context: &'a Context,
    endpoint: &'a WebhookEndpoint,
    reference: references::Key,
    scheme: Scheme,
    decoration: Decoration,
}

impl Desk<'_> {
    async fn read(&self, not_before: Instant) -> Result<Found, Error> {
        let (context, wanted) = (self.context, Wanted::to_sign());
        let read = context
            .references
            .get(&context.client, &self.reference, &wanted, not_before);
        read.await.map_err(Error::when("read the signing Secret"))
    }

    async fn read_newest(&self) -> Result<Found, Error> {
        let (context, wanted) = (self.context, Wanted::to_sign());
        let read = context.references.get_newest(&context.client, &self.reference, &wanted);
        read.await.map_err(Error::when("read the signing Secret"))
    }

    async fn create(&self, secret: &Secret) -> Result<Found, Error> {
        self.context.spend("secret").await;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        self.take_in(within(self.api().create(&params, secret)).await).await
    }

    async fn patch(&self, patch: &Value) -> Result<Found, Error> {
        self.context.spend("secret").await;
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patched = within(
            self.api()
                .patch(&self.reference.reference.name, &params, &KubePatch::Merge(patch)),
        )
        .await;
        self.take_in(patched).await
    }

    /// A conflict means that the Secret is not what the step was decided on: it is read anew and decided again.
    async fn take_in(&self, written: Result<Secret, RequestError>) -> Result<Found, Error> {
        match written {
            Ok(secret) => {
                let wanted = Wanted::to_sign();
                let found = Found::of_secret(secret, &wanted);
                self.context
                    .references
                    .put(self.reference.clone(), wanted, found.clone(), Instant::now());
                Ok(found)
            }
            Err(error) if matches!(error.code(), Some(404 | 409)) => {
                self.read_newest().await?;
                Err(Error::Outdated)
            }
            Err(source) => Err(Error::Request {
                doing: "write the signing Secret",
                source: for_everybody(source),
            }),
        }
    }

    async fn tell(&self, step: &Step, found: &Found) {
        let id = match found {
            Found::Signing(object) => SigningSecret::parse(object, self.scheme)
                .ok()
                .and_then(|s| s.current_id)
                .unwrap_or_default(),
            _ => String::new(),
        };
        let name = &self.reference.reference.name;
        let (kind, reason, note) = match step {
            Step::Create { lost: true } => (
                EventKind::Warning,
                "SigningKeyLost",
                format!("Secret {name} was gone and is made anew: receivers must be given its new key {id}"),
            ),
            Step::Adopt => (
                EventKind::Normal,
                "SigningKeyAdopted",
                format!("Took over Secret {name}, key {id}"),
            ),
            Step::Rotate => (
                EventKind::Normal,
                "SigningKeyRotated",
                format!("Secret {name} has the new key {id}; the one before it signs, too, until its overlap is over"),
            ),
            Step::Retire => (
                EventKind::Normal,
                "SigningKeyRetired",
                format!("The previous key is gone from Secret {name}; only {id} signs"),
            ),
            // The first key is no news: status names it, and ten thousand endpoints would be ten thousand Events.
            Step::Create { lost: false }
            | Step::Expire { .. }
            | Step::NoteRevoke
            | Step::NoteCreated
            | Step::Wait { .. } => return,
        };
        let happening = Happening {
            kind,
            reason: reason.to_owned(),
            action: "Rotate",
            note,
        };
        self.context.tell(self.endpoint, &happening).await;
    }

    /// An edit by hand leaves the id and changes the key; it is taken, and told.
    async fn note_edit(&self, key: &Key, seen: &Seen, secret: &SigningSecret) {
        let (Some(id), Some(fingerprint)) = (secret.current_id.clone(), secret.fingerprint(self.scheme)) else {
            return;
        };
        let is_edited = seen
            .key
            .as_ref()
            .is_some_and(|(old, print)| *old == id && *print != fingerprint);
        if is_edited {
            let happening = Happening {
                kind: EventKind::Normal,
                reason: "SigningKeyChanged".to_owned(),
                action: "Rotate",
                note: format!(
                    "Key {id} in Secret {} was changed by hand and is used as it is",
                    self.reference.reference.name
                ),
            };
            self.context.tell(self.endpoint, &happening).await;
        }
        self.context
            .memory
            .update(key, |seen| seen.key = Some((id, fingerprint)));
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), &self.reference.namespace)
    }
}

fn new_key(scheme: Scheme) -> (String, KeyMaterial) {
    let id = format!("k{:08x}", rand::random::<u32>());
    (id, KeyMaterial(scheme.generate(rand::random())))
}

fn rotation_of(endpoint: &WebhookEndpoint) -> Rotation {
    let rotation = endpoint.spec.signing.rotation.as_ref();
    Rotation {
        interval: rotation.and_then(|r| r.interval.as_ref()).and_then(|i| i.parse().ok()),
        overlap: rotation.and_then(|r| r.overlap.parse().ok()).unwrap_or(DEFAULT_OVERLAP),
    }
}

fn requests_of(endpoint: &WebhookEndpoint) -> Requests<'_> {
    let annotation = |name: &str| endpoint.annotations().get(name).map(String::as_str);
    if !scheme(endpoint).can_overlap() {
        // Receivers would refuse every request from the rotation on until they have the new key.
        return Requests::default();
    }
    Requests {
        rotate: annotation(ROTATE_REQUESTED),
        revoke: annotation(REVOKE_PREVIOUS_REQUESTED),
    }
}

fn acknowledged(endpoint: &WebhookEndpoint) -> Option<(&str, Timestamp)> {
    let signing = endpoint.status.as_ref()?.delivery.as_ref()?.signing.as_ref()?;
    Some((signing.key_id.as_str(), signing.since.0))
}

fn known_before(endpoint: &WebhookEndpoint) -> bool {
    let signing = endpoint.status.as_ref().and_then(|s| s.signing.as_ref());
    let name = generated_secret(endpoint);
    signing.is_some_and(|s| !s.keys.is_empty() && s.secret_name == name)
}

fn decoration(endpoint: &WebhookEndpoint) -> Decoration {
    let signing = &endpoint.spec.signing;
    let template = signing.secret_template.clone().unwrap_or_default();
    let owner = (signing.deletion_policy == DeletionPolicy::Delete).then(|| OwnerReference {
        api_version: WebhookEndpoint::api_version(&()).into_owned(),
        kind: WebhookEndpoint::kind(&()).into_owned(),
        name: endpoint.name_any(),
        uid: endpoint.uid().unwrap_or_default(),
        ..OwnerReference::default()
    });
    Decoration {
        labels: template.labels,
        annotations: template.annotations,
        owner,
    }
}

/// When the current key is replaced without being asked.
pub fn next_rotation(signing: &Signing) -> Option<Timestamp> {
    match signing {
        Signing::Generated { secret, rotation, .. } => rotation::next_rotation(secret, *rotation),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Request, Response};
    use kube::client::{Body, Client};
    use serde_json::json;

    use super::*;
    use crate::clock::Clock;
    use crate::controller::memory::Asked;
    use crate::ids::UnixMillis;
    use crate::signing::SigningKey;

    /// An endpoint's signing Secret in the overlap of a rotation, or after it.
    fn crm_signing(until: Option<&str>) -> Value {
        let key = |byte: u8| k8s_openapi::ByteString(SigningKey::generate([byte; 32]).to_text().into_bytes());
        let mut secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": crate::api::names::SIGNING_SECRET_TYPE,
            "metadata": {"name": "crm-signing", "namespace": "sales", "resourceVersion": "7", "annotations": {
                crate::api::names::CURRENT_ID: "k2",
                crate::api::names::CURRENT_CREATED: "2020-01-01T00:00:00Z",
            }},
            "data": {"current": key(2)},
        });
        if let Some(until) = until {
            secret["data"]["previous"] = json!(key(1));
            secret["metadata"]["annotations"][crate::api::names::PREVIOUS_ID] = json!("k1");
            secret["metadata"]["annotations"][crate::api::names::PREVIOUS_EXPIRES] = json!(until);
        }
        secret
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_retired_by_the_time_that_is_believed_and_not_by_the_systems() {
        const UNTIL: &str = "2020-01-02T00:00:00Z";
        let answered = tower::service_fn(|request: Request<Body>| async move {
            let until = (request.method() == Method::GET).then_some(UNTIL);
            let body = Body::from(crm_signing(until).to_string().into_bytes());
            Ok::<_, Infallible>(Response::new(body))
        });
        let mut context = Context::alone(Client::new(answered, "sales"));
        let expires: Timestamp = UNTIL.parse().unwrap();
        context.clock = Clock::manual(UnixMillis(expires.as_millisecond() - 1));
        let endpoint: WebhookEndpoint = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "WebhookEndpoint",
            "metadata": {"name": "crm", "namespace": "sales", "generation": 1},
            "spec": {"url": "https://hooks.example.com/"},
        }))
        .unwrap();
        let key = Key::Endpoint("sales".into(), "crm".into());
        let asked = Asked {
            uid: String::new(),
            generation: 1,
            requests: Vec::new(),
        };
        let seen = context.memory.see(&key, asked, None, Instant::now());
        let state = async || match bring_about(&context, &key, &endpoint, &seen).await.unwrap() {
            Signing::Generated { state, .. } => state,
            other => panic!("{other:?}"),
        };
        assert_eq!(state().await, State::Overlap { until: expires });
        context.clock.advance(Duration::from_millis(1));
        assert_eq!(state().await, State::Stable);
    }

    #[test]
    fn what_the_api_server_said_is_told_unless_it_could_hold_a_key() {
        let quota = "secrets \"crm-signing\" is forbidden: exceeded quota: team, requested: count/secrets=1";
        assert_eq!(told("Forbidden", quota), quota);
        assert_eq!(told("Forbidden", &"no ".repeat(200)).len(), TOLD_LONGEST);
        assert_eq!(told("Forbidden", ""), "Forbidden");
        for scheme in [Scheme::StandardWebhooks, Scheme::Ed25519, Scheme::GitHub] {
            let key = scheme.generate([7; 32]);
            let in_base64 = k8s_openapi::ByteString(key.clone().into_bytes());
            let in_base64 = serde_json::to_string(&in_base64).unwrap();
            for quoted in [key, in_base64] {
                assert_eq!(told("Invalid", &format!("data.current: {quoted}: no")), "Invalid");
            }
        }
    }
}
