//! What an endpoint says of a Service that it sends to. Doc comments here are what `kubectl explain` shows.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Service in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Name of the Service. It must have a selector and a cluster address: what is of type ExternalName, headless or without
    /// a selector could lead anywhere and is not sent to.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("write the name of a Service of this namespace as it is in its metadata, as in crm: for a host name use url"))]
    pub name: String,
    /// A port of the Service (one of its spec.ports[].port, TCP), not of its pods.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Path of every request, and perhaps a query: begins with /.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("serviceRef.path must begin with /, as in /hooks/leads"),
        validation = Rule::new("!self.contains('#')").message("serviceRef.path must not have a fragment: remove # and what follows, it is never sent")
    )]
    pub path: String,
    /// HTTP: nothing is encrypted between the dispatcher and the Service. HTTPS: the certificate must be for
    /// <name>.<namespace>.svc, by a public root or by tls.caBundle.
    #[serde(default)]
    pub scheme: ServiceScheme,
}

/// How a Service is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ServiceScheme {
    #[default]
    Http,
    Https,
}

fn root() -> String {
    "/".to_owned()
}
