//! What an endpoint signs with: a scheme and its keys, and the header that they make.
//!
//! Owns which scheme takes which text for a key, and how many keys it can sign with at a time; knows nothing of Secrets.
//! Invariant: every scheme signs the exact bytes of the body.

use http::{HeaderName, HeaderValue};

use super::standard::{HEADER_SIGNATURE, sign_v1};
use super::{Ed25519Key, Ed25519Keys, Key as _, KeyError, SigningKey, SigningKeys, github, hex, stripe};

/// How requests are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Standard Webhooks 1.0.0, `v1`.
    #[default]
    StandardWebhooks,
    /// Standard Webhooks 1.0.0, `v1a`.
    Ed25519,
    /// `X-Hub-Signature-256`: one signature, so one key.
    GitHub,
    /// `Stripe-Signature`.
    Stripe,
    /// Not at all.
    None,
}

/// A scheme with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    StandardWebhooks(SigningKeys),
    Ed25519(Ed25519Keys),
    /// Its first key signs.
    GitHub(SigningKeys),
    Stripe(SigningKeys),
    None,
}

impl Scheme {
    /// A new key as a Secret holds it, of 32 random bytes. What is no `whsec_` key is hexadecimal: raw bytes that people
    /// can copy.
    pub fn generate(self, random: [u8; 32]) -> String {
        match self {
            Scheme::StandardWebhooks => SigningKey::generate(random).to_text(),
            Scheme::Ed25519 => Ed25519Key::generate(random).to_text(),
            Scheme::GitHub | Scheme::Stripe | Scheme::None => {
                let mut text = String::with_capacity(2 * random.len());
                hex(&random, &mut text);
                text
            }
        }
    }

    /// A name derived one way from a key as a Secret holds it, if it is one.
    pub fn fingerprint(self, value: &[u8]) -> Result<String, KeyError> {
        match self {
            Scheme::StandardWebhooks | Scheme::GitHub | Scheme::Stripe => Ok(self.read_mac(value)?.fingerprint()),
            Scheme::Ed25519 => Ok(Ed25519Key::parse(text(value)?)?.fingerprint()),
            Scheme::None => Err(KeyError::None),
        }
    }

    /// A value that may hold several keys, current first, separated by white space, where the scheme's keys are text; else
    /// it is one key, whatever bytes it holds.
    pub fn read(self, value: &[u8]) -> Result<Signer, KeyError> {
        match self {
            Scheme::StandardWebhooks | Scheme::Ed25519 => {
                let values: Vec<&[u8]> = text(value)?.split_whitespace().map(str::as_bytes).collect();
                self.read_each(&[], &values)
            }
            _ => self.read_each(&[], &[value]),
        }
    }

    /// Keys of one value each, current first, with those ids that are known.
    pub fn read_each(self, ids: &[Option<&str>], values: &[&[u8]]) -> Result<Signer, KeyError> {
        if self == Scheme::Ed25519 {
            let keys = values.iter().map(|value| Ed25519Key::parse(text(value)?));
            return Ok(Signer::Ed25519(Ed25519Keys::with_ids(
                ids,
                keys.collect::<Result<_, _>>()?,
            )?));
        }
        let keys = values.iter().map(|value| self.read_mac(value));
        let keys = SigningKeys::with_ids(ids, keys.collect::<Result<_, _>>()?)?;
        Ok(match self {
            Scheme::GitHub => Signer::GitHub(keys),
            Scheme::Stripe => Signer::Stripe(keys),
            _ => Signer::StandardWebhooks(keys),
        })
    }

    fn read_mac(self, value: &[u8]) -> Result<SigningKey, KeyError> {
        match self {
            Scheme::GitHub | Scheme::Stripe => SigningKey::raw(value),
            _ => SigningKey::parse(text(value)?),
        }
    }

    /// Whether a request can carry the signatures of two keys, as a rotation needs it.
    pub fn can_overlap(self) -> bool {
        matches!(self, Scheme::StandardWebhooks | Scheme::Ed25519 | Scheme::Stripe)
    }
}

impl Signer {
    /// The public id of the key that signs first; none where nothing is signed.
    pub fn current_id(&self) -> Option<&str> {
        match self {
            Signer::StandardWebhooks(keys) | Signer::GitHub(keys) | Signer::Stripe(keys) => Some(keys.current_id()),
            Signer::Ed25519(keys) => Some(keys.current_id()),
            Signer::None => None,
        }
    }

