//! Symmetric keys and their text form, `whsec_` and standard base64 of 24 to 64 bytes; or, where another scheme says so,
//! raw bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{short_name, without_newline};

/// What a symmetric key begins with (Standard Webhooks 1.0.0, "Signature scheme").
const PREFIX: &str = "whsec_";
/// The specification's bounds of a key, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The most keys one endpoint signs with: each adds 48 bytes to every request's signature header.
pub const MAX_KEYS: usize = 8;

/// The longest raw key: longer than anything people paste, short enough to be no file.
const MAX_RAW: usize = 1024;

/// One symmetric key of 24 to 64 bytes, written `whsec_` and base64, or a raw one.
#[derive(Clone)]
pub struct SigningKey {
    bytes: Vec<u8>,
    /// The MAC with the key already taken in: signing clones this instead of hashing the key again.
    mac: Hmac<Sha256>,
}

impl SigningKey {
    /// Reads one key; one trailing newline is dropped.
    pub fn parse(text: &str) -> Result<SigningKey, KeyError> {
        let encoded = without_newline(text).strip_prefix(PREFIX).ok_or(KeyError::Prefix)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| KeyError::Base64)?;
        SigningKey::from_bytes(bytes)
    }

    /// The key made of 32 random bytes: as many as the MAC's output.
    pub fn generate(random: [u8; 32]) -> SigningKey {
        SigningKey {
            mac: mac_of(&random),
            bytes: random.to_vec(),
        }
    }

    /// Raw bytes, as they are in a Secret: 1 to 1,024.
    pub fn raw(bytes: &[u8]) -> Result<SigningKey, KeyError> {
        if bytes.is_empty() || bytes.len() > MAX_RAW {
            return Err(KeyError::Raw { bytes: bytes.len() });
        }
        Ok(SigningKey {
            mac: mac_of(bytes),
            bytes: bytes.to_vec(),
        })
    }

    fn from_bytes(bytes: Vec<u8>) -> Result<SigningKey, KeyError> {
        if !KEY_BYTES.contains(&bytes.len()) {
            return Err(KeyError::Length { bytes: bytes.len() });
        }
        Ok(SigningKey {
            mac: mac_of(&bytes),
            bytes,
        })
    }

    /// The text form of Standard Webhooks, for a Secret: this is key material.
    pub fn to_text(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.bytes))
    }

    /// A MAC that has taken in the key and nothing else.
    pub(super) fn mac(&self) -> Hmac<Sha256> {
        self.mac.clone()
    }
}

fn mac_of(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length")
}

impl Key for SigningKey {
    const NONE: KeyError = KeyError::None;

    fn fingerprint(&self) -> String {
        let mut mac = self.mac();
        mac.update(b"tidings.dev/key-id");
        short_name(&mac.finalize().into_bytes())
    }
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &SigningKey) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for SigningKey {}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(redacted)")
    }
}

/// What an endpoint can sign with.
pub trait Key {
    /// What is wrong with a list that holds none.
    const NONE: KeyError;

    /// A short public name derived one way from the key, for keys that nobody gave an id: eight hexadecimal digits.
    fn fingerprint(&self) -> String;
}

/// The longest public id of a key, as status takes it.
const MAX_ID: usize = 64;

/// Whether a text can be a key's public id: 1 to 64 letters, digits, `.`, `_` and `-`. Whoever may edit a Secret may write
/// anything there; another one counts as none.
pub fn is_key_id(text: &str) -> bool {
    let of_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(of_id)
}

/// The keys an endpoint signs with, current first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys<K> {
    /// Their public ids, one each (annotations of the Secret), shown in status.
    ids: Vec<String>,
    pub keys: Vec<K>,
}

impl<K: Key> Keys<K> {
    /// From keys read one by one, current first, and the current one's id.
    pub fn new(current_id: Option<&str>, keys: Vec<K>) -> Result<Keys<K>, KeyError> {
        Keys::with_ids(&[current_id], keys)
    }

    /// The same with the ids of more than the first; a key without a usable one has its fingerprint for an id.
    pub fn with_ids(ids: &[Option<&str>], mut keys: Vec<K>) -> Result<Keys<K>, KeyError> {
        if keys.len() > MAX_KEYS {
            return Err(KeyError::TooMany { keys: keys.len() });
        }
        if keys.is_empty() {
            return Err(K::NONE);
        }
        let ids = ids.iter().copied().chain(std::iter::repeat(None));
        let named = |(key, id): (&K, Option<&str>)| {
            id.filter(|id| is_key_id(id))
                .map_or_else(|| key.fingerprint(), str::to_owned)
        };
        let ids = keys.iter().zip(ids).map(named).collect();
        // Most have one, and room for four.
        keys.shrink_to_fit();
        Ok(Keys { ids, keys })
    }

