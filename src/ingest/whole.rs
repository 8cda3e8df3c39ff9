//! A future that runs to its end, also when whoever waits for it goes away.
//!
//! Knows nothing of what it runs. A task for every request would do the same, and did: its allocation and its hops were 2
//! to 5 % of the CPU that a message costs the dispatcher. Invariant: once begun it is not dropped half-way while a
//! runtime is there to go on with it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Polled by whoever waits; dropped early it becomes a task among `left`.
pub(super) struct Whole<'t, F>
where
    F: Future<Output: Send> + Send + 'static,
{
    future: Option<Pin<Box<F>>>,
    left: &'t TaskTracker,
}

impl<'t, F> Whole<'t, F>
where
    F: Future<Output: Send> + Send + 'static,
{
    pub(super) fn new(future: F, left: &'t TaskTracker) -> Whole<'t, F> {
        Whole {
            future: Some(Box::pin(future)),
            left,
        }
    }
}

impl<F> Future for Whole<'_, F>
where
    F: Future<Output: Send> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let output = ready!(future.as_mut().poll(context));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<F> Drop for Whole<'_, F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        if let Some(future) = self.future.take()
            && let Ok(runtime) = Handle::try_current()
        {
            self.left.spawn_on(future, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_left_when_a_producer_hangs_up_runs_to_its_end() {
        let left = TaskTracker::new();
        let (disk, written) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let accept = async move {
            written.await.expect("the disk answers");
            tell.send("settled").expect("somebody listens");
        };
        let mut whole = Box::pin(Whole::new(accept, &left));
        assert!(futures::poll!(&mut whole).is_pending());
        drop(whole);
        disk.send(()).expect("the accept was not torn");
        left.close();
        left.wait().await;
        assert_eq!(told.await, Ok("settled"));
    }

    #[tokio::test]
    async fn what_is_waited_for_needs_no_task() {
        let left = TaskTracker::new();
        assert_eq!(Whole::new(async { 7 }, &left).await, 7);
        assert!(left.is_empty());
    }
}
