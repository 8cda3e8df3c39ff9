//! Places for those who do what takes long (read the store, check events): so many at a time, and so many of one namespace's.
//!
//! The namespace's place comes first: who waits for it holds up nobody else. Invariant: however many requests for one
//! namespace's messages come, those for another wait for at most its share of the places.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::body::{ROOM_WAIT, Shares};
use super::problem::Problem;

/// The places of one kind.
pub(super) struct Places {
    all: Arc<Semaphore>,
    namespaces: Shares,
    each: usize,
    refused: fn(usize) -> Problem,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _held: [OwnedSemaphorePermit; 2],
}

impl Places {
    /// `all` of them, and of these `each` namespace's; `refused` to whom that is too few.
    pub(super) fn of(all: usize, each: usize, refused: fn(usize) -> Problem) -> Places {
        Places {
            all: Arc::new(Semaphore::new(all)),
            namespaces: Shares::of(each),
            each,
            refused,
        }
    }

    /// Waits for a place of a namespace.
    pub(super) async fn take(&self, namespace_uid: &str) -> Result<Place, Problem> {
        let until = Instant::now() + ROOM_WAIT;
        let own = self.namespaces.get(namespace_uid).acquire_owned();
        let Ok(Ok(own)) = timeout_at(until, own).await else {
            return Err((self.refused)(self.each));
        };
        match timeout_at(until, Arc::clone(&self.all).acquire_owned()).await {
            Ok(Ok(all)) => Ok(Place { _held: [own, all] }),
            Ok(Err(_)) | Err(_) => Err(Problem::busy()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_reads_in_its_places_and_leaves_the_others_to_others_however_much_it_asks() {
        let places = Places::of(4, 2, Problem::too_many_reads);
        let held = [places.take("loud").await.unwrap(), places.take("loud").await.unwrap()];
        let loud = futures::future::join_all((0..100).map(|_| places.take("loud")));
        let quiet = async {
            let begin = Instant::now();
            let taken = [places.take("a").await.unwrap(), places.take("b").await.unwrap()];
            assert!(begin.elapsed().is_zero(), "they waited for what the loud one asks");
            taken
        };
        let (refused, taken) = tokio::join!(loud, quiet);
        for one in refused {
            let problem = one.unwrap_err();
            assert_eq!((problem.status.as_u16(), problem.reason), (429, "TooManyReads"));
            assert!(problem.retry_after.is_some());
        }
        let busy = places.take("c").await.unwrap_err();
        assert_eq!((busy.status.as_u16(), busy.reason), (503, "Busy"));
        drop(taken);
        places.take("c").await.unwrap();
        drop(held);
        places.take("loud").await.unwrap();
    }
}
