//! The watched objects of a kind: one store for each watch, read as one.

use std::sync::Arc;

use kube::Resource;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};

use super::index::{By, Index, Indexed};
use crate::kubernetes::scope::{Part, Scope};

/// The stores.
pub struct Stored<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    parts: Vec<(Part, Store<K>)>,
    /// Its watches keep it.
    pub index: Index,
}

impl<K> Stored<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    /// Empty ones, and their writing halves.
    pub fn of(scope: &Scope) -> (Stored<K>, Vec<(Part, Writer<K>)>) {
        let parts = scope.parts().into_iter().map(|part| {
            let (store, writer) = reflector::store();
            ((part.clone(), store), (part, writer))
        });
        let (parts, writers) = parts.unzip();
        let index = Index::default();
        (Stored { parts, index }, writers)
    }

    /// One object; a namespace by its name.
    pub fn get(&self, of: &ObjectRef<K>) -> Option<Arc<K>> {
        let place = of.namespace.as_ref().unwrap_or(&of.name);
        let (_, store) = self.parts.iter().find(|(part, _)| part.has(place))?;
        store.get(of)
    }

    /// All of them.
    pub fn state(&self) -> Vec<Arc<K>> {
        self.parts.iter().flat_map(|(_, store)| store.state()).collect()
    }

    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, store)| store.len()).sum()
    }

    /// Waits for the first complete list of every watch.
    pub async fn listed(&self) -> anyhow::Result<()> {
        for (_, store) in &self.parts {
            store.wait_until_ready().await?;
        }
        Ok(())
    }
}

impl<K> Stored<K>
where
    K: Indexed + Clone + Send + Sync + 'static,
{
    /// Those of a namespace that name it.
    pub fn find(&self, namespace: &str, by: &By) -> Vec<Arc<K>> {
        let names = self.index.find(namespace, by).into_iter();
        names
            .filter_map(|name| self.get(&ObjectRef::new(&name).within(namespace)))
            .collect()
    }
}
