//! What a pass reads: caches only.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use portolan_api::{App, AppService, AppVersion, PortType, labels, names};
use portolan_reconcile::{Cache, ObjectKey, Observed, Packed, Writer};

use crate::view::{controller, is_a, is_ours};

/// Versions by `namespace/name` of the internal names of their services.
pub(crate) const BY_NAME: &str = "name";
/// Services by the UID of their controller.
pub(crate) const BY_OWNER: &str = "owner";

/// Where a pass reads.
pub(crate) struct Sources {
    pub(crate) writer: Writer,
    pub(crate) apps: Cache<App, Packed<App>>,
    pub(crate) versions: Cache<AppVersion, Names>,
    pub(crate) services: Cache<Service, Named>,
}

/// Everything that a pass over one App may know.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    /// The names of the version that serves; `None`: none does, or it is not known.
    pub(crate) names: Option<Arc<Names>>,
    /// What there is under each of these names.
    pub(crate) there: BTreeMap<String, Observed<Arc<Named>>>,
    /// The Services that the App itself controls.
    pub(crate) owned: Vec<Arc<Named>>,
}

/// The http-only services of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// The App that the version says it is of.
    pub(crate) app: ObjectKey,
    /// UID of the controller reference.
    pub(crate) owner: Option<String>,
    /// What the names lead to. A list, because a map takes room for eleven.
    pub(crate) services: Box<[Led]>,
}

/// What an internal name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Led {
    /// The internal name.
    pub(crate) name: Box<str>,
    /// The service.
    pub(crate) service: Box<str>,
    /// The number of its first http port.
    pub(crate) port: i32,
}

/// A Service, whoever made it: small, unless it is an internal name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    /// Its name.
    pub(crate) key: ObjectKey,
    /// Its controller.
    pub(crate) owner: Option<OwnerReference>,
    /// The App and the service that an address of Portolan's is of; an index only.
    pub(crate) of: Option<(String, String)>,
    /// It was deleted and will go.
    pub(crate) leaving: bool,
    /// All of it, if it says that it is an internal name or an App controls it: one that lost the
    /// label is an internal name still.
    pub(crate) internal: Option<Packed<Service>>,
}

impl Sources {
    /// Reads all that a pass over this App may know.
    pub(crate) fn observe(&self, app: &App) -> Situation {
        let names = self.serving(app);
        let namespace = app.metadata.namespace.clone().unwrap_or_default();
        let wanted = names.iter().flat_map(|names| names.services.iter());
        let there = wanted.map(|led| {
            let key = ObjectKey::new(namespace.clone(), &*led.name);
            (led.name.to_string(), self.services.observed(&key))
        });
        let uid = app.metadata.uid.as_deref().unwrap_or_default();
        Situation { there: there.collect(), owned: self.services.by_index(BY_OWNER, uid), names }
    }

    /// The version that serves: the same that the AppServices of the App follow then, so that a
    /// name is wanted by one of the two at a time. Before there is one a name would lead nowhere,
    /// and its address, which a busy API server takes long to give out, would keep the App from
    /// being ready.
    fn serving(&self, app: &App) -> Option<Arc<Names>> {
        let version = app.status.as_ref()?.activation.as_ref()?.version.clone();
        let namespace = app.metadata.namespace.clone().unwrap_or_default();
        let names = self.versions.get(&ObjectKey::new(namespace, version))?;
        (names.owner == app.metadata.uid).then_some(names)
    }
}

// === impl Names ===

impl Names {
    pub(crate) fn of(version: &AppVersion) -> Self {
        let namespace = version.metadata.namespace.clone().unwrap_or_default();
        let app = &version.spec.app;
        let services = version.spec.services.iter().filter(|service| !service.has_l4());
        let services = services.filter_map(|service| {
            let port = service.ports.iter().find(|port| port.r#type == PortType::Http)?.port;
            let name = names::app_service(app, &service.name).into();
            Some(Led { name, service: service.name.as_str().into(), port })
        });
        Self {
            services: services.collect(),
            owner: controller(version).map(|owner| owner.uid.clone()),
            app: ObjectKey::new(namespace, app.clone()),
        }
    }

    /// `namespace/name` of each.
    pub(crate) fn keys(&self) -> Vec<String> {
        let namespace = self.app.namespace.clone();
        let key = |led: &Led| ObjectKey::new(namespace.clone(), &*led.name).to_string();
        self.services.iter().map(key).collect()
    }
}

// === impl Named ===

impl Named {
    pub(crate) fn of(service: Service) -> Self {
        let label = |key: &str| service.metadata.labels.as_ref()?.get(key).cloned();
        let is_ours = is_ours(&service);
        let of = label(labels::APP).zip(label(labels::SERVICE)).filter(|_| is_ours);
        let says_so = label(labels::INTERNAL).is_some_and(|kind| kind == labels::INTERNAL_HTTP);
        let owner = controller(&service).cloned();
        let is_internal = (is_ours && says_so) || owner.as_ref().is_some_and(is_a::<App>);
        Self {
            key: ObjectKey::of(&service),
            owner,
            of,
            leaving: service.metadata.deletion_timestamp.is_some(),
            internal: is_internal.then(|| Packed::of(service)).flatten(),
        }
    }

    /// The App that controls it, by name.
    pub(crate) fn app(&self) -> Option<ObjectKey> {
        let owner = self.owner.as_ref().filter(|owner| owner.kind == App::kind(&()))?;
        Some(ObjectKey::new(self.key.namespace.clone(), owner.name.clone()))
    }

    /// Whether it goes by itself, if it is not this App's: it was deleted, is of an earlier App of
    /// that name, or gives the same service an address that it no longer needs.
    pub(crate) fn is_passing(&self, app: &App, service: &str) -> bool {
        let Some(owner) = &self.owner else { return self.leaving };
        let name = app.metadata.name.as_deref().unwrap_or_default();
        let is_another = app.metadata.uid.as_ref() != Some(&owner.uid);
        let is_former = owner.kind == App::kind(&()) && owner.name == name && is_another;
        let (of_app, of_service) = (names::label_value(name), names::label_value(service));
        let is_address = owner.kind == AppService::kind(&())
            && self.of.as_ref().is_some_and(|(app, service)| {
                names::label_value(app) == of_app && names::label_value(service) == of_service
            });
        self.leaving || is_former || is_address
    }
}
