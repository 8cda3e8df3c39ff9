//! The signature of GitHub's webhooks: `X-Hub-Signature-256`, the HMAC-SHA256 of the body in hexadecimal.
//! <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>

use hmac::Mac as _;
use http::HeaderValue;

use super::{SigningKeys, hex};

/// The one signature of a request.
pub(super) const HEADER: &str = "x-hub-signature-256";

/// The header's value, by the first key: there is room for one signature.
pub(super) fn sign(keys: &SigningKeys, body: &[u8]) -> HeaderValue {
    let mut value = String::with_capacity(7 + 64);
    value.push_str("sha256=");
    if let Some(key) = keys.keys.first() {
        let mut mac = key.mac();
        mac.update(body);
        hex(&mac.finalize().into_bytes(), &mut value);
    }
    HeaderValue::try_from(value).expect("hexadecimal digits are legal in a header value")
}
