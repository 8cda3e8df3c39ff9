//! What an endpoint signs with: a scheme and its keys, and the header that they make.
//!
//! Owns which scheme takes which text for a key, and how many keys it can sign with at a time; knows nothing of Secrets.
//! Invariant: every scheme signs the exact bytes of the body.

use http::{HeaderName, HeaderValue};

use super::standard::{HEADER_SIGNATURE, sign_v1};
use super::{KeyError, SigningKey, SigningKeys, github, stripe};

/// How requests are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Standard Webhooks 1.0.0, `v1`.
    #[default]
    StandardWebhooks,
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
            Scheme::GitHub | Scheme::Stripe | Scheme::None => random.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// One key as a Secret holds it.
    pub fn read_key(self, value: &[u8]) -> Result<SigningKey, KeyError> {
        match self {
            Scheme::StandardWebhooks => SigningKey::parse(std::str::from_utf8(value).map_err(|_| KeyError::NotText)?),
            Scheme::GitHub | Scheme::Stripe => SigningKey::raw(value),
            Scheme::None => Err(KeyError::None),
        }
    }

    /// A value that may hold several keys, current first, where the scheme's keys are text; else it is one key, whatever
    /// bytes it holds.
    pub fn read(self, value: &[u8]) -> Result<Signer, KeyError> {
        let keys = match self {
            Scheme::StandardWebhooks => {
                SigningKeys::parse(None, std::str::from_utf8(value).map_err(|_| KeyError::NotText)?)
            }
            _ => SigningKeys::new(None, vec![self.read_key(value)?]),
        };
        Ok(self.with(keys?))
    }

    /// The scheme with keys that it read.
    pub fn with(self, keys: SigningKeys) -> Signer {
        match self {
            Scheme::StandardWebhooks => Signer::StandardWebhooks(keys),
            Scheme::GitHub => Signer::GitHub(keys),
            Scheme::Stripe => Signer::Stripe(keys),
            Scheme::None => Signer::None,
        }
    }

    /// Whether a request can carry the signatures of two keys, as a rotation needs it.
    pub fn can_overlap(self) -> bool {
        matches!(self, Scheme::StandardWebhooks | Scheme::Stripe)
    }
}

impl Signer {
    /// The public id of the key that signs first; none where nothing is signed.
    pub fn current_id(&self) -> Option<&str> {
        self.keys().map(|keys| keys.current_id.as_str())
    }

    /// The keys, current first; none where nothing is signed.
    pub fn keys(&self) -> Option<&SigningKeys> {
        match self {
            Signer::StandardWebhooks(keys) | Signer::GitHub(keys) | Signer::Stripe(keys) => Some(keys),
            Signer::None => None,
        }
    }

    /// The signature's header, if there is one. `timestamp` is in seconds since 1970.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Signer::StandardWebhooks(keys) => Some((
                HeaderName::from_static(HEADER_SIGNATURE),
                sign_v1(keys, id, timestamp, body),
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
        let keys = [b"whsec_one".as_slice(), b"two"].map(|key| Scheme::Stripe.read_key(key).unwrap());
        let both = Scheme::Stripe.with(SigningKeys::new(Some("k"), keys.to_vec()).unwrap());
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
        for scheme in [Scheme::StandardWebhooks, Scheme::GitHub, Scheme::Stripe] {
            let text = scheme.generate([7; 32]);
            let key = scheme.read_key(text.as_bytes()).unwrap();
            assert_ne!(key, scheme.read_key(scheme.generate([8; 32]).as_bytes()).unwrap());
            assert!(!format!("{key:?}").contains(&text));
        }
    }
}
