//! Outcomes, from memory into the store, in batches.
//!
//! Owns the order of recording; knows nothing of what outcomes mean. Invariant: an outcome is handed to the store until it
//! says that it has it; what the store refuses stays here, first.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::queue::{QueueError, Settlement};

/// Outcomes of one call: about what commits together.
const BATCH: usize = 1_024;
/// After a refusal: the store tries its disk each second.
const AGAIN: Duration = Duration::from_secs(1);
/// While draining, how often it is looked whether all is recorded.
const LOOK: Duration = Duration::from_millis(5);

/// Records outcomes as they come. One call at a time: while it commits, the next batch gathers by itself.
pub(super) async fn settle(core: Arc<Core>) {
    loop {
        let batch: Vec<Settlement> = {
            let mut state = core.lock();
            let take = state.outbox.len().min(BATCH);
            state.settling = take;
            state.outbox.drain(..take).collect()
        };
        if batch.is_empty() {
            core.settler.notified().await;
            continue;
        }
        match core.queue.settle(core.fence, batch.clone()).await {
            Ok(answers) => {
                let now = core.clock.now();
                core.step(|state| {
                    state.settling = 0;
                    state.recorded(&batch, &answers, now);
                });
            }
            Err(error) => {
                tracing::warn!(%error, outcomes = batch.len(), "failed to record outcomes; kept and tried again");
                {
                    let mut state = core.lock();
                    state.settling = 0;
                    state.outbox.splice(0..0, batch);
                }
                if give_up_if_lost(&core, &error) {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Whether the engine cannot go on after this error; then nothing more is started.
pub(super) fn give_up_if_lost(core: &Core, error: &QueueError) -> bool {
    let lost = matches!(error, QueueError::Fenced | QueueError::Closed);
    if lost {
        core.lock().draining = true;
        core.lost.cancel();
    }
    lost
}

/// Waits until every outcome is recorded (true), or cannot be any more.
pub(super) async fn all_recorded(core: &Core) -> bool {
    while core.lock().unrecorded() > 0 {
        if core.lost.is_cancelled() {
            return false;
        }
        core.settler.notify_one();
        tokio::time::sleep(LOOK).await;
    }
    true
}
