//! Requests of a receiver's own shape. Doc comments here are what `kubectl explain` shows.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{EndpointReference, SecretKeyReference, connection_header, signature_header};

/// The request that a receiver wants. What is an expression is CEL over event (its attributes, extensions by their names,
/// and event.data) and secrets, and is evaluated for each attempt. A message for which one fails, or gives what no request
/// can carry, becomes a dead letter Unrenderable, whose attempt says why. While a new request is invalid the last valid one
/// stays in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.body) || !has(self.headers) || !self.headers.exists(h, h.name.lowerAscii() == 'content-type')").message("the body that format makes has its own Content-Type: remove it from request.headers, or build the body in request.body")
)]
pub struct RequestShape {
    /// POST, PUT or PATCH.
    #[serde(default)]
    pub method: RequestMethod,
    /// An expression that gives a path below the endpoint's URL, and perhaps a query: 'ExternalId__c/' +
    /// event.data.id.urlEncode(). It is put behind the URL's own path, and its query behind the URL's own, so it never
    /// changes host or port and never leaves the URL's path. What comes from the event must be encoded with urlEncode():
    /// empty, . and .. segments, backslashes and what a URL cannot hold make a message Unrenderable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub path: Option<String>,
    /// Headers of this subscription's requests, at most 16. They replace the endpoint's of the same name, but none that the
    /// endpoint takes from a Secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(h, self.exists_one(g, g.name.lowerAscii() == h.name.lowerAscii()))").message("request.headers must have different names without regard to case: remove all but one")
    )]
    pub headers: Vec<RequestHeader>,
    /// An expression that builds the body, any JSON: {'text': event.data.summary, 'routing_key': secrets.routingKey}. It is
    /// sent as application/json unless request.headers say otherwise. Without it the body is the one that format makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub body: Option<String>,
    /// Values from Secrets that the expressions can read as secrets.<name>, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub secrets: Vec<RequestSecret>,
}

/// The method of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RequestMethod {
    #[default]
    #[serde(rename = "POST")]
    Post,
    #[serde(rename = "PUT")]
    Put,
    #[serde(rename = "PATCH")]
    Patch,
}

/// One header of a subscription's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestHeader {
    /// Name of the header. Names that belong to the connection or the signature are refused.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_|~-]+$"))]
    #[x_kube(validation = connection_header(""), validation = signature_header())]
    pub name: String,
    /// An expression that gives the value, text of visible ASCII characters or a whole number: 'Token token=' +
    /// secrets.token.
    #[schemars(length(min = 1, max = 2048))]
    pub value: String,
}

/// One value that expressions can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestSecret {
    /// The name under which expressions read it: secrets.<name>.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')").message("write a name that an expression can hold: letters, digits and _, as in routingKey"))]
    pub name: String,
    /// Where the value is: text in a Secret of the same namespace.
    pub secret_key_ref: SecretKeyReference,
}

/// Where it is told that a message of this subscription became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// The WebhookEndpoint, in the same namespace, that is told. It signs, retries and limits as it does otherwise.
    pub endpoint_ref: EndpointReference,
    /// What it is told. Without it {"type": "tidings.deadletter", "timestamp", "data": {"message", "event"}}, with the whole
    /// CloudEvent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<DeadLetterRequest>,
}

/// What is told of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterRequest {
    /// A CEL expression that builds the body, any JSON, over event and message (id, subscription, endpoint, attempts, reason,
    /// and lastStatusCode where a receiver answered): {'text': message.id + ' for ' + message.endpoint + ': ' +
    /// message.reason}.
    #[schemars(length(min = 1, max = 8192))]
    pub body: String,
}
