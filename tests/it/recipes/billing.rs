//! The order of the recipe `ordered-billing`: what the ledger refused holds back its account, whatever the events' subjects, and
//! no other.

use super::super::team::until;
use super::*;

impl Server {
    /// Ids of the events that came, in their order.
    fn events(&self) -> Vec<String> {
        let seen = self.receiver.seen.lock().unwrap();
        let bodies = seen
            .iter()
            .map(|request| serde_json::from_slice::<Value>(&request.body).unwrap());
        bodies.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_s_next_invoice_waits_for_the_refused_one_before_it_until_that_is_replayed() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "ordered-billing");
    let types = ["invoice.created"];
    team.cluster.create_producer(&team.namespace, "agent", &types).unwrap();
    let server = Server::start(ledger).await;
    apply(&team, "ordered-billing", server.receiver.address);
    let example = repository_root().join("examples/recipes/ordered-billing/event.json");
    let example: Value = serde_json::from_str(&fs::read_to_string(example).unwrap()).unwrap();
    let invoice = |id: &str, account: &str, subject: &str| {
        let mut event = example.clone();
        (event["id"], event["subject"], event["data"]["account"]) = (json!(id), json!(subject), json!(account));
        event
    };
    server.says((422, "the month is closed"));
    post(&team, shared, &invoice("first", "account-1", "march")).await;
    team.until_reason("whe", "ledger", "KeysBlocked", "DeadLetter");
    post(&team, shared, &invoice("second", "account-1", "april")).await;
    post(&team, shared, &invoice("other", "account-2", "march")).await;
    team.until("held", "whe", "ledger", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["held"] == 1 && delivery["blockedKeys"] == 1 && delivery["pending"] == 1
    });
    assert_eq!(server.events(), ["first", "other"]);

    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay", "metadata": {"name": "first"},
        "spec": {"selector": {"endpointRef": {"name": "ledger"}}}}),
    );
    until("what was held", async || server.events().len() == 4).await;
    assert_eq!(server.events(), ["first", "other", "first", "second"]);
}
