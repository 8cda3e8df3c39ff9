//! A real event: the 202, and the delivery that verifies with the generated Secret.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Demo, body, expect_verified, names, show_record};
use crate::producer::{Answer, example};
use crate::say::{self, Steps};
use crate::team::{self, EXAMPLES, NAMESPACE};

pub fn show(demo: &mut Demo, steps: &mut Steps) -> Result<()> {
    steps.begin("An event becomes a signed request");
    say::line("  The receivers get their keys from the Secrets that Tidings generated:");
    for (_, endpoint) in EXAMPLES {
        let name = format!("{endpoint}-signing");
        say::line(format!(
            "  $ kubectl get secret {name} -n {NAMESPACE} -o jsonpath='{{.data.current}}' | base64 -d > {endpoint}"
        ));
        team::give_keys(&demo.keys, endpoint, &demo.get("secret", &name)?, &["current"])?;
    }

    say::line("  A lead, as an agent sends it, with its ServiceAccount's token:");
    say::line(format!(
        "  $ kubectl create token agent -n {NAMESPACE} --audience=tidings"
    ));
    let event = example("lead-to-crm", "lead-2041")?;
    let first = post(demo, "lead-to-crm", &event)?;
    if first.status != 202 || first.body["matched"] != 1 {
        bail!("202 and one message were expected");
    }
    let name = "Ada Martin";
    let arrived = demo.arrived(
        "the delivery of the lead",
        |all| !all.is_empty(),
        |one| names(one, name),
    )?;
    received("crm", &arrived[0])?;
    if body(&arrived[0])["data"]["conversation"]["transcript"] != event["data"]["conversation"]["transcript"] {
        bail!("the transcript did not arrive as it was sent");
    }
    say::line("  Its body is cut here; the transcript arrived as it was sent.");

    say::line("  The same event again is the same event: the first answer, and nothing sent.");
    let again = post(demo, "lead-to-crm", &event)?;
    if again.status != 200 || again.body["id"] != first.body["id"] || again.body["duplicate"] != true {
        bail!("200 and the first id were expected");
    }

    say::line("  An escalation, for the chat:");
    let answer = post(
        demo,
        "escalation-to-chat",
        &example("escalation-to-chat", "escalation-77")?,
    )?;
    if answer.status != 202 || answer.body["matched"] != 1 {
        bail!("202 and one message were expected");
    }
    let chat = |one: &Value| body(one)["type"] == "conversation.escalated";
    let arrived = demo.arrived("the delivery of the escalation", |all| !all.is_empty(), chat)?;
    received("chat", &arrived[0])?;

    if demo.inspect.requests().iter().filter(|one| names(one, name)).count() != 1 {
        bail!("the lead that was posted twice was delivered more than once");
    }
    for (_, endpoint) in EXAMPLES {
        demo.until("delivered", "whe", endpoint, |whe| {
            whe["status"]["delivery"]["pending"] == 0
        })?;
    }
    steps.end("202 once durable; both receivers verified their signatures; a repeated event is sent once");
    Ok(())
}

fn post(demo: &Demo, folder: &str, event: &Value) -> Result<Answer> {
    say::line(format!(
        "  POST /v1/namespaces/{NAMESPACE}/events < examples/{folder}/event.json"
    ));
    let answer = demo.producer.post(event)?;
    say::quote(&format!("{} {}", answer.status, answer.text));
    Ok(answer)
}

fn received(receiver: &str, record: &Value) -> Result<()> {
    say::line(format!("  {receiver} received (tidings inspect, headers left out):"));
    show_record(record);
    expect_verified(record)
}
