use standardwebhooks::{Webhook, WebhookError};

/// An error where the request is not ours.
pub fn verify(secret: &str, headers: &http::HeaderMap, body: &[u8]) -> Result<(), WebhookError> {
    Webhook::new(secret)?.verify(body, headers)
}
