//! One binary for all that needs a real Kubernetes, processes or sockets, by promise, not by module. Tests share one
//! cluster where they can (`Cluster::shared`) and use namespaces of their own; those that break things start their own.

mod it {
    mod admin;
    mod argocd;
    mod away;
    mod bodies;
    mod chart;
    mod credentials;
    mod disk;
    mod dns;
    mod durability;
    mod event_types;
    mod filters;
    mod formats;
    mod ground;
    mod guard;
    mod handshake;
    mod ingest;
    mod ingest_tls;
    mod inspect;
    mod isolation;
    mod jwks;
    mod keys;
    mod leader;
    mod leaks;
    mod lifecycle;
    mod limits;
    mod load;
    mod local;
    mod manifests;
    mod messages;
    mod misbehaving;
    mod oauth2;
    mod ordering;
    mod outage;
    mod policy;
    mod pulling;
    mod quotas;
    mod ready;
    mod receiver;
    mod recipes;
    mod replays;
    mod requests;
    mod rotation;
    mod rules;
    mod scan;
    mod schemes;
    mod secrets;
    mod shutdown;
    mod signatures;
    mod signing_secret;
    mod status;
    mod success;
    mod team;
    mod way;
}
