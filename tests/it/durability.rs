//! 202 means durable: a dispatcher that is killed again and again under load loses nothing it acknowledged.
//!
//! Real processes on a real disk; the receiver lives in the test and tells from the connections which life of the
//! dispatcher a request came from. What kill -9 cannot show (that the kernel, too, has what was acknowledged) is shown by
//! the store's own tests that cut the power, and by `disk`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};

use super::load::{Load, until_quiet};
use super::team::{Arrived, Team, Webhooks};

const ROUNDS: usize = 100;
const PRODUCERS: usize = 6;
/// In every so many rounds the dispatcher is killed when all that can be delivered is, and recorded.
const QUIET_EVERY: usize = 20;
/// In every so many rounds it is killed once more while it starts.
const TWICE_EVERY: usize = 8;
/// How long before the kill what was answered may still be unrecorded: it is handed to the store within 20 ms, which
/// commits within tens of milliseconds; the rest is for a busy machine (the quiet kills are exact). While the machine stands
/// still nothing is recorded: that comes on top.
const IN_HAND: Duration = Duration::from_secs(1);
/// How often it is looked whether the machine stands still, and how long a look takes on one that does not.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_millis(100);
/// The most that can be in flight to one endpoint, and what it answers meanwhile that is not recorded yet.
const AT_ONCE: usize = 512;
/// Attempts of a message that never succeeds, and the least wait between two of them.
const ATTEMPTS: usize = 5;
const SCHEDULE: [&str; ATTEMPTS - 1] = ["1s", "2s", "2s", "2s"];
const LEAST_WAIT: Duration = Duration::from_millis(990);

/// One end of the dispatcher.
struct Kill {
    at: Instant,
    /// Connections that the receiver had accepted from this life and those before.
    connections: usize,
    quiet: bool,
    /// How long the machine stood still since the kill before.
    still: Duration,
}

/// How long the machine stands still, as a thread sees it that syncs a file beside the store again and again.
struct Still(Arc<Mutex<Looks>>);

struct Looks {
    last: Instant,
    still: Duration,
}

impl Looks {
    fn look(&mut self) {
        self.still += self.last.elapsed().saturating_sub(LOOK);
        self.last = Instant::now();
    }
}

impl Still {
    fn watch(dir: &Path) -> Still {
        let mut file = File::create(dir.join("synced")).unwrap();
        let looks = Arc::new(Mutex::new(Looks {
            last: Instant::now(),
            still: Duration::ZERO,
        }));
        let watched = Arc::downgrade(&looks);
        thread::spawn(move || {
            while let Some(looks) = watched.upgrade() {
                file.write_all(b".").and_then(|()| file.sync_all()).unwrap();
                looks.lock().unwrap().look();
                thread::sleep(LOOK_EVERY);
            }
        });
        Still(looks)
    }

    /// Since it was asked last, up to this moment.
    fn take(&self) -> Duration {
        let mut looks = self.0.lock().unwrap();
        looks.look();
        std::mem::take(&mut looks.still)
    }
}

/// Events whose id says so are refused: always, or the first time.
fn answer(event: &str, earlier: usize) -> u16 {
    match event.split('-').next() {
        Some("doomed") => 422,
        Some("flaky") if earlier == 0 => 422,
        _ => 200,
    }
}

/// How many attempts it takes at least until nothing more comes but what is doomed.
fn least_attempts(event: &str) -> usize {
    1 + usize::from(event.starts_with("flaky"))
}

