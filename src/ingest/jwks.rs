//! The public keys of a namespace's endpoints, for receivers that verify `v1a`: a JSON Web Key Set (RFC 7517) of Ed25519
//! keys (RFC 8037), one for each key that signs, `kid` its id as in `status.signing.keys`.
//!
//! Asked without a token: public keys are public, and a namespace without any answers like one that does not exist.
//! Invariant: what is asked costs one walk over the endpoints a second, however often it is asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::Full;
use serde::Serialize;

use crate::blocking::beside_the_worker;
use crate::registry::{EndpointState, Registry};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// What receivers are told: a key is here before anything is signed with it alone, for its overlap, a day unless set.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// One key (RFC 8037, 2).
#[derive(Serialize)]
struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    r#use: &'static str,
    kid: String,
    x: String,
}

#[derive(Serialize)]
struct Jwks<'a> {
    keys: Vec<&'a Jwk>,
}

type Sets = HashMap<String, Bytes>;

/// The sets of all namespaces, as they were a moment ago.
#[derive(Debug, Default)]
pub(super) struct PublicKeys {
    known: Mutex<Option<(Instant, Arc<Sets>)>>,
}

impl PublicKeys {
    /// The answer for a namespace.
    pub(super) fn answer(&self, registry: &Registry, namespace: &str) -> Response<Full<Bytes>> {
        let set = self.sets(registry).get(namespace).cloned();
        let set = set.unwrap_or(Bytes::from_static(br#"{"keys":[]}"#));
        let mut response = Response::new(Full::new(set));
        let kind = HeaderValue::from_static("application/jwk-set+json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response.headers_mut().insert(CACHE_CONTROL, CACHE);
        response
    }

    fn sets(&self, registry: &Registry) -> Arc<Sets> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut sets = match &*known {
            Some((at, sets)) if now.duration_since(*at) < FRESH => return sets.clone(),
            _ => beside_the_worker(|| of(registry)),
        };
        if let Some((_, before)) = &*known {
            keep(&mut sets, before);
        }
        let sets = Arc::new(sets);
        *known = Some((now, sets.clone()));
        sets
    }
}

/// What did not change is the same memory: however many answers of whatever time are not read yet, it is there once.
fn keep(sets: &mut Sets, before: &Sets) {
    for (namespace, set) in sets {
        if let Some(same) = before.get(namespace).filter(|before| *before == set) {
            *set = same.clone();
        }
    }
}

fn of(registry: &Registry) -> Sets {
    let mut all: HashMap<String, BTreeMap<(String, String), Jwk>> = HashMap::new();
    for entry in registry.endpoints() {
        let EndpointState::Usable(resolved) = &entry.state else {
            continue;
        };
        for (id, public) in resolved.signing.public_keys() {
            let x = URL_SAFE_NO_PAD.encode(public);
            let jwk = Jwk {
                kty: "OKP",
                crv: "Ed25519",
                alg: "EdDSA",
                r#use: "sig",
                kid: id.to_owned(),
                x: x.clone(),
            };
            // Two endpoints may sign with one key of somebody's own.
            let keys = all.entry(entry.namespace.clone()).or_default();
            keys.insert((id.to_owned(), x), jwk);
        }
    }
    let written = |(namespace, keys): (String, BTreeMap<_, Jwk>)| {
        let set = Jwks {
            keys: keys.values().collect(),
        };
        // Plain strings: cannot fail.
        (namespace, serde_json::to_vec(&set).unwrap_or_default().into())
    };
    all.into_iter().map(written).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_did_not_change_is_in_memory_once() {
        let set = |keys: &str| Bytes::from(keys.to_owned());
        let before: Sets = HashMap::from([("a".to_owned(), set("one")), ("b".to_owned(), set("two"))]);
        let mut sets: Sets = HashMap::from([("a".to_owned(), set("one")), ("b".to_owned(), set("three"))]);
        keep(&mut sets, &before);
        assert_eq!(sets["a"].as_ptr(), before["a"].as_ptr());
        assert_eq!(sets["b"], "three");
    }
}
