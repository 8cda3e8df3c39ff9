//! Messages for consumers that ask for them: in order, once they are acknowledged never again, and for nobody else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};
use tokio::task::JoinHandle;

use super::load::Load;
use super::messages::Reader;
use super::receiver::Receiver;
use super::team::{Answer, PATIENCE, Shared, TYPES, Team, lead, metric, once_allowed, until};

/// Somebody with a ServiceAccount of his own.
#[derive(Clone)]
pub struct Consumer {
    http: Client,
    url: String,
    token: Option<String>,
}

impl Consumer {
    pub fn new(team: &Team<'_>, dispatcher: &Dispatcher, account: &str, subscription: &str) -> Consumer {
        let namespace = &team.namespace;
        let args = ["create", "serviceaccount", account, "-n", namespace];
        team.cluster.kubectl_ok(&args).unwrap();
        Consumer {
            http: Client::new(),
            url: format!(
                "{}/v1/namespaces/{namespace}/subscriptions/{subscription}",
                dispatcher.ingest_url()
            ),
            token: Some(team.cluster.token(namespace, account, Some("tidings")).unwrap()),
        }
    }

    /// The same at another subscription.
    fn at(&self, subscription: &str) -> Consumer {
        let (before, _) = self.url.rsplit_once('/').unwrap();
        Consumer {
            url: format!("{before}/{subscription}"),
            ..self.clone()
        }
    }

    async fn try_pull(&self, query: &str) -> reqwest::Result<Answer> {
        let mut request = self.http.get(format!("{}/pull?{query}", self.url));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Answer::of(request.send().await?).await
    }

    pub async fn pull(&self, query: &str) -> Answer {
        self.try_pull(query).await.unwrap()
    }

    async fn try_acknowledge(&self, what: &Value) -> reqwest::Result<Answer> {
        let mut request = self.http.post(format!("{}/ack", self.url)).body(what.to_string());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Answer::of(request.send().await?).await
    }

    pub async fn acknowledge(&self, what: &Value) -> u64 {
        let answer = self.try_acknowledge(what).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["acknowledged"].as_u64().unwrap()
    }

