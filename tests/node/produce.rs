//! What runs in a producer's pod: posts events one after the other until each is accepted, with the pod's projected token.
//!
//! `produce ADDRESS:PORT NAMESPACE PREFIX COUNT MILLISECONDS`. Prints `accepted ID` for each and `gap MILLISECONDS`, the longest
//! time between two acceptances. Invariant: no event is given up, and its id is the same each time it is posted.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tidings_cluster::process::http_exchange_with;

/// Where the token is mounted; kubelet writes a new one before it expires.
pub const TOKEN: &str = "/var/run/secrets/tidings/token";
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// A pod that is deleted says no more, and nobody says so for it.
const SILENCE: Duration = Duration::from_secs(5);

pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, namespace, prefix, count, pause] = words.as_slice() else {
        eprintln!("usage: produce ADDRESS:PORT NAMESPACE PREFIX COUNT MILLISECONDS");
        return ExitCode::from(2);
    };
    let address = address.parse().expect("an address");
    let (count, pause): (u32, u64) = (count.parse().expect("a number"), pause.parse().expect("a number"));
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    for n in 0..count {
        let id = format!("{prefix}-{n}");
        while !post(address, namespace, &id) {
            thread::sleep(AGAIN_AFTER);
        }
        gap = gap.max(last.elapsed());
        last = Instant::now();
        println!("accepted {id}");
        thread::sleep(Duration::from_millis(pause));
    }
    println!("gap {}", gap.as_millis());
    ExitCode::SUCCESS
}

/// On a connection of its own, as short-lived producers do; whether it was accepted.
fn post(address: SocketAddr, namespace: &str, id: &str) -> bool {
    // Read each time: it changes.
    let token = fs::read_to_string(TOKEN).expect("kubelet has mounted the token");
    let body = json!({"lead": id}).to_string();
    let request = format!(
        "POST /v1/namespaces/{namespace}/events?type=lead.qualified&source=/agents/voice HTTP/1.0\r\nHost: {address}\r\n\
         Authorization: Bearer {}\r\nIdempotency-Key: {id}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        token.trim(),
        body.len()
    );
    match http_exchange_with(address, request.as_bytes(), SILENCE) {
        Some((200..300, _)) => true,
        Some((status, _)) => {
            println!("refused {id}: {status}");
            false
        }
        None => {
            println!("no answer {id}");
            false
        }
    }
}
