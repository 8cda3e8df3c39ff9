//! Signing schemes, keys, sign and verify. Pure.
//!
//! Standard Webhooks 1.0.0: `v1` signs `{id}.{timestamp}.{body}` with HMAC-SHA256, `v1a` with Ed25519; beside it what
//! receivers built for GitHub or Stripe verify. Owns the text form of keys; knows nothing of Secrets or requests. Invariant:
//! no Debug, Display or error shows key material.

mod ed25519;
mod github;
mod key;
mod signer;
mod standard;
mod stripe;
mod verify;

pub use ed25519::{Ed25519Key, Ed25519Keys, PublicKey, public_key};
pub use key::{Key, KeyError, Keys, MAX_KEYS, SigningKey, SigningKeys, is_key_id};
pub use signer::{Scheme, Signer};
pub use standard::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, sign_v1};
pub use verify::{Signature, VerifyError, VerifyingKey};

/// A key's text without one trailing newline: people make Secrets with `echo`.
fn without_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// A key's short public name: the first eight hexadecimal digits of a digest.
fn short_name(digest: &[u8]) -> String {
    let mut name = String::with_capacity(8);
    hex(&digest[..4], &mut name);
    name
}

/// Appends lower-case hexadecimal digits.
fn hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
}
