//! Bodies of requests, between their first byte and their answer: read whole, within their limit and their time.
//!
//! Owns the memory for them. Who sends more than one frame's worth, so that it is his to say how long the rest takes, does it
//! from a share of his own and one of his namespace: a token is enough to send a body that is never finished, and must not be
//! enough to keep others out. The namespace of the path has no share: strangers could use it up. Invariant: memory is held
//! for what has come, never for what was announced.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::auth::Identity;
use super::problem::Problem;

/// Bodies in memory, in bytes.
const BODIES: usize = 64 * 1024 * 1024;
/// Of them one producer's, in frames that are not the last: two of the largest batches.
const PRODUCER: usize = BODIES / 8;
/// And those of all producers of one namespace: whoever may create ServiceAccounts has as many as he likes.
const HOME: usize = BODIES / 4;
/// How long a request waits for room.
pub(super) const ROOM_WAIT: Duration = Duration::from_secs(2);
/// How long an answer waits for room: shorter, for it holds a place among those who read the store meanwhile.
const ANSWER_WAIT: Duration = Duration::from_millis(500);
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);
/// What is read of a refused body, so that its producer reads the answer instead of a reset connection.
const DRAIN: usize = 512 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// The memory for bodies, and its shares.
pub struct Bodies {
    all: Arc<Semaphore>,
    producers: Shares,
    homes: Shares,
}

impl Default for Bodies {
    fn default() -> Bodies {
        Bodies {
            all: Arc::new(Semaphore::new(BODIES)),
            producers: Shares::of(PRODUCER),
            homes: Shares::of(HOME),
        }
    }
}

/// What one body holds; given back when dropped.
#[derive(Debug, Default)]
pub struct Room {
    held: Vec<OwnedSemaphorePermit>,
}

impl Bodies {
    /// The whole body and its room, which lasts until the answer.
    pub async fn read(
        &self,
        identity: &Identity,
        headers: &HeaderMap,
        body: &mut Incoming,
        limit: usize,
    ) -> Result<(Bytes, Room), Problem> {
        let announced = headers.contains_key(CONTENT_LENGTH).then(|| body.size_hint().lower());
        let announced = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > limit) {
            return Err(Problem::too_large(limit));
        }
        match tokio::time::timeout(BODY_TIME, self.collect(identity, body, limit)).await {
            Ok(read) => read,
            Err(_) => {
                let detail = "the body did not arrive in time";
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "Timeout", detail))
            }
        }
    }

    /// A body in one piece; that it mostly is already.
    async fn collect(&self, identity: &Identity, body: &mut Incoming, limit: usize) -> Result<(Bytes, Room), Problem> {
        let mut room = Room::default();
        let mut shares: Option<[Arc<Semaphore>; 2]> = None;
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                let detail = "the body ended early or is not valid HTTP";
                Problem::new(StatusCode::BAD_REQUEST, "BrokenBody", detail)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let so_far = first.as_ref().map_or(0, Bytes::len) + rest.len();
            if so_far + data.len() > limit {
                return Err(Problem::too_large(limit));
            }
            if !body.is_end_stream() {
                let shares = shares.get_or_insert_with(|| self.shares(identity));
                for share in shares {
                    room.take(share, data.len()).await.ok_or_else(Problem::share_used_up)?;
                }
            }
            room.take(&self.all, data.len()).await.ok_or_else(Problem::busy)?;
            match first.take() {
                None if rest.is_empty() => first = Some(data),
                None => rest.extend_from_slice(&data),
                Some(first) => {
                    rest.extend_from_slice(&first);
                    rest.extend_from_slice(&data);
                }
            }
        }
        Ok((first.unwrap_or_else(|| rest.freeze()), room))
    }

    /// Room for an answer; one that is larger than a share has it whole.
    pub async fn hold(&self, identity: &Identity, bytes: usize) -> Result<Room, Problem> {
        let mut room = Room::default();
        let (bytes, until) = (bytes.min(PRODUCER), Instant::now() + ANSWER_WAIT);
        for share in self.shares(identity) {
            let taken = timeout_at(until, room.take(&share, bytes)).await;
            taken.ok().flatten().ok_or_else(Problem::answers_unread)?;
        }
        let taken = timeout_at(until, room.take(&self.all, bytes)).await;
        taken.ok().flatten().ok_or_else(Problem::busy)?;
        Ok(room)
    }

    /// The producer's own, and that of all who are at home where he is.
    fn shares(&self, identity: &Identity) -> [Arc<Semaphore>; 2] {
        let producer = identity.username.as_str();
        [self.producers.get(producer), self.homes.get(identity.home())]
    }
}

