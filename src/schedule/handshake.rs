//! What of a receiver's agreement is remembered, and what it means for the rate. Pure.
//!
//! Owns which question was answered; how it is asked is `delivery`'s. Invariant: what is kept of the URL is a digest, for a
//! URL may be a secret.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::health::Health;
use crate::api::resolve::{Rate, ResolvedEndpoint};
use crate::delivery::handshake::{Grant, Origin};
use crate::ids::UnixMillis;

const MINUTE_MICROS: u64 = 60_000_000;

/// What a receiver is asked, as a digest: who asks, for which URL, at which rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question([u8; 16]);

impl Question {
    /// What the endpoint's receiver must agree to, if anything.
    pub fn of(endpoint: &ResolvedEndpoint, origin: &Origin) -> Option<Question> {
        if !endpoint.handshake {
            return None;
        }
        let rate = endpoint.rate.map_or(0, Rate::per_minute);
        let mut digest = Sha256::new();
        for part in [origin.name(), &endpoint.target.origin, &endpoint.target.path] {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        digest.update(rate.to_be_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&digest.finalize()[..16]);
        Some(Question(short))
    }
}

/// What a receiver agreed to, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    pub question: Question,
    pub grant: Grant,
    /// Milliseconds since 1970.
    pub at: i64,
}

impl Health {
    /// What the receiver has yet to agree to: nothing is delivered before.
    pub fn unanswered(&self) -> Option<Question> {
        self.question
            .filter(|question| self.agreement.is_none_or(|agreement| agreement.question != *question))
    }

    /// What the receiver must agree to, as of the spec in use. True when something durable changed.
    pub fn observe_question(&mut self, question: Option<Question>, now: UnixMillis) -> bool {
        let before = std::mem::replace(&mut self.question, question);
        let asked_otherwise = before.is_some() && before != question;
        if question.is_some() && !asked_otherwise {
            return false;
        }
        // What was refused, and what was agreed to where nothing is asked any more, is of no account.
        let refused = self.refusal.take().is_some();
        if refused {
            self.breaker.probe_now(now);
        }
        refused | (question.is_none() && self.agreement.take().is_some())
    }

    /// The receiver agreed.
    pub fn agreed(&mut self, question: Question, grant: Grant, now: UnixMillis) {
        self.refusal = None;
        self.agreement = Some(Agreement {
            question,
            grant,
            at: now.0,
        });
    }

    /// How many requests may go out: as many as the endpoint says, and no more than the receiver allows.
    pub fn rate(&self, own: Option<Rate>) -> Option<Rate> {
        match (self.question, self.agreement) {
            (Some(_), Some(agreement)) => narrowed(own, agreement.grant.per_minute),
            _ => own,
        }
    }
}

