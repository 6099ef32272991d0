//! The route table: which route answers a host.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::activator::Service;
use crate::host::{HostPattern, split_label};
use crate::model::{PlainHttp, RouteConfig, RouteId, RouteTimeouts, ServiceKey};
use crate::sharded::ShardedMap;

/// A route as requests see it.
#[derive(Debug)]
pub(crate) struct Route {
    id: RouteId,
    pub(crate) service: Arc<Service>,
    pub(crate) timeouts: RouteTimeouts,
    pub(crate) request_body_max: Option<u64>,
    pub(crate) plain_http: PlainHttp,
}

/// What a look-up found.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// The route of this very host.
    Exact(Arc<Route>),
    /// The route of the wildcard above the host, or the default: the answer as long as no route
    /// of the very host is known.
    Pattern(Arc<Route>),
    /// The host is one label under a routed exact host, so it can only mean a preview of that
    /// route's app, and none is known. It is never answered by the default route.
    UnknownPreview,
    /// No route.
    Nothing,
}

/// All routes by host. Reads take no lock; see [`ShardedMap`] for the cost of a write.
#[derive(Debug)]
pub(crate) struct Table {
    exact: ShardedMap<Arc<str>, Arc<Route>>,
    /// Keyed by what follows `*.`.
    wildcard: ShardedMap<Arc<str>, Arc<Route>>,
    default: ArcSwapOption<Route>,
    /// The host each route was entered under, for updates that change it.
    hosts: Mutex<HashMap<RouteId, HostPattern>>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            exact: ShardedMap::new(),
            wildcard: ShardedMap::new(),
            default: ArcSwapOption::empty(),
            hosts: Mutex::new(HashMap::new()),
        }
    }

    /// Enters a route, and takes it off the host it had before. Returns the services it and the
    /// route that held the new host no longer refer to.
    pub(crate) fn upsert(
        &self,
        id: RouteId,
        config: &RouteConfig,
        service: Arc<Service>,
    ) -> Vec<ServiceKey> {
        let mut hosts = self.hosts.lock();
        let route = Arc::new(Route {
            id: id.clone(),
            service,
            timeouts: config.timeouts,
            request_body_max: config.request_body_max,
            plain_http: config.plain_http,
        });
        let mut released = Vec::new();
        // The new entry comes first: while a route moves, both its hosts answer.
        let displaced = match &config.host {
            HostPattern::Exact(host) => self.exact.insert(Arc::clone(host), route),
            HostPattern::Wildcard(suffix) => self.wildcard.insert(Arc::clone(suffix), route),
            HostPattern::Default => self.default.swap(Some(route)),
        };
        released.extend(displaced.map(|route| route.service.key().clone()));
        let previous = hosts.insert(id.clone(), config.host.clone());
        if let Some(previous) = previous.filter(|previous| *previous != config.host) {
            released.extend(self.take_off(&id, &previous));
        }
        released
    }

    /// Removes a route. Returns the service it referred to.
    pub(crate) fn remove(&self, id: &RouteId) -> Option<ServiceKey> {
        let mut hosts = self.hosts.lock();
        let host = hosts.remove(id)?;
        self.take_off(id, &host)
    }

    /// Number of routes.
    pub(crate) fn len(&self) -> usize {
        self.hosts.lock().len()
    }

    /// Finds the route of a normalised host: exact, wildcard of one label, preview, default.
    ///
    /// A wildcard above the host comes before the preview of an exact host: its own previews are
    /// found by the label, and every other label under it is ordinary traffic.
    pub(crate) fn find(&self, host: &str) -> Found {
        if let Some(route) = self.exact.load(host) {
            return Found::Exact(route);
        }
        if let Some((_, parent)) = split_label(host) {
            if let Some(route) = self.wildcard.load(parent) {
                return Found::Pattern(route);
            }
            if self.exact.contains(parent) {
                return Found::UnknownPreview;
            }
        }
        self.default.load_full().map_or(Found::Nothing, Found::Pattern)
    }

    /// Takes a route off a host, unless another one holds it by now.
    fn take_off(&self, id: &RouteId, host: &HostPattern) -> Option<ServiceKey> {
        let is_its = |route: &Arc<Route>| route.id == *id;
        let route = match host {
            HostPattern::Exact(host) => self.exact.remove_if(host, is_its),
            HostPattern::Wildcard(suffix) => self.wildcard.remove_if(suffix, is_its),
            HostPattern::Default => {
                let is_current = self.default.load().as_ref().is_some_and(is_its);
                if is_current { self.default.swap(None) } else { None }
            }
        };
        route.map(|route| route.service.key().clone())
    }
}

#[cfg(test)]
mod tests;
