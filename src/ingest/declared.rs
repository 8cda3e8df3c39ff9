//! Whether a type is declared, asked of the API server itself: a producer that is quicker than the watch is not refused.
//!
//! Asked only where the policy takes declared types only and the registry does not have the type, so no answer from here
//! outlives the moment in which the watch brings it. Knows nothing of schemas. Invariant: a type that the API server has is not
//! called undeclared, unless it was asked for within [`REMEMBERED`] and was not there.

use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use moka::future::Cache;
use tokio::sync::Semaphore;

use crate::api::EventType;
use crate::kubernetes::{RequestError, within};

/// Questions at a time: events of undeclared types must not become the API server's load.
const QUESTIONS: usize = 8;
/// Of them for one namespace: one whose producers send nothing but undeclared types leaves turns to others.
const QUESTIONS_EACH: usize = 2;
/// How long an answer holds: a producer's loop over one type is one question a second.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Answers remembered at a time; beyond it some are asked for anew.
const ANSWERS: u64 = 10_000;
/// How long a namespace's turns are known after the last of them: longer than any question takes.
const TURNS_IDLE: Duration = Duration::from_secs(60);
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(2);

/// The API server gave no answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the Kubernetes API could not be asked whether the event's type is declared")]
pub struct Unanswered;

/// Asks the API server.
pub struct Declarations {
    client: kube::Client,
    turns: Turns,
}

impl Declarations {
    /// Over a client of the dispatcher.
    pub fn new(client: kube::Client) -> Declarations {
        Declarations {
            client,
            turns: Turns::new(),
        }
    }

    /// Whether an EventType of the namespace declares it.
    pub async fn exists(&self, namespace: &str, event_type: &str) -> Result<bool, Unanswered> {
        let ask = self.ask(namespace, event_type);
        self.turns.answer(namespace, event_type, ask).await
    }

    async fn ask(&self, namespace: &str, event_type: &str) -> Result<bool, Unanswered> {
        let api: Api<EventType> = Api::namespaced(self.client.clone(), namespace);
        let of_it = ListParams::default()
            .fields(&format!("spec.type={}", escaped(event_type)))
            .limit(1);
        let found = within(api.list_metadata(&of_it)).await.map_err(|error: RequestError| {
            tracing::warn!(namespace, %error, "failed to ask whether a type is declared");
            Unanswered
        })?;
        Ok(!found.items.is_empty())
    }
}

/// Who may ask when, and what the answers were.
struct Turns {
    all: Semaphore,
    /// By namespace.
    each: Cache<String, Arc<Semaphore>>,
    /// By namespace and type.
    answers: Cache<(String, String), bool>,
}

impl Turns {
    fn new() -> Turns {
        Turns {
            all: Semaphore::new(QUESTIONS),
            each: Cache::builder().time_to_idle(TURNS_IDLE).build(),
            answers: Cache::builder().max_capacity(ANSWERS).time_to_live(REMEMBERED).build(),
        }
    }

    /// The answer of a moment ago, or of the same question that is under way, or of this one.
    async fn answer(
        &self,
        namespace: &str,
        event_type: &str,
        ask: impl Future<Output = Result<bool, Unanswered>>,
    ) -> Result<bool, Unanswered> {
        let asked = async {
            let each = self
                .each
                .get_with_by_ref(namespace, async { Arc::new(Semaphore::new(QUESTIONS_EACH)) })
                .await;
            // The namespace's turn first: who waits for it holds up nobody else.
            let turn = async { (each.acquire().await, self.all.acquire().await) };
            let Ok((Ok(_each), Ok(_all))) = tokio::time::timeout(TURN, turn).await else {
                return Err(Unanswered);
            };
            ask.await
        };
        let question = (namespace.to_owned(), event_type.to_owned());
        let answer = self.answers.try_get_with(question, asked).await;
        answer.map_err(|unanswered: Arc<Unanswered>| *unanswered)
    }
}

/// A value as a field selector takes it.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_type_asked_for_again_and_again_is_one_question() {
        let turns = Turns::new();
        let asked = AtomicUsize::new(0);
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(false)
        };
        let many = (0..50).map(|_| turns.answer("team", "lead.lost", ask()));
        for answer in futures::future::join_all(many).await {
            assert!(matches!(answer, Ok(false)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(matches!(
            turns.answer("other", "lead.lost", async { Ok(true) }).await,
            Ok(true)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn one_namespace_with_many_types_leaves_turns_to_others() {
        let turns = Turns::new();
        let types: Vec<String> = (0..20).map(|n| format!("lead.t{n}")).collect();
        let loops = types.iter().map(|of| turns.answer("loud", of, std::future::pending()));
        let loud = futures::future::join_all(loops);
        let quiet = turns.answer("quiet", "lead.won", async { Ok(true) });
        // The loud one's questions are all put before the quiet one's, and none is ever answered.
        tokio::select! {
            biased;
            _ = loud => panic!("two of them are never answered"),
            answer = quiet => assert!(matches!(answer, Ok(true))),
        }
        let failed = turns.answer("failing", "lead.won", async { Err(Unanswered) }).await;
        assert!(failed.is_err());
        let again = turns.answer("failing", "lead.won", async { Ok(true) }).await;
        assert!(matches!(again, Ok(true)), "no answer is not remembered");
    }

    #[test]
    fn a_type_cannot_say_more_than_a_value_in_a_selector() {
        assert_eq!(escaped("lead.qualified"), "lead.qualified");
        assert_eq!(escaped(r"a,spec.type!=b\"), r"a\,spec.type!\=b\\");
    }
}
