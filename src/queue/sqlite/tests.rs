//! The embedded store against the suite, a model, a kill, and a disk that fails.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::reader::ORDERED;
use super::{Options, SqliteQueue};
use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};
use crate::queue::conformance::{self, Bench, new_event, settlement, target};
use crate::queue::{
    Accepted, DeadReason, Fence, NewEvent, Pending, Phase, Place, Placement, Pull, Queue, QueueError, Quota,
    ResourceKey, Selection, Settled, Settlement, StoredEvent, Target, Verdict, Window,
};

mod disk;
mod history;
mod kill;
mod measure;
mod model;
mod purge;
mod retention;
mod routing;

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Directory {
        Directory(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

#[async_trait]
impl Bench for Directory {
    async fn open(&self) -> Arc<dyn Queue> {
        Arc::new(open(self.path(), options()))
    }
}

fn options() -> Options {
    Options {
        keep_free: 0,
        ..Options::default()
    }
}

fn open(dir: &Path, options: Options) -> SqliteQueue {
    SqliteQueue::open(dir, options).expect("open").0
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Everything pending, by id, fresh or waiting.
async fn pending(queue: &SqliteQueue, fence: Fence) -> BTreeMap<MessageId, Pending> {
    let mut all: BTreeMap<_, _> = BTreeMap::new();
    for one in queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh") {
        all.insert(one.message, one);
    }
    for pair in queue.backlog(fence).await.expect("backlog") {
        let window = Window {
            endpoint: pair.endpoint,
            subscription: pair.subscription,
            after: None,
            until: UnixMillis(i64::MAX),
            limit: usize::MAX,
        };
        for one in queue.window(fence, window).await.expect("window") {
            assert!(all.insert(one.message, one).is_none(), "both fresh and waiting");
        }
    }
    all
}

/// Gives endpoints 1 to 3 their ids, all in one namespace.
async fn three_endpoints(queue: &SqliteQueue) {
    let key = |n: u32| ResourceKey {
        namespace_uid: "ns".to_owned(),
        name: format!("e{n}"),
    };
    let ids = queue
        .intern_endpoints((1..=3).map(key).collect())
        .await
        .expect("intern");
    assert_eq!(ids, [1, 2, 3].map(EndpointId));
}

/// That a quota is compared with exactly what is pending: with room for nothing more an event is refused. What it would take
/// is given, so that the caller can see one stored that just fits.
async fn full_quota(queue: &SqliteQueue, pending: &BTreeMap<MessageId, Pending>, event: NewEvent) -> Quota {
    let size = |event: &StoredEvent| (event.attributes.len() + event.body.len()) as u64;
    let mut bytes = size(&event.event);
    for message in pending.keys() {
        bytes += size(&queue.event(message.event()).await.expect("event").expect("it is kept"));
    }
    let exactly = Quota {
        messages: Some(pending.len() as u64 + 1),
        bytes: Some(bytes),
    };
    for less in [
        Quota {
            messages: Some(pending.len() as u64),
            ..exactly
        },
        Quota {
            bytes: Some(bytes - 1),
            ..exactly
        },
    ] {
        let event = NewEvent {
            quota: less,
            ..event.clone()
        };
        let answer = queue.accept(vec![event]).await;
        assert!(
            matches!(answer, Err(QueueError::OverQuota { .. })),
            "{less:?}: {answer:?}"
        );
    }
    exactly
}

#[tokio::test]
async fn a_look_at_held_messages_walks_nothing_but_what_of_its_endpoint_has_an_order() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let plan = |conn: &rusqlite::Connection| {
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {ORDERED}"))?;
        let steps = plan.query_map([1, 0, 0], |row| row.get(3))?;
        steps.collect::<rusqlite::Result<Vec<String>>>()
    };
    let steps = queue.read(plan).await.expect("plan");
    assert_eq!(
        steps,
        [
            "MERGE (UNION ALL)",
            "LEFT",
            "SEARCH message USING COVERING INDEX fifo (ep=? AND okey=? AND state=? AND rowid>?)",
            "RIGHT",
            "SEARCH message USING COVERING INDEX fifo (ep=? AND okey>?)",
        ]
    );
    queue.close().await;
}

#[tokio::test]
async fn the_embedded_store_passes_the_suite() {
    conformance::run(Directory::new).await;
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = Directory::new();
    let first = open(dir.path(), options());
    let Err(error) = SqliteQueue::open(dir.path(), options()) else {
        panic!("opened twice")
    };
    assert!(error.to_string().contains("in use by another process"), "{error}");
    // As a process has it that is being started meanwhile, until it runs its own program.
    let copy = first.lock.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
    drop(first);
    open(dir.path(), options());
    drop(copy);
}

#[tokio::test]
async fn a_full_store_tells_nobody_of_a_dead_letter_and_counts_it() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let pager = EndpointId(2);
    three_endpoints(&queue).await;
    let events = ["a", "b"].map(|id| new_event(id, vec![target(1, 1, Placement::Fresh)]));
    queue.accept(events.to_vec()).await.expect("accept");
    queue.close().await;
    drop(queue);
    for (limit, untold) in [(1, 1), (u64::MAX, 0)] {
        let store_limit = Some(limit);
        let queue = open(
            dir.path(),
            Options {
                store_limit,
                ..options()
            },
        );
        let fence = queue.claim().await.expect("claim");
        let fresh = queue.fresh(fence, MessageId(0), 1).await.expect("fresh")[0];
        let dead = Settlement {
            tell: Some(pager),
            ..settlement(
                fresh,
                Verdict::Dead {
                    reason: DeadReason::Refused,
                },
            )
        };
        let settled = queue.settle(fence, vec![dead]).await.expect("settle");
        assert_eq!(settled, [Settled::Applied], "the outcome fits");
        assert_eq!(queue.usage().await.expect("usage").untold, untold);
        let told = queue.backlog(fence).await.expect("backlog");
        let told = told.iter().filter(|pair| pair.endpoint == pager);
        assert_eq!(told.map(|pair| pair.pending).sum::<u64>(), 1 - untold);
        queue.close().await;
    }
}

