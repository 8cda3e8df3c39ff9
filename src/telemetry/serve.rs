//! The port for operators: `/metrics`, `/livez`, `/readyz`. Never the port that producers use.
//!
//! Invariant: nothing here waits for another room, so a busy process still answers.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::exposition::Format;
use super::health::Health;

#[derive(Clone)]
struct Shared {
    metrics: Arc<Registry>,
    health: Health,
}

/// Serves until `shutdown`; requests under way are finished.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Registry>,
    health: Health,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(show_ready))
        .with_state(Shared { metrics, health });
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn show_metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    match format.write(&shared.metrics) {
        Ok(text) => ([(header::CONTENT_TYPE, format.media_type())], text).into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("failed to encode metrics: {error}\n"),
        )
            .into_response(),
    }
}

async fn show_ready(State(shared): State<Shared>) -> Response {
    match shared.health.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::process::Process;

    async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{address}{path}"))
            .await
            .expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }

    #[tokio::test]
    async fn readyz_says_why_not_until_the_gate_opens_while_livez_is_fine() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let health = Health::of("dispatcher");
        let gate = health.gate("watches", "listing WebhookEndpoints");
        let mut metrics = Registry::default();
        metrics.register_collector(Box::new(Process));
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::new(metrics), health, shutdown.clone()));

        assert_eq!(get(address, "/livez").await, (200, "ok\n".into()));
        assert_eq!(
            get(address, "/readyz").await,
            (503, "watches: listing WebhookEndpoints\n".into())
        );
        gate.open();
        assert_eq!(get(address, "/readyz").await.0, 200);
        let (code, text) = get(address, "/metrics").await;
        assert_eq!(code, 200);
        assert!(
            text.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "),
            "{text}"
        );
        shutdown.cancel();
        server.await.expect("no panic").expect("served");
    }
}
