//! When a failed message is tried again, for endpoints and subscriptions. Doc comments here are what `kubectl explain`
//! shows.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::duration::ApiDuration;

/// When a failed message is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.exponential) || self.schedule == ['1s', '10s', '60s', '300s']").message("retry needs one of schedule and exponential: remove one of them"),
    validation = Rule::new("has(self.exponential) || self.schedule.map(wait, duration(wait)).sum() <= duration(self.maxAge)").message("the waits in retry.schedule (1s, 10s, 60s, 300s unless set: 371s) must not add up to more than retry.maxAge (72h unless set): shorten the one or raise the other")
)]
pub struct Retry {
    /// Each entry is the wait after the attempt before it, from 100ms to 24h; there is one attempt more than waits. At most
    /// 32 waits, maxAge in all. An empty list means a single attempt.
    #[serde(default = "default_schedule")]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.all(wait, duration(wait) >= duration('100ms') && duration(wait) <= duration('24h'))").message("each wait in retry.schedule must be from 100ms to 24h"),
        merge_strategy = ListMerge::Atomic
    )]
    pub schedule: Vec<ApiDuration>,
    /// Waits that grow by a factor, instead of schedule, which then does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponential: Option<Exponential>,
    /// Adds up to this many percent to each wait, so that messages that failed together do not return together.
    #[serde(default = "default_jitter")]
    #[schemars(range(min = 0, max = 100))]
    pub jitter: i32,
    /// The longest wait that a receiver may ask for with Retry-After: 1s to 24h.
    #[serde(default = "default_retry_after_max")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("retry.retryAfterMax must be from 1s to 24h"))]
    pub retry_after_max: ApiDuration,
    /// Statuses, 300 to 599, that say that the receiver will never take the message: it becomes a dead letter Refused at
    /// once, and the breaker does not count it. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 300, max = 599)))]
    #[x_kube(
        validation = Rule::new("self.all(s, !(s in [408, 425, 429, 502, 503, 504]))").message("retry.neverRetry must not name 408, 425, 429, 502, 503 or 504: they say that the receiver is busy or away, not that it refuses the message"),
        validation = Rule::new("!(410 in self)").message("retry.neverRetry must not name 410: it disables the endpoint, and the message waits"),
        merge_strategy = ListMerge::Set
    )]
    pub never_retry: Vec<i32>,
    /// A message older than this is a dead letter Expired, whatever it waits for: 1m to 168h, counted from its acceptance.
    #[serde(default = "default_max_age")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')").message("retry.maxAge must be from 1m to 168h"))]
    pub max_age: ApiDuration,
}

/// Waits that grow by a factor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.initial) <= duration(self.max)").message("retry.exponential.initial must not be longer than retry.exponential.max (1h unless set)"))]
pub struct Exponential {
    /// The wait after the first attempt: 100ms to 24h.
    #[serde(default = "default_initial")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('24h')").message("retry.exponential.initial must be from 100ms to 24h"))]
    pub initial: ApiDuration,
    /// Each wait is so many times the one before: from "1" to "10", with at most two decimals, as in "1.5".
    #[serde(default = "default_factor")]
    #[schemars(length(max = 4), regex(pattern = r"^(10|[1-9](\.[0-9]{1,2})?)$"))]
    pub factor: String,
    /// No wait is longer: 100ms to 24h.
    #[serde(default = "default_max")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('24h')").message("retry.exponential.max must be from 100ms to 24h"))]
    pub max: ApiDuration,
    /// Attempts in all, 1 to 64. maxAge may end a message before.
    #[schemars(range(min = 1, max = 64))]
    pub attempts: i32,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            schedule: default_schedule(),
            exponential: None,
            jitter: default_jitter(),
            retry_after_max: default_retry_after_max(),
            never_retry: Vec::new(),
            max_age: default_max_age(),
        }
    }
}

/// Five attempts within 6 minutes and 11 seconds.
fn default_schedule() -> Vec<ApiDuration> {
    ["1s", "10s", "60s", "300s"].map(ApiDuration::from).to_vec()
}

fn default_jitter() -> i32 {
    10
}

fn default_retry_after_max() -> ApiDuration {
    ApiDuration::from("1h")
}

/// Three days outlast a weekend.
fn default_max_age() -> ApiDuration {
    ApiDuration::from("72h")
}

fn default_initial() -> ApiDuration {
    ApiDuration::from("1s")
}

fn default_factor() -> String {
    "2".to_owned()
}

fn default_max() -> ApiDuration {
    ApiDuration::from("1h")
}
