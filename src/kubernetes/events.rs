//! Kubernetes Events (events.k8s.io/v1), on transitions only: whoever calls this has decided that something changed.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};

use super::{RequestError, within};

/// The API's limit of a note is 1 kB; longer ones are cut.
const NOTE_LIMIT: usize = 1000;

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
            name: Some(format!(
                "{}.{:x}",
                regarding.name.as_deref().unwrap_or("tidings"),
                now.as_nanosecond()
            )),
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
        note: Some(cut(&happening.note).to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(reporter.controller.to_owned()),
        reporting_instance: Some(reporter.instance.clone()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    within(api.create(&PostParams::default(), &event)).await?;
    Ok(())
}

fn cut(note: &str) -> &str {
    let mut end = note.len().min(NOTE_LIMIT);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "é".repeat(NOTE_LIMIT);
        assert_eq!(cut(&note).len(), NOTE_LIMIT);
        let odd = format!("a{note}");
        assert_eq!(cut(&odd).len(), NOTE_LIMIT - 1);
    }
}
