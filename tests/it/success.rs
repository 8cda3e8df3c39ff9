//! Receivers that answer 200 for a failure, and those whose other answers are successes: the endpoint says which is which.

use serde_json::json;

use super::receiver::Receiver;
use super::team::{Shared, Team};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// What a receiver at this path says to its first request, and from the second on.
fn says(path: &str, first: bool) -> String {
    match (path, first) {
        ("/slack", true) => answer("200 OK", r#"{"ok": false, "error": "channel_not_found"}"#),
        ("/text", true) => answer("200 OK", "<html>down for maintenance</html>"),
        ("/text", false) => answer("200 OK", "1"),
        ("/conflict", _) => answer("409 Conflict", "it is there already"),
        // It says how much will come, and ends before.
        ("/torn", true) => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"ok\": true".to_owned(),
        _ => answer("200 OK", r#"{"ok": true}"#),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_a_success_when_the_endpoint_says_so_and_its_beginning_is_kept_otherwise() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "success");
    let receiver = Receiver::start(|mut connection, seen| async move {
        while let Some(request) = connection.request().await {
            let path = request.line.split(' ').nth(1).unwrap().to_owned();
            let first = {
                let mut seen = seen.lock().unwrap();
                let earlier = seen.iter().any(|before| before.line == request.line);
                seen.push(request);
                !earlier
            };
            if !connection.write(says(&path, first)).await || (path == "/torn" && first) {
                return;
            }
        }
    })
    .await;
    let ok = "response.status == 200 && response.body.ok == true";
    let cases = [
        ("slack", ok, Some("NotSuccessful")),
        (
            "text",
            "response.body == 1 || response.body.ok",
            Some("SuccessUndecided"),
        ),
        ("conflict", "response.status in [200, 409]", None),
        ("torn", ok, Some("Reset")),
    ];
    for (name, success, _) in cases {
        let url = format!("https://{}/{name}", receiver.address);
        team.deliver_to(name, &url, json!({"success": success, "retry": {"schedule": ["1s"]}}));
    }
    let answered = team.post(&shared.dispatcher, "lead-7", "lead.qualified").await;
    assert_eq!(answered.body["matched"], 4, "{answered:?}");
    for (name, _, failure) in cases {
        let whe = team.until("delivered", "whe", name, |whe| {
            whe["status"]["delivery"]["lastSuccess"] != json!(null) && whe["status"]["delivery"]["pending"] == 0
        });
        let delivery = &whe["status"]["delivery"];
        assert_eq!(
            delivery["lastFailure"]["reason"],
            json!(failure),
            "{name}: {delivery:#}"
        );
        let path = format!("/{name} ");
        let times = receiver
            .seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.line.contains(&path))
            .count();
        assert_eq!(times, if failure.is_some() { 2 } else { 1 }, "{name}");
        assert!(
            !whe["status"].to_string().contains("channel_not_found"),
            "no body in status"
        );
    }
    assert_eq!(team.get("whe", "conflict")["status"]["delivery"]["lastStatusCode"], 409);

    // One that never succeeds ends like one that is refused: what the receiver says is the message's fault, and is kept.
    let url = format!("https://{}/slack?always", receiver.address);
    team.deliver_to("never", &url, json!({"success": "false", "retry": {"schedule": []}}));
    team.post(&shared.dispatcher, "lead-8", "lead.qualified").await;
    let whe = team.until("dead", "whe", "never", |whe| {
        whe["status"]["delivery"]["deadLettered"] == 1
    });
    let said = whe["status"]["conditions"].to_string();
    assert!(
        said.contains("status 200, which spec.success takes for a failure"),
        "{said}"
    );
    assert_eq!(
        team.condition("whe", "never", "Delivering").unwrap().1,
        "Backoff",
        "the breaker stays closed"
    );

    team.endpoint("broken", &url, json!({"success": "response.ok = true"}));
    team.until_reason("whe", "broken", "Stalled", "InvalidSpec");
    let said = team.get("whe", "broken")["status"]["conditions"].to_string();
    assert!(said.contains("success: line 1, column"), "{said}");
}