    /// The public id of the current key.
    pub fn current_id(&self) -> &str {
        // Never empty.
        &self.ids[0]
    }

    /// Each key with its id, current first.
    pub fn named(&self) -> impl Iterator<Item = (&str, &K)> {
        self.ids.iter().map(String::as_str).zip(&self.keys)
    }
}

/// The symmetric keys an endpoint signs with.
pub type SigningKeys = Keys<SigningKey>;

impl SigningKeys {
    /// Reads keys separated by white space, current first.
    pub fn parse(current_id: Option<&str>, text: &str) -> Result<SigningKeys, KeyError> {
        let keys = text
            .split_whitespace()
            .map(SigningKey::parse)
            .collect::<Result<Vec<_>, _>>()?;
        SigningKeys::new(current_id, keys)
    }
}

/// Why a text is no key. Never holds any of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("there is no key: write whsec_ followed by the base64 of 24 to 64 random bytes")]
    None,
    #[error("a key must begin with whsec_")]
    Prefix,
    #[error("what follows whsec_ must be standard base64 with its padding")]
    Base64,
    #[error("a key must have 24 to 64 bytes, this one has {bytes}")]
    Length { bytes: usize },
    #[error("there is no key: write whsk_ followed by the base64 of an Ed25519 seed and its public key, 64 bytes")]
    NoPrivate,
    #[error("a key must begin with whsk_")]
    PrivatePrefix,
    #[error("what follows whsk_ must be the standard base64 of an Ed25519 seed and its own public key, 64 bytes")]
    PrivateForm,
    #[error("a public key must be whpk_ followed by the standard base64 of its 32 bytes")]
    PublicForm,
    #[error("a key to verify with must begin with whsec_, whsk_ or whpk_")]
    VerifyingPrefix,
    #[error("it is not text: write whsec_ followed by the base64 of 24 to 64 random bytes")]
    NotText,
    #[error("a key must have 1 to {MAX_RAW} bytes, this one has {bytes}")]
    Raw { bytes: usize },
    #[error("at most {MAX_KEYS} keys may be listed, there are {keys}")]
    TooMany { keys: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    #[test]
    fn a_key_reads_back_from_its_text_and_one_trailing_newline_is_dropped() {
        let key = SigningKey::generate([7; 32]);
        assert_eq!(SigningKey::parse(&key.to_text()), Ok(key.clone()));
        assert_eq!(SigningKey::parse(&format!("{}\n", key.to_text())), Ok(key));
        assert_eq!(SigningKey::parse(&format!("{A}\n\n")), Err(KeyError::Base64));
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        let of_length = |n: usize| format!("whsec_{}", STANDARD.encode(vec![1u8; n]));
        for (text, error) in [
            ("", KeyError::Prefix),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", KeyError::Prefix),
            ("whsec_!!!!", KeyError::Base64),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_", KeyError::Base64),
            (of_length(23).as_str(), KeyError::Length { bytes: 23 }),
            (of_length(65).as_str(), KeyError::Length { bytes: 65 }),
        ] {
            assert_eq!(SigningKey::parse(text), Err(error), "{text:?}");
        }
        assert!(SigningKey::parse(&of_length(24)).is_ok());
        assert!(SigningKey::parse(&of_length(64)).is_ok());
    }

    #[test]
    fn several_keys_are_separated_by_white_space_with_the_current_one_first() {
        let keys = SigningKeys::parse(None, &format!("{A}\n {B}\n")).unwrap();
        assert_eq!(keys.keys.len(), 2);
        assert_eq!(keys.current_id(), SigningKey::parse(A).unwrap().fingerprint());
        assert_eq!(SigningKeys::parse(Some("k1"), A).unwrap().current_id(), "k1");
        let longest = "k".repeat(MAX_ID);
        assert_eq!(SigningKeys::parse(Some(&longest), A).unwrap().current_id(), longest);
        for unusable in ["", "k 1", "k/1", "clé", &format!("{longest}k")] {
            let keys = SigningKeys::parse(Some(unusable), A).unwrap();
            assert_eq!(keys.current_id(), keys.keys[0].fingerprint(), "{unusable:?}");
        }
        assert_eq!(SigningKeys::parse(None, " \n"), Err(KeyError::None));
        let nine = [A; 9].join(" ");
        assert_eq!(SigningKeys::parse(None, &nine), Err(KeyError::TooMany { keys: 9 }));
    }

    #[test]
    fn debug_shows_no_key_material() {
        let keys = SigningKeys::parse(None, A).unwrap();
        let shown = format!("{keys:?}");
        assert!(shown.contains("redacted") && !shown.contains("MfKQ"), "{shown}");
    }
}
