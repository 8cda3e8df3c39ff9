//! Namespaces that are gone: what the store keeps of them goes with them.
//!
//! Owns how long one must be away; knows nothing of what is kept. One is gone when two looks in a row found it missing, so
//! there was time to bury what was pending. What the store has is asked each time: nothing is missed over a restart.
//! Invariant: before every watch has synced, absence means nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::registry::Registry;

/// The least time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Namespaces of one transaction.
const AT_ONCE: usize = 64;

/// A task of its own.
pub(super) async fn purge(core: Arc<Core>, registry: Arc<Registry>) {
    let every = core.bury_after.max(LOOK_EVERY);
    let mut missing = HashSet::new();
    loop {
        core.clock.sleep_until(core.clock.now().plus(every)).await;
        let Some(existing) = registry.namespace_uids() else {
            continue;
        };
        let known = match core.queue.namespaces(core.fence).await {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, "failed to look for namespaces that are gone; tried again");
                continue;
            }
        };
        let now_missing: HashSet<String> = known
            .into_iter()
            .filter(|uid| !existing.contains(uid.as_str()))
            .collect();
        let gone: Vec<String> = now_missing.intersection(&missing).cloned().collect();
        missing = now_missing;
        for some in gone.chunks(AT_ONCE) {
            match core.queue.purge(core.fence, some.to_vec()).await {
                Ok(0) => {}
                Ok(endpoints) => tracing::info!(
                    namespace_uids = ?some,
                    endpoints,
                    "namespaces are gone: what is kept of their endpoints goes"
                ),
                Err(error) => tracing::warn!(%error, "failed to purge namespaces that are gone; tried again"),
            }
        }
    }
}
