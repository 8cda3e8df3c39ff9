//! A Replay's reconcile: once it has ended and its time is over, it is deleted. Its status is the dispatcher's alone.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::context::Context;
use super::work::{Again, Error};
use crate::api::Replay;
use crate::kubernetes::within;

/// Deletes a Replay whose `ttlAfterFinished` is over; else says when that will be.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Again, Error> {
    let found = context.stores.replays.get(&ObjectRef::new(name).within(namespace));
    let Some(replay) = found.filter(|replay| replay.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let Some(left) = time_left(&replay, context.now()) else {
        return Ok(None);
    };
    if !left.is_zero() {
        return Ok(Some(Instant::now() + left));
    }
    context.spend("delete").await;
    // Only the object that was looked at: somebody may have given it more time.
    let only_this = DeleteParams {
        preconditions: Some(Preconditions {
            uid: replay.uid(),
            resource_version: replay.resource_version(),
        }),
        ..DeleteParams::background()
    };
    let api: Api<Replay> = Api::namespaced(context.client.clone(), namespace);
    match within(api.delete(name, &only_this)).await {
        Ok(_) => Ok(None),
        Err(error) if matches!(error.code(), Some(404)) => Ok(None),
        Err(error) if error.is_conflict() => Err(Error::Outdated),
        Err(error) => Err(Error::when("delete a Replay")(error)),
    }
}

/// How long it stays; none: it has not ended, or stays.
fn time_left(replay: &Replay, now: Timestamp) -> Option<Duration> {
    let status = replay.status.as_ref().filter(|status| status.is_finished())?;
    let ttl = replay.spec.ttl_after_finished.as_ref()?.parse().ok()?;
    let ended = status.completion_time.as_ref()?.0;
    let since = Duration::try_from(now.duration_since(ended)).unwrap_or_default();
    Some(ttl.saturating_sub(since))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replay_goes_when_it_has_ended_and_its_time_is_over() {
        let replay = |ttl: Option<&str>, ended: bool| -> Replay {
            let conditions = json!([{"type": "Complete", "status": "True", "reason": "AllSent", "message": "",
                "lastTransitionTime": "2026-11-25T08:00:00Z"}]);
            let status = match ended {
                true => json!({"completionTime": "2026-11-25T08:00:00Z", "conditions": conditions}),
                false => json!({}),
            };
            let spec = json!({"selector": {"ids": []}, "ttlAfterFinished": ttl});
            serde_json::from_value(json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay",
                "metadata": {"name": "again"}, "spec": spec, "status": status}))
            .expect("a Replay")
        };
        let now: Timestamp = "2026-11-25T08:00:40Z".parse().expect("a time");
        let left = |ttl, ended| time_left(&replay(ttl, ended), now);
        assert_eq!(left(Some("1m"), true), Some(Duration::from_secs(20)));
        assert_eq!(left(Some("30s"), true), Some(Duration::ZERO));
        assert_eq!(left(Some("0s"), true), Some(Duration::ZERO));
        assert_eq!(left(None, true), None);
        assert_eq!(left(Some("0s"), false), None);
    }
}
