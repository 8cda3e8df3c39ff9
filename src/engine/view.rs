//! How endpoints stand, for the board. Owns the words; knows nothing of Kubernetes.
//!
//! Invariant: nothing here comes from a response but its status, nothing from a Secret but a key's public id, and of where a
//! name leads only what kind of address it is: the dispatcher sees names that a tenant cannot look up.

use super::endpoint::{Endpoint, Standing};
use super::state::State;
use crate::api::address;
use crate::api::conditions::reasons;
use crate::delivery::{Fault, Origin, Refusal, TokenTrouble};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::registry::EndpointState;
use crate::report::board::{Board, Delivering, EndpointView, Failure, SubscriptionView};
use crate::schedule::decide::accepted_at;
use crate::schedule::health::{DisabledBy, FailureNote, Gate, HoldReason};

/// Posts of one endpoint without a transition are this far apart.
const POST_EVERY_MILLIS: i64 = 1_000;

/// What is shown at once when it changes.
pub(super) fn standing(endpoint: &Endpoint) -> Standing {
    Standing {
        delivering: delivering(endpoint),
        blocked: endpoint.ordered().1 > 0,
    }
}

/// The first reason that holds.
fn delivering(endpoint: &Endpoint) -> Delivering {
    let health = &endpoint.health;
    if health.disabled.is_some() {
        return Delivering::Disabled;
    }
    match endpoint.entry.as_ref().map(|entry| &entry.state) {
        Some(EndpointState::Usable(resolved)) if resolved.suspend => return Delivering::Suspended,
        Some(EndpointState::Unusable { suspend: true, .. }) => return Delivering::Suspended,
        Some(EndpointState::Unusable { reason, .. }) => {
            return match *reason {
                "PolicyDenied" => Delivering::Blocked,
                reasons::SERVICE_NOT_FOUND | reasons::SERVICE_NOT_ALLOWED | reasons::SERVICE_PORT_MISSING => {
                    Delivering::ServiceUnavailable
                }
                _ => Delivering::SecretUnavailable,
            };
        }
        _ => {}
    }
    match health.hold.map(|hold| hold.reason) {
        Some(HoldReason::Token(_)) => return Delivering::TokenUnavailable,
        Some(HoldReason::Blocked { .. }) => return Delivering::Blocked,
        Some(HoldReason::RetryAfter | HoldReason::Ours) | None => {}
    }
    if health.refusal.is_some() {
        Delivering::HandshakeRefused
    } else if health.breaker.is_open() {
        Delivering::CircuitOpen
    } else if health.last_failed {
        Delivering::Backoff
    } else if health.last_success.is_some() {
        Delivering::Succeeding
    } else {
        Delivering::NoAttempts
    }
}

fn message(endpoint: &Endpoint, delivering: Delivering, origin: &Origin) -> String {
    let health = &endpoint.health;
    let last = health.recent.front();
    let failed = last.map_or_else(String::new, |note| match note.status {
        Some(status) => {
            let judged = match note.reason {
                "NotSuccessful" => ", which spec.success takes for a failure",
                "SuccessUndecided" => {
                    ", of which spec.success cannot tell whether it is one: see the attempt's excerpt"
                }
                _ => "",
            };
            format!("the last attempt was answered with status {status}{judged}")
        }
        None if note.reason == Fault::Auth.reason() => {
            "the last attempt failed: Auth, the token server refused the endpoint's client".to_owned()
        }
        None => format!("the last attempt failed: {}", note.reason),
    });
    match delivering {
        Delivering::Disabled => match health.disabled.map(|disabled| disabled.by) {
            Some(DisabledBy::Gone) => "The receiver answered 410 Gone. Change the endpoint or set the annotation \
                 tidings.dev/enable-requested-at to enable it; its messages wait."
                .to_owned(),
            _ => "No attempt succeeded for as long as spec.disableAfter. Change the endpoint or set the annotation \
                 tidings.dev/enable-requested-at to enable it; its messages wait."
                .to_owned(),
        },
        Delivering::Suspended => "Suspended by spec.suspend; messages wait.".to_owned(),
        Delivering::SecretUnavailable | Delivering::ServiceUnavailable => {
            match endpoint.entry.as_ref().map(|entry| &entry.state) {
                Some(EndpointState::Unusable { message, .. }) => message.clone(),
                _ => "A referenced value cannot be read; messages wait.".to_owned(),
            }
        }
        Delivering::Blocked => match (
            health.hold.map(|hold| hold.reason),
            endpoint.entry.as_ref().map(|e| &e.state),
        ) {
            (_, Some(EndpointState::Unusable { message, .. })) => message.clone(),
            (Some(HoldReason::Blocked { address }), state) => {
                let uses_token = matches!(state, Some(EndpointState::Usable(resolved)) if resolved.token.is_some());
                let target = if uses_token {
                    "target or its token server"
                } else {
                    "target"
                };
                let kind = address::kind(address).unwrap_or("forbidden");
                format!(
                    "The {target} resolves to an address that the administrator's policy does not allow ({kind}); messages \
                     wait."
                )
            }
            _ => "The target's address is forbidden; messages wait.".to_owned(),
        },
        Delivering::TokenUnavailable => {
            let trouble = match health.hold.map(|hold| hold.reason) {
                Some(HoldReason::Token(TokenTrouble::Status(status))) => format!("it answered with status {status}"),
                Some(HoldReason::Token(TokenTrouble::Fault(fault))) => fault.reason().to_owned(),
                _ => "it does not answer".to_owned(),
            };
            format!("The token server gives no token: {trouble}. It is asked again within 30 s; messages wait.")
        }
        Delivering::HandshakeRefused => refused(health.refusal, origin),
        Delivering::CircuitOpen => format!("Only a probe is sent until the receiver answers; {failed}."),
        Delivering::Backoff => format!("Failed messages are tried again; {failed}."),
        Delivering::Succeeding => "The last attempt succeeded.".to_owned(),
        Delivering::NoAttempts => "Nothing was sent yet.".to_owned(),
    }
}

