//! The administrator's policy file, as a process reads it: at its start, and again whenever it changes.
//!
//! Owns reading; what a policy says is `api::policy`. Invariant: a file that is missing or wrong changes nothing, and says
//! so once in the log and for as long as it lasts in the metric. Where no valid one was read yet there is no policy, which is
//! not the same as one that narrows nothing: whoever needs it waits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::policy::Policy;

/// How often the file is read: a mounted ConfigMap changes within a minute anyway.
pub const READ_EVERY: Duration = Duration::from_secs(5);

/// Two reads this far apart that agree are of a file that nobody is writing: half of one may well be a policy, a wider one.
const AGREE_AFTER: Duration = Duration::from_millis(100);

/// Why a process is not ready without a policy. What is wrong with the file is for the log: it may name receivers.
pub const NO_POLICY: &str = "no valid policy file was read yet: the log says what is wrong with it";

/// The last valid policy; none until there was one.
pub type Latest = watch::Receiver<Option<Arc<Policy>>>;

/// The policy of a process, and what keeps it up to date until `shutdown`: to be run as a task. Without a file it is the
/// policy that says nothing. `invalid` is 1 while the file is not usable.
pub fn follow(
    path: Option<&Path>,
    invalid: Gauge,
    shutdown: CancellationToken,
) -> (Latest, impl Future<Output = ()> + Send + use<>) {
    let file = path.map(Path::to_owned);
    let known = file.is_none().then(Arc::default);
    let (sender, latest) = watch::channel(known);
    let task = async move {
        let Some(path) = file else {
            // Held, so that waiting for a change is not an error.
            shutdown.cancelled().await;
            return drop(sender);
        };
        loop {
            look(&path, &invalid, &sender).await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(READ_EVERY) => {}
            }
        }
    };
    (latest, task)
}

/// Waits for the first valid policy; none when nobody looks for one any more.
pub async fn first(latest: &mut Latest) -> Option<Arc<Policy>> {
    let known = latest.wait_for(Option::is_some).await.ok()?;
    known.clone()
}

/// Reads the file, and passes on what changed.
async fn look(path: &Path, invalid: &Gauge, sender: &watch::Sender<Option<Arc<Policy>>>) {
    let read = settled(path).await.map_err(|e| e.to_string());
    let path = path.display();
    match read.and_then(|text| Policy::parse(&text).map_err(|e| e.to_string())) {
        Ok(read) => {
            invalid.set(0);
            let changed = sender.send_if_modified(|known| {
                let changed = known.as_deref() != Some(&read);
                if changed {
                    *known = Some(Arc::new(read));
                }
                changed
            });
            if changed {
                tracing::info!(%path, "the policy is read");
            }
        }
        Err(error) => {
            let was_invalid = invalid.set(1) == 1;
            if !was_invalid {
                let counts = match *sender.borrow() {
                    Some(_) => "the one before it counts",
                    None => "nothing is done before there is one that is",
                };
                tracing::error!(%path, error, "the policy file is not usable: {counts}");
            }
        }
    }
}

/// The file as two reads in a row found it.
async fn settled(path: &Path) -> std::io::Result<String> {
    let mut before = tokio::fs::read_to_string(path).await?;
    loop {
        tokio::time::sleep(AGREE_AFTER).await;
        let text = tokio::fs::read_to_string(path).await?;
        if text == before {
            return Ok(text);
        }
        before = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const OPEN: &str = "rules: [{namespaceSelector: {}, egress: {openCIDRs: [127.0.0.0/8]}}]";

    const MISSPELT: &str = "rules: [{namespaceSelector: {}, egres: {}}]";

    /// How many ranges are open; none without a policy.
    fn open(policy: &Latest) -> Option<usize> {
        let policy = policy.borrow();
        let rules = policy.as_ref()?.rules_for(&BTreeMap::new());
        Some(rules.egress.open_cidrs.len())
    }

    #[test]
    fn the_examples_are_policies() {
        for name in ["policy.yaml", "policy-with-everything.yaml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
            let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
            assert_ne!(policy, Policy::default(), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_file_changes_nothing_and_shows_in_the_metric() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, OPEN).unwrap();
        let invalid = Gauge::default();
        let shutdown = CancellationToken::new();
        let (mut policy, task) = follow(Some(&path), invalid.clone(), shutdown.clone());
        let task = tokio::spawn(task);

        policy.changed().await.unwrap();
        assert_eq!((open(&policy), invalid.get()), (Some(1), 0));
        std::fs::write(&path, MISSPELT).unwrap();
        while invalid.get() == 0 {
            tokio::time::sleep(READ_EVERY).await;
        }
        assert_eq!(open(&policy), Some(1), "the last good one counts");
        std::fs::write(&path, "").unwrap();
        policy.changed().await.unwrap();
        assert_eq!((open(&policy), invalid.get()), (Some(0), 0));
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_being_written_is_not_read_before_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, OPEN).unwrap();
        let shutdown = CancellationToken::new();
        let (mut policy, task) = follow(Some(&path), Gauge::default(), shutdown.clone());
        let task = tokio::spawn(task);
        policy.changed().await.unwrap();

        let more = OPEN.replace("127.0.0.0/8", "127.0.0.0/8, 10.0.0.0/8");
        // Empty for longer than a look takes to begin, and shorter than it takes to believe what it read.
        tokio::time::sleep(READ_EVERY - AGREE_AFTER / 2).await;
        std::fs::write(&path, "").unwrap();
        tokio::time::sleep(AGREE_AFTER).await;
        std::fs::write(&path, more).unwrap();
        policy.changed().await.unwrap();
        assert_eq!(
            open(&policy),
            Some(2),
            "an empty file is a policy too, and not one that was meant"
        );
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_never_valid_is_no_policy_and_none_at_all_is_one_that_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        let invalid = Gauge::default();
        let shutdown = CancellationToken::new();
        let (mut policy, task) = follow(Some(&path), invalid.clone(), shutdown.clone());
        let task = tokio::spawn(task);
        for wrong in [None, Some(MISSPELT)] {
            if let Some(text) = wrong {
                std::fs::write(&path, text).unwrap();
            }
            let waited = tokio::time::timeout(3 * READ_EVERY, first(&mut policy)).await;
            assert!(waited.is_err(), "{wrong:?}");
            assert_eq!((open(&policy), invalid.get()), (None, 1), "{wrong:?}");
        }
        std::fs::write(&path, OPEN).unwrap();
        assert!(first(&mut policy).await.is_some());
        assert_eq!((open(&policy), invalid.get()), (Some(1), 0));
        shutdown.cancel();
        task.await.unwrap();

        let (mut policy, _task) = follow(None, invalid.clone(), CancellationToken::new());
        assert_eq!(first(&mut policy).await.as_deref(), Some(&Policy::default()));
    }
}
