//! The administrator's policy file, as a process reads it: at its start, and again whenever it changes.
//!
//! Owns reading; what a policy says is `api::policy`. Invariant: a file that is missing or wrong changes nothing, and says
//! so once in the log and for as long as it lasts in the metric.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::policy::Policy;

/// How often the file is read: a mounted ConfigMap changes within a minute anyway.
pub const READ_EVERY: Duration = Duration::from_secs(5);

/// The file, and whether it was usable when it was last read.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    path: PathBuf,
    /// 1 while the file is not usable and the policy before it counts.
    invalid: Gauge,
}

impl PolicyFile {
    /// `invalid` is 1 while the file is not usable.
    pub fn new(path: &Path, invalid: Gauge) -> PolicyFile {
        PolicyFile {
            path: path.to_owned(),
            invalid,
        }
    }

    /// What the file says now; none while it is not usable.
    pub async fn read(&self) -> Option<Policy> {
        let read = tokio::fs::read_to_string(&self.path).await.map_err(|e| e.to_string());
        match read.and_then(|text| Policy::parse(&text).map_err(|e| e.to_string())) {
            Ok(policy) => {
                self.invalid.set(0);
                Some(policy)
            }
            Err(error) => {
                if self.invalid.set(1) == 0 {
                    let path = self.path.display();
                    tracing::error!(%path, error, "the policy file is not usable: the one before it counts");
                }
                None
            }
        }
    }

    /// Reads it again and again until `shutdown`, and passes on what changed.
    pub async fn follow(self, policy: watch::Sender<Arc<Policy>>, shutdown: CancellationToken) {
        loop {
            if let Some(read) = self.read().await {
                let changed = policy.send_if_modified(|known| {
                    let changed = **known != read;
                    if changed {
                        *known = Arc::new(read);
                    }
                    changed
                });
                if changed {
                    tracing::info!(path = %self.path.display(), "the policy changed");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(READ_EVERY) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const OPEN: &str = "rules: [{namespaceSelector: {}, egress: {openCIDRs: [127.0.0.0/8]}}]";

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
        let (sender, mut policy) = watch::channel(Arc::new(Policy::default()));
        let shutdown = CancellationToken::new();
        let file = PolicyFile::new(&path, invalid.clone());
        let task = tokio::spawn(file.follow(sender, shutdown.clone()));
        let open = |policy: &Policy| policy.rules_for(&BTreeMap::new()).egress.open_cidrs.len();

        policy.changed().await.unwrap();
        assert_eq!((open(&policy.borrow_and_update()), invalid.get()), (1, 0));
        std::fs::write(&path, "rules: [{namespaceSelector: {}, egres: {}}]").unwrap();
        while invalid.get() == 0 {
            tokio::time::sleep(READ_EVERY).await;
        }
        assert_eq!(open(&policy.borrow()), 1, "the last good one counts");
        std::fs::write(&path, "").unwrap();
        policy.changed().await.unwrap();
        assert_eq!((open(&policy.borrow_and_update()), invalid.get()), (0, 0));
        shutdown.cancel();
        task.await.unwrap();
    }
}
