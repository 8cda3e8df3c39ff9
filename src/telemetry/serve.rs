//! The port for operators: `/metrics`, `/livez`, `/readyz`. Never the port that producers use.
//!
//! Whoever reaches it needs no credentials, so what he may hold is small: [`LIMITS`]. Invariant: nothing here waits for
//! another room, so a busy process still answers.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::exposition::Format;
use super::health::Health;
use crate::listen::serve::{self, Entrance, Limits, Spare};

/// Of a scraper or two and the kubelet's probes. All of it together is less than a megabyte, and answers that are read.
const LIMITS: Limits = Limits {
    places: 64,
    spare: Spare {
        silent: Duration::from_millis(250),
        answered: Duration::from_millis(250),
        shaking: Duration::from_secs(2),
    },
    // The least that hyper has.
    head: 8 * 1024,
    fields: 64,
    head_time: Duration::from_secs(5),
    // Longer than a scraper pauses.
    idle: Duration::from_secs(120),
    read_within: Duration::from_secs(5),
    grace: Duration::from_secs(1),
};

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves until `shutdown`; requests under way are finished.
pub async fn serve(listener: TcpListener, metrics: Arc<Registry>, health: Health, shutdown: CancellationToken) {
    let entrance = Entrance {
        listener,
        certificate: None,
        limits: LIMITS,
    };
    let answer = move |request: Request<_>| ready(answer(&request, &metrics, &health));
    serve::serve(entrance, answer, shutdown, CancellationToken::new()).await;
}

fn answer<B>(request: &Request<B>, metrics: &Registry, health: &Health) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "there is only GET\n");
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
            show_metrics(Format::accepted(accept), metrics)
        }
        "/livez" => text(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => match health.ready() {
            Ok(()) => text(StatusCode::OK, TEXT, "ok\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, why),
        },
        _ => text(StatusCode::NOT_FOUND, TEXT, "there is /metrics, /livez and /readyz\n"),
    }
}

fn show_metrics(format: Format, metrics: &Registry) -> Response<Full<Bytes>> {
    match format.write(metrics) {
        Ok(written) => text(StatusCode::OK, format.media_type(), written),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("failed to encode metrics: {error}\n"),
        ),
    }
}

fn text(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static(media_type);
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::telemetry::process::Process;

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{address}{path}"))
            .await
            .expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }

    /// A server of these, and what ends it.
    async fn served(metrics: Registry, health: Health) -> (SocketAddr, JoinHandle<()>, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::new(metrics), health, shutdown.clone()));
        (address, server, shutdown)
    }

    #[tokio::test]
    async fn readyz_says_why_not_until_the_gate_opens_while_livez_is_fine() {
        let health = Health::of("dispatcher");
        let gate = health.gate("watches", "listing WebhookEndpoints");
        let mut metrics = Registry::default();
        metrics.register_collector(Box::new(Process));
        let (address, server, shutdown) = served(metrics, health).await;

        assert_eq!(get(address, "/livez").await, (200, "ok\n".into()));
        assert_eq!(
            get(address, "/readyz").await,
            (503, "watches: listing WebhookEndpoints\n".into())
        );
        gate.open();
        assert_eq!(get(address, "/readyz").await.0, 200);
        assert_eq!(get(address, "/").await.0, 404);
        let (code, text) = get(address, "/metrics").await;
        assert_eq!(code, 200);
        assert!(
            text.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "),
            "{text}"
        );
        shutdown.cancel();
        server.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_probe_is_answered_though_others_keep_every_place_and_long_heads_are_refused() {
        let (address, _server, _shutdown) = served(Registry::default(), Health::of("dispatcher")).await;
        let mut others = Vec::new();
        for _ in 0..2 * LIMITS.places {
            let mut other = TcpStream::connect(address).await.expect("connected");
            other.write_all(b"GET /metrics HTTP/1.1\r\nx: ").await.expect("taken");
            others.push(other);
        }
        assert_eq!(get(address, "/livez").await.0, 200);

        let mut endless = TcpStream::connect(address).await.expect("connected");
        let head = format!("GET /metrics HTTP/1.1\r\nx: {}", "x".repeat(LIMITS.head));
        endless.write_all(head.as_bytes()).await.expect("taken");
        let mut start = [0; 13];
        endless.read_exact(&mut start).await.expect("an answer");
        assert_eq!(&start, b"HTTP/1.1 431 ");
    }

    #[test]
    fn there_is_only_get() {
        let request = Request::post("/livez").body(()).expect("a request");
        let refused = answer(&request, &Registry::default(), &Health::of("dispatcher"));
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