#[tokio::test]
async fn a_store_at_its_limit_refuses_events_and_still_records_outcomes() {
    let dir = Directory::new();
    let queue = open(
        dir.path(),
        Options {
            store_limit: Some(1 << 20),
            ..options()
        },
    );
    let fence = queue.claim().await.expect("claim");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut n = 0;
    let why = loop {
        assert!(Instant::now() < deadline, "never full");
        let mut event = new_event(&n.to_string(), vec![target(1, 1, Placement::Fresh)]);
        let mut stored = (*event.event).clone();
        stored.body = vec![7; 20_000].into();
        event.event = Arc::new(stored);
        n += 1;
        match queue.accept(vec![event]).await {
            Ok(_) => {}
            Err(QueueError::Full(why)) => break why,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(why.contains("are used of 1048576"), "{why}");
    let fresh = queue.fresh(fence, MessageId(0), 1).await.expect("fresh");
    let outcome = settlement(fresh[0], Verdict::Delivered);
    assert_eq!(
        queue.settle(fence, vec![outcome]).await.expect("settle"),
        [Settled::Applied]
    );
}

#[tokio::test]
async fn a_store_far_over_its_limit_has_room_again_once_history_gave_way_though_nothing_else_is_written() {
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    let dir = Directory::new();
    let options = |limit| Options {
        store_limit: Some(limit),
        clock: || UnixMillis(UnixMillis::now().0 + AHEAD.load(Ordering::SeqCst)),
        ..options()
    };
    let large = |id: &str| {
        let mut event = new_event(id, vec![target(1, 1, Placement::Fresh)]);
        let mut stored = (*event.event).clone();
        stored.body = vec![7; 4_000].into();
        event.event = Arc::new(stored);
        event
    };
    let queue = open(dir.path(), options(64 << 20));
    let fence = queue.claim().await.expect("claim");
    let events = (0..500).map(|n| large(&n.to_string())).collect();
    queue.accept(events).await.expect("accept");
    let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
    let outcomes = fresh.iter().map(|one| settlement(*one, Verdict::Delivered));
    queue.settle(fence, outcomes.collect()).await.expect("settle");
    queue.close().await;
    drop(queue);

    // Delivered history is older than what is kept under pressure, and the administrator has less room than before.
    AHEAD.store(61_000, Ordering::SeqCst);
    let queue = open(dir.path(), options(1 << 20));
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = queue.accept(vec![large("after")]).await {
        assert!(matches!(error, QueueError::Full(_)), "{error}");
        assert!(Instant::now() < deadline, "full for ever: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn dead_letters_of_the_namespace_that_keeps_most_give_way_to_everybodys_events() {
    let dir = Directory::new();
    let queue = open(
        dir.path(),
        Options {
            store_limit: Some(4 << 20),
            ..options()
        },
    );
    let fence = queue.claim().await.expect("claim");
    let key = |namespace: &str| ResourceKey {
        namespace_uid: namespace.to_owned(),
        name: "crm".to_owned(),
    };
    let keys = vec![key("small"), key("large")];
    let ids = queue.intern_endpoints(keys).await.expect("intern");
    let to = |id: &str, endpoint: EndpointId, order: Option<OrderKey>| {
        let one = Target {
            order,
            ..target(endpoint.0, 1, Placement::Fresh)
        };
        let mut event = new_event(id, vec![one]);
        let mut stored = (*event.event).clone();
        stored.body = vec![7; 16_000].into();
        event.event = Arc::new(stored);
        event
    };
    let accept = async |events: Vec<NewEvent>| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match queue.accept(events.clone()).await {
                Ok(answers) => return answers,
                Err(QueueError::Full(why)) => assert!(Instant::now() < deadline, "full for ever: {why}"),
                Err(other) => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let die = async || {
        let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
        let reason = DeadReason::Refused;
        let outcomes = fresh.iter().map(|one| Settlement {
            blocks: true,
            ..settlement(*one, Verdict::Dead { reason })
        });
        queue.settle(fence, outcomes.collect()).await.expect("settle");
        fresh
    };
    let order = Some(OrderKey(7));
    accept(vec![
        to("small", ids[0], None),
        to("first", ids[1], order),
        to("behind", ids[1], order),
    ])
    .await;
    let first = die().await;
    let mut last = Vec::new();
    for n in 0..30 {
        accept((0..20).map(|m| to(&format!("{n}-{m}"), ids[1], None)).collect()).await;
        last = die().await;
    }
    let is_there = async |one: &Pending| queue.event(one.message.event()).await.expect("event").is_some();
    assert_eq!(first.len(), 2);
    assert!(is_there(&first[0]).await, "of a namespace that keeps little");
    assert!(!is_there(&first[1]).await, "the oldest of the one that keeps most");
    assert!(is_there(last.last().expect("some")).await, "the newest");
    let usage = queue.usage().await.expect("usage");
    assert_eq!(usage.dead + usage.dropped, 2 + 600);
    assert!(usage.dead > 100, "no more went than had to: {}", usage.dead);
    let released = pending(&queue, fence).await;
    assert_eq!(released.len(), 1, "what the first one blocked waits no longer");
    queue.close().await;
}

#[tokio::test]
async fn delivered_history_gives_way_before_any_dead_letter_however_new_it_is() {
    let dir = Directory::new();
    let queue = open(
        dir.path(),
        Options {
            store_limit: Some(4 << 20),
            ..options()
        },
    );
    let fence = queue.claim().await.expect("claim");
    let settled = async |name: String, count: u32, verdict: Verdict| {
        let event = |n: u32| {
            let mut event = new_event(&format!("{name}-{n}"), vec![target(1, 1, Placement::Fresh)]);
            let mut stored = (*event.event).clone();
            stored.body = vec![7; 16_000].into();
            event.event = Arc::new(stored);
            event
        };
        let events: Vec<NewEvent> = (0..count).map(event).collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = queue.accept(events.clone()).await {
            assert!(matches!(error, QueueError::Full(_)), "{error}");
            assert!(Instant::now() < deadline, "full for ever: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
        let outcomes = fresh.iter().map(|one| settlement(*one, verdict));
        queue.settle(fence, outcomes.collect()).await.expect("settle");
    };
    let reason = DeadReason::Refused;
    settled("dead".to_owned(), 20, Verdict::Dead { reason }).await;
    for n in 0..30 {
        settled(n.to_string(), 20, Verdict::Delivered).await;
    }
    let usage = queue.usage().await.expect("usage");
    assert_eq!((usage.dead, usage.dropped), (20, 0));
    queue.close().await;
}

#[tokio::test]
async fn places_rise_though_the_clock_falls_and_nothing_is_left_over_a_restart() {
    static BEHIND: AtomicI64 = AtomicI64::new(0);
    let dir = Directory::new();
    let options = || Options {
        clock: || UnixMillis(UnixMillis::now().0 - BEHIND.load(Ordering::SeqCst)),
        ..options()
    };
    let pull = Pull {
        endpoint: EndpointId(1),
        subscription: SubscriptionId(1),
        after: Place::START,
        limit: 10,
        bytes: usize::MAX,
    };
    let mut last = Place::START;
    for name in ["a", "b", "c"] {
        let queue = open(dir.path(), options());
        let fence = queue.claim().await.expect("claim");
        let event = new_event(name, vec![target(1, 1, Placement::Pulled)]);
        queue.accept(vec![event]).await.expect("accept");
        let given = queue.pull(Pull { after: last, ..pull }).await.expect("pull");
        let [(pending, _)] = &given.messages[..] else {
            panic!("{name} is not behind what was seen: {given:?}")
        };
        last = Place::of(pending);
        let outcome = vec![settlement(*pending, Verdict::Delivered)];
        queue.settle(fence, outcome).await.expect("settle");
        queue.close().await;
        BEHIND.fetch_add(3_600_000, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_replay_means_what_became_a_dead_letter_while_the_clock_was_ahead() {
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    for restarts in [true, false] {
        AHEAD.store(365 * 24 * 3_600_000, Ordering::SeqCst);
        let dir = Directory::new();
        let options = || Options {
            clock: || UnixMillis(UnixMillis::now().0 + AHEAD.load(Ordering::SeqCst)),
            ..options()
        };
        let dies = async |queue: &SqliteQueue, fence, id: &str| {
            let event = new_event(id, vec![target(1, 1, Placement::Fresh)]);
            queue.accept(vec![event]).await.expect("accept");
            let one = queue.fresh(fence, MessageId(0), 1).await.expect("fresh")[0];
            let reason = DeadReason::Expired;
            let dead = settlement(one, Verdict::Dead { reason });
            queue.settle(fence, vec![dead]).await.expect("settle");
            one.message
        };
        let mut queue = open(dir.path(), options());
        let mut fence = queue.claim().await.expect("claim");
        let mut dead = vec![dies(&queue, fence, "ahead").await];
        AHEAD.store(0, Ordering::SeqCst);
        if restarts {
            queue.close().await;
            drop(queue);
            queue = open(dir.path(), options());
            fence = queue.claim().await.expect("claim");
        }
        dead.push(dies(&queue, fence, "right").await);
        let selection = Selection {
            endpoints: Arc::new([EndpointId(1)].into()),
            subscriptions: Arc::new([SubscriptionId(1)].into()),
            dead: true,
            ..Selection::default()
        };
        let step = async || queue.replay(fence, "r", &selection, 1).await.expect("replay");
        let counted = step().await.progress;
        assert_eq!((counted.phase, counted.matched), (Phase::Sending, 2));
        assert!(counted.began <= UnixMillis::now(), "by the clock as it is");
        dies(&queue, fence, "since").await;
        let mut sent = Vec::new();
        loop {
            let step = step().await;
            sent.extend(step.sent.iter().map(|one| one.message));
            if step.progress.phase == Phase::Sent {
                break;
            }
        }
        assert_eq!(sent, dead);
        queue.close().await;
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_routed_is_set_aside_and_stops_nobody() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let one = vec![target(1, 1, Placement::Waiting)];
    queue.accept(vec![new_event("a", one.clone())]).await.expect("accept");
    queue.close().await;
    drop(queue);
    // As a fault would leave it: the message to be made is there already.
    let file = rusqlite::Connection::open(dir.path().join("tidings.db")).expect("the file");
    let rows = file
        .execute("INSERT INTO unrouted SELECT id, 0, zeroblob(9) FROM event", [])
        .expect("a row");
    assert_eq!(rows, 1);
    drop(file);

    let mut wide = None;
    for _reopened in 0..2 {
        let queue = open(dir.path(), options());
        let fence = queue.claim().await.expect("claim");
        let targets: Vec<_> = (0..600).map(|n| target(2, n, Placement::Waiting)).collect();
        let answer = queue.accept(vec![new_event("wide", targets)]).await.expect("accept")[0];
        let (Accepted::New { event, .. } | Accepted::Duplicate { event, .. }) = answer;
        assert_eq!(*wide.get_or_insert(event), event);
        while queue.route(fence, 500).await.expect("route") > 0 {}
        let usage = queue.usage().await.expect("usage");
        assert_eq!(usage.pending, 601, "the events after it are routed whole");
        assert_eq!(pending(&queue, fence).await.len(), 601);
        queue.close().await;
    }
}

#[tokio::test]
async fn probes_that_fail_for_days_leave_one_record_for_each_number_of_an_attempt() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let fence = queue.claim().await.expect("claim");
    let targets = vec![target(1, 1, Placement::Fresh)];
    queue.accept(vec![new_event("a", targets)]).await.expect("accept");
    let mut one = queue.fresh(fence, MessageId(0), 1).await.expect("fresh")[0];
    for (at, consumed) in [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)] {
        let verdict = Verdict::Wait {
            due: UnixMillis(0),
            attempts: consumed,
        };
        let mut outcome = settlement(one, verdict);
        outcome.record.as_mut().expect("a record").at = UnixMillis(at);
        assert_eq!(
            queue.settle(fence, vec![outcome]).await.expect("settle"),
            [Settled::Applied]
        );
        one.attempts = consumed;
    }
    queue.close().await;
    drop(queue);

    let file = rusqlite::Connection::open(dir.path().join("tidings.db")).expect("the file");
    let mut read = file
        .prepare("SELECT n, at FROM attempt ORDER BY n")
        .expect("a statement");
    let rows = read.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
    let rows: Vec<(i64, i64)> = rows.collect::<rusqlite::Result<_>>().expect("rows");
    assert_eq!(rows, [(1, 4), (2, 6)], "the last of each");
}

#[tokio::test]
async fn too_little_free_space_on_the_volume_refuses_events() {
    let dir = Directory::new();
    let queue = open(
        dir.path(),
        Options {
            keep_free: u64::MAX,
            ..Options::default()
        },
    );
    assert!(matches!(
        queue.accept(vec![new_event("a", vec![])]).await,
        Err(QueueError::Full(_))
    ));
}

#[tokio::test]
async fn an_engine_that_falls_behind_slows_producers_and_misses_nothing() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let mut arrivals = queue.arrivals().expect("arrivals");
    let mut accepted = 0;
    loop {
        let events = (0..500)
            .map(|n| new_event(&format!("{accepted}-{n}"), vec![target(1, 1, Placement::Fresh)]))
            .collect();
        match queue.accept(events).await {
            Ok(_) => accepted += 500,
            Err(QueueError::Full(_)) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(accepted < 200_000, "never refused");
    }
    let mut seen = HashSet::new();
    while seen.len() < accepted {
        let batch = arrivals.recv().await.expect("arrivals");
        seen.extend(batch.into_iter().map(|one| one.message));
    }
    queue
        .accept(vec![new_event("after", vec![])])
        .await
        .expect("accept again");
}

/// On a runtime with one thread, which is all that an embedder or a test may have.
#[test]
fn closing_does_not_wait_for_a_question_that_nobody_waits_for_any_more() {
    let (closed, is_closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let dir = Directory::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let queue = open(dir.path(), options());
            // Asked, and then forgotten, as by a task that was aborted and not yet dropped. A reader may be faster than that.
            let _forgotten = loop {
                let mut asked = Box::pin(queue.event(EventId(1)));
                if futures::poll!(asked.as_mut()).is_pending() {
                    break asked;
                }
            };
            queue.close().await;
        });
        closed.send(()).expect("somebody waits");
    });
    is_closed.recv_timeout(Duration::from_secs(20)).expect("it closes");
}
