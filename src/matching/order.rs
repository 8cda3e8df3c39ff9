//! By what key an event's messages are ordered. Pure.
//!
//! Owns the key; knows nothing of queues. Invariant: every event has a key, so that no failure lets a message out of its
//! order: where there is none to be had it is [`COMMON`], which all such events of an endpoint share.

use super::candidate::Candidate;
use crate::api::resolve::{Fifo, FifoKey};
use crate::event::Event;
use crate::expression::EvaluationError;
use crate::ids::OrderKey;

/// The key of events without one.
const COMMON: &str = "";
/// The extension that names a key (CloudEvents, Partitioning extension).
const PARTITION_KEY: &str = "partitionkey";

impl Candidate<'_> {
    /// The key for an endpoint that orders its messages so, and why it is the common one where an expression failed.
    pub fn key(&mut self, fifo: &Fifo) -> (OrderKey, Option<EvaluationError>) {
        let expression = match &fifo.key {
            FifoKey::Usual => return (OrderKey::of(usual(self.event)), None),
            FifoKey::Common => return (OrderKey::of(COMMON), None),
            FifoKey::Expression(expression) => expression,
        };
        if let Some((_, key, failed)) = self.keys.iter().find(|(known, ..)| known == expression) {
            return (*key, failed.clone());
        }
        let (key, failed) = match expression.text(self.scope()) {
            Ok(key) => (OrderKey::of(&key), None),
            Err(error) => (OrderKey::of(COMMON), Some(error)),
        };
        self.keys.push((expression.clone(), key, failed.clone()));
        (key, failed)
    }
}

/// The key of an event where the endpoint names none.
fn usual(event: &Event) -> &str {
    let named = |(name, _): &&(String, String)| name == PARTITION_KEY;
    let partition = event.extensions.iter().find(named).map(|(_, value)| value.as_str());
    partition.or(event.subject.as_deref()).unwrap_or(COMMON)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::Data;
    use crate::expression::{Expression, Role, TOGETHER};

    fn event(subject: Option<&str>, partition: Option<&str>) -> Event {
        Event {
            id: "1".into(),
            source: "/billing".into(),
            r#type: "invoice.created".into(),
            subject: subject.map(str::to_owned),
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: partition
                .map(|key| (PARTITION_KEY.to_owned(), key.to_owned()))
                .into_iter()
                .collect(),
            data: Data::Json(Bytes::from_static(br#"{"account": "a-7", "number": 12}"#)),
        }
    }

    fn key(event: &Event, key: FifoKey) -> OrderKey {
        Candidate::new(event, TOGETHER).key(&Fifo { key, blocks: true }).0
    }

    #[test]
    fn without_an_expression_the_key_is_the_partition_key_else_the_subject_else_one_for_all() {
        for (subject, partition, expected) in [
            (Some("s"), Some("p"), "p"),
            (Some("s"), None, "s"),
            (None, Some("p"), "p"),
            (None, None, ""),
        ] {
            assert_eq!(key(&event(subject, partition), FifoKey::Usual), OrderKey::of(expected));
            assert_eq!(key(&event(subject, partition), FifoKey::Common), OrderKey::of(""));
        }
    }

    #[test]
    fn an_expression_reads_the_event_and_where_it_fails_the_key_is_the_one_for_all() {
        let event = event(Some("s"), None);
        for (source, expected) in [
            ("event.data.account", Some("a-7")),
            ("event.data.number", Some("12")),
            ("event.source + '/' + event.subject", Some("/billing/s")),
            ("event.data.missing", None),
            ("event.data", None),
            ("true", None),
        ] {
            let expression = Expression::compile(Role::Key, source).expect(source);
            let fifo = Fifo {
                key: FifoKey::Expression(expression),
                blocks: true,
            };
            let (key, failed) = Candidate::new(&event, TOGETHER).key(&fifo);
            assert_eq!(key, OrderKey::of(expected.unwrap_or(COMMON)), "{source}");
            assert_eq!(failed.is_none(), expected.is_some(), "{source}: {failed:?}");
        }
    }
}
