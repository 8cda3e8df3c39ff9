//! What an Event says of a Replay, from how its status changes. Pure.
//!
//! Invariant: it is told once that a Replay began, and once how it ended, also over restarts, for both are in its status; one
//! that ends before anybody saw it begin is told of once.

use crate::api::conditions::{COMPLETE, FAILED};
use crate::api::replay::ReplayStatus;
use crate::kubernetes::events::{Happening, Kind};

/// Said of both.
const ACTION: &str = "Replay";
const STARTED: &str = "Started";

/// What there is to tell when a status becomes another one.
pub(super) fn happening(before: Option<&ReplayStatus>, after: &ReplayStatus) -> Option<Happening> {
    if before.is_some_and(ReplayStatus::is_finished) {
        return None;
    }
    let end = |type_: &str| after.conditions.iter().find(|condition| condition.type_ == type_);
    let told = |kind, reason: &str, note: &str| Happening {
        kind,
        reason: reason.to_owned(),
        action: ACTION,
        note: note.to_owned(),
    };
    if let Some(failed) = end(FAILED) {
        return Some(told(Kind::Warning, &failed.reason, &failed.message));
    }
    if let Some(complete) = end(COMPLETE) {
        return Some(told(Kind::Normal, &complete.reason, &complete.message));
    }
    let had_begun = before.is_some_and(|before| before.start_time.is_some());
    let begins = after.start_time.is_some() && !had_begun;
    begins.then(|| {
        told(
            Kind::Normal,
            STARTED,
            "messages that fit are counted, and then sent again",
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(value: serde_json::Value) -> ReplayStatus {
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn a_beginning_and_an_end_are_told_once() {
        let time = "2026-11-25T08:00:00Z";
        let ended = |type_: &str, reason: &str| {
            let condition = json!({"type": type_, "status": "True", "reason": reason, "message": "so it is",
                "lastTransitionTime": time});
            status(json!({"phase": type_, "startTime": time, "completionTime": time, "conditions": [condition]}))
        };
        let queued = status(json!({"phase": "Queued"}));
        let begun = status(json!({"phase": "Counting", "startTime": time}));
        let sending = status(json!({"phase": "Sending", "startTime": time, "sent": 3}));
        let complete = ended("Complete", "AllSent");
        let failed = ended("Failed", "EndpointNotFound");
        let said = |before: Option<&ReplayStatus>, after: &ReplayStatus| {
            happening(before, after).map(|told| (told.kind, told.reason))
        };
        assert_eq!(said(None, &queued), None);
        let started = Some((Kind::Normal, "Started".to_owned()));
        assert_eq!(said(None, &begun), started);
        assert_eq!(said(Some(&queued), &sending), started);
        assert_eq!(said(Some(&begun), &sending), None);
        assert_eq!(
            said(Some(&sending), &complete),
            Some((Kind::Normal, "AllSent".to_owned()))
        );
        assert_eq!(said(None, &complete), Some((Kind::Normal, "AllSent".to_owned())));
        assert_eq!(
            said(Some(&queued), &failed),
            Some((Kind::Warning, "EndpointNotFound".to_owned()))
        );
        assert_eq!(said(Some(&complete), &complete), None, "only its generation is new");
    }
}
