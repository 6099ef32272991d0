//! All reads, from caches: the App, its versions, pools and Routes, and what gateways report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use portolan_api::conditions::READY;
use portolan_api::{
    App, AppService, AppVersion, GatewayPhase, GatewayReport, ReportShard, Route, SandboxPool,
    names,
};
use portolan_reconcile::ObjectKey;

use crate::{AppReconciler, l4};

/// Index of versions, pools and Routes: the key of their App.
pub(crate) const BY_APP: &str = "app";
/// Index of versions and AppServices: the node ports that they ask for, or hold.
pub(crate) const BY_NODE_PORT: &str = "node-port";
/// Index of Apps: the one entry [`UNSETTLED`] lists those whose activation gateways have not all
/// reported.
pub(crate) const BY_SETTLING: &str = "settling";
/// See [`BY_SETTLING`].
pub(crate) const UNSETTLED: &str = "unsettled";

/// What this controller needs of a Route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RouteFacts {
    /// Namespace and name.
    pub(crate) key: ObjectKey,
    /// The App it names.
    pub(crate) app: String,
    /// When it was made; the oldest ready one gives the App's URL.
    pub(crate) created: Option<Timestamp>,
    /// Its `Ready` condition, once it has one.
    pub(crate) ready: Option<Condition>,
    /// Where it answers.
    pub(crate) url: Option<String>,
}

impl RouteFacts {
    /// The facts of a Route; `None` for one without identity, which the API server never sends.
    pub(crate) fn of(route: Route) -> Option<Self> {
        let status = route.status.unwrap_or_default();
        Some(Self {
            key: ObjectKey::new(route.metadata.namespace?, route.metadata.name?),
            app: route.spec.app,
            created: route.metadata.creation_timestamp.map(|time| time.0),
            ready: status.conditions.into_iter().find(|condition| condition.type_ == READY),
            url: status.url,
        })
    }
}

/// The epochs that one gateway follows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EpochFacts {
    /// The gateway.
    pub(crate) gateway: String,
    /// Epoch by App; Apps that have settled are left out.
    pub(crate) epochs: BTreeMap<ObjectKey, i64>,
}

impl EpochFacts {
    /// The epochs of a report; `None` for the shard that holds none.
    pub(crate) fn of(report: GatewayReport) -> Option<Self> {
        (report.spec.shard == ReportShard::State).then(|| Self {
            gateway: report.spec.gateway,
            epochs: report
                .spec
                .epochs
                .into_iter()
                .map(|entry| (ObjectKey::new(entry.namespace, entry.name), entry.epoch))
                .collect(),
        })
    }
}

/// One gateway, as seen for one App.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewaySeen {
    /// Name of the gateway.
    pub(crate) name: String,
    /// When it counts as lost unless it renews its Lease.
    pub(crate) lapses: Timestamp,
    /// The epoch of this App that it reports.
    pub(crate) epoch: Option<i64>,
}

/// What was seen of one App.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The App; `None` when there is none.
    pub(crate) app: Option<Arc<App>>,
    /// Versions that name it, by name; those of an earlier App of that name among them.
    pub(crate) versions: BTreeMap<String, Arc<AppVersion>>,
    /// Pools that name it, by name.
    pub(crate) pools: BTreeMap<String, Arc<SandboxPool>>,
    /// Routes that name it, by name.
    pub(crate) routes: BTreeMap<String, Arc<RouteFacts>>,
    /// Gateways that have a Lease; one that has lapsed is still among them, one that left is not.
    pub(crate) gateways: Vec<GatewaySeen>,
    /// Its NetworkPolicy.
    pub(crate) policy: Option<Arc<NetworkPolicy>>,
    /// AppServices that name it, and those that have a name it could want, by name.
    pub(crate) services: BTreeMap<String, Arc<AppService>>,
    /// AppServices of any App, its own among them, that hold a node port which one of its versions
    /// asks for, by node port as Claims say it. Usually one for each; two while one of them has
    /// not said yet that it lost it.
    pub(crate) holders: BTreeMap<String, Vec<Arc<AppService>>>,
}

impl AppReconciler {
    /// Reads everything that the plan for `key` may know.
    pub(crate) fn observe(&self, key: &ObjectKey, now: Timestamp) -> Seen {
        let Some(app) = self.apps.unpack(key) else { return Seen::default() };
        let index = key.to_string();
        let reports = self.reports.list();
        let epoch_of = |gateway: &str| {
            let report = reports.iter().find(|report| report.gateway == gateway)?;
            report.epochs.get(key).copied()
        };
        let unbroken = self.gateways.unbroken_since();
        let mut gateways = self.gateways.list();
        gateways.retain(|gateway| gateway.phase != GatewayPhase::Left);
        let gateways = gateways.iter().map(|gateway| GatewaySeen {
            name: gateway.name.clone(),
            lapses: gateway.lapses_for(unbroken, now),
            epoch: epoch_of(&gateway.name),
        });
        let versions =
            by_name(self.versions.unpack_by_index(BY_APP, &index), |v| v.metadata.name.clone());
        Seen {
            services: self.observe_services(key, &app, versions.values()),
            holders: self.observe_holders(versions.values()),
            versions,
            pools: by_name(self.pools.unpack_by_index(BY_APP, &index), |p| p.metadata.name.clone()),
            routes: by_name(self.routes.by_index(BY_APP, &index), |r| Some(r.key.name.clone())),
            gateways: gateways.collect(),
            policy: self
                .policies
                .unpack(&ObjectKey::new(key.namespace.clone(), names::network_policy(&key.name))),
            app: Some(app),
        }
    }

    fn observe_services<'a>(
        &self,
        key: &ObjectKey,
        app: &App,
        versions: impl Iterator<Item = &'a Arc<AppVersion>>,
    ) -> BTreeMap<String, Arc<AppService>> {
        let own = self.services.by_index(BY_APP, &key.to_string());
        let asked = app.spec.services.iter().map(|service| &service.name);
        let kept = versions.flat_map(|v| v.spec.services.iter().map(|service| &service.name));
        let names = asked.chain(kept).map(|service| names::app_service(&key.name, service));
        let held = names
            .filter_map(|name| self.services.get(&ObjectKey::new(key.namespace.clone(), name)));
        by_name(own.into_iter().chain(held).collect(), |service| service.metadata.name.clone())
    }

    fn observe_holders<'a>(
        &self,
        versions: impl Iterator<Item = &'a Arc<AppVersion>>,
    ) -> BTreeMap<String, Vec<Arc<AppService>>> {
        let asked: BTreeSet<String> = versions.flat_map(|version| l4::asked(version)).collect();
        let holders = asked.into_iter().map(|port| {
            let holders = self.services.by_index(BY_NODE_PORT, &port);
            (port, holders)
        });
        holders.collect()
    }
}

fn by_name<T>(
    objects: Vec<Arc<T>>,
    name: impl Fn(&T) -> Option<String>,
) -> BTreeMap<String, Arc<T>> {
    objects.into_iter().filter_map(|object| Some((name(&object)?, object))).collect()
}
