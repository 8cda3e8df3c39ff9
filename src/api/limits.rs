//! What an endpoint's receiver is spared: rate, breaker, disabling. Doc comments here are what `kubectl explain` shows.

use std::borrow::Cow;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::duration::ApiDuration;

/// How many requests the receiver wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// So many requests in each per, from 1 to 10000. After a quiet time as many may go out at once; then they are spread
    /// evenly. Messages wait for their turn and use up no attempt.
    #[schemars(range(min = 1, max = 10000))]
    pub requests: i32,
    /// The time that requests counts for: 1s to 1h.
    #[serde(default = "default_per")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("rateLimit.per must be from 1s to 1h"))]
    pub per: ApiDuration,
}

/// When attempts stop because the receiver is broken, and how it is probed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.probeAfter) <= duration(self.probeAfterMax)").message("circuitBreaker.probeAfter must not be longer than circuitBreaker.probeAfterMax (10m unless set)"))]
pub struct CircuitBreaker {
    /// Faults of the receiver in a row that open it, from 1 to 100: network faults and the statuses 401, 403, 404, 407,
    /// 408, 429 and 5xx. While it is open only one attempt at a time goes out, the probe, and none is used up.
    #[serde(default = "default_open_after")]
    #[schemars(range(min = 1, max = 100))]
    pub open_after: i32,
    /// The wait before the first probe: 1s to 1h. It doubles with each probe that fails.
    #[serde(default = "default_probe_after")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("circuitBreaker.probeAfter must be from 1s to 1h"))]
    pub probe_after: ApiDuration,
    /// The longest wait between two probes: 1s to 1h.
    #[serde(default = "default_probe_after_max")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("circuitBreaker.probeAfterMax must be from 1s to 1h"))]
    pub probe_after_max: ApiDuration,
}

/// A duration, or Never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DisableAfter(pub String);

impl DisableAfter {
    /// What never disables.
    pub const NEVER: &str = "Never";

    /// The duration; none for Never.
    pub fn duration(&self) -> Option<ApiDuration> {
        (self.0 != Self::NEVER).then(|| ApiDuration::from(self.0.as_str()))
    }
}

impl Default for DisableAfter {
    fn default() -> DisableAfter {
        DisableAfter("120h".to_owned())
    }
}

impl JsonSchema for DisableAfter {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "DisableAfter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": "^(Never|([0-9]{1,5}(h|m|s|ms)){1,4})$",
        })
    }
}

impl Default for CircuitBreaker {
    fn default() -> CircuitBreaker {
        CircuitBreaker {
            open_after: default_open_after(),
            probe_after: default_probe_after(),
            probe_after_max: default_probe_after_max(),
        }
    }
}

fn default_per() -> ApiDuration {
    ApiDuration::from("1s")
}

fn default_open_after() -> i32 {
    5
}

fn default_probe_after() -> ApiDuration {
    ApiDuration::from("30s")
}

fn default_probe_after_max() -> ApiDuration {
    ApiDuration::from("10m")
}
