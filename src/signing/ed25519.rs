//! Standard Webhooks 1.0.0, asymmetric: `v1a`, Ed25519 over `{id}.{timestamp}.{body}`. Receivers hold only the public key.
//!
//! Owns the text forms, `whsk_` and `whpk_` with standard base64 of 64 and 32 bytes (the private one is the seed and the
//! public key behind it). By aws-lc-rs, which TLS brings anyway. Invariant: no Debug and no error shows a private key.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::{Key, KeyError, Keys, short_name, without_newline};

/// What a private key begins with (Standard Webhooks 1.0.0, "Signature scheme").
const PRIVATE: &str = "whsk_";
/// What a public key begins with.
const PUBLIC: &str = "whpk_";
/// The seed; the public key has as many.
const HALF: usize = 32;

/// One key pair.
#[derive(Clone)]
pub struct Ed25519Key {
    pair: Arc<Ed25519KeyPair>,
    seed: [u8; HALF],
}

impl Ed25519Key {
    /// Reads `whsk_` and base64; one trailing newline is dropped.
    pub fn parse(text: &str) -> Result<Ed25519Key, KeyError> {
        let encoded = without_newline(text)
            .strip_prefix(PRIVATE)
            .ok_or(KeyError::PrivatePrefix)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| KeyError::PrivateForm)?;
        let (seed, public) = bytes.split_at_checked(HALF).ok_or(KeyError::PrivateForm)?;
        let seed: [u8; HALF] = seed.try_into().map_err(|_| KeyError::PrivateForm)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(&seed, public).map_err(|_| KeyError::PrivateForm)?;
        Ok(Ed25519Key {
            pair: Arc::new(pair),
            seed,
        })
    }

    /// The pair of a random seed.
    pub fn generate(seed: [u8; HALF]) -> Ed25519Key {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("every seed of 32 bytes has a key");
        Ed25519Key {
            pair: Arc::new(pair),
            seed,
        }
    }

    /// The text form, for a Secret: this is key material.
    pub fn to_text(&self) -> String {
        format!("{PRIVATE}{}", STANDARD.encode([&self.seed[..], self.public()].concat()))
    }

    /// The half that receivers hold.
    pub fn public_half(&self) -> PublicKey {
        let mut half = [0; HALF];
        half.copy_from_slice(self.public());
        PublicKey(half)
    }

    /// The public key as receivers get it.
    pub fn public_text(&self) -> String {
        format!("{PUBLIC}{}", STANDARD.encode(self.public()))
    }

    pub(super) fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
}

impl Key for Ed25519Key {
    const NONE: KeyError = KeyError::NoPrivate;

    /// Derived from the public key.
    fn fingerprint(&self) -> String {
        self.public_half().fingerprint()
    }
}

impl PartialEq for Ed25519Key {
    fn eq(&self, other: &Ed25519Key) -> bool {
        self.seed == other.seed
    }
}

impl Eq for Ed25519Key {}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Key({})", self.public_text())
    }
}

/// What a receiver holds of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; HALF]);

impl PublicKey {
    /// Reads `whpk_` and base64; one trailing newline is dropped.
    pub fn parse(text: &str) -> Result<PublicKey, KeyError> {
        let encoded = without_newline(text).strip_prefix(PUBLIC).ok_or(KeyError::PublicForm)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| KeyError::PublicForm)?;
        let half = bytes.try_into().map_err(|_| KeyError::PublicForm)?;
        Ok(PublicKey(half))
    }

    pub(super) fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(signed, signature)
            .is_ok()
    }

    /// The id that the pair has, where nobody gave it one.
    pub(super) fn fingerprint(&self) -> String {
        short_name(&Sha256::digest(self.0))
    }
}

/// The pairs an endpoint signs with.
pub type Ed25519Keys = Keys<Ed25519Key>;

impl Ed25519Keys {
    /// The value of `webhook-signature`: one `v1a,<base64>` per key, the current key's first.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> HeaderValue {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let mut list = String::with_capacity(self.keys.len() * 93);
        for key in &self.keys {
            if !list.is_empty() {
                list.push(' ');
            }
            list.push_str("v1a,");
            STANDARD.encode_string(key.pair.sign(&signed), &mut list);
        }
        HeaderValue::try_from(list).expect("base64, commas and spaces are legal in a header value")
    }
}

/// The public key of a private one in its text form; none for any other text.
pub fn public_key(text: &str) -> Option<String> {
    Ed25519Key::parse(text).ok().map(|key| key.public_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

    #[test]
    fn the_published_vector_is_signed() {
        let keys = Ed25519Keys::new(Some("k"), vec![Ed25519Key::parse(KEY).unwrap()]).unwrap();
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
        );
    }

    #[test]
    fn a_key_reads_back_from_its_text_and_shows_its_public_half_only() {
        let key = Ed25519Key::generate([9; 32]);
        assert_eq!(Ed25519Key::parse(&format!("{}\n", key.to_text())), Ok(key.clone()));
        assert_eq!(public_key(&key.to_text()), Some(key.public_text()));
        assert_eq!(Ed25519Key::parse(KEY).unwrap().to_text(), KEY);
        let shown = format!("{key:?}");
        assert!(shown.contains("whpk_") && !shown.contains("whsk_"), "{shown}");
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        let halves = |seed: u8, of: u8| {
            let public = Ed25519Key::generate([of; 32]);
            format!("whsk_{}", STANDARD.encode([&[seed; 32][..], public.public()].concat()))
        };
        assert!(Ed25519Key::parse(&halves(1, 1)).is_ok());
        for (text, error) in [
            ("", KeyError::PrivatePrefix),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", KeyError::PrivatePrefix),
            ("whsk_!", KeyError::PrivateForm),
            ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", KeyError::PrivateForm),
            (halves(1, 2).as_str(), KeyError::PrivateForm),
        ] {
            assert_eq!(Ed25519Key::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Ed25519Keys::new(None, vec![]), Err(KeyError::NoPrivate));
    }
}
