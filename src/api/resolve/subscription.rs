//! An `EventSubscription` to a [`ResolvedSubscription`].

use std::sync::Arc;

use kube::ResourceExt as _;

use super::limits::duration;
use super::request::{dead_letter, request};
use super::{Delivery, Format, PullPolicy, RequestForm, ResolvedSubscription, TypePattern, Unresolved, resolve_retry};
use crate::api::conditions::reasons;
use crate::api::subscription::{DeliveryMode, PayloadFormat};
use crate::api::{EventSubscription, EventSubscriptionSpec};
use crate::expression::{Expression, Role};

/// The subscription as matching and rendering use it, or why it cannot be used. Whether its endpoint exists is not asked.
pub fn resolve_subscription(subscription: &EventSubscription) -> Result<ResolvedSubscription, Unresolved> {
    let spec = &subscription.spec;
    if spec.event_types.is_empty() {
        return Err(Unresolved::invalid("eventTypes must name at least one type, or *"));
    }
    Ok(ResolvedSubscription {
        namespace: subscription.namespace().unwrap_or_default(),
        name: subscription.name_any(),
        generation: subscription.metadata.generation.unwrap_or_default(),
        delivery: delivery(spec)?,
        event_types: spec
            .event_types
            .iter()
            .map(|text| pattern(text))
            .collect::<Result<_, _>>()?,
        sources: spec.sources.clone(),
        filter: spec.filter.as_deref().map(filter).transpose()?,
        format: match spec.format {
            PayloadFormat::StandardWebhooks => Format::StandardWebhooks,
            PayloadFormat::CloudEventsStructured => Format::CloudEventsStructured,
            PayloadFormat::CloudEventsBinary => Format::CloudEventsBinary,
            PayloadFormat::Raw => Format::Raw,
        },
        request: form(spec)?,
        dead_letter: spec.dead_letter.as_deref().map(dead_letter).transpose()?,
        retry: spec.retry.as_ref().map(resolve_retry).transpose()?,
        suspend: spec.suspend,
    })
}

fn delivery(spec: &EventSubscriptionSpec) -> Result<Delivery, Unresolved> {
    match (spec.delivery, &spec.endpoint_ref) {
        (DeliveryMode::Push, Some(endpoint)) => Ok(Delivery::Push {
            endpoint: endpoint.name.clone(),
        }),
        (DeliveryMode::Push, None) => Err(Unresolved::invalid("endpointRef must name a WebhookEndpoint")),
        (DeliveryMode::Pull, _) => {
            let options = spec.pull.clone().unwrap_or_default();
            Ok(Delivery::Pull(PullPolicy {
                max_age: duration("pull.maxAge", &options.max_age)?,
                retention: duration("pull.retention", &options.retention)?,
            }))
        }
    }
}

fn filter(source: &str) -> Result<Expression, Unresolved> {
    Expression::compile(Role::Filter, source).map_err(|error| {
        Unresolved::stalled(
            reasons::INVALID_FILTER,
            format!("filter: {error}. Until it is mended the last valid filter stays in force"),
        )
    })
}

/// The subscription as it is in force while what is written is invalid, for the reason `why`: with the last valid filter and
/// request in place of invalid ones, those of `before`; a filter also as status tells of it. None where there never was a
/// valid filter, or where something else is wrong.
pub fn resolve_with_last(
    subscription: &EventSubscription,
    why: &Unresolved,
    before: Option<&ResolvedSubscription>,
) -> Option<ResolvedSubscription> {
    let mut mended = subscription.clone();
    let mut reason = why.reason;
    if reason == reasons::INVALID_FILTER {
        mended.spec.filter = match before {
            Some(before) => before.filter.as_ref().map(|filter| filter.source().to_owned()),
            None => subscription.status.as_ref()?.last_valid.as_ref()?.filter.clone(),
        };
        match resolve_subscription(&mended) {
            Ok(resolved) => return Some(resolved),
            Err(unresolved) => reason = unresolved.reason,
        }
    }
    if reason != reasons::INVALID_REQUEST {
        return None;
    }
    mended.spec.request = None;
    mended.spec.dead_letter = None;
    let resolved = resolve_subscription(&mended).ok()?;
    let spec = &subscription.spec;
    Some(ResolvedSubscription {
        // Without one that is known messages wait: another request than its own would be wrong.
        request: form(spec).unwrap_or_else(|_| before.map_or(RequestForm::Unknown, |before| before.request.clone())),
        dead_letter: match spec.dead_letter.as_deref().map(dead_letter).transpose() {
            Ok(dead_letter) => dead_letter,
            Err(_) => before.and_then(|before| before.dead_letter.clone()),
        },
        ..resolved
    })
}

fn form(spec: &EventSubscriptionSpec) -> Result<RequestForm, Unresolved> {
    Ok(match &spec.request {
        Some(shape) => RequestForm::Shaped(Arc::new(request(shape)?)),
        None => RequestForm::Plain,
    })
}

fn pattern(text: &str) -> Result<TypePattern, Unresolved> {
    let is_plain = |text: &str| !text.is_empty() && !text.contains(|c: char| c == '*' || c.is_whitespace());
    if text == "*" {
        return Ok(TypePattern::Any);
    }
    if let Some(prefix) = text.strip_suffix('*')
        && prefix.len() > 1
        && prefix.ends_with('.')
        && is_plain(prefix)
    {
        return Ok(TypePattern::Prefix(prefix.to_owned()));
    }
    if is_plain(text) {
        return Ok(TypePattern::Exact(text.to_owned()));
    }
    Err(Unresolved::invalid(format!(
        "eventTypes: {text:?} must be an exact type (lead.qualified), a prefix that ends in .* (lead.*), or *"
    )))
}