fn is_doomed(event: &str) -> bool {
    event.starts_with("doomed")
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_hundred_kills_whatever_was_acknowledged_arrives_and_only_what_was_in_flight_comes_twice() {
    let seed = std::env::var("TIDINGS_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("to do it again: TIDINGS_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let options = DispatcherOptions {
        log_filter: "warn".into(),
        ..DispatcherOptions::default()
    };
    let mut dispatcher = tidings.start_dispatcher(&options).unwrap();
    let still = Still::watch(cluster.dir());
    let team = Team::open(&cluster, "durable");
    let receiver = Webhooks::answering(answer).await;
    team.deliver_to(
        "crm",
        &receiver.url(),
        json!({"retry": {"schedule": SCHEDULE, "jitter": 0}}),
    );

    let mut load = Load::default();
    let mut kills = Vec::new();
    for round in 1..=ROUNDS {
        load.start(&team, &dispatcher, PRODUCERS, move |producer, n| match n % 10 {
            3 if producer == 0 && n == 3 => format!("doomed-{round}"),
            5 => format!("flaky-{round}-{producer}-{n}"),
            _ => format!("fine-{round}-{producer}-{n}"),
        });
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        let quiet = round % QUIET_EVERY == 0;
        if quiet {
            load.stop().await;
            let acknowledged = load.acknowledged();
            let delivered = || {
                acknowledged
                    .iter()
                    .all(|event| receiver.times(event) >= least_attempts(event))
            };
            until_quiet(&dispatcher, delivered).await;
        }
        kills.push(kill(&mut dispatcher, &receiver, &still, quiet).await);
        load.stop().await;
        if round % TWICE_EVERY == 0 {
            dispatcher.process.start_again().unwrap();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            kills.push(kill(&mut dispatcher, &receiver, &still, false).await);
        }
        dispatcher.restart().unwrap();
    }
    load.send_what_is_left(&team, &dispatcher).await;
    let acknowledged = load.acknowledged();
    let doomed = acknowledged.iter().filter(|event| is_doomed(event)).count();
    team.until("settled", "evsub", "crm", |evsub| {
        let delivery = &evsub["status"]["delivery"];
        delivery["pending"] == 0 && delivery["deadLettered"] == doomed
    });
    judge(&acknowledged, &receiver.arrived(), &kills);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_neither_resets_counts_nor_brings_due_times_forward() {
    const MESSAGES: usize = 30;
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "backoff");
    let receiver = Webhooks::answering(|_, _| 422).await;
    let retry = json!({"schedule": ["100ms", "12s", "100ms", "100ms"], "jitter": 0});
    team.deliver_to("crm", &receiver.url(), json!({"retry": retry}));
    for n in 0..MESSAGES {
        team.send(&dispatcher, &format!("lead-{n}")).await;
    }
    let twice = |all: &[Arrived]| all.len() == 2 * MESSAGES;
    receiver.until("two attempts each", twice).await;
    until_quiet(&dispatcher, || true).await;
    dispatcher.kill9();
    dispatcher.restart().unwrap();

    let evsub = team.until("dead letters", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["deadLettered"] == MESSAGES
    });
    assert_eq!(
        evsub["status"]["delivery"]["lastDeadLetter"]["reason"], "Exhausted",
        "{evsub:#}"
    );
    let arrived = receiver.arrived();
    assert_eq!(
        arrived.len(),
        ATTEMPTS * MESSAGES,
        "five attempts each, counted over both lives"
    );
    for n in 0..MESSAGES {
        let event = format!("lead-{n}");
        let at: Vec<Instant> = arrived.iter().filter(|a| a.event == event).map(|a| a.at).collect();
        assert!(
            at[2] - at[1] >= Duration::from_millis(11_950),
            "{event} came early: {at:?}"
        );
    }
}

async fn kill(dispatcher: &mut Dispatcher, receiver: &Webhooks, still: &Still, quiet: bool) -> Kill {
    let (at, still) = (Instant::now(), still.take());
    dispatcher.kill9();
    Kill {
        at,
        connections: receiver.connections().await,
        quiet,
        still,
    }
}

/// Everything that must hold of what arrived.
fn judge(acknowledged: &[String], arrived: &[Arrived], kills: &[Kill]) {
    let life = |arrived: &Arrived| kills.partition_point(|kill| kill.connections <= arrived.connection);
    // Whether it may have been unrecorded when its dispatcher was killed.
    let was_in_hand = |arrived: &Arrived| {
        let end = kills.get(life(arrived));
        end.is_some_and(|kill| arrived.at + IN_HAND + kill.still >= kill.at && !(kill.quiet && arrived.status == 200))
    };
    let mut by_event: HashMap<&str, Vec<&Arrived>> = HashMap::new();
    for one in arrived {
        by_event.entry(&one.event).or_default().push(one);
    }
    let mut twice = vec![0; kills.len()];
    let mut longest = Duration::ZERO;
    for event in acknowledged {
        let all = by_event.get(event.as_str());
        let all = all.unwrap_or_else(|| panic!("{event} was acknowledged and never arrived"));
        let story = || {
            let told = all.iter().map(|one| {
                let end = kills
                    .get(life(one))
                    .map(|kill| kill.at.saturating_duration_since(one.at));
                format!(
                    "\n  {:?} in life {}, {end:?} before its end: {}",
                    one.at - all[0].at,
                    life(one),
                    one.status
                )
            });
            told.collect::<String>()
        };
        let same = all.iter().all(|one| one.message == all[0].message);
        assert!(same, "{event} made two messages:{}", story());
        let came = all.iter().any(|one| one.status == 200);
        assert_eq!(came, !is_doomed(event), "{event}:{}", story());
        for pair in all.windows(2) {
            let [one, next] = pair else { unreachable!() };
            if one.status == 200 || next.at - one.at < LEAST_WAIT {
                assert!(life(one) < life(next), "{event} came again without a kill:{}", story());
                assert!(
                    was_in_hand(one),
                    "{event} came again although it was recorded:{}",
                    story()
                );
                longest = longest.max(kills[life(one)].at.saturating_duration_since(one.at));
                twice[life(one)] += 1;
            }
        }
        if is_doomed(event) {
            let cut_off = |two: &&[&Arrived]| life(two[0]) < life(two[1]) && was_in_hand(two[0]);
            let uncounted = all.windows(2).filter(cut_off).count();
            assert!(
                (ATTEMPTS..=ATTEMPTS + uncounted).contains(&all.len()),
                "{event} had {} attempts, {uncounted} of them cut off:{}",
                all.len(),
                story()
            );
        }
    }
    let most = twice.iter().max().copied().unwrap_or_default();
    println!(
        "{} events acknowledged over {} lives; {} came twice, at most {most} at a kill, the earliest {longest:?} before it",
        acknowledged.len(),
        kills.len(),
        twice.iter().sum::<usize>(),
    );
    assert!(most <= AT_ONCE, "{most} came twice at one kill");
    assert!(
        acknowledged.len() > ROUNDS * PRODUCERS,
        "that was no load: {}",
        acknowledged.len()
    );
}
