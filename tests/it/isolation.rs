//! One bad endpoint costs the others nothing: here that the healthy one gets everything; how fast is the bench's business.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use super::receiver::{Receiver, keep_answering};
use super::team::{Shared, Team, Webhooks, until};

const EVENTS: usize = 300;
/// Within which no attempt ends by its timeout of a minute.
const HANGING: Duration = Duration::from_secs(50);
/// What a new endpoint may have in flight.
const AT_FIRST: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_endpoint_gets_everything_beside_one_that_hangs_one_that_resets_and_one_that_fails() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "isolation");
    let first = Arc::<OnceLock<Instant>>::default();
    let hangs = Receiver::start({
        let first = first.clone();
        move |mut connection, seen| {
            let first = first.clone();
            async move {
                while let Some(request) = connection.request().await {
                    first.get_or_init(Instant::now);
                    seen.lock().unwrap().push(request);
                    // No answer, and the connection stays open.
                    std::future::pending::<()>().await;
                }
            }
        }
    })
    .await;
    let resets = Receiver::start(|mut connection, seen| async move {
        if let Some(request) = connection.request().await {
            seen.lock().unwrap().push(request);
        }
        connection.reset();
    })
    .await;
    let fails = Receiver::start(|connection, seen| {
        keep_answering(connection, seen, "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let healthy = Webhooks::start().await;
    for (name, address) in [
        ("hangs", hangs.address),
        ("resets", resets.address),
        ("fails", fails.address),
    ] {
        team.deliver_to(name, &format!("https://{address}/"), json!({"timeout": "60s"}));
    }
    team.deliver_to("healthy", &healthy.url(), json!({}));

    // All of them get every event, a dozen at a time.
    let team = Arc::new(team);
    for chunk in (0..EVENTS).collect::<Vec<_>>().chunks(12) {
        let posts = chunk.iter().map(|n| {
            let team = team.clone();
            async move {
                team.post(&shared.dispatcher, &format!("lead-{n}"), "lead.qualified")
                    .await
            }
        });
        for answer in join_all(posts).await {
            assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(4)), "{answer:?}");
        }
    }
    healthy.until("everything", |all| all.len() == EVENTS).await;
    until("an attempt that hangs", async || hangs.requests() > 0).await;
    let attempts = hangs.requests();
    assert!(
        attempts <= AT_FIRST || first.get().unwrap().elapsed() > HANGING,
        "none has ended, and {attempts} are in flight"
    );

    for name in ["resets", "fails"] {
        team.until("kept back", "whe", name, |whe| {
            whe["status"]["delivery"]["pending"] == EVENTS
        });
    }
    team.until("done", "whe", "healthy", |whe| {
        whe["status"]["delivery"]["pending"] == 0
    });
}
