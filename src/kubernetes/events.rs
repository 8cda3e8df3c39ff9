//! Kubernetes Events (events.k8s.io/v1), on transitions only: whoever calls this has decided that something changed.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};

use super::{RequestError, within};

/// The API's limit of a note is 1 kB; longer ones are cut.
const NOTE_LIMIT: usize = 1000;
/// The longest name of an object.
const NAME_LIMIT: usize = 253;

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Normal,
    Warning,
}

/// What happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    pub kind: Kind,
    /// CamelCase: why.
    pub reason: String,
    /// CamelCase: what was done.
    pub action: &'static str,
    /// A sentence: no response body, header value or secret.
    pub note: String,
}

/// Who reports: `tidings.dev/controller` or `tidings.dev/dispatcher`, and the pod.
#[derive(Clone, Debug)]
pub struct Reporter {
    pub controller: &'static str,
    pub instance: String,
}

/// Creates one Event in the object's namespace.
pub async fn publish(
    client: &kube::Client,
    reporter: &Reporter,
    regarding: ObjectReference,
    happening: &Happening,
) -> Result<(), RequestError> {
    let now = Timestamp::now();
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(event_name(regarding.name.as_deref().unwrap_or("tidings"), now)),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(match happening.kind {
            Kind::Normal => "Normal".to_owned(),
            Kind::Warning => "Warning".to_owned(),
        }),
        reason: Some(happening.reason.clone()),
        action: Some(happening.action.to_owned()),
        note: Some(cut(&happening.note, NOTE_LIMIT).to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(reporter.controller.to_owned()),
        reporting_instance: Some(reporter.instance.clone()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    within(api.create(&PostParams::default(), &event)).await?;
    Ok(())
}

/// The object's name and the time, as other components name Events; a long name is cut.
fn event_name(of: &str, now: Timestamp) -> String {
    let time = format!("{:x}", now.as_nanosecond());
    // What stands before a dot ends with a letter or a digit.
    let of = cut(of, NAME_LIMIT - time.len() - 1).trim_end_matches(['-', '.']);
    format!("{of}.{time}")
}

fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "é".repeat(NOTE_LIMIT);
        assert_eq!(cut(&note, NOTE_LIMIT).len(), NOTE_LIMIT);
        let odd = format!("a{note}");
        assert_eq!(cut(&odd, NOTE_LIMIT).len(), NOTE_LIMIT - 1);
    }

    #[test]
    fn an_event_has_a_name_that_the_api_takes_however_long_its_objects_is() {
        let now: Timestamp = "2026-11-24T09:00:00.123456789Z".parse().unwrap();
        assert_eq!(event_name("lead.qualified", now), "lead.qualified.18eaef8f47bc6d15");
        let is_label = |label: &str| {
            let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            is_end(label.chars().next()) && is_end(label.chars().next_back())
        };
        for long in ["a".repeat(253), "a-".repeat(126) + "a", "a.".repeat(126) + "a"] {
            let name = event_name(&long, now);
            assert!(
                name.len() <= NAME_LIMIT && name.ends_with(".18eaef8f47bc6d15"),
                "{name}"
            );
            assert!(name.split('.').all(is_label), "{name}");
        }
        assert!(event_name(&"a".repeat(236), now).starts_with(&"a".repeat(236)));
    }
}
