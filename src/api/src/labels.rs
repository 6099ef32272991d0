//! Keys of the labels and annotations that Portolan sets. Labels are only an index: ownership is
//! decided by UID.

/// The App an object belongs to.
pub const APP: &str = "portolan.dev/app";
/// The service within the App.
pub const SERVICE: &str = "portolan.dev/service";
/// The `SandboxPool` a Pod belongs to. Never the version: versions share pools.
pub const POOL: &str = "portolan.dev/pool";
/// The label of the preview that an object belongs to.
pub const EPHEMERAL: &str = "portolan.dev/ephemeral";
/// `app.kubernetes.io/managed-by`, with the value [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on everything that Portolan makes.
pub const MANAGER: &str = "portolan";

/// Annotation of a Pod: how its concurrency slots are divided among gateways, as
/// `instance=count` pairs separated by commas, where the instance is that of a gateway's process
/// ([`crate::Gateway::instance`]). Absent: the pool does not count slots.
pub const SLOTS: &str = "portolan.dev/slots";
/// Annotation of a Pod: the epoch of the drain mark, a decimal number. A Pod that carries it gets
/// no new requests; it is deleted when all live gateways report the epoch and nothing running.
pub const DRAIN: &str = "portolan.dev/drain";
/// Annotation of a Pod: why it drains, one of the pool controller's words.
pub const DRAIN_REASON: &str = "portolan.dev/drain-reason";
/// Label of a gateway's Lease, by which controllers find live gateways.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT`] on gateway Pods and their Leases.
pub const COMPONENT_GATEWAY: &str = "gateway";

/// Label of a gateway's Pod: whether visitors are sent there. The gateways' Services select
/// [`VISITORS_YES`].
pub const VISITORS: &str = "portolan.dev/visitors";
/// Value of [`VISITORS`]: they are. Every gateway begins with it.
pub const VISITORS_YES: &str = "yes";
/// Value of [`VISITORS`]: they are not, since its process is believed to have ended.
pub const VISITORS_NO: &str = "no";

/// Label of a Service: which proxy serves it. With the value [`MANAGER`], Portolan's node agents
/// do, and no other.
pub const SERVICE_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a Service that is the internal name of an http-only service.
pub const INTERNAL: &str = "portolan.dev/internal";
/// Value of [`INTERNAL`]: its addresses lead to the gateways.
pub const INTERNAL_HTTP: &str = "http";
/// Label of an EndpointSlice: who keeps it.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Value of [`SLICE_MANAGED_BY`] on ours.
pub const SLICE_MANAGER: &str = "portolan.dev";
/// Label of an EndpointSlice: the Service whose endpoints it lists.
pub const SLICE_SERVICE: &str = "kubernetes.io/service-name";
/// Annotation of an EndpointSlice of ours: UID of the AppService that it is of. No owner reference:
/// a slice outlives its AppService until the sandboxes that it lists are gone.
pub const APP_SERVICE_UID: &str = "portolan.dev/app-service-uid";
/// Label of a Claim: what is claimed, as its `spec.kind` says it, so that an admission policy can
/// look at the Claims of one kind only.
pub const CLAIM_KIND: &str = "portolan.dev/claim-kind";
