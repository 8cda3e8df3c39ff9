//! The way to a collector: HTTP/1.1 or HTTPS on kept connections. Its address is the operator's, so no guard is asked.
//!
//! Invariant: an answer is read to a cap and within a time, and nothing follows a redirect: the request has credentials.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::ClientConfig;

use super::{Settings, SetupError};
use crate::tls::roots;

/// The most bytes of an answer: a collector says how many spans it refused, and why.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl Collector {
    pub(super) fn new(settings: &Settings) -> Result<Collector, SetupError> {
        let read = |path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|error| SetupError::Certificate {
                path: path.display().to_string(),
                error,
            })
        };
        let own = settings.certificate.as_ref().map(read).transpose()?;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(own.as_deref()))
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Collector {
            client: Client::builder(TokioExecutor::new()).build(connector),
            timeout: settings.timeout,
        })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let (head, body) = self.client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        tokio::time::timeout(self.timeout, exchange).await?
    }
}
