//! A Replay's status, from how far it is. Pure.
//!
//! As with a Job of Kubernetes its end is a condition, Complete or Failed; until then Reconciling is True, and a Failed one is
//! Stalled too, so that kstatus (and with it Flux and Argo CD) tells the three apart. Invariant: what ended stays as it was.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::line::{RUNNING, RUNNING_EACH};
use super::select::Missing;
use crate::api::Replay;
use crate::api::conditions::{COMPLETE, FAILED, RECONCILING, STALLED, TRUE, reasons};
use crate::api::replay::ReplayStatus;
use crate::ids::UnixMillis;
use crate::kubernetes::status::{NewCondition, condition, seconds};
use crate::queue::{Phase, Progress};

/// How a Replay stands.
#[derive(Debug)]
pub(super) enum Stand<'a> {
    /// It names what does not exist (yet): `finally` once it has waited long enough.
    Missing {
        missing: &'a Missing,
        finally: bool,
    },
    /// An endpoint that it means is not loaded yet.
    NotLoaded,
    Goes,
}

/// Whether everything is done that there was to do.
pub(super) fn is_done(progress: &Progress, dry_run: bool) -> bool {
    match progress.phase {
        Phase::Counting => false,
        Phase::Sending => dry_run,
        Phase::Sent => progress.under_way() == 0,
    }
}

/// What there is to do for a Replay that may have ended.
#[derive(Debug)]
pub(super) enum AfterTheEnd {
    /// It has not ended.
    NotYet,
    /// Its spec changed afterwards (its time to live may): the same end, observed anew, or `kubectl wait` would wait for it.
    Observe(Box<ReplayStatus>),
    Done,
}

pub(super) fn after_the_end(replay: &Replay) -> AfterTheEnd {
    let Some(status) = replay.status.as_ref().filter(|status| status.is_finished()) else {
        return AfterTheEnd::NotYet;
    };
    let generation = replay.metadata.generation;
    if status.observed_generation == generation {
        return AfterTheEnd::Done;
    }
    let mut status = status.clone();
    status.observed_generation = generation;
    for condition in &mut status.conditions {
        condition.observed_generation = generation;
    }
    AfterTheEnd::Observe(Box::new(status))
}

/// The status of one that waits until others have ended: what it counted before stays.
pub(super) fn queued(replay: &Replay, now: Timestamp) -> ReplayStatus {
    let before = replay.status.clone().unwrap_or_default();
    let message = format!(
        "waiting for another Replay to end: at most {RUNNING_EACH} run in a namespace at a time, and {RUNNING} in all"
    );
    let generation = replay.metadata.generation.unwrap_or_default();
    let new = NewCondition {
        type_: RECONCILING,
        status: TRUE,
        reason: reasons::QUEUED,
        message,
        generation,
    };
    ReplayStatus {
        observed_generation: Some(generation),
        conditions: vec![condition(&before.conditions, now, new)],
        phase: Some(reasons::QUEUED.to_owned()),
        ..before
    }
}

