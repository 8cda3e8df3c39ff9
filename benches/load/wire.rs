//! HTTP/1.1 by hand, as little as the bench needs: it shares two cores with what it measures, so a producer or a receiver
//! must cost little.
//!
//! Owns bytes; knows nothing of sockets. Invariant: a request differs from its template only in its events' numbers, which
//! have a fixed width, so nothing is built while measuring.

use crate::ledger::DIGITS;

/// Bytes of one event's data.
const DATA: usize = 1024;
/// A number's place before it has one.
const BLANK: &str = "0000000000";
/// Digits of a subject, and how many there are of them.
const KEY_DIGITS: usize = 3;
pub const KEYS: usize = 1_000;
/// What stands before an event's number in its data.
const MARK: &[u8] = br#""data":{"n":""#;
/// How far from a body's start the mark is looked for.
const MARK_WITHIN: usize = 256;

/// A request with places for numbers.
#[derive(Clone)]
pub struct Template {
    bytes: Vec<u8>,
    /// Where each event's number stands, by event.
    places: Vec<[usize; 2]>,
    /// Where the subject ends, which is made of the last digits of the first event's number.
    subject: Option<usize>,
}

/// Whom a request is sent to, and as whom.
pub struct Door {
    pub port: u16,
    pub namespace: String,
    pub token: String,
}

impl Template {
    /// One event in binary mode, as the CloudEvents SDKs send it. Each type has a source of its own: two books give out the same
    /// numbers, and an event of the same source and number would be a duplicate.
    pub fn one(door: &Door, event_type: &str) -> Template {
        let head = head(door, "application/json", DATA);
        let attributes = format!(
            "ce-specversion: 1.0\r\nce-type: {event_type}\r\nce-source: /bench/{event_type}\r\nce-time: 2026-01-31T08:00:00Z\r\nce-id: "
        );
        let mut bytes = format!("{head}{attributes}").into_bytes();
        let id = bytes.len();
        bytes.extend_from_slice(BLANK.as_bytes());
        bytes.extend_from_slice(b"\r\n\r\n");
        let number = bytes.len() + br#"{"n":""#.len();
        bytes.extend_from_slice(data().as_bytes());
        Template {
            bytes,
            places: vec![[id, number]],
            subject: None,
        }
    }

    /// The same with a subject, one of [`KEYS`].
    pub fn keyed(door: &Door, event_type: &str) -> Template {
        let mut template = Template::one(door, event_type);
        let header = format!("ce-subject: account-{}\r\n", &BLANK[..KEY_DIGITS]);
        let at = template
            .bytes
            .windows(6)
            .position(|window| window == b"ce-id:")
            .unwrap_or(0);
        template.bytes.splice(at..at, header.bytes());
        for place in &mut template.places {
            *place = place.map(|at| at + header.len());
        }
        template.subject = Some(at + header.len() - 2);
        template
    }

    /// A batch, for filling the store: no load like this is measured.
    pub fn batch(door: &Door, event_type: &str, events: usize) -> Template {
        let before = r#"{"specversion":"1.0","id":""#;
        let between = format!(
            r#"","type":"{event_type}","source":"/bench/{event_type}","datacontenttype":"application/json","data":"#
        );
        let mut body = String::from("[");
        let mut places = Vec::with_capacity(events);
        for event in 0..events {
            body.push_str(if event == 0 { "" } else { "," });
            body.push_str(before);
            let id = body.len();
            body.push_str(BLANK);
            body.push_str(&between);
            let number = body.len() + r#"{"n":""#.len();
            body.push_str(&data());
            body.push('}');
            places.push([id, number]);
        }
        body.push(']');
        let head = head(door, "application/cloudevents-batch+json", body.len());
        let mut bytes = format!("{head}\r\n").into_bytes();
        for place in &mut places {
            *place = place.map(|at| at + bytes.len());
        }
        bytes.extend_from_slice(body.as_bytes());
        Template {
            bytes,
            places,
            subject: None,
        }
    }

    /// Events in one request.
    pub fn events(&self) -> u32 {
        self.places.len() as u32
    }

    /// The request with the events' numbers, `first` and those that follow.
    pub fn numbered(&mut self, first: u32) -> &[u8] {
        for (event, places) in self.places.iter().enumerate() {
            let mut rest = first + event as u32;
            let mut digits = [b'0'; DIGITS];
            for digit in digits.iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            for place in places {
                self.bytes[*place..*place + DIGITS].copy_from_slice(&digits);
            }
        }
        if let Some(end) = self.subject {
            let mut rest = first;
            for digit in self.bytes[end - KEY_DIGITS..end].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        &self.bytes
    }
}

fn head(door: &Door, content_type: &str, length: usize) -> String {
    let Door { port, namespace, token } = door;
    format!(
        "POST /v1/namespaces/{namespace}/events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n\
         content-type: {content_type}\r\ncontent-length: {length}\r\n"
    )
}

/// A qualified lead with a transcript: 1 KiB of JSON that begins with the event's number.
fn data() -> String {
    let before = format!(
        r#"{{"n":"{BLANK}","lead":{{"name":"Ada Example","company":"Example GmbH","phone":"+49 30 1234567","score":87,"budget":12500.5,"consent":true}},"transcript":[{{"at":12,"who":"agent","text":"Good morning, what can I do for you?"}},{{"at":19,"who":"caller","text":""#
    );
    let after = r#""}]}"#;
    let words = "We are looking for a supplier of industrial doors and would like an offer. ";
    let text: String = words.chars().cycle().take(DATA - before.len() - after.len()).collect();
    format!("{before}{text}{after}")
}

/// A message's head: where its body begins, how long it is, and its first line's end.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub body: usize,
    pub length: usize,
}

/// The head of a message, once all of it is there. A message without a length has no body.
pub fn parse_head(bytes: &[u8]) -> Option<Head> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let length = header(&bytes[..end], "content-length").and_then(|value| value.parse().ok());
    Some(Head {
        body: end + 4,
        length: length.unwrap_or(0),
    })
}

/// A header's value in a head.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value
            .strip_prefix(b":")
            .filter(|_| found.eq_ignore_ascii_case(name.as_bytes()))?;
        Some(std::str::from_utf8(value).ok()?.trim())
    })
}

/// An answer's status.
pub fn status(answer: &[u8]) -> Option<u16> {
    std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

/// The number of the event that a webhook's body carries.
pub fn number(body: &[u8]) -> Option<u32> {
    let start = &body[..body.len().min(MARK_WITHIN)];
    let at = start.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    std::str::from_utf8(body.get(at..at + DIGITS)?).ok()?.parse().ok()
}
