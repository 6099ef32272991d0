//! What the feed said, and the links between its parts.
//!
//! The parts come from separate watches, so in any order: an activation may name a pool that has
//! not been seen, a sandbox may come before its pool. Sandboxes belong to a pool's UID and an
//! activation means a pool's name, so that a pool that was deleted and made again under its name
//! never inherits sandboxes. Touched by the feed only; requests hold what they need themselves.

use std::collections::HashMap;
use std::sync::Arc;

use super::pool::Pool;
use super::service::Service;
use crate::core::Core;
use crate::model::{
    Activation, BootFailure, PoolConfig, PoolId, PoolName, SandboxConfig, ServiceKey,
};

/// All services and pools.
#[derive(Debug)]
pub(crate) struct Registry {
    core: Arc<Core>,
    services: HashMap<ServiceKey, Entry>,
    pools: HashMap<Arc<str>, Arc<Pool>>,
    /// The UID that bears a name at present. Pools known from sandboxes only are not in it.
    names: HashMap<PoolName, Arc<str>>,
    /// Services by the pool their activation names. One each: the name is derived from the service.
    followers: HashMap<PoolName, ServiceKey>,
}

#[derive(Debug)]
struct Entry {
    service: Arc<Service>,
    activation: Option<Activation>,
}

impl Registry {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            services: HashMap::new(),
            pools: HashMap::new(),
            names: HashMap::new(),
            followers: HashMap::new(),
        }
    }

    /// Services and pools known.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.services.len(), self.pools.len())
    }

    /// The service of this key, whether it has been activated or not.
    pub(crate) fn service(&mut self, key: &ServiceKey) -> Arc<Service> {
        Arc::clone(&self.entry(key).service)
    }

    /// Forgets a service that nobody speaks of any more. To be called after a route let go of it.
    pub(crate) fn release(&mut self, key: &ServiceKey) {
        let is_unused = self.services.get(key).is_some_and(|entry| {
            entry.activation.is_none() && Arc::strong_count(&entry.service) == 1
        });
        if is_unused {
            self.services.remove(key);
        }
    }

    pub(crate) fn activate(&mut self, key: &ServiceKey, activation: Activation) {
        let entry = self.entry(key);
        let previous = entry.activation.as_ref();
        let is_stale = previous.is_some_and(|previous| {
            previous.app_uid == activation.app_uid && previous.epoch > activation.epoch
        });
        if is_stale || previous == Some(&activation) {
            return;
        }
        let name = activation.pool.clone();
        if let Some(previous) = entry.activation.replace(activation) {
            self.followers.remove(&previous.pool);
        }
        self.followers.insert(name, key.clone());
        self.link(key);
    }

    pub(crate) fn deactivate(&mut self, key: &ServiceKey) {
        let Some(entry) = self.services.get_mut(key) else { return };
        if let Some(previous) = entry.activation.take() {
            self.followers.remove(&previous.pool);
        }
        self.link(key);
        self.release(key);
    }

    pub(crate) fn upsert_pool(&mut self, id: &PoolId, config: PoolConfig) {
        self.pool(id).configure(config);
        let previous = self.names.insert(id.name.clone(), Arc::clone(&id.uid));
        if previous.as_ref() != Some(&id.uid) {
            self.link_follower(&id.name);
        }
    }

    pub(crate) fn remove_pool(&mut self, id: &PoolId) {
        self.pools.remove(&id.uid);
        if self.names.get(&id.name) == Some(&id.uid) {
            self.names.remove(&id.name);
            self.link_follower(&id.name);
        }
    }

    pub(crate) fn set_failure(&self, uid: &str, failure: Option<BootFailure>) {
        if let Some(pool) = self.pools.get(uid) {
            pool.set_failure(failure);
        }
    }

    pub(crate) fn upsert_sandbox(&mut self, pool: &PoolId, sandbox: &SandboxConfig) {
        self.pool(pool).upsert_sandbox(sandbox);
    }

    pub(crate) fn remove_sandbox(&mut self, pool_uid: &str, uid: &str) {
        let Some(pool) = self.pools.get(pool_uid) else { return };
        pool.remove_sandbox(uid);
        if pool.is_placeholder() && !pool.has_members() {
            self.pools.remove(pool_uid);
        }
    }

    /// Every pool, for a first or a repeated full report.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.values()
    }

    /// The pool of this UID.
    pub(crate) fn pool_of(&self, uid: &str) -> Option<&Arc<Pool>> {
        self.pools.get(uid)
    }

    fn entry(&mut self, key: &ServiceKey) -> &mut Entry {
        self.services.entry(key.clone()).or_insert_with(|| Entry {
            service: Arc::new(Service::new(key.clone())),
            activation: None,
        })
    }

    fn pool(&mut self, id: &PoolId) -> &Arc<Pool> {
        self.pools
            .entry(Arc::clone(&id.uid))
            .or_insert_with(|| Pool::new(id.clone(), Arc::clone(&self.core)))
    }

    fn link_follower(&self, name: &PoolName) {
        if let Some(key) = self.followers.get(name) {
            self.link(key);
        }
    }

    /// Points a service to the pool its activation means.
    fn link(&self, key: &ServiceKey) {
        let Some(entry) = self.services.get(key) else { return };
        let pool = entry
            .activation
            .as_ref()
            .and_then(|activation| self.names.get(&activation.pool))
            .and_then(|uid| self.pools.get(uid))
            .cloned();
        if let Some(pool) = &pool {
            pool.open();
        }
        let is_activated = entry.activation.is_some();
        let previous = entry.service.follow(is_activated, pool.clone());
        // Closed last: whoever finds it closed then finds the new one in the service.
        if let Some(previous) = previous {
            let is_same = pool.is_some_and(|pool| Arc::ptr_eq(&pool, &previous));
            if !is_same {
                previous.close();
            }
        }
    }
}
