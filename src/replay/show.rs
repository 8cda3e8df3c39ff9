//! Writing a Replay's status.
//!
//! Knows nothing of what it says. Invariant: what the object says already is not written.

use std::sync::Arc;

use kube::{Api, Client, ResourceExt};

use crate::api::Replay;
use crate::api::names::DISPATCHER;
use crate::api::replay::ReplayStatus;
use crate::kubernetes::status::{Written, apply, is_unchanged, own_part};

/// The fields of the status: all are the dispatcher's.
const FIELDS: [&str; 8] = [
    "observedGeneration",
    "phase",
    "startTime",
    "completionTime",
    "matched",
    "sent",
    "succeeded",
    "failed",
];

/// Whether the object says it already.
pub(super) fn is_shown(replay: &Replay, status: &ReplayStatus) -> bool {
    let shown = own_part(&replay.status, &FIELDS, |_| true);
    is_unchanged(&shown, &own_part(status, &FIELDS, |_| true))
}

/// Whether only counters differ from what the object says.
pub(super) fn is_counter(replay: &Replay, status: &ReplayStatus) -> bool {
    let of_note = |status: Option<&ReplayStatus>| {
        let reasons = status.into_iter().flat_map(|status| &status.conditions);
        let reasons: Vec<_> = reasons.map(|c| (c.type_.clone(), c.reason.clone())).collect();
        (reasons, status.and_then(|status| status.observed_generation))
    };
    of_note(replay.status.as_ref()) == of_note(Some(status))
}

/// The object as it is then; none where it could not be written.
pub(super) async fn write(client: &Client, replay: &Replay, status: &ReplayStatus) -> Option<Arc<Replay>> {
    let api: Api<Replay> = Api::namespaced(client.clone(), &replay.namespace().unwrap_or_default());
    let wanted = own_part(status, &FIELDS, |_| true);
    match apply(&api, DISPATCHER, replay, &wanted).await {
        Ok(Written::Applied(object)) => Some(Arc::new(*object)),
        // The watch brings it as it is now.
        Ok(Written::Outdated) => None,
        Err(error) => {
            tracing::warn!(replay = replay.name_any(), %error, "failed to write the status of a Replay; tried again");
            None
        }
    }
}
