//! Signing schemes, keys, sign and verify. Pure.
//!
//! Standard Webhooks 1.0.0: `v1` signs `{id}.{timestamp}.{body}` with HMAC-SHA256, `v1a` with Ed25519; beside it what receivers built for GitHub
//! or Stripe verify. Owns the text form of keys; knows nothing of Secrets or requests. Invariant: no Debug, Display or error
//! shows key material.

mod ed25519;
mod github;
mod key;
mod signer;
mod standard;
mod stripe;

pub use ed25519::{Ed25519Key, Ed25519Keys, public_key};
pub use key::{KeyError, MAX_KEYS, SigningKey, SigningKeys};
pub use signer::{Scheme, Signer};
pub use standard::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, Headers, VerifyError, sign_v1, verify};

/// Appends lower-case hexadecimal digits.
fn hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
}
