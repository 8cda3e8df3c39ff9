//! How long history is kept, over days of a clock of its own.

use super::super::prune;
use super::*;

static AHEAD: AtomicI64 = AtomicI64::new(0);
/// There is one clock, so one test at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const HOUR: i64 = 3_600_000;

fn clock() -> UnixMillis {
    UnixMillis(UnixMillis::now().0 + AHEAD.load(Ordering::SeqCst))
}

/// The store as a process finds it so many hours after now.
fn opened_after(dir: &Directory, hours: i64) -> SqliteQueue {
    opened_with(dir, hours, None)
}

/// The same, with another limit.
fn opened_with(dir: &Directory, hours: i64, store_limit: Option<u64>) -> SqliteQueue {
    AHEAD.store(hours * HOUR, Ordering::SeqCst);
    let options = Options {
        clock,
        store_limit,
        ..options()
    };
    open(dir.path(), options)
}

/// Which events are there.
async fn there(queue: &SqliteQueue, events: &[EventId]) -> Vec<usize> {
    let mut there = Vec::new();
    for (n, event) in events.iter().enumerate() {
        if queue.event(*event).await.expect("event").is_some() {
            there.push(n);
        }
    }
    there
}

/// Waits until these are left, and looks a while longer whether they stay.
async fn left(dir: &Directory, hours: i64, events: &[EventId], expected: &[usize]) {
    let queue = opened_after(dir, hours);
    let deadline = Instant::now() + Duration::from_secs(20);
    while there(&queue, events).await != expected {
        let found = there(&queue, events).await;
        assert!(
            Instant::now() < deadline,
            "after {hours} hours {found:?}, not {expected:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        assert_eq!(there(&queue, events).await, expected, "after {hours} hours");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    queue.close().await;
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

/// As many events as there are lists, each for these endpoints; their ids.
async fn accepted(queue: &SqliteQueue, targets: &[Vec<u32>]) -> Vec<EventId> {
    let events = targets.iter().enumerate().map(|(n, endpoints)| {
        let target = |endpoint: &u32| target(*endpoint, 1, Placement::Fresh);
        new_event(&n.to_string(), endpoints.iter().map(target).collect())
    });
    let accepted = queue.accept(events.collect()).await.expect("accept");
    let event = |answer: &Accepted| match answer {
        Accepted::New { event, .. } | Accepted::Duplicate { event, .. } => *event,
    };
    accepted.iter().map(event).collect()
}

/// Settles everything that is fresh.
async fn all_settled(queue: &SqliteQueue, fence: Fence, verdict: Verdict) {
    let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
    let outcomes = fresh.iter().map(|one| settlement(*one, verdict));
    queue.settle(fence, outcomes.collect()).await.expect("settle");
}

async fn number(queue: &SqliteQueue, sql: &'static str) -> i64 {
    let number = queue.read(move |conn| conn.query_row(sql, [], |row| row.get(0))).await;
    number.expect("a number")
}

/// Waits until a number of the store is another.
async fn until(queue: &SqliteQueue, sql: &'static str, wanted: i64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while number(queue, sql).await != wanted {
        assert!(Instant::now() < deadline, "{sql} is {}", number(queue, sql).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const SWEPT: &str = "SELECT value FROM meta WHERE key = 'swept'";
const WRITTEN_DOWN: &str = "SELECT count(*) FROM revisit";
const TO_BE_RENEWED: &str = "SELECT (SELECT value FROM meta WHERE key = 'renew_from') < 9223372036854775807
    OR (SELECT value FROM meta WHERE key = 'renewed') < (SELECT value FROM meta WHERE key = 'renew_until')";

#[tokio::test]
async fn an_endpoint_that_is_new_has_nothing_looked_at_anew() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let intern = async |queue: &SqliteQueue, name: &str| {
        let key = ResourceKey {
            namespace_uid: "ns".to_owned(),
            name: name.to_owned(),
        };
        queue.intern_endpoints(vec![key]).await.expect("intern")[0]
    };
    let old = intern(&queue, "old").await;
    let events = accepted(&queue, &vec![vec![old.0]; 3]).await;
    queue.close().await;
    drop(queue);
    let queue = opened_after(&dir, 80);
    until(&queue, SWEPT, events[2].0).await;
    let new = intern(&queue, "new").await;
    let from = |endpoint| {
        queue.call(move |transaction| {
            prune::keep(transaction, &[(endpoint, hours(1))])?;
            let number = |sql| transaction.conn().query_row(sql, [], |row| row.get::<_, i64>(0));
            let from = number("SELECT value FROM meta WHERE key = 'renew_from'")?;
            Ok((number(SWEPT)?, from))
        })
    };
    let last = events[2].0;
    assert_eq!(from(new).await.expect("kept"), (last, last), "from its first event on");
    let of_old = from(old).await.expect("kept");
    assert_eq!(of_old, (last, 0), "from the beginning, by another cursor");
    queue.close().await;
}

#[tokio::test]
async fn however_often_a_retention_changes_an_event_is_written_down_once_and_the_sweep_goes_on() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let events = accepted(&queue, &vec![vec![1]; 300]).await;
    queue.close().await;
    drop(queue);
    let queue = opened_after(&dir, 80);
    let fence = queue.claim().await.expect("claim");
    until(&queue, SWEPT, events[299].0).await;
    for n in 0..6 {
        let told = vec![(EndpointId(1), hours(2 - n % 2))];
        queue.keep(fence, told).await.expect("keep");
        assert_eq!(number(&queue, SWEPT).await, events[299].0);
        until(&queue, TO_BE_RENEWED, 0).await;
        assert_eq!(number(&queue, WRITTEN_DOWN).await, 300);
    }
    queue.close().await;
}

#[tokio::test]
async fn of_what_is_told_of_an_endpoint_at_once_the_last_counts() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let fence = queue.claim().await.expect("claim");
    let told = |each: &[u64]| each.iter().map(|n| (EndpointId(1), hours(*n))).collect();
    queue.keep(fence, told(&[3])).await.expect("keep");
    queue.keep(fence, told(&[1, 3])).await.expect("keep");
    assert_eq!(number(&queue, "SELECT seconds FROM retention").await, 3 * 3_600);
    queue.close().await;
}

#[tokio::test]
async fn a_shorter_retention_counts_for_what_was_looked_at_before() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let fence = queue.claim().await.expect("claim");
    queue.keep(fence, vec![(EndpointId(3), hours(1))]).await.expect("keep");
    let events = accepted(&queue, &[vec![1], vec![2], vec![1, 2]]).await;
    all_settled(&queue, fence, Verdict::Delivered).await;
    queue.close().await;
    drop(queue);
    left(&dir, 5, &events, &[0, 1, 2]).await;
    let queue = opened_after(&dir, 5);
    assert_eq!(number(&queue, SWEPT).await, events[2].0);
    let fence = queue.claim().await.expect("claim");
    queue.keep(fence, vec![(EndpointId(1), hours(1))]).await.expect("keep");
    queue.close().await;
    drop(queue);
    left(&dir, 5, &events, &[1, 2]).await;
}

#[tokio::test]
async fn what_is_kept_short_or_long_goes_at_its_own_time_over_restarts_also_when_it_was_settled_late() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let fence = queue.claim().await.expect("claim");
    // Endpoint 1 is kept an hour, 2 three days (nobody said), 3 thirty days.
    let told = vec![(EndpointId(1), hours(1)), (EndpointId(3), hours(720))];
    queue.keep(fence, told).await.expect("keep");
    let targets = [vec![1], vec![2], vec![3], vec![1, 2, 3], vec![2], vec![1]];
    let events = accepted(&queue, &targets).await;
    let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
    let settle = async |queue: &SqliteQueue, fence, which: &[usize]| {
        let of = |one: &&Pending| which.iter().any(|n| events[*n] == one.message.event());
        let outcomes = fresh.iter().filter(of).map(|one| {
            let mut outcome = settlement(*one, Verdict::Delivered);
            if let Some(record) = &mut outcome.record {
                // An attempt may take long: what it settles is kept from its end on.
                record.at = UnixMillis(clock().0 - 2 * HOUR);
            }
            outcome
        });
        queue.settle(fence, outcomes.collect()).await.expect("settle");
    };
    settle(&queue, fence, &[0, 1, 2, 3]).await;
    queue.close().await;
    drop(queue);
    left(&dir, 0, &events, &[0, 1, 2, 3, 4, 5]).await;
    left(&dir, 2, &events, &[1, 2, 3, 4, 5]).await;
    left(&dir, 71, &events, &[1, 2, 3, 4, 5]).await;
    // Settled after nearly three days: kept from then on.
    let queue = opened_after(&dir, 71);
    let fence = queue.claim().await.expect("claim");
    settle(&queue, fence, &[4, 5]).await;
    queue.close().await;
    drop(queue);
    left(&dir, 91, &events, &[2, 3, 4]).await;
    left(&dir, 140, &events, &[2, 3, 4]).await;
    left(&dir, 163, &events, &[2, 3]).await;
    left(&dir, 719, &events, &[2, 3]).await;
    left(&dir, 722, &events, &[]).await;
}

