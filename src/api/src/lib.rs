//! The API of Portolan: group `portolan.dev`, version `v1alpha1`.
//!
//! This crate holds the types that users write and controllers exchange, the rules that the API
//! server checks (CEL), the condition types and reasons, the label keys and the names of derived
//! objects. It knows no client and no runtime: everything here is a value or a pure function.
//!
//! Entry points: [`App`], [`AppVersion`], [`SandboxPool`], [`Route`], [`Domain`], [`Claim`],
//! [`GatewayReport`], [`AppService`],
//! [`NodeReport`]; [`crds::all`] renders them for `crds/`; [`resolve`] turns an App into the
//! version it asks for.
//!
//! Invariants: names of derived objects are made in [`names`] and nowhere else; condition reasons
//! are constants of [`conditions`]; a type that has left this crate with a release only grows.

#![expect(clippy::duplicated_attributes, reason = "every printer column names its type")]
#![expect(unreachable_pub, reason = "KubeSchema derives from a private copy of each struct")]

// The derives name their support code `::kube::core` for the rules on a whole object, and offer no
// other path. This crate must not see kube itself: Cargo unifies features, so a `kube` here would
// bring the client along.
extern crate self as kube;
#[doc(hidden)]
pub mod core {
    pub use kube_core::*;
}
#[doc(hidden)]
pub use kube_derive::{CustomResource, KubeSchema};

mod app;
mod app_service;
mod claim;
pub mod conditions;
pub mod crds;
mod domain;
pub mod gateway;
pub mod labels;
pub mod names;
mod node_report;
mod pool;
mod report;
pub mod resolve;
mod route;
mod sandbox;
mod schema;
mod version;

pub use app::{
    Activation, App, AppSpec, AppStatus, Concurrency, EphemeralPolicy, Health, ScaleMode,
    ScaleSpec, ServiceSpec, ServiceStatus,
};
pub use app_service::{
    AppService, AppServicePort, AppServiceSpec, AppServiceStatus, HeldNodePort, SessionAffinity,
};
pub use claim::{Claim, ClaimKind, ClaimSpec, Holder};
pub use domain::{Domain, DomainSpec, DomainStatus};
pub use gateway::{Gateway, GatewayPeer, GatewayPhase};
pub use node_report::{ListeningPort, NodeReport, NodeReportSpec, Transport};
pub use pool::{PoolRole, PoolScale, SandboxPool, SandboxPoolSpec, SandboxPoolStatus};
pub use report::{
    CertificateReport, DrainReport, EpochReport, GatewayReport, GatewayReportSpec, PoolReport,
    ReportShard,
};
pub use route::{Redirect, Route, RouteSpec, RouteStatus, RouteTimeouts, RouteTls};
pub use sandbox::{AppProtocol, Port, PortType, SandboxPort, SandboxSpec, SandboxTemplate};
pub use version::{AppVersion, AppVersionSpec, AppVersionStatus, VersionService};

/// API group of every kind.
pub const GROUP: &str = "portolan.dev";
/// The one version served today.
pub const VERSION: &str = "v1alpha1";