    /// The symmetric keys, current first; none where there is no such key.
    pub fn keys(&self) -> Option<&SigningKeys> {
        match self {
            Signer::StandardWebhooks(keys) | Signer::GitHub(keys) | Signer::Stripe(keys) => Some(keys),
            Signer::Ed25519(_) | Signer::None => None,
        }
    }

    /// The current key's public half, `whpk_...`, where it has one.
    pub fn public_key(&self) -> Option<String> {
        match self {
            Signer::Ed25519(keys) => keys.keys.first().map(Ed25519Key::public_text),
            _ => None,
        }
    }

    /// Every public key with its id, current first: 32 bytes each; none where there is no such key.
    pub fn public_keys(&self) -> Vec<(&str, &[u8])> {
        match self {
            Signer::Ed25519(keys) => keys.named().map(|(id, key)| (id, key.public())).collect(),
            _ => Vec::new(),
        }
    }

    /// The signature's header, if there is one. `timestamp` is in seconds since 1970.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Signer::StandardWebhooks(keys) => Some((
                HeaderName::from_static(HEADER_SIGNATURE),
                sign_v1(keys, id, timestamp, body),
            )),
            Signer::Ed25519(keys) => Some((
                HeaderName::from_static(HEADER_SIGNATURE),
                keys.sign(id, timestamp, body),
            )),
            Signer::GitHub(keys) => Some((HeaderName::from_static(github::HEADER), github::sign(keys, body))),
            Signer::Stripe(keys) => Some((
                HeaderName::from_static(stripe::HEADER),
                stripe::sign(keys, timestamp, body),
            )),
            Signer::None => None,
        }
    }
}

impl From<SigningKeys> for Signer {
    /// Standard Webhooks with these keys.
    fn from(keys: SigningKeys) -> Signer {
        Signer::StandardWebhooks(keys)
    }
}

fn text(value: &[u8]) -> Result<&str, KeyError> {
    std::str::from_utf8(value).map_err(|_| KeyError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"Hello, World!";

    #[test]
    fn the_vector_that_github_publishes_is_signed() {
        let signer = Scheme::GitHub.read(b"It's a Secret to Everybody").unwrap();
        let (name, value) = signer.sign("msg_1", 1_700_000_000, BODY).unwrap();
        assert_eq!(name, "x-hub-signature-256");
        assert_eq!(
            value,
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }

    #[test]
    fn a_stripe_header_names_the_time_and_a_signature_of_every_key() {
        let both = Scheme::Stripe.read_each(&[Some("k")], &[b"whsec_one", b"two"]).unwrap();
        let (name, value) = both.sign("msg_1", 1_700_000_000, b"{}").unwrap();
        assert_eq!(name, "stripe-signature");
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac KEY
        assert_eq!(
            value,
            "t=1700000000,v1=e6f424c1ebf2679ddb75df801d64b07e5063e2d7d6834ab73f5c55d787278d9d,v1=6b2c02aeeca6f7d4bcea47d661d982059bff28ff135a74fbe621ed4a9a4941fe"
        );
    }

    #[test]
    fn nothing_is_signed_without_a_scheme_and_what_is_no_key_is_refused() {
        assert_eq!(Signer::None.sign("msg_1", 0, BODY), None);
        assert_eq!(Signer::None.current_id(), None);
        for scheme in [Scheme::GitHub, Scheme::Stripe] {
            assert!(matches!(scheme.read(b""), Err(KeyError::Raw { bytes: 0 })));
            assert!(scheme.read(&[0; 1025]).is_err());
            // Any bytes are a key, and white space separates nothing.
            let signer = scheme.read(&[0xff, b' ', b'\n', 1]).unwrap();
            assert_eq!(signer.keys().unwrap().keys.len(), 1);
        }
        assert_eq!(Scheme::StandardWebhooks.read(&[0xff]), Err(KeyError::NotText));
    }

    #[test]
    fn a_generated_key_reads_back_and_differs_with_its_bytes() {
        let all = [
            Scheme::StandardWebhooks,
            Scheme::Ed25519,
            Scheme::GitHub,
            Scheme::Stripe,
        ];
        for scheme in all {
            let [one, other] = [7, 8].map(|byte| scheme.generate([byte; 32]));
            let signer = scheme.read(one.as_bytes()).unwrap();
            assert_eq!(signer.current_id(), scheme.fingerprint(one.as_bytes()).ok().as_deref());
            assert_ne!(signer, scheme.read(other.as_bytes()).unwrap());
            assert!(!format!("{signer:?}").contains(&one));
            assert_eq!(signer.public_key().is_some(), scheme == Scheme::Ed25519);
        }
    }
}
