//! The signature of Stripe's webhooks: `Stripe-Signature: t=<seconds>,v1=<hex>`, HMAC-SHA256 over `{t}.{body}`; one `v1` for
//! each key while two are valid. <https://docs.stripe.com/webhooks#verify-manually>

use hmac::Mac as _;
use http::HeaderValue;

use super::{SigningKeys, hex};

/// The time and the signatures.
pub(super) const HEADER: &str = "stripe-signature";

/// The header's value: the current key's signature first. `timestamp` is in seconds since 1970.
pub(super) fn sign(keys: &SigningKeys, timestamp: i64, body: &[u8]) -> HeaderValue {
    let mut value = format!("t={timestamp}");
    let prefix = format!("{timestamp}.");
    for key in &keys.keys {
        value.push_str(",v1=");
        let mut mac = key.mac();
        mac.update(prefix.as_bytes());
        mac.update(body);
        hex(&mac.finalize().into_bytes(), &mut value);
    }
    HeaderValue::try_from(value).expect("digits, letters, commas and equals signs are legal in a header value")
}
