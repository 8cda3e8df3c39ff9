//! A connection that ends when its other side takes too long: for the rest of a head that it began, or to read an answer.
//!
//! Bytes of a head that came while the request before it was in hand are not timed here: hyper's own timer has them, which is
//! for idle connections.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How far the requests of a connection are: one step when one is taken, and one when its answer is there. While their number
/// is even a head is waited for.
#[derive(Debug, Default)]
pub(super) struct Steps(AtomicU64);

impl Steps {
    pub(super) fn made(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long the other side may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a head, from its first byte on.
    pub(super) head: Duration,
    /// To read an answer.
    pub(super) read: Duration,
}

/// The connection. All of it is polled by the task that makes the steps.
pub(super) struct Timed<'a, S> {
    stream: S,
    steps: &'a Steps,
    patience: Patience,
    /// Of the head whose first bytes came after so many steps.
    head: Option<(u64, Pin<Box<Sleep>>)>,
    /// Since it took no more, until everything is written.
    late: Option<Pin<Box<Sleep>>>,
}

impl<'a, S> Timed<'a, S> {
    pub(super) fn new(stream: S, steps: &'a Steps, patience: Patience) -> Timed<'a, S> {
        Timed {
            stream,
            steps,
            patience,
            head: None,
            late: None,
        }
    }

    /// While nothing comes.
    fn head_in_time(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.head {
            Some((at, late)) if *at == self.steps.made() => late.as_mut().poll(context).map(|()| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the request's head does not end",
                ))
            }),
            _ => Poll::Pending,
        }
    }

    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let read = self.patience.read;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(read)));
        late.as_mut()
            .poll(context)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the answer is not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if read.is_pending() {
            return self.head_in_time(context);
        }
        let made = self.steps.made();
        let awaited = made.is_multiple_of(2) && self.head.as_ref().is_none_or(|(at, _)| *at != made);
        if awaited && into.filled().len() > before {
            self.head = Some((made, Box::pin(sleep(self.patience.head))));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<'_, S> {
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