/// The whole status.
pub(super) fn status(replay: &Replay, progress: Option<&Progress>, stand: &Stand<'_>, now: Timestamp) -> ReplayStatus {
    let dry_run = replay.spec.dry_run;
    let (phase, conditions) = match stand {
        Stand::Missing { missing, finally: true } => {
            let conditions = [(FAILED, missing.reason), (STALLED, missing.reason)];
            (
                FAILED,
                conditions
                    .map(|(type_, reason)| (type_, reason, missing.message.clone()))
                    .to_vec(),
            )
        }
        Stand::Missing {
            missing,
            finally: false,
        } => {
            let message = format!("{}: waiting a moment for it", missing.message);
            (reasons::COUNTING, vec![(RECONCILING, missing.reason, message)])
        }
        Stand::NotLoaded => {
            let phase = match progress {
                Some(progress) if progress.phase != Phase::Counting => reasons::SENDING,
                _ => reasons::COUNTING,
            };
            let message = "waiting for an endpoint that is not loaded yet".to_owned();
            (phase, vec![(RECONCILING, phase, message)])
        }
        Stand::Goes => match progress {
            Some(progress) if is_done(progress, dry_run) => {
                let (reason, message) = end(progress, dry_run);
                (COMPLETE, vec![(COMPLETE, reason, message)])
            }
            Some(progress) if progress.phase != Phase::Counting => {
                let message = match progress.phase {
                    Phase::Sent => format!("all are sent: waiting for what becomes of {}", progress.under_way()),
                    _ => "messages are handed to delivery, oldest first".to_owned(),
                };
                (reasons::SENDING, vec![(RECONCILING, reasons::SENDING, message)])
            }
            _ => {
                let message = "messages that fit are counted".to_owned();
                (reasons::COUNTING, vec![(RECONCILING, reasons::COUNTING, message)])
            }
        },
    };
    let previous = replay
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let generation = replay.metadata.generation.unwrap_or_default();
    let conditions: Vec<Condition> = conditions
        .into_iter()
        .map(|(type_, reason, message)| {
            let new = NewCondition {
                type_,
                status: TRUE,
                reason,
                message,
                generation,
            };
            condition(previous, now, new)
        })
        .collect();
    let count = |of: fn(&Progress) -> u64| progress.map(|progress| i64::try_from(of(progress)).unwrap_or(i64::MAX));
    let matched = count(|progress| progress.matched).filter(|_| progress.is_some_and(|p| p.phase != Phase::Counting));
    ReplayStatus {
        observed_generation: Some(generation),
        completion_time: (phase == COMPLETE || phase == FAILED).then(|| Time(seconds(now))),
        conditions,
        phase: Some(phase.to_owned()),
        start_time: progress.and_then(|progress| time(progress.began)),
        matched,
        sent: count(|progress| progress.sent),
        succeeded: count(|progress| progress.succeeded),
        failed: count(|progress| progress.failed),
    }
}

fn end(progress: &Progress, dry_run: bool) -> (&'static str, String) {
    let Progress {
        matched,
        sent,
        succeeded,
        failed,
        ..
    } = progress;
    if dry_run {
        return (reasons::DRY_RUN, format!("{matched} messages fit; none was sent"));
    }
    let message = match failed {
        0 => format!("{sent} messages were sent again, and all were delivered"),
        _ => format!("{sent} messages were sent again: {succeeded} were delivered, {failed} are dead letters again"),
    };
    (reasons::ALL_SENT, message)
}

