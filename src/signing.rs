//! Signing schemes, keys, sign and verify. Pure.
//!
//! Standard Webhooks 1.0.0: `v1` signs `{id}.{timestamp}.{body}` with HMAC-SHA256. Owns the text form of keys; knows
//! nothing of Secrets or requests. Invariant: no Debug, Display or error shows key material.

mod key;
mod standard;

pub use key::{KeyError, MAX_KEYS, SigningKey, SigningKeys};
pub use standard::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, Headers, VerifyError, sign_v1, verify};
