//! Answers on their way: what those that are not read yet hold, and for how long.
//!
//! Whoever asks decides how fast he reads, so what is sent is held until then, from shares as for bodies of requests.
//! Invariant: an answer that is not [`SMALL`] holds memory of a share while any of it is unsent, and no connection waits
//! longer than [`READ_WITHIN`] for its other side to read one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::answer;
use super::auth::Identity;
use super::body::{Bodies, Room};
use super::problem::Problem;
use crate::blocking::beside_the_worker;

/// Answers of at most so many bytes hold nothing: one on every connection is 16 MiB.
const SMALL: usize = 4 * 1024;
/// How long an answer may take to be read: then its connection is closed, for its memory and its place are others' too.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// Memory for answers: none of producers'.
#[derive(Default)]
pub(super) struct Answers {
    room: Bodies,
}

/// What is sent, and the memory that it may have until it is.
struct Held {
    body: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Answers {
    /// Room for an answer of at most so many bytes.
    pub(super) async fn room(&self, identity: &Identity, bytes: usize) -> Result<Room, Problem> {
        match bytes {
            ..=SMALL => Ok(Room::default()),
            // Boxed: few answers are large, and none of the others is to carry its future.
            _ => Box::pin(self.room.hold(identity, bytes)).await,
        }
    }

    /// 200 with JSON. Whoever waits here for room has the answer in memory already: his place among those who read the store
    /// is to be kept until then.
    pub(super) async fn json(
        &self,
        identity: &Identity,
        value: &impl Serialize,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let body = beside_the_worker(|| answer::bytes(value));
        let room = self.room(identity, body.len()).await?;
        Ok(answer::response(StatusCode::OK, held(body, room)))
    }
}

/// A body with its room.
pub(super) fn held(body: Vec<u8>, room: Room) -> Bytes {
    Bytes::from_owner(Held { body, _room: room })
}

/// A connection that ends when what is written to it is not read in time.
pub(super) struct Timed<S> {
    stream: S,
    /// Since it took no more, until everything is written.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    pub(super) fn new(stream: S) -> Timed<S> {
        Timed { stream, late: None }
    }

    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let late = self
            .late
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(READ_WITHIN)));
        late.as_mut()
            .poll(context)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the answer is not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has written all it had.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.late = None;
        }
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.in_time(context, shut)
    }
}
