//! What the environment says of traces: the variables that OpenTelemetry defines for its SDKs and exporters. Pure.
//!
//! The libraries read most of them by themselves and pass over what they do not know. Invariant: what they would pass over
//! is told before they read it, and no value is in what is told: headers hold credentials.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// Signals have a variable of their own each, which counts before the one for all.
const ENDPOINT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOL: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
const TIMEOUT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
const COMPRESSION: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
];
const CERTIFICATE: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];

/// How long one request to a collector may take, unless the environment says so.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// A variable that cannot be used, and what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {wanted}")]
pub struct Invalid {
    name: &'static str,
    wanted: &'static str,
}

/// What of the environment we look at ourselves; the rest the libraries read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A file of authorities that the collector's certificate may be of, beside the public ones.
    pub certificate: Option<PathBuf>,
    /// How long one request to it may take.
    pub timeout: Duration,
    pub service_name: Option<String>,
}

impl Settings {
    /// None where no collector is named, or traces are switched off.
    pub fn read(environment: impl Fn(&str) -> Option<String>) -> Result<Option<Settings>, Invalid> {
        // Empty is as good as unset (OpenTelemetry's configuration, "Parsing empty value").
        let one = |name: &'static str| environment(name).filter(|value| !value.is_empty());
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, one(name)?)));
        let check = |names, wanted, good: &dyn Fn(&str) -> bool| match first(names) {
            Some((name, value)) if !good(&value) => Err(Invalid { name, wanted }),
            _ => Ok(()),
        };
        let disabled = one("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = one("OTEL_TRACES_EXPORTER");
        if disabled || exporter.as_deref() == Some("none") || first(ENDPOINT).is_none() {
            return Ok(None);
        }
        check(["OTEL_TRACES_EXPORTER"; 2], "must be otlp or none", &|value| {
            value == "otlp"
        })?;
        check(
            ENDPOINT,
            "must be a URL such as http://otel-collector.observability:4318",
            &is_url,
        )?;
        let wanted = "must be http/protobuf: collectors take it on port 4318";
        check(PROTOCOL, wanted, &|value| value == "http/protobuf")?;
        check(COMPRESSION, "must be none: spans are not compressed", &|value| {
            value == "none"
        })?;
        check(
            HEADERS,
            "must be pairs such as key=value, with commas between them",
            &are_pairs,
        )?;
        check(TIMEOUT, "must be a number of milliseconds", &|value| {
            value.parse::<u64>().is_ok()
        })?;
        let wanted = "must be always_on, always_off, traceidratio, or one of them after parentbased_";
        check(["OTEL_TRACES_SAMPLER"; 2], wanted, &|value| SAMPLERS.contains(&value))?;
        if one("OTEL_TRACES_SAMPLER").is_some_and(|sampler| sampler.ends_with("traceidratio")) {
            let name = "OTEL_TRACES_SAMPLER_ARG";
            if !one(name).is_some_and(|value| is_ratio(&value)) {
                let wanted = "must be the part of traces to keep, from 0 to 1, such as 0.1";
                return Err(Invalid { name, wanted });
            }
        }
        Ok(Some(Settings {
            certificate: first(CERTIFICATE).map(|(_, path)| path.into()),
            timeout: first(TIMEOUT)
                .and_then(|(_, value)| value.parse().ok())
                .map_or(DEFAULT_TIMEOUT, Duration::from_millis),
            service_name: one("OTEL_SERVICE_NAME"),
        }))
    }
}

fn is_url(value: &str) -> bool {
    Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn are_pairs(value: &str) -> bool {
    let mut pairs = value.split_terminator(',').map(|pair| pair.split_once('='));
    pairs.all(|pair| pair.is_some_and(|(key, _)| http::HeaderName::try_from(key.trim()).is_ok()))
}

fn is_ratio(value: &str) -> bool {
    value.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    fn read(environment: &[(&str, &str)]) -> Result<Option<Settings>, Invalid> {
        Settings::read(|name| {
            let found = environment.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_a_collector_or_where_they_are_switched_off_there_are_no_traces() {
        for environment in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_TRACES_SAMPLER", "always_on"),
            ],
            &[COLLECTOR, ("OTEL_SDK_DISABLED", "true")],
            &[COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(read(environment), Ok(None), "{environment:?}");
        }
    }

    #[test]
    fn what_concerns_traces_alone_counts_before_what_concerns_everything() {
        let settings = read(&[
            COLLECTOR,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "5000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.crt"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc==,x-tenant=a"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_SERVICE_NAME", "webhooks"),
        ]);
        let wanted = Settings {
            certificate: Some("/etc/ca.crt".into()),
            timeout: Duration::from_millis(2500),
            service_name: Some("webhooks".into()),
        };
        assert_eq!(settings, Ok(Some(wanted)));
    }

    #[test]
    fn what_the_libraries_would_pass_over_is_told_without_its_value() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,s3cret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_TRACES_EXPORTER", "jaeger"),
            ("OTEL_TRACES_SAMPLER", "xray"),
        ] {
            let told = read(&[(name, value), COLLECTOR]).expect_err(value).to_string();
            assert!(told.starts_with(name) && !told.contains(value), "{told}");
        }
        for ratio in ["", "2", "-0.1", "NaN", "all"] {
            let environment = [
                COLLECTOR,
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", ratio),
            ];
            let told = read(&environment).expect_err(ratio).to_string();
            assert!(told.starts_with("OTEL_TRACES_SAMPLER_ARG must be"), "{told}");
        }
    }
}