/// A rate that keeps to both. Where the endpoint's own could send more in some minute than is allowed (after a quiet time
/// it lets as many go at once as it names), requests are spread evenly.
fn narrowed(own: Option<Rate>, allowed: Option<NonZeroU32>) -> Option<Rate> {
    let Some(allowed) = allowed else { return own };
    let most = own.map(|own| u64::from(own.requests).saturating_add(own.per_minute()));
    if most.is_some_and(|most| most < u64::from(allowed.get())) {
        return own;
    }
    let apart = Duration::from_micros(MINUTE_MICROS.div_ceil(u64::from(allowed.get())));
    let own_apart = own.map_or(Duration::ZERO, |own| own.per / own.requests.max(1));
    Some(Rate {
        requests: 1,
        per: apart.max(own_apart),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::WebhookEndpoint;
    use crate::api::endpoint::{SigningScheme, WebhookEndpointSpec};
    use crate::api::resolve::{References, resolve_endpoint};
    use crate::schedule::rate::Bucket;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn rate(requests: u32, seconds: u64) -> Option<Rate> {
        Some(Rate {
            requests,
            per: Duration::from_secs(seconds),
        })
    }

    fn even(micros: u64) -> Option<Rate> {
        Some(Rate {
            requests: 1,
            per: Duration::from_micros(micros),
        })
    }

    #[test]
    fn the_allowed_rate_narrows_the_endpoints_own_and_never_widens_it() {
        let table = [
            (None, 0, None),
            (rate(10, 1), 0, rate(10, 1)),
            (None, 60, even(1_000_000)),
            (None, 7, even(8_571_429)),
            // 600 a minute, and ten at once before: 611 cover both.
            (rate(10, 1), 611, rate(10, 1)),
            (rate(10, 1), 610, even(100_000)),
            (rate(10, 1), 60, even(1_000_000)),
            // 60 a minute on the whole, but an hour's worth at once.
            (rate(3_600, 3_600), 600, even(1_000_000)),
            (rate(1, 3_600), 1, even(3_600_000_000)),
        ];
        for (own, allowed, expected) in table {
            assert_eq!(narrowed(own, NonZeroU32::new(allowed)), expected, "{own:?} {allowed}");
        }
    }

    #[test]
    fn no_minute_has_more_than_the_allowed_requests() {
        let owns = [None, rate(1, 1), rate(10, 1), rate(50, 60), rate(3_600, 3_600)];
        for (own, allowed) in owns.into_iter().flat_map(|own| [1, 7, 60, 61, 700].map(|n| (own, n))) {
            let rate = narrowed(own, NonZeroU32::new(allowed)).unwrap();
            let (mut bucket, mut now, mut sent) = (Bucket::full(), NOW, Vec::new());
            while now.since(NOW) < Duration::from_secs(300) {
                now = bucket.next(rate, now);
                bucket.take(rate, now);
                sent.push(now);
            }
            for (at, first) in sent.iter().enumerate() {
                let end = first.plus(Duration::from_secs(60));
                let in_a_minute = sent[at..].iter().take_while(|time| **time < end).count();
                assert!(in_a_minute <= allowed as usize, "{own:?} {allowed}: {in_a_minute}");
            }
        }
    }

    #[test]
    fn a_question_is_of_the_origin_the_url_and_the_rate() {
        let mut spec = WebhookEndpointSpec::to("https://hooks.example.com/leads");
        spec.signing.scheme = SigningScheme::None;
        let resource = WebhookEndpoint::new("crm", spec);
        let mut endpoint = resolve_endpoint(&resource, &References::default(), &Arc::default(), None).unwrap();
        assert_eq!(Question::of(&endpoint, &Origin::default()), None);
        endpoint.handshake = true;
        let asked = |edit: &dyn Fn(&mut ResolvedEndpoint)| {
            let mut edited = endpoint.clone();
            edit(&mut edited);
            Question::of(&edited, &Origin::default())
        };
        let first = asked(&|_| {});
        assert!(first.is_some());
        assert_eq!(asked(&|e| e.generation = 9), first);
        let others = [
            asked(&|e| e.target.path = "/other".into()),
            asked(&|e| e.target.origin = "https://other.example".into()),
            asked(&|e| e.rate = rate(1, 1)),
            asked(&|e| e.rate = rate(2, 1)),
            Question::of(&endpoint, &"example.com".parse().unwrap()),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(*other != first && !others[..at].contains(other), "{at}");
        }
    }

    #[test]
    fn an_agreement_outlives_the_process_and_counts_for_its_question_alone() {
        let (one, two) = (Question([1; 16]), Question([2; 16]));
        let grant = Grant {
            per_minute: NonZeroU32::new(60),
        };
        let mut health = Health::default();
        assert_eq!((health.unanswered(), health.rate(None)), (None, None));
        health.observe_question(Some(one), NOW);
        assert_eq!(health.unanswered(), Some(one));
        health.agreed(one, grant, NOW);
        assert_eq!((health.unanswered(), health.rate(None)), (None, even(1_000_000)));

        let mut health = Health::restore(&health.store());
        assert_eq!(health.rate(None), None, "no spec is loaded");
        assert!(!health.observe_question(Some(one), NOW));
        assert_eq!((health.unanswered(), health.rate(None)), (None, even(1_000_000)));
        health.observe_question(Some(two), NOW);
        assert_eq!(health.unanswered(), Some(two));
        health.observe_question(Some(one), NOW);
        assert_eq!(health.unanswered(), None, "what was agreed to stays so");

        assert!(health.observe_question(None, NOW));
        assert_eq!((health.unanswered(), health.rate(None)), (None, None));
        health.observe_question(Some(one), NOW);
        assert_eq!(health.unanswered(), Some(one), "asked again after a time without");
    }
}