    /// Asks until it may.
    pub async fn until_allowed(&self) {
        let answer = once_allowed(async || self.pull("").await).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Gives a ServiceAccount of the team the role `edit`.
pub fn let_edit(team: &Team<'_>, account: &str) {
    let subject = format!("--serviceaccount={}:{account}", team.namespace);
    let (namespace, role) = (&*team.namespace, "--clusterrole=edit");
    let bind = ["create", "rolebinding", account, "-n", namespace, role, &subject];
    team.cluster.kubectl_ok(&bind).unwrap();
}

pub fn subscribe(team: &Team<'_>, name: &str, more: Value) {
    let mut spec = json!({"delivery": "Pull", "eventTypes": ["lead.*"]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
        "metadata": {"name": name}, "spec": spec}),
    );
}

/// The ids of the events of an answer's messages.
pub fn events(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let messages = answer.body["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|one| one["event"]["id"].as_str().unwrap())
        .collect()
}

/// Requests that wait, one in each place that their namespace has, once all do: by the answer to one more.
async fn in_every_place(consumer: &Consumer) -> (Vec<JoinHandle<Answer>>, Answer) {
    const PLACES: usize = 128;
    let waiting = (0..PLACES).map(|_| {
        let consumer = consumer.clone();
        tokio::spawn(async move {
            loop {
                let answer = consumer.pull("wait=60s").await;
                if answer.status != 429 {
                    return answer;
                }
                // One more was there before it.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    });
    let waiting = waiting.collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = consumer.pull("wait=100ms").await;
        if answer.status == 429 {
            return (waiting, answer);
        }
        assert!(Instant::now() < deadline, "there are more places: {answer:?}");
    }
}

/// Waits until so many requests wait for messages.
async fn until_waiting(dispatcher: &Dispatcher, holds: impl Fn(f64) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(metric(dispatcher, "tidings_ingest_polls_waiting")) {
        assert!(Instant::now() < deadline, "nobody waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_what_matches_in_order_and_what_it_acknowledges_never_comes_again() {
    let shared = Shared::get();
    let (team, dispatcher) = (Team::open(shared.cluster, "pulling"), &shared.dispatcher);
    subscribe(&team, "leads", json!({"filter": "event.data.lead != 'ignored'"}));
    subscribe(&team, "others", json!({}));
    team.ready("evsub/leads");
    let consumer = Consumer::new(&team, dispatcher, "consumer", "leads");

    // Who may: the refusal has the commands, which open this subscription and no other.
    let refused = consumer.pull("").await;
    assert_eq!((refused.status, &refused.body["reason"]), (403, &json!("MissingRule")));
    let refused_too = consumer.try_acknowledge(&json!({"ids": []})).await.unwrap();
    assert_eq!(refused_too.status, 403, "{refused_too:?}");
    let commands = refused.body["detail"].as_str().unwrap().lines();
    let commands: Vec<&str> = commands.filter_map(|line| line.strip_prefix("kubectl ")).collect();
    assert_eq!(commands.len(), 2, "{refused:?}");
    for command in commands {
        let args: Vec<&str> = command.split(' ').collect();
        team.cluster.kubectl_ok(&args).unwrap();
    }
    consumer.until_allowed().await;
    assert_eq!(consumer.at("others").pull("").await.status, 403);
    let nobody = |token: Option<&str>| Consumer {
        token: token.map(str::to_owned),
        ..consumer.clone()
    };
    assert_eq!(nobody(None).pull("").await.status, 401);
    assert_eq!(nobody(Some("made.up.token")).pull("").await.status, 401);
    assert_eq!(
        nobody(Some(team.token())).pull("").await.status,
        403,
        "a producer is no consumer"
    );
    let neighbour = Team::open(shared.cluster, "pulling-beside");
    let stranger = Reader::new(&neighbour, dispatcher, "stranger", Some("admin"));
    stranger.until_allowed().await;
    let foreign = shared
        .cluster
        .token("pulling-beside", "stranger", Some("tidings"))
        .unwrap();
    assert_eq!(nobody(Some(&foreign)).pull("").await.status, 403);

    // In order, in pages, as it would be posted; giving changes nothing.
    for id in ["a", "b", "ignored", "c"] {
        let answer = team.post(dispatcher, id, TYPES[0]).await;
        let matched = if id == "ignored" { 1 } else { 2 };
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(matched)));
    }
    let first = consumer.pull("limit=2").await;
    assert_eq!((events(&first), &first.body["more"]), (vec!["a", "b"], &json!(true)));
    let cursor = first.body["cursor"].as_str().unwrap();
    let rest = consumer.pull(&format!("cursor={cursor}")).await;
    assert_eq!((events(&rest), &rest.body["more"]), (vec!["c"], &json!(false)));
    assert_eq!(events(&consumer.pull("cursor=").await), ["a", "b", "c"]);
    let message = &first.body["messages"][0];
    let body: Value = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&body["type"], &body["data"]),
        (&json!(TYPES[0]), &json!({"lead": "a"}))
    );
    assert_eq!(message["headers"]["content-type"], "application/json");
    assert_eq!(message["headers"]["webhook-id"], message["id"]);
    assert_eq!(message["event"]["source"], "/agents/voice");
    assert!(message["acceptedTime"].is_string());

    // What waits shows in status; where there is no consumer nothing is wrong yet.
    let shown = team.until("counted", "evsub", "leads", |evsub| {
        evsub["status"]["delivery"]["pending"] == 3
    });
    assert!(
        shown["status"]["delivery"]["oldestPendingTime"].is_string(),
        "{shown:#}"
    );
    assert_eq!(team.condition("evsub", "leads", "Unconsumed"), None);

    // By ids, and by a cursor for all until there; each counts once.
    let before = metric(dispatcher, "tidings_deliveries_total");
    let b = first.body["messages"][1]["id"].clone();
    assert_eq!(consumer.acknowledge(&json!({"ids": [b, b]})).await, 1);
    assert_eq!(events(&consumer.pull("").await), ["a", "c"]);
    assert_eq!(consumer.acknowledge(&json!({"cursor": cursor})).await, 1);
    assert_eq!(consumer.acknowledge(&json!({"cursor": cursor})).await, 0);
    assert_eq!(
        events(&consumer.pull("").await),
        ["c"],
        "what is behind the cursor stays"
    );
    assert_eq!(events(&consumer.pull(&format!("cursor={cursor}")).await), ["c"]);
    assert!(metric(dispatcher, "tidings_deliveries_total") >= before + 2.0);
    let reader = Reader::new(&team, dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    let delivered = reader.until("state=delivered&subscription=leads", 2).await;
    let ids: Vec<_> = delivered.iter().map(|one| &one["event"]["id"]).collect();
    assert_eq!(ids, ["b", "a"]);
    assert!(delivered[0].get("endpoint").is_none(), "{}", delivered[0]);
    let whole = reader.get(&format!("/{}", delivered[0]["id"].as_str().unwrap())).await;
    assert_eq!(whole.body["request"]["body"], first.body["messages"][1]["body"]);

    // Ids of another subscription are not this one's to acknowledge.
    let editor = Consumer::new(&team, dispatcher, "editor", "others");
    let_edit(&team, "editor");
    editor.until_allowed().await;
    let others = editor.pull("").await;
    assert_eq!(events(&others), ["a", "b", "ignored", "c"]);
    let theirs: Vec<_> = others.body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(consumer.acknowledge(&json!({"ids": theirs})).await, 0);
    assert_eq!(events(&editor.pull("").await).len(), 4);
    let mixed_up = consumer
        .pull(&format!("cursor={}", others.body["cursor"].as_str().unwrap()))
        .await;
    assert_eq!(
        (mixed_up.status, &mixed_up.body["reason"]),
        (400, &json!("InvalidCursor"))
    );

    // Suspended: events match, nothing is given; what was given can be acknowledged.
    subscribe(
        &team,
        "leads",
        json!({"filter": "event.data.lead != 'ignored'", "suspend": true}),
    );
    let deadline = Instant::now() + PATIENCE;
    while consumer.pull("").await.body["suspended"] != true {
        assert!(Instant::now() < deadline, "it is never suspended");
    }
    team.post(dispatcher, "d", TYPES[0]).await;
    let c = &rest.body["messages"][0]["id"];
    assert_eq!(consumer.acknowledge(&json!({"ids": [c]})).await, 1);
    let (waiting, _) = in_every_place(&consumer).await;
    subscribe(&team, "leads", json!({}));
    for woken in waiting {
        assert_eq!(
            events(&woken.await.unwrap()),
            ["d"],
            "who waits is told that it goes on"
        );
    }

    // What was acknowledged can be replayed, behind what waits.
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay", "metadata": {"name": "again"},
        "spec": {"selector": {"subscriptionRef": {"name": "leads"}, "state": "Delivered"}}}),
    );
    let deadline = Instant::now() + PATIENCE;
    let again = loop {
        let again = consumer.pull("wait=1s").await;
        if events(&again).len() == 4 {
            break again;
        }
        assert!(Instant::now() < deadline, "{again:?}");
    };
    assert_eq!(events(&again), ["d", "a", "b", "c"]);
    assert_eq!(consumer.acknowledge(&json!({"cursor": again.body["cursor"]})).await, 4);
    let waited = team
        .cluster
        .wait_for(&team.namespace, "replay/again", "condition=Complete", PATIENCE);
    waited.unwrap();
    assert_eq!(team.get("replay", "again")["status"]["succeeded"], 3);
    team.until("all settled", "evsub", "leads", |evsub| {
        let delivery = &evsub["status"]["delivery"];
        delivery["pending"] == 0 && delivery["oldestPendingTime"].is_null()
    });

    // What cannot be pulled says why.
    team.subscription("pushed", "nowhere");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pushed = editor.at("pushed").pull("").await;
        if pushed.status == 409 {
            assert_eq!(pushed.body["reason"], "NotPull");
            break;
        }
        assert!(pushed.status == 404 && Instant::now() < deadline, "{pushed:?}");
    }
    let unknown = editor.at("nobody").try_acknowledge(&json!({"ids": []})).await.unwrap();
    assert_eq!(
        (unknown.status, &unknown.body["reason"]),
        (404, &json!("SubscriptionNotFound"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_hears_of_an_event_at_once_and_a_namespace_waits_in_so_many_places_only() {
    let shared = Shared::get();
    let (team, dispatcher) = (Team::open(shared.cluster, "polling"), &shared.dispatcher);
    subscribe(&team, "leads", json!({}));
    team.ready("evsub/leads");
    let consumer = Consumer::new(&team, dispatcher, "consumer", "leads");
    let_edit(&team, "consumer");
    consumer.until_allowed().await;
    let empty = consumer.pull("wait=100ms").await;
    assert!(
        events(&empty).is_empty() && empty.body["cursor"].is_string(),
        "{empty:?}"
    );

    let (mut waiting, refused) = in_every_place(&consumer).await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (429, &json!("TooManyPolls")),
        "{refused:?}"
    );
    assert!(refused.retry_after.is_some());
    assert_eq!(consumer.pull("").await.status, 200, "who does not wait takes no place");
    // Who hangs up makes room.
    waiting.pop().unwrap().abort();
    let deadline = Instant::now() + PATIENCE;
    while consumer.pull("wait=100ms").await.status == 429 {
        assert!(Instant::now() < deadline, "it waits for somebody who is gone");
    }
    let posted = Instant::now();
    team.send(dispatcher, "lead-1").await;
    for answer in waiting {
        assert_eq!(
            events(&answer.await.unwrap()),
            ["lead-1"],
            "acknowledged by nobody, given to everybody"
        );
    }
    // Not when their time is over.
    assert!(posted.elapsed() < Duration::from_secs(45), "{:?}", posted.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_kills_and_ends_everything_is_given_until_it_is_acknowledged_and_nothing_afterwards() {
    const LIVES: usize = 8;
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "consuming");
    subscribe(&team, "leads", json!({}));
    team.ready("evsub/leads");
    let consumer = Consumer::new(&team, &dispatcher, "consumer", "leads");
    let_edit(&team, "consumer");
    consumer.until_allowed().await;

    let mut load = Load::default();
    let mut taken = Taken::default();
    for life in 0..LIVES {
        load.start(&team, &dispatcher, 3, move |producer, n| {
            format!("lead-{life}-{producer}-{n}")
        });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(400) {
            taken.step(&consumer).await;
        }
        let kill = async {
            match life % 2 {
                0 => dispatcher.kill9(),
                _ => assert!(dispatcher.terminate(Duration::from_secs(30)).unwrap().success()),
            }
        };
        // It consumes until it gets no answer any more.
        let (broken, ()) = tokio::join!(taken.until_refused(&consumer), kill);
        assert!(broken, "it was never cut off");
        load.stop().await;
        dispatcher.restart().unwrap();
    }
    load.send_what_is_left(&team, &dispatcher).await;
    let acknowledged = load.acknowledged();
    let deadline = Instant::now() + PATIENCE;
    while taken.step(&consumer).await != Some(0) {
        assert!(Instant::now() < deadline, "there is no end of it");
    }
    for event in &acknowledged {
        assert!(taken.events.contains(event), "{event} was accepted and never given");
    }
    assert!(
        acknowledged.len() > LIVES * 10,
        "that was no load: {}",
        acknowledged.len()
    );
    team.until("all settled", "evsub", "leads", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });

    // Who waits while it ends gets an answer before it does.
    let waits = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.pull("wait=60s").await }
    });
    until_waiting(&dispatcher, |waiting| waiting >= 1.0).await;
    assert!(dispatcher.terminate(Duration::from_secs(30)).unwrap().success());
    assert!(events(&waits.await.unwrap()).is_empty());
}

/// What a consumer has.
#[derive(Default)]
struct Taken {
    events: HashSet<String>,
    /// Ids of messages whose acknowledgement was answered.
    acknowledged: HashSet<String>,
    steps: usize,
}

impl Taken {
    /// Pulls and acknowledges once: how many messages, if both were answered.
    async fn step(&mut self, consumer: &Consumer) -> Option<usize> {
        self.steps += 1;
        let answer = consumer.try_pull("limit=20").await.ok()?;
        if answer.status != 200 {
            assert_eq!(answer.status, 503, "{answer:?}");
            return None;
        }
        let messages = answer.body["messages"].as_array().unwrap();
        let id = |one: &Value| one["id"].as_str().unwrap().to_owned();
        for one in messages {
            assert!(!self.acknowledged.contains(&id(one)), "{one} was acknowledged");
            self.events.insert(one["event"]["id"].as_str().unwrap().to_owned());
        }
        if messages.is_empty() {
            return Some(0);
        }
        // Every third time only some of them, one by one.
        let (what, ids): (Value, Vec<String>) = match self.steps % 3 {
            0 => {
                let ids: Vec<String> = messages.iter().step_by(2).map(id).collect();
                (json!({"ids": ids}), ids)
            }
            _ => (
                json!({"cursor": answer.body["cursor"]}),
                messages.iter().map(id).collect(),
            ),
        };
        let answer = consumer.try_acknowledge(&what).await.ok()?;
        if answer.status != 200 {
            assert_eq!(answer.status, 503, "{answer:?}");
            return None;
        }
        self.acknowledged.extend(ids);
        Some(messages.len())
    }

