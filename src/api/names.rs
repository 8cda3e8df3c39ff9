//! Names that are part of the interface: the group, annotations, labels, Secrets.
//!
//! Owns spelling only. Invariant: nothing else in the project writes these as literals.

/// The API group.
pub const GROUP: &str = "tidings.dev";
/// The one version.
pub const VERSION: &str = "v1alpha1";
/// Field manager of the controller.
pub const CONTROLLER: &str = "tidings-controller";
/// Field manager of the dispatcher.
pub const DISPATCHER: &str = "tidings-dispatcher";

/// Label that opens a Secret for endpoints of its namespace.
pub const USE_LABEL: &str = "tidings.dev/use";
/// The label's one valid value.
pub const USE_LABEL_VALUE: &str = "true";

/// Asks for a reconcile; any new value asks anew. So for all annotations that end in `requested-at`.
pub const RECONCILE_REQUESTED: &str = "tidings.dev/reconcile-requested-at";
/// Asks for a rotation of the signing key.
pub const ROTATE_REQUESTED: &str = "tidings.dev/rotate-requested-at";
/// Asks to stop signing with the previous key at once.
pub const REVOKE_PREVIOUS_REQUESTED: &str = "tidings.dev/revoke-previous-requested-at";
/// Asks to enable a disabled endpoint.
pub const ENABLE_REQUESTED: &str = "tidings.dev/enable-requested-at";

/// Type of a Secret that Tidings generated: immutable, so it marks what may be adopted.
pub const SIGNING_SECRET_TYPE: &str = "tidings.dev/signing-key";
/// Data key of the key that is signed with first.
pub const CURRENT: &str = "current";
/// Data key of the key that is being retired.
pub const PREVIOUS: &str = "previous";
/// Data key of the public key of `current`, where it has one.
pub const PUBLIC_KEY: &str = "publicKey";
/// Annotation: public id of `current`.
pub const CURRENT_ID: &str = "tidings.dev/current-id";
/// Annotation: public id of `previous`.
pub const PREVIOUS_ID: &str = "tidings.dev/previous-id";
/// Annotation: when `current` was made, RFC 3339.
pub const CURRENT_CREATED: &str = "tidings.dev/current-created";
/// Annotation: when `previous` is retired, RFC 3339.
pub const PREVIOUS_EXPIRES: &str = "tidings.dev/previous-expires";
/// Annotation: the last rotation request that was handled.
pub const HANDLED_ROTATE: &str = "tidings.dev/handled-rotate";
/// Annotation: the last revocation request that was handled.
pub const HANDLED_REVOKE: &str = "tidings.dev/handled-revoke";
/// Annotation: names of the labels that the Secret has from `signing.secretTemplate`, separated by commas.
pub const TEMPLATE_LABELS: &str = "tidings.dev/template-labels";
/// Annotation: the same of its annotations.
pub const TEMPLATE_ANNOTATIONS: &str = "tidings.dev/template-annotations";

/// The longest name of an endpoint or subscription: names derived from it stay within 63 characters.
pub const MAX_NAME: usize = 52;

/// What stands in the store for the endpoint of a subscription whose messages are pulled. No object has such a name.
pub fn pulled(subscription: &str) -> String {
    format!("{subscription}{PULLED}")
}

/// Whether it stands for the endpoint of a subscription whose messages are pulled.
pub fn is_pulled(endpoint: &str) -> bool {
    endpoint.ends_with(PULLED)
}

const PULLED: &str = "/pull";

/// The Secret that Tidings generates for an endpoint.
pub fn signing_secret(endpoint: &str) -> String {
    format!("{endpoint}-signing")
}