fn refused(refusal: Option<Refusal>, origin: &Origin) -> String {
    let answered = match refusal {
        Some(Refusal::Status(status)) => format!("answered with status {status}"),
        Some(Refusal::NoOrigin) | None => "answered without WebHook-Allowed-Origin".to_owned(),
        Some(Refusal::OtherOrigin) => "allowed another origin".to_owned(),
        Some(Refusal::Rate) => {
            "answered with a WebHook-Allowed-Rate that is neither a positive number of requests a minute nor *"
                .to_owned()
        }
    };
    format!(
        "The receiver does not agree to get messages: it must answer OPTIONS requests to the endpoint's URL with status 200 \
         and WebHook-Allowed-Origin: {} (or *), and {answered}. It is asked again; messages wait.",
        origin.name()
    )
}

fn failure(note: &FailureNote) -> Failure {
    Failure {
        at: note.at,
        message: Some(note.message),
        status: note.status,
        reason: note.reason,
    }
}

fn view(endpoint: &Endpoint, delivering: Delivering, origin: &Origin, now: UnixMillis) -> EndpointView {
    let health = &endpoint.health;
    let generation = match endpoint.entry.as_ref().map(|entry| &entry.state) {
        Some(EndpointState::Usable(resolved)) => Some(resolved.generation),
        Some(EndpointState::Unusable { generation, .. }) => Some(*generation),
        _ => None,
    };
    let gate = health.gate(now);
    let not_before = match gate {
        Gate::Until(until) => until,
        Gate::Go { .. } | Gate::Probe | Gate::Disabled => UnixMillis(0),
    };
    let pending: i64 = endpoint.subscriptions.values().map(|known| known.pending.max(0)).sum();
    let dead: i64 = endpoint.subscriptions.values().map(|known| known.dead.max(0)).sum();
    let (held, blocked) = endpoint.ordered();
    EndpointView {
        generation,
        delivering,
        message: message(endpoint, delivering, origin),
        signing: health.signing.clone(),
        agreement: health
            .agreement
            .filter(|_| health.question.is_some() && health.unanswered().is_none()),
        pending: pending.unsigned_abs(),
        oldest_pending: endpoint.oldest.filter(|_| pending > 0).map(accepted_at),
        dead_lettered: dead.unsigned_abs(),
        held: held.unsigned_abs(),
        blocked_keys: blocked.unsigned_abs(),
        consecutive_failures: health.consecutive_failures,
        failing_since: health.failing_since,
        last_status: health.last_status,
        last_success: health.last_success,
        last_failure: health.recent.front().map(failure),
        retry: endpoint
            .retries
            .first_key_value()
            .map(|((due, _), (_, consumed))| (consumed.saturating_add(1), (*due).max(not_before))),
        next_try: (pending > 0).then(|| next_try(endpoint, gate, now)).flatten(),
        recent_failures: health.recent.iter().map(failure).collect(),
        handled_enable_request: health.handled_enable.clone(),
    }
}