    async fn until_refused(&mut self, consumer: &Consumer) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.step(consumer).await.is_none() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_s_consumer_takes_every_lead_with_its_own_account() {
    let shared = Shared::get();
    let (team, dispatcher) = (Team::open(shared.cluster, "warehouse"), &shared.dispatcher);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/leads-pulled-by-warehouse");
    let args = ["apply", "-n", &team.namespace, "-k", example];
    team.cluster.kubectl_ok(&args).unwrap();
    team.ready("evsub/leads-for-warehouse");
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(
        &token,
        team.cluster
            .token(&team.namespace, "warehouse", Some("tidings"))
            .unwrap(),
    )
    .unwrap();
    let consume = |leads: &Path, says: &Path| {
        Command::new(format!("{example}/consume.sh"))
            .args(["sh", "-c", "cat >> \"$LEADS\""])
            .env("TIDINGS_URL", dispatcher.ingest_url())
            .env("NAMESPACE", &team.namespace)
            .env("SUBSCRIPTION", "leads-for-warehouse")
            .env("TOKEN_FILE", &token)
            .env("LEADS", leads)
            .stderr(File::create(says).unwrap())
            .spawn()
            .unwrap()
    };
    let (leads, says) = (dir.path().join("leads.jsonl"), dir.path().join("stderr"));
    let checker = Consumer::new(&team, dispatcher, "checker", "leads-for-warehouse");
    let_edit(&team, "checker");
    checker.until_allowed().await;
    let mut consumer = consume(&leads, &says);
    for id in ["a", "b", "c"] {
        team.send(dispatcher, id).await;
    }
    until("everything acknowledged", async || {
        events(&checker.pull("").await).is_empty()
    })
    .await;
    let taken = std::fs::read_to_string(&leads).unwrap_or_default();
    consumer.kill().unwrap();
    consumer.wait().unwrap();
    let mut times: HashMap<String, usize> = HashMap::new();
    for line in taken.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["specversion"], "1.0");
        *times.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(times, HashMap::from(["a", "b", "c"].map(|id| (id.to_owned(), 1))));

