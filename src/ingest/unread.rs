//! Answers on their way: what those that are not read yet hold, and for how long.
//!
//! Whoever asks decides how fast he reads, so what is sent is held until then, from shares as for bodies of requests.
//! Invariant: an answer that is not [`SMALL`] holds memory of a share while any of it is unsent, and no connection waits
//! longer than [`READ_WITHIN`] for its other side to read one.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::answer;
use super::auth::Identity;
use super::body::{Bodies, Room};
use super::problem::Problem;
use crate::blocking::beside_the_worker;

/// Answers of at most so many bytes hold nothing: one on every connection is 16 MiB.
const SMALL: usize = 4 * 1024;
/// How long an answer may take to be read: then its connection is closed, for its memory and its place are others' too.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(60);

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
