//! From one HTTP request to its record, its line on stdout and its answer.
//!
//! Invariant: a request is recorded before it is answered, so that what a sender saw answered can be found here.

use std::convert::Infallible;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;

use super::keys::Keys;
use super::record::{Judgement, Record, Ring, Verdict, judge, of_handshake, shown_headers, shown_path};
use super::{behaviour, page};
use crate::delivery::handshake::{ALLOWED_ORIGIN, ALLOWED_RATE, REQUEST_ORIGIN, REQUEST_RATE};
use crate::signing::HEADER_ID;

/// The largest body that is read: the most a dispatcher can be told to accept at ingest, and its envelope.
const MAX_BODY: usize = 2 * 1024 * 1024;

pub(super) struct Service {
    keys: Keys,
    ring: Mutex<Ring>,
}

impl Service {
    pub(super) fn new(keys: Keys) -> Service {
        Service {
            keys,
            ring: Mutex::default(),
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        Ok(match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => self.page(),
            (&Method::GET, "/requests") => self.list(),
            (&Method::GET, "/favicon.ico") => plain(StatusCode::NOT_FOUND),
            _ => self.receive(request).await,
        })
    }

    fn page(&self) -> Response<Full<Bytes>> {
        let (records, total) = {
            let ring = self.ring();
            (ring.records(), ring.total)
        };
        let text = page::render(records.iter().map(Arc::as_ref), total);
        let mut response = shown("text/html; charset=utf-8", text.into());
        response
            .headers_mut()
            .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
        response
    }

    fn list(&self) -> Response<Full<Bytes>> {
        let records = self.ring().records();
        match serde_json::to_vec(&records.iter().map(Arc::as_ref).collect::<Vec<_>>()) {
            Ok(json) => shown("application/json", json.into()),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    async fn receive(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map(|body| body.to_bytes());
        let id = head.headers.get(HEADER_ID).and_then(|id| id.to_str().ok());
        let earlier = self.ring().count(id);
        let asks = head.method == Method::OPTIONS && head.headers.contains_key(REQUEST_ORIGIN);
        // A question is about no message, so it is none of those that fail.
        let earlier_of_it = if asks { u32::MAX } else { earlier };
        let mut played = behaviour::of(head.uri.path(), head.uri.query().unwrap_or(""), earlier_of_it);
        let judged = match &body {
            Ok(_) if asks => of_handshake(),
            Ok(body) => judge(
                &self.keys.current(),
                &head.headers,
                body,
                jiff::Timestamp::now().as_second(),
            ),
            Err(_) => {
                played.status = 413;
                let why = format!("the body did not arrive whole, or has more than {MAX_BODY} bytes");
                Judgement {
                    verdict: Verdict::Malformed,
                    why,
                }
            }
        };
        let mut record = Record {
            time: format!("{:.3}", jiff::Timestamp::now()),
            method: head.method.to_string(),
            path: shown_path(head.uri.path_and_query().map_or("", |path| path.as_str())),
            id: id.map(shown_path),
            attempt: earlier.saturating_add(1),
            verdict: judged.verdict,
            why: judged.why,
            status: played.status,
            bytes: 0,
            headers: shown_headers(&head.headers),
            body: None,
            body_base64: None,
            body_truncated: false,
        };
        record.show_body(&body.unwrap_or_default());
        self.record(record);
        if !played.delay.is_zero() {
            tokio::time::sleep(played.delay).await;
        }
        let mut response = plain(StatusCode::from_u16(played.status).unwrap_or(StatusCode::OK));
        if let Some(value) = played.retry_after.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        if asks && response.status().is_success() {
            agree(response.headers_mut(), &head.headers, played.allowed_rate.as_deref());
        }
        response
    }

    fn record(&self, record: Record) {
        if let Ok(mut line) = serde_json::to_vec(&record) {
            line.push(b'\n');
            // Nobody may be reading any more; that is no reason to stop receiving.
            let _ = std::io::stdout().lock().write_all(&line);
        }
        self.ring().push(Arc::new(record));
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer that agrees (HTTP 1.1 Web Hooks for Event Delivery, 4.2): whoever asks may send, as often as he wants.
fn agree(answer: &mut HeaderMap, asked: &HeaderMap, rate: Option<&str>) {
    let rate = rate.and_then(|rate| HeaderValue::from_str(rate).ok());
    let rate = rate.or_else(|| asked.get(REQUEST_RATE).cloned());
    answer.insert(ALLOW, HeaderValue::from_static("POST"));
    answer.extend(asked.get(REQUEST_ORIGIN).map(|origin| (ALLOWED_ORIGIN, origin.clone())));
    answer.insert(ALLOWED_RATE, rate.unwrap_or(HeaderValue::from_static("*")));
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn shown(content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
