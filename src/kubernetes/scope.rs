//! Which namespaces a process watches: all of the cluster, or some by name.
//!
//! There is one watch of each kind for a [`Part`]. Invariant: of what is not watched nothing is known, so nothing there is
//! ever taken for deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

/// What one watch sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    #[default]
    All,
    One(Arc<str>),
}

/// The namespaces; none named means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    names: BTreeSet<Arc<str>>,
}

impl Scope {
    /// These, or all when there are none.
    pub fn of(names: impl IntoIterator<Item = String>) -> Scope {
        Scope {
            names: names.into_iter().map(Arc::from).collect(),
        }
    }

    /// Whether what happens in this namespace is seen.
    pub fn has(&self, namespace: &str) -> bool {
        self.names.is_empty() || self.names.contains(namespace)
    }

    /// Whether every namespace is.
    pub fn is_all(&self) -> bool {
        self.names.is_empty()
    }

    pub fn parts(&self) -> Vec<Part> {
        match self.names.is_empty() {
            true => vec![Part::All],
            false => self.names.iter().cloned().map(Part::One).collect(),
        }
    }
}

impl Part {
    /// Whether this namespace is in it.
    pub fn has(&self, namespace: &str) -> bool {
        match self {
            Part::All => true,
            Part::One(name) => **name == *namespace,
        }
    }

    /// The objects of a kind.
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned,
    {
        match self {
            Part::All => Api::all(client.clone()),
            Part::One(name) => Api::namespaced(client.clone(), name),
        }
    }

    /// What of the namespaces themselves: one that is named is all that may be asked for.
    pub fn namespaces(&self) -> watcher::Config {
        match self {
            Part::All => watcher::Config::default(),
            Part::One(name) => watcher::Config::default().fields(&format!("metadata.name={name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_named_means_all_in_one_part() {
        let all = Scope::default();
        assert!(all.is_all() && all.has("sales"));
        assert_eq!(all.parts(), [Part::All]);
        let some = Scope::of(["shop", "sales", "shop"].map(str::to_owned));
        assert!(!some.is_all() && some.has("sales") && !some.has("sale"));
        assert_eq!(some.parts(), ["sales", "shop"].map(|name| Part::One(name.into())));
        assert!(some.parts()[0].has("sales") && !some.parts()[0].has("shop"));
    }
}
