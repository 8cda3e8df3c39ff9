//! File descriptors: how many this process may have, and how many of them are for whom.
//!
//! Invariant: what producers and receivers may have together leaves [`RESERVE`] to the store, the API server, the DNS and
//! the metrics port, so that none of them takes from the others.

use std::io;

/// For everything that is not a connection of a producer or to a receiver: less than 200 in use.
const RESERVE: usize = 256;

/// Lets this process have as many as the system allows it, and says how many that is; none where it cannot be told.
pub fn raise() -> Option<usize> {
    let raised = limit().and_then(|mut limit| {
        let (from, to) = (limit.rlim_cur, limit.rlim_max);
        if from < to {
            limit.rlim_cur = to;
            set(&limit)?;
            tracing::info!(from, to, "raised the limit of file descriptors");
        }
        Ok(())
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "failed to raise the limit of file descriptors");
    }
    let limit = limit().ok()?;
    Some(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

fn set(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: reads one struct of ours.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The limits in force: `RLIMIT_NOFILE`.
pub fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one struct of ours.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    pub producers: usize,
    pub receivers: usize,
    /// Of receivers', kept while nothing is sent.
    pub idle: usize,
}

impl Connections {
    /// The same, with no more than what this many descriptors leave: a third to producers, the others to receivers.
    pub fn within(self, descriptors: usize) -> Connections {
        let third = descriptors.saturating_sub(RESERVE).max(descriptors / 2) / 3;
        let receivers = self.receivers.min(2 * third).max(1);
        Connections {
            producers: self.producers.min(third).max(1),
            receivers,
            // Most are for what is under way.
            idle: self.idle.min(receivers / 4),
        }
    }

    /// The descriptors with which there may be all of them.
    pub fn needs(self) -> usize {
        RESERVE + 3 * self.producers.max(self.receivers.div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Connections = Connections {
        producers: 4_096,
        receivers: 8_192,
        idle: 2_048,
    };

    #[test]
    fn connections_leave_descriptors_to_the_rest_of_the_process_and_give_way_only_where_they_must() {
        assert_eq!(WANTED.within(WANTED.needs()), WANTED);
        assert_ne!(WANTED.within(WANTED.needs() - 3), WANTED);
        assert_eq!(
            WANTED.within(1_024),
            Connections {
                producers: 256,
                receivers: 512,
                idle: 128
            }
        );
        for descriptors in (4..40_000).step_by(7).chain([usize::MAX]) {
            let Connections {
                producers,
                receivers,
                idle,
            } = WANTED.within(descriptors);
            let left = descriptors.saturating_sub(producers + receivers);
            assert!(left >= RESERVE.min(descriptors / 2), "{descriptors}: {left}");
            assert!(producers > 0 && receivers > 0 && idle < receivers, "{descriptors}");
        }
    }

    #[test]
    fn what_the_system_allows_is_used() {
        let mut lower = limit().unwrap();
        lower.rlim_cur = lower.rlim_max - 1;
        set(&lower).unwrap();
        assert_eq!(raise(), usize::try_from(lower.rlim_max).ok());
        assert_eq!(limit().unwrap().rlim_cur, lower.rlim_max);
    }
}
