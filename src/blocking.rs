//! Computing that takes long enough for others to notice, on threads of a runtime.
//!
//! Invariant: while it runs, the runtime's other tasks go on.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work` here, and hands this thread's other tasks to another one meanwhile, where there is a runtime with more than
/// one. Costs some microseconds: for work that may take a millisecond. Within itself it costs nothing.
pub fn beside_the_worker<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}
