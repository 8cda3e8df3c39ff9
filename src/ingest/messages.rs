//! Looking at what is kept: messages and their failed attempts, for people and programs that may.
//!
//! Reads only; knows nothing of how a look is bounded (the store does that). Invariant: nothing is told of a message
//! before the API server said that the caller may read messages of its namespace.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::Ingest;
use super::answer;
use super::auth::{Identity, Rule};
use super::places::Place;
use super::problem::Problem;
use super::route::Route;
use crate::ids::MessageId;
use crate::queue::{Kept, QueueError};
use crate::registry::NamespaceView;

mod query;
pub(super) mod shown;

/// Looks at a time: the store makes them one after another, and a further one would wait for all of these.
pub(super) const LOOKS: usize = 16;
/// Of them at one namespace's messages.
pub(super) const LOOKS_EACH: usize = 4;
/// How long a look may take: longer than all looks before it do on a store that is well, shorter than clients wait.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

impl Ingest {
    /// Answers a GET.
    pub(super) async fn look(
        &self,
        identity: &Identity,
        namespace: &str,
        view: &NamespaceView,
        route: Route<'_>,
        query: Option<&str>,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let rule = match route {
            Route::Messages => Rule::LIST_MESSAGES,
            _ => Rule::GET_MESSAGES,
        };
        if !self.auth.may(identity, namespace, rule).await? {
            return Err(Problem::may_not_read(identity, namespace, rule));
        }
        match route {
            Route::Message(id) => {
                query::none(query)?;
                let (kept, _place) = self.one(view, id).await?;
                let event = in_time(self.queue.event(id.event())).await?;
                let event = event.ok_or_else(Problem::no_message)?;
                let subscription = self.registry.subscription(kept.subscription_id);
                let subscription = subscription.filter(|entry| entry.deleted.is_none());
                let spec = subscription.as_ref().map(|entry| &*entry.spec);
                let notice = match id.is_notice() {
                    true => in_time(self.queue.notice(id.event())).await?,
                    false => None,
                };
                let whole = shown::Whole::new(&kept, &event, spec, notice.as_ref());
                self.answers.json(identity, &whole.map_err(unreadable)?).await
            }
            Route::Attempts(id) => {
                query::none(query)?;
                let (_, _place) = self.one(view, id).await?;
                let attempts = in_time(self.queue.attempts(id)).await?;
                self.answers.json(identity, &shown::Attempts::new(&attempts)).await
            }
            Route::Messages | Route::Events | Route::Pull(_) | Route::Acknowledge(_) | Route::PublicKeys => {
                let query::Query { search, before, limit } = query::parse(query, &view.uid)?;
                let _place = self.looks.take(&view.uid).await?;
                let page = in_time(self.queue.list(search, before, limit)).await?;
                let listed = shown::Listed::new(&page).map_err(unreadable)?;
                self.answers.json(identity, &listed).await
            }
        }
    }

    async fn one(&self, view: &NamespaceView, id: MessageId) -> Result<(Kept, Place), Problem> {
        let place = self.looks.take(&view.uid).await?;
        let kept = in_time(self.queue.get(&view.uid, id)).await?;
        Ok((kept.ok_or_else(Problem::no_message)?, place))
    }
}

/// A look's answer, or why there is none.
pub(super) async fn in_time<T>(look: impl Future<Output = Result<T, QueueError>>) -> Result<T, Problem> {
    match tokio::time::timeout(LOOK_WITHIN, look).await {
        Ok(looked) => looked.map_err(|error| unread(&error)),
        Err(_) => Err(Problem::looks_too_slow()),
    }
}

fn unread(error: &QueueError) -> Problem {
    tracing::warn!(%error, "failed to look at messages");
    Problem::unread(error)
}

fn unreadable(error: crate::event::format::RenderError) -> Problem {
    tracing::error!(%error, "the store holds an event that cannot be read");
    Problem::internal("the stored event cannot be read")
}

pub(super) fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    answer::response(StatusCode::OK, answer::json(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_that_takes_too_long_is_to_be_tried_again_later() {
        let problem = in_time(std::future::pending::<Result<(), QueueError>>()).await;
        let problem = problem.expect_err("it never ends");
        assert_eq!(problem.status, http::StatusCode::SERVICE_UNAVAILABLE);
        let response = problem.response();
        assert!(response.headers().contains_key(http::header::RETRY_AFTER));
        assert!(in_time(async { Ok(()) }).await.is_ok());
    }
}