fn time(at: UnixMillis) -> Option<Time> {
    Timestamp::from_second(at.0.div_euclid(1000)).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replay(spec: serde_json::Value) -> Replay {
        let object = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay",
            "metadata": {"name": "again", "generation": 3}, "spec": spec});
        serde_json::from_value(object).expect("a Replay")
    }

    fn progress(phase: Phase, sent: u64, succeeded: u64, failed: u64) -> Progress {
        Progress {
            began: UnixMillis(1_795_000_000_999),
            phase,
            matched: 7,
            sent,
            succeeded,
            failed,
        }
    }

    fn shown(
        replay: &Replay,
        progress: Option<Progress>,
        stand: &Stand<'_>,
    ) -> (String, Vec<(String, String)>, ReplayStatus) {
        let status = status(replay, progress.as_ref(), stand, Timestamp::UNIX_EPOCH);
        let conditions = status
            .conditions
            .iter()
            .map(|c| (c.type_.clone(), c.reason.clone()))
            .collect();
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.is_finished(), status.completion_time.is_some());
        (status.phase.clone().expect("a phase"), conditions, status)
    }

    fn one(type_: &str, reason: &str) -> Vec<(String, String)> {
        vec![(type_.to_owned(), reason.to_owned())]
    }

    #[test]
    fn a_replay_reconciles_until_every_message_it_sent_is_settled() {
        let object = replay(json!({"selector": {"endpointRef": {"name": "crm"}}}));
        let goes = Stand::Goes;
        let (phase, conditions, _) = shown(&object, None, &goes);
        assert_eq!(
            (phase.as_str(), conditions),
            ("Counting", one("Reconciling", "Counting"))
        );
        let (_, _, counting) = shown(&object, Some(progress(Phase::Counting, 0, 0, 0)), &goes);
        assert_eq!(
            (counting.matched, counting.sent),
            (None, Some(0)),
            "half a count is none"
        );
        let (phase, conditions, _) = shown(&object, Some(progress(Phase::Sending, 3, 3, 0)), &goes);
        assert_eq!((phase.as_str(), conditions), ("Sending", one("Reconciling", "Sending")));
        let (phase, ..) = shown(&object, Some(progress(Phase::Sent, 7, 5, 1)), &goes);
        assert_eq!(phase, "Sending", "one is under way");
        let (phase, conditions, status) = shown(&object, Some(progress(Phase::Sent, 7, 5, 2)), &goes);
        assert_eq!((phase.as_str(), conditions), ("Complete", one("Complete", "AllSent")));
        assert_eq!(
            (status.matched, status.succeeded, status.failed),
            (Some(7), Some(5), Some(2))
        );
        assert!(status.conditions[0].message.contains("2 are dead letters again"));
    }

    #[test]
    fn one_that_waits_for_others_says_so_and_keeps_what_it_counted() {
        let mut object = replay(json!({"selector": {"endpointRef": {"name": "crm"}}}));
        let begun = status(
            &object,
            Some(&progress(Phase::Sending, 3, 2, 1)),
            &Stand::Goes,
            Timestamp::UNIX_EPOCH,
        );
        object.status = Some(begun.clone());
        let waits = queued(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(waits.phase.as_deref(), Some("Queued"));
        assert_eq!(
            (waits.conditions[0].type_.as_str(), waits.conditions[0].reason.as_str()),
            ("Reconciling", "Queued")
        );
        assert!(waits.conditions[0].message.contains("at most 4 run in a namespace"));
        assert!(!waits.is_finished());
        let counts = |status: &ReplayStatus| (status.matched, status.sent, status.succeeded, status.failed);
        assert_eq!(counts(&waits), counts(&begun));
        assert_eq!(waits.start_time, begun.start_time);
    }

    #[test]
    fn a_dry_run_is_complete_once_it_has_counted() {
        let object = replay(json!({"selector": {"endpointRef": {"name": "crm"}}, "dryRun": true}));
        let (phase, conditions, status) = shown(&object, Some(progress(Phase::Sending, 0, 0, 0)), &Stand::Goes);
        assert_eq!((phase.as_str(), conditions), ("Complete", one("Complete", "DryRun")));
        assert_eq!((status.matched, status.sent), (Some(7), Some(0)));
    }

    #[test]
    fn one_that_waits_for_an_endpoint_to_be_loaded_says_so_and_keeps_its_counts() {
        let object = replay(json!({"selector": {"subscriptionRef": {"name": "leads"}}}));
        let (phase, conditions, _) = shown(&object, None, &Stand::NotLoaded);
        let counting = one("Reconciling", "Counting");
        assert_eq!((phase.as_str(), conditions), ("Counting", counting));
        let begun = Some(progress(Phase::Sending, 3, 2, 1));
        let (phase, conditions, status) = shown(&object, begun, &Stand::NotLoaded);
        assert_eq!((phase.as_str(), conditions), ("Sending", one("Reconciling", "Sending")));
        assert!(status.conditions[0].message.contains("not loaded yet"));
        assert_eq!((status.matched, status.sent), (Some(7), Some(3)));
    }

    #[test]
    fn what_does_not_exist_is_waited_for_and_then_a_failure_that_is_stalled() {
        let object = replay(json!({"selector": {"endpointRef": {"name": "crm"}}}));
        let missing = &Missing {
            reason: reasons::ENDPOINT_NOT_FOUND,
            message: "there is no WebhookEndpoint crm in this namespace".to_owned(),
        };
        let (_, conditions, _) = shown(
            &object,
            None,
            &Stand::Missing {
                missing,
                finally: false,
            },
        );
        assert_eq!(conditions, one("Reconciling", "EndpointNotFound"));
        let (phase, conditions, _) = shown(&object, None, &Stand::Missing { missing, finally: true });
        let both = [one("Failed", "EndpointNotFound"), one("Stalled", "EndpointNotFound")].concat();
        assert_eq!((phase.as_str(), conditions), ("Failed", both));
    }
}
