use proptest::prelude::*;

use super::*;
use crate::api::resolve::{Delivery, Format};

fn subscription(event_types: Vec<TypePattern>, sources: Vec<String>) -> Arc<ResolvedSubscription> {
    Arc::new(ResolvedSubscription {
        namespace: "shop".into(),
        name: "s".into(),
        generation: 1,
        delivery: Delivery::Push { endpoint: "e".into() },
        event_types,
        sources,
        filter: None,
        format: Format::StandardWebhooks,
        request: Default::default(),
        dead_letter: None,
        retry: None,
        suspend: false,
    })
}

fn found(index: &Index<usize>, event_type: &str, source: &str) -> Vec<usize> {
    index.find(event_type, source).copied().collect()
}

#[test]
fn a_prefix_spans_dots_and_does_not_match_its_own_stem() {
    let prefix = vec![TypePattern::Prefix("lead.".into())];
    let index = Index::new([(subscription(prefix, vec![]), 0)]);
    assert_eq!(found(&index, "lead.qualified", "/a"), [0]);
    assert_eq!(found(&index, "lead.crm.qualified", "/a"), [0]);
    assert!(found(&index, "lead", "/a").is_empty());
    assert!(found(&index, "leader.x", "/a").is_empty());
}

#[test]
fn a_subscription_that_matches_twice_is_found_once_and_in_order() {
    let all = vec![
        TypePattern::Any,
        TypePattern::Exact("a.b".into()),
        TypePattern::Prefix("a.".into()),
    ];
    let index = Index::new([
        (subscription(vec![TypePattern::Exact("a.b".into())], vec![]), 0),
        (subscription(all.clone(), vec!["/x".into(), "/x".into()]), 1),
        (subscription(all, vec![]), 2),
    ]);
    assert_eq!(found(&index, "a.b", "/x"), [0, 1, 2]);
    assert_eq!(found(&index, "a.b", "/y"), [0, 2]);
}

fn matches(subscription: &ResolvedSubscription, event_type: &str, source: &str) -> bool {
    let by_type = subscription.event_types.iter().any(|pattern| match pattern {
        TypePattern::Any => true,
        TypePattern::Exact(exact) => exact == event_type,
        TypePattern::Prefix(prefix) => event_type.starts_with(prefix.as_str()),
    });
    by_type && (subscription.sources.is_empty() || subscription.sources.iter().any(|s| s == source))
}

fn pattern() -> impl Strategy<Value = TypePattern> {
    prop_oneof![
        1 => Just(TypePattern::Any),
        4 => "[aé.]{1,4}".prop_map(TypePattern::Exact),
        4 => "[aé.]{0,3}\\.".prop_map(TypePattern::Prefix),
    ]
}

proptest! {
    #[test]
    fn the_index_finds_what_a_scan_finds(
        subscriptions in prop::collection::vec(
            (prop::collection::vec(pattern(), 1..4), prop::collection::vec("/[ab]", 0..3)), 0..24),
        event_type in "[aé.]{1,5}", source in "/[abc]",
    ) {
        let subscriptions: Vec<_> = subscriptions.into_iter().map(|(t, s)| subscription(t, s)).collect();
        let index = Index::new(subscriptions.iter().cloned().zip(0..));
        let scan: Vec<usize> = (0..subscriptions.len())
            .filter(|i| matches(&subscriptions[*i], &event_type, &source))
            .collect();
        prop_assert_eq!(found(&index, &event_type, &source), scan);
    }
}
