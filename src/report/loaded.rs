//! What this dispatcher has loaded, in its own Lease: the controller says Ready by it.
//!
//! Invariant: an annotation never names a version that the registry has not reached, nor a policy that something in it was
//! not resolved by.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::lease::{
    COMPONENT_LABEL, Claim, DISPATCHER, POLICY_ANNOTATION, dispatcher_lease_name, heartbeat, loaded_annotation, shown,
};
use crate::watch::{Done, Loaded};

/// Renews the Lease `tidings-dispatcher-<identity>` in `namespace` until `shutdown`, then vacates it.
pub async fn keep(
    client: Client,
    namespace: &str,
    identity: &str,
    mut loaded: watch::Receiver<Loaded>,
    shutdown: CancellationToken,
) {
    let claim = Claim {
        api: Api::<Lease>::namespaced(client, namespace),
        name: dispatcher_lease_name(identity),
        identity: identity.to_owned(),
        labels: BTreeMap::from([(COMPONENT_LABEL.to_owned(), DISPATCHER.to_owned())]),
    };
    let (sender, receiver) = watch::channel(annotations(&loaded.borrow_and_update()));
    let beat = heartbeat(claim, receiver, shutdown);
    let follow = async {
        while loaded.changed().await.is_ok() {
            sender.send_replace(annotations(&loaded.borrow_and_update()));
        }
        // The watches ended: the Lease goes on saying what is still loaded.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = beat => {}
        () = follow => {}
    }
}

/// The Lease's annotations: kinds without a complete list yet say zero, and a policy that was not read yet nothing, so that a
/// restarted replica does not seem to have what its predecessor of the same name had.
fn annotations(loaded: &Loaded) -> BTreeMap<String, String> {
    let versions = |done: &Done| {
        let each = done.iter().map(|(part, version)| (part, version.unwrap_or(0)));
        shown(each)
    };
    let policy = loaded.policy.as_deref().unwrap_or_default().to_owned();
    [
        ("namespaces", &loaded.namespaces),
        ("webhookendpoints", &loaded.endpoints),
        ("eventsubscriptions", &loaded.subscriptions),
        ("eventtypes", &loaded.types),
    ]
    .into_iter()
    .map(|(plural, done)| (loaded_annotation(plural), versions(done)))
    .chain([(POLICY_ANNOTATION.to_owned(), policy)])
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::scope::Part;

    #[test]
    fn a_kind_without_a_complete_list_says_zero_and_no_policy_nothing() {
        let all = |version| Done::from([(Part::All, version)]);
        let shown = annotations(&Loaded {
            namespaces: all(None),
            endpoints: all(Some(7)),
            subscriptions: all(None),
            types: all(None),
            policy: None,
        });
        assert_eq!(shown["tidings.dev/loaded-webhookendpoints"], "7");
        assert_eq!(shown["tidings.dev/loaded-eventtypes"], "0");
        assert_eq!(shown["tidings.dev/policy"], "");
        assert_eq!(shown.len(), 5);
        let loaded = Loaded {
            policy: Some("0123456789abcdef".into()),
            ..Loaded::default()
        };
        assert_eq!(annotations(&loaded)["tidings.dev/policy"], "0123456789abcdef");
    }
}
