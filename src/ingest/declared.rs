//! Whether a type is declared, asked of the API server itself: a producer that is quicker than the watch is not refused.
//!
//! Asked only where the policy takes declared types only and the registry does not have the type. Knows nothing of schemas.
//! Invariant: a type that the API server has, and only a moment ago had not, is never called undeclared.

use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use tokio::sync::Semaphore;

use crate::api::EventType;
use crate::kubernetes::{RequestError, within};

/// Questions at a time: events of undeclared types must not become the API server's load.
const QUESTIONS: usize = 8;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(2);

/// The API server gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("the Kubernetes API could not be asked whether the event's type is declared")]
pub struct Unanswered;

/// Asks the API server.
pub struct Declarations {
    client: kube::Client,
    questions: Semaphore,
}

impl Declarations {
    /// Over a client of the dispatcher.
    pub fn new(client: kube::Client) -> Declarations {
        Declarations {
            client,
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// Whether an EventType of the namespace declares it.
    pub async fn exists(&self, namespace: &str, event_type: &str) -> Result<bool, Unanswered> {
        let turn = tokio::time::timeout(TURN, self.questions.acquire()).await;
        let _turn = turn.ok().and_then(Result::ok).ok_or(Unanswered)?;
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
    use super::*;

    #[test]
    fn a_type_cannot_say_more_than_a_value_in_a_selector() {
        assert_eq!(escaped("lead.qualified"), "lead.qualified");
        assert_eq!(escaped(r"a,spec.type!=b\"), r"a\,spec.type!\=b\\");
    }
}