/// Of a clock that was ahead.
const YEAR: i64 = 365 * 24;

#[tokio::test]
async fn what_has_an_id_of_a_time_to_come_goes_when_its_own_time_is_over() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, YEAR);
    let mut events = accepted(&queue, &[vec![1]]).await;
    queue.close().await;
    drop(queue);
    let queue = opened_after(&dir, 0);
    let fence = queue.claim().await.expect("claim");
    let later = new_event("later", vec![target(1, 1, Placement::Fresh)]);
    let Accepted::New { event, .. } = queue.accept(vec![later]).await.expect("accept")[0] else {
        panic!("a duplicate")
    };
    assert!(event > events[0], "ids never fall");
    events.push(event);
    all_settled(&queue, fence, Verdict::Delivered).await;
    queue.close().await;
    drop(queue);
    left(&dir, 0, &events, &[0, 1]).await;
    left(&dir, 71, &events, &[0, 1]).await;
    left(&dir, 74, &events, &[]).await;
}

#[tokio::test]
async fn a_look_that_a_clock_put_off_too_long_comes_at_its_time() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let events = accepted(&queue, &[vec![1]]).await;
    queue.close().await;
    drop(queue);
    let queue = opened_after(&dir, YEAR);
    until(&queue, WRITTEN_DOWN, 1).await;
    queue.close().await;
    drop(queue);
    let queue = opened_after(&dir, 1);
    let fence = queue.claim().await.expect("claim");
    all_settled(&queue, fence, Verdict::Delivered).await;
    queue.close().await;
    drop(queue);
    left(&dir, 72, &events, &[0]).await;
    left(&dir, 150, &events, &[]).await;
}

#[tokio::test]
async fn history_of_a_clock_that_was_ahead_gives_way_where_room_is_needed() {
    let _turn = TURN.lock().await;
    let dir = Directory::new();
    let large = |id: &str| {
        let mut event = new_event(id, vec![target(1, 1, Placement::Fresh)]);
        let mut stored = (*event.event).clone();
        stored.body = vec![7; 4_000].into();
        event.event = Arc::new(stored);
        event
    };
    let queue = opened_with(&dir, YEAR, Some(64 << 20));
    let fence = queue.claim().await.expect("claim");
    let events = (0..500).map(|n| large(&n.to_string())).collect();
    queue.accept(events).await.expect("accept");
    all_settled(&queue, fence, Verdict::Delivered).await;
    queue.close().await;
    drop(queue);

    let queue = opened_with(&dir, 0, Some(1 << 20));
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = queue.accept(vec![large("after")]).await {
        assert!(matches!(error, QueueError::Full(_)), "{error}");
        assert!(Instant::now() < deadline, "full for ever: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    queue.close().await;
}
