//! The API server as its administrator sees it.
//!
//! Only for looking. What Tidings may do is never asked here: its processes run under their own ServiceAccounts.

use std::fmt::Debug;

use futures::{Stream, StreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tidings_cluster::Cluster;

/// A client with the administrator's certificate.
pub async fn client(cluster: &Cluster) -> Client {
    // An error means that another test of this process chose it before.
    let _chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig_path()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Every form that objects of a kind take from now on, in all namespaces.
pub fn watch<K>(client: &Client) -> impl Stream<Item = K> + Send + Unpin + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .filter_map(|object| std::future::ready(object.ok()))
        .boxed()
}