impl Room {
    /// Takes some bytes more; none when there is no room in time.
    async fn take(&mut self, from: &Arc<Semaphore>, bytes: usize) -> Option<()> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = match Arc::clone(from).try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                let waits = Arc::clone(from).acquire_many_owned(bytes);
                tokio::time::timeout(ROOM_WAIT, waits).await.ok()?.ok()?
            }
        };
        // Merged with what was taken of the same before, so that the list stays as short as there are kinds.
        for held in &mut self.held {
            if Arc::ptr_eq(held.semaphore(), from) {
                held.merge(permit);
                return Some(());
            }
        }
        self.held.push(permit);
        Some(())
    }
}

/// Shares by name. One that nobody holds anything of is forgotten.
pub(super) struct Shares {
    size: usize,
    used: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Shares {
    /// Looked through for forgotten ones when there are more.
    const KEPT: usize = 1_024;

    pub(super) fn of(size: usize) -> Shares {
        Shares {
            size,
            used: Mutex::default(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Arc<Semaphore> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = used.get(name).and_then(Weak::upgrade) {
            return share;
        }
        if used.len() >= Shares::KEPT {
            used.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(self.size));
        used.insert(name.to_owned(), Arc::downgrade(&share));
        share
    }
}

/// Reads a little of what the producer still sends.
pub(super) async fn drain(body: &mut Incoming) {
    let read = async {
        let mut left = DRAIN;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // What it does not send in time stays unread: hyper then closes the connection.
    let _late = tokio::time::timeout(DRAIN_TIME, read).await;
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;
    use crate::ingest::auth::identity;

    #[tokio::test(start_paused = true)]
    async fn a_producer_holds_no_more_than_his_share_and_all_of_his_namespace_no_more_than_theirs() {
        let bodies = Bodies::default();
        let mut held = Vec::new();
        let mut takes = async |name: &str, bytes: usize| {
            let user = UserInfo {
                username: Some(name.to_owned()),
                ..UserInfo::default()
            };
            let who = identity(user, "token").expect("a name");
            let mut room = Room::default();
            for share in bodies.shares(&who) {
                if room.take(&share, bytes).await.is_none() {
                    return false;
                }
            }
            held.push(room);
            true
        };
        let [a, b, c] = ["a", "b", "c"].map(|name| format!("system:serviceaccount:team:{name}"));
        assert!(takes(&a, PRODUCER).await);
        assert!(!takes(&a, 1).await, "his share is used up");
        assert!(takes(&b, HOME - PRODUCER).await);
        assert!(!takes(&c, 1).await, "his namespace's share is used up");
        assert!(takes("system:serviceaccount:other:a", PRODUCER).await);
        assert!(takes("a person", PRODUCER).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_that_is_used_up_is_waited_for_and_one_that_nobody_holds_is_whole_again() {
        let shares = Shares::of(10);
        let (mut a, mut b, mut other) = (Room::default(), Room::default(), Room::default());
        assert!(a.take(&shares.get("a"), 7).await.is_some());
        assert!(a.take(&shares.get("a"), 2).await.is_some());
        assert_eq!(a.held.len(), 1);
        assert!(b.take(&shares.get("a"), 2).await.is_none(), "it waited in vain");
        assert!(other.take(&shares.get("b"), 10).await.is_some());
        let waits = tokio::spawn({
            let share = shares.get("a");
            async move { Room::default().take(&share, 5).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(a);
        assert!(waits.await.unwrap());
        assert!(Room::default().take(&shares.get("a"), 10).await.is_some());
        drop((b, other));
        for n in 0..2 * Shares::KEPT {
            drop(shares.get(&n.to_string()));
        }
        assert!(shares.used.lock().unwrap().len() <= Shares::KEPT);
    }
}
