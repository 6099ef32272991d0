//! Which Routes are served: those whose host's Claim names them. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use portolan_reconcile::ObjectKey;

use crate::feed::certificates::Wanted;
use crate::feed::facts::{ClaimFacts, RouteFacts};
use crate::host::HostPattern;

/// Routes and Claims, and what is served of them.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    routes: HashMap<Arc<ObjectKey>, Arc<RouteFacts>>,
    /// In no order. Nearly always one, for which a set would have room for eleven.
    by_host: HashMap<Arc<str>, Vec<Arc<ObjectKey>>>,
    claims: HashMap<Arc<str>, Arc<ClaimFacts>>,
    served: HashMap<Arc<ObjectKey>, Arc<RouteFacts>>,
}

/// What follows from one change.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Routes to serve from now on, or anew.
    pub(crate) served: Vec<Arc<RouteFacts>>,
    /// Routes to serve no longer.
    pub(crate) withdrawn: Vec<ObjectKey>,
    /// Other certificates are wanted than before.
    pub(crate) certificates: bool,
}

impl Hosts {
    /// A Route has come, changed or gone.
    pub(crate) fn route(&mut self, key: &ObjectKey, new: Option<Arc<RouteFacts>>) -> Changes {
        let key = key.shared();
        let old = match &new {
            Some(route) => self.routes.insert(key.clone(), route.clone()),
            None => self.routes.remove(&key),
        };
        if let Some(old) = &old
            && let Some(keys) = self.by_host.get_mut(&old.host)
        {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_host.remove(&old.host);
            }
        }
        if let Some(route) = &new {
            let keys = self.by_host.entry(route.host.clone());
            keys.or_insert_with(|| Vec::with_capacity(1)).push(key.clone());
        }
        let mut changes = Changes::default();
        self.settle(&key, &mut changes);
        changes
    }

    /// The Claim of a host has come, changed or gone.
    pub(crate) fn claim(&mut self, host: &Arc<str>, new: Option<Arc<ClaimFacts>>) -> Changes {
        match new {
            Some(claim) => self.claims.insert(host.clone(), claim),
            None => self.claims.remove(host),
        };
        let mut changes = Changes::default();
        for key in self.by_host.get(host).cloned().unwrap_or_default() {
            self.settle(&key, &mut changes);
        }
        changes
    }

    /// The certificates that the served Routes ask for, by Secret.
    pub(crate) fn certificates(&self, default: Option<&ObjectKey>) -> Wanted {
        let mut wanted = BTreeMap::<ObjectKey, Vec<HostPattern>>::new();
        if let Some(default) = default {
            wanted.entry(default.clone()).or_default().push(HostPattern::Default);
        }
        let mut served: Vec<_> = self.served.values().collect();
        served.sort_by(|a, b| a.key.cmp(&b.key));
        for route in served {
            let Some(secret) = &route.secret else { continue };
            let name = ObjectKey::new(route.key.namespace.clone(), secret.clone());
            wanted.entry(name).or_default().push(route.config.host.clone());
        }
        Wanted(wanted)
    }

    /// Brings what is served in line for one Route.
    fn settle(&mut self, key: &Arc<ObjectKey>, changes: &mut Changes) {
        let desired = self.routes.get(key).filter(|route| self.holds(route)).cloned();
        let current = self.served.get(key);
        if desired.as_ref() == current {
            return;
        }
        let secret = |route: Option<&Arc<RouteFacts>>| {
            route.map(|route| (route.secret.clone(), route.config.host.clone()))
        };
        changes.certificates |= secret(desired.as_ref()) != secret(current);
        match desired {
            Some(route) => {
                self.served.insert(key.clone(), route.clone());
                changes.served.push(route);
            }
            None => {
                self.served.remove(key);
                changes.withdrawn.push(ObjectKey::clone(key));
            }
        }
    }

    fn holds(&self, route: &RouteFacts) -> bool {
        self.claims
            .get(&route.host)
            .is_some_and(|claim| claim.namespace == route.key.namespace && claim.uid == route.uid)
    }
}

#[cfg(test)]
mod tests;