/// When something goes out next: what is due first, not before the breaker or a pause lets it.
fn next_try(endpoint: &Endpoint, gate: Gate, now: UnixMillis) -> Option<UnixMillis> {
    endpoint.usable().filter(|resolved| !resolved.suspend)?;
    let retry = endpoint.retries.first_key_value().map(|((due, _), _)| *due);
    let due = match [retry, endpoint.next_due()].into_iter().flatten().min() {
        // A probe takes whatever waits.
        Some(due) if endpoint.window.is_empty() && !endpoint.overridden && !endpoint.probes_any() => due,
        _ => now,
    };
    match gate {
        Gate::Disabled => None,
        Gate::Until(until) => Some(until.max(due)),
        Gate::Go { .. } | Gate::Probe => Some(due),
    }
}

impl State {
    /// Whether what is posted of an endpoint gives another reason than it has now.
    pub fn is_turned(&self, id: EndpointId) -> bool {
        let endpoint = self.endpoints.get(&id);
        endpoint.is_some_and(|endpoint| endpoint.posted.map(|(before, _)| before) != Some(standing(endpoint)))
    }

    /// Posts an endpoint whose reason changed, unless that was posted meanwhile.
    pub fn post_urgent(&mut self, board: &Board, id: EndpointId, now: UnixMillis) {
        if self.is_turned(id) {
            self.post(board, id, now);
        }
    }

    /// Posts an endpoint that changed, at most once a second; what was posted lately stays for the next time.
    pub fn post_changed(&mut self, board: &Board, id: EndpointId, now: UnixMillis) {
        let posted = self.endpoints.get(&id).and_then(|endpoint| endpoint.posted);
        let lately = posted.is_some_and(|(_, at)| now.0 - at.0 < POST_EVERY_MILLIS && now.0 > at.0);
        if !lately && self.changed.remove(&id) {
            self.post(board, id, now);
        }
    }

    /// Posts every endpoint that changed, however lately it was posted: nothing follows.
    pub fn post_all(&mut self, board: &Board, now: UnixMillis) {
        for id in std::mem::take(&mut self.changed) {
            self.post(board, id, now);
        }
    }

    fn post(&mut self, board: &Board, id: EndpointId, now: UnixMillis) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        if endpoint.entry.is_none() {
            return;
        }
        let standing = standing(endpoint);
        let urgent = endpoint.posted.map(|(before, _)| before) != Some(standing);
        endpoint.posted = Some((standing, now));
        // What stands for an endpoint where messages are pulled is no object: its subscription's status says all.
        if endpoint.pulled().is_none() {
            board.post_endpoint(id, view(endpoint, standing.delivering, &self.origin, now), urgent);
        }
        let mut dirty: Vec<(SubscriptionId, bool)> = Vec::new();
        for (subscription, known) in endpoint.subscriptions.iter_mut() {
            let (is_news, was_posted) = (
                std::mem::take(&mut known.view_dirty),
                std::mem::replace(&mut known.posted, true),
            );
            if is_news || !was_posted {
                dirty.push((*subscription, is_news));
            }
        }
        for (subscription, is_news) in dirty {
            self.post_subscription(board, subscription, is_news, now);
        }
    }

    fn post_subscription(&mut self, board: &Board, id: SubscriptionId, is_news: bool, now: UnixMillis) {
        let entry = self.registry.subscription(id);
        let home = entry.as_ref().map(|entry| entry.endpoint);
        // A subscription's messages lie at its endpoint, and only after a recreation for another one also elsewhere.
        let Some(endpoint) = home.and_then(|home| self.endpoints.get_mut(&home)) else {
            return;
        };
        let unconsumed = endpoint.unconsumed(now);
        let oldest = endpoint.oldest.filter(|_| endpoint.pulled().is_some());
        let Some(known) = endpoint.subscriptions.get_mut(&id) else {
            return;
        };
        let view = SubscriptionView {
            is_news,
            pending: known.pending.max(0).unsigned_abs(),
            oldest_pending: oldest.filter(|_| known.pending > 0).map(accepted_at),
            unconsumed,
            dead_lettered: known.dead.max(0).unsigned_abs(),
            last_dead_letter: known.last_dead,
            filter_failing: entry.as_ref().and_then(|entry| entry.filter_health.failing()),
            is_filter_told: entry.is_some_and(|entry| entry.filter_health.is_told()),
        };
        let first_dead = !known.dead_posted && known.last_dead.is_some();
        known.dead_posted |= first_dead;
        let turned = known.filter_posted != view.filter_failing.is_some();
        known.filter_posted = view.filter_failing.is_some();
        let turned = turned || std::mem::replace(&mut known.unconsumed_posted, unconsumed) != unconsumed;
        let urgent = first_dead || turned;
        board.post_subscription(id, view, urgent);
    }
}
