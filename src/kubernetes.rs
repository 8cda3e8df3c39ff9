//! What both sides need of the Kubernetes API: server-side apply of status, Leases, Events, write budgets, Services,
//! which namespaces are watched.
//!
//! Imported by controller, report, ingest and the watches only. It knows nothing of what is written, only how: every write
//! has a timeout, and none lands on an object other than the one that was read.

pub mod budget;
pub mod events;
pub mod lease;
pub mod scope;
pub mod services;
pub mod status;

use std::time::Duration;

use anyhow::Context as _;

/// The longest one request may take, retries inside the client included: kube's default policy retries a 429, 503 or 504
/// up to 15 times, and a stuck status write must not stop the others.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the API server gave no answer within {}s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl RequestError {
    /// The HTTP status of the answer; none when there was no answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            RequestError::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// The object changed since it was read, or was created meanwhile.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }
}

/// A client with connections of its own. Its tasks run in the runtime that is entered now.
pub fn client(config: kube::Config) -> anyhow::Result<kube::Client> {
    kube::Client::try_from(config).context("failed to set up the Kubernetes client")
}

/// One of an API server that answers nothing.
#[cfg(test)]
pub fn silent_client() -> kube::Client {
    use std::convert::Infallible;

    type Never = std::future::Pending<Result<http::Response<kube::client::Body>, Infallible>>;
    let silent = tower::service_fn(|_: http::Request<kube::client::Body>| -> Never { std::future::pending() });
    kube::Client::new(silent, "tidings-system")
}

/// Leaves out who owns which field: nobody here reads it, and it is often half of an object.
pub fn slim<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Runs one request within [`REQUEST_TIMEOUT`].
pub async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(RequestError::Timeout),
    }
}