    // A page with a body that is no JSON is not taken in part, and stays.
    let patch = [
        "patch",
        "evsub",
        "leads-for-warehouse",
        "-n",
        &team.namespace,
        "--type=merge",
        "-p",
    ];
    team.cluster
        .kubectl_ok(&[&patch[..], &[r#"{"spec": {"format": "Raw"}}"#]].concat())
        .unwrap();
    team.send(dispatcher, "d").await;
    let mut text = lead("e", TYPES[0]);
    text["datacontenttype"] = json!("text/plain");
    text["data"] = json!("no JSON");
    assert_eq!(team.posting(dispatcher, &text).await.unwrap().status, 202);
    let deadline = Instant::now() + PATIENCE;
    while checker.pull("").await.body["messages"][1]["body"] != "no JSON" {
        assert!(Instant::now() < deadline, "its format never changes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (none, says) = (dir.path().join("none.jsonl"), dir.path().join("refusals"));
    let mut consumer = consume(&none, &says);
    let refusals = || std::fs::read_to_string(&says).unwrap().matches("jq: ").count();
    until("a second try", async || refusals() >= 2).await;
    consumer.kill().unwrap();
    consumer.wait().unwrap();
    assert!(!none.exists(), "{:?}", std::fs::read_to_string(&none));
    assert_eq!(events(&checker.pull("").await), ["d", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_pulls_in_time_is_given_up_and_told_and_what_was_acknowledged_is_not() {
    /// The shortest that there is.
    const MAX_AGE: Duration = Duration::from_secs(60);
    let shared = Shared::get();
    let (team, dispatcher) = (Team::open(shared.cluster, "not-pulled"), &shared.dispatcher);
    let receiver = Receiver::always("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    team.endpoint("ops", &format!("https://{}/ops", receiver.address), json!({}));
    team.ready("whe/ops");
    let told = json!({"pull": {"maxAge": "1m"}, "deadLetter": {"endpointRef": {"name": "ops"}}});
    subscribe(&team, "leads", told);
    team.ready("evsub/leads");
    let consumer = Consumer::new(&team, dispatcher, "consumer", "leads");
    let_edit(&team, "consumer");
    consumer.until_allowed().await;
    for id in ["taken", "left"] {
        team.send(dispatcher, id).await;
    }
    let given = consumer.pull("limit=1").await;
    assert_eq!(events(&given), ["taken"]);
    assert_eq!(consumer.acknowledge(&json!({"cursor": given.body["cursor"]})).await, 1);
    let left = consumer.pull("").await;
    assert_eq!(events(&left), ["left"]);

    let deadline = Instant::now() + MAX_AGE + PATIENCE;
    while !events(&consumer.pull("").await).is_empty() {
        assert!(Instant::now() < deadline, "it is never given up");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    until("tell of it", async || receiver.requests() > 0).await;
    let notice: Value = serde_json::from_slice(&receiver.seen.lock().unwrap()[0].body).unwrap();
    assert_eq!(notice["type"], "tidings.deadletter");
    let message =
        json!({"id": left.body["messages"][0]["id"], "subscription": "leads", "attempts": 0, "reason": "Expired"});
    assert_eq!(notice["data"]["message"], message);
    assert_eq!(notice["data"]["event"]["id"], "left");
    let shown = team.until("given up", "evsub", "leads", |evsub| {
        evsub["status"]["delivery"]["deadLettered"] == 1
    });
    let delivery = &shown["status"]["delivery"];
    assert_eq!(
        (&delivery["pending"], &delivery["lastDeadLetter"]["reason"]),
        (&json!(0), &json!("Expired"))
    );
    let reader = Reader::new(&team, dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    // The one that was taken, and the one that tells of the other.
    reader.until("state=delivered&subscription=leads", 2).await;
    let all = reader.list("subscription=leads").await;
    let ends: Vec<_> = all
        .iter()
        .map(|one| [&one["event"]["id"], &one["state"], &one["reason"]])
        .collect();
    let null = Value::Null;
    assert_eq!(
        ends,
        [
            [&json!("left"), &json!("delivered"), &null],
            [&json!("left"), &json!("dead"), &json!("Expired")],
            [&json!("taken"), &json!("delivered"), &null]
        ]
    );
    assert_eq!(receiver.requests(), 1);
}
