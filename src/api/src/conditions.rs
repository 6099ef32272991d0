//! Condition types and reasons: the closed list of words that a status may say. The user's side
//! of each is in `docs/troubleshooting.md`, and a test holds the two together.

/// The desired state is reached and serves. Asleep is healthy. On every kind with a status.
pub const READY: &str = "Ready";
/// App: a new version is on its way (True), or has come to rest (also True) or has failed to
/// (False).
pub const PROGRESSING: &str = "Progressing";
/// App: the services of the version that serves now are ready or asleep.
pub const SERVICES_READY: &str = "ServicesReady";
/// App: every Route that names the App is ready.
pub const ROUTES_READY: &str = "RoutesReady";
/// App: whether its services can sleep; present only where one that could does not.
pub const SLEEPABLE: &str = "Sleepable";
/// Route: the host is held by this Route.
pub const HOST_CLAIMED: &str = "HostClaimed";
/// Route: the App and its service exist and have an http port.
pub const BACKEND_RESOLVED: &str = "BackendResolved";
/// Route: the certificate can be used.
pub const CERTIFICATE_READY: &str = "CertificateReady";

/// AppService: nothing else uses a node port that it holds; present only if something did.
pub const NODE_PORTS_EXCLUSIVE: &str = "NodePortsExclusive";

/// Reasons, by what they speak of. Each is a constant of the same name.
pub mod reason {
    macro_rules! reasons {
        ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
            $($(#[$doc])* pub const $name: &str = $text;)*
            /// Every reason, in the order of this file.
            pub const ALL: &[&str] = &[$($text),*];
        };
    }
    reasons! {
        /// Enough sandboxes are ready.
        AVAILABLE = "Available";
        /// No sandbox runs, because there is no demand. Healthy.
        ASLEEP = "Asleep";
        /// Sandboxes are starting.
        STARTING = "Starting";
        /// A new version is being verified; the old one serves.
        ROLLING_OUT = "RollingOut";
        /// The new version is active; gateways have not all reported it yet.
        SWITCHING = "Switching";
        /// The rollout is complete.
        COMPLETE = "Complete";
        /// The rollout waits for others to finish verifying.
        WAITING = "Waiting";
        /// The new version did not become ready in time; the old one serves.
        DEADLINE_EXCEEDED = "DeadlineExceeded";
        /// `spec.version` names a version; changes to the rest are not rolled out.
        PINNED = "Pinned";
        /// `spec.version` names a version that does not exist or belongs to another App.
        VERSION_NOT_FOUND = "VersionNotFound";
        /// Two configurations have the same version name, or an object of that name is not ours.
        NAME_CONFLICT = "NameConflict";
        /// The program exits again and again.
        CRASH_LOOPING = "CrashLooping";
        /// The image cannot be pulled.
        IMAGE_PULL_FAILED = "ImagePullFailed";
        /// The container cannot be made: a Secret, ConfigMap or key is missing.
        CONFIG_MISSING = "ConfigMissing";
        /// The container cannot be started: no such command, no permission, or a node that refuses it.
        START_FAILED = "StartFailed";
        /// The program runs and does not listen on its port.
        NOT_LISTENING = "NotListening";
        /// The program runs and its readiness probe fails.
        PROBE_FAILING = "ProbeFailing";
        /// No node has room or fits.
        UNSCHEDULABLE = "Unschedulable";
        /// The API server refused the Pod: Pod Security, quota, or an invalid template.
        POD_REFUSED = "PodRefused";
        /// The API server refused what is made for the App: a quota, a policy, or its size.
        OBJECT_REFUSED = "ObjectRefused";
        /// Nothing has been activated yet.
        NO_ACTIVE_VERSION = "NoActiveVersion";
        /// Serves with fewer sandboxes than wanted.
        DEGRADED = "Degraded";
        /// A version that serves.
        ACTIVE = "Active";
        /// A version that could serve: its sandboxes are verified.
        VERIFIED = "Verified";
        /// A version whose sandboxes are being verified.
        VERIFYING = "Verifying";
        /// A version that served until another replaced it; a rollback can take it up again.
        REPLACED = "Replaced";
        /// A version that another took the place of before it had served.
        SUPERSEDED = "Superseded";
        /// A pool that drains or has drained.
        RETIRED = "Retired";
        /// The Route holds its host.
        CLAIMED = "Claimed";
        /// Another Route holds the host.
        HOST_CONFLICT = "HostConflict";
        /// A Domain gives the host to other namespaces.
        DOMAIN_DENIED = "DomainDenied";
        /// An older Domain has the same suffix.
        DUPLICATE_SUFFIX = "DuplicateSuffix";
        /// The Domain is in force.
        ACCEPTED = "Accepted";
        /// The App and service are there.
        RESOLVED = "Resolved";
        /// The App does not exist in this namespace.
        APP_NOT_FOUND = "AppNotFound";
        /// The App has no such service.
        SERVICE_NOT_FOUND = "ServiceNotFound";
        /// The service has no http port.
        NO_HTTP_PORT = "NoHttpPort";
        /// No certificate is asked for: plain http, or the gateway's default certificate.
        NO_CERTIFICATE = "NoCertificate";
        /// The certificate is in use.
        CERTIFICATE_IN_USE = "CertificateInUse";
        /// No gateway runs, so nobody has looked at the certificate yet.
        NO_GATEWAY = "NoGateway";
        /// The Secret does not exist.
        SECRET_NOT_FOUND = "SecretNotFound";
        /// The gateway may not read the Secret.
        SECRET_FORBIDDEN = "SecretForbidden";
        /// The Secret holds no usable certificate and key.
        CERTIFICATE_INVALID = "CertificateInvalid";
        /// The App has no Route.
        NO_ROUTES = "NoRoutes";
        /// All Routes of the App are ready.
        ROUTES_READY = "RoutesReady";
        /// A Route of the App is not ready.
        ROUTE_NOT_READY = "RouteNotReady";
        /// No sandbox takes connections.
        NO_ENDPOINTS = "NoEndpoints";
        /// Another AppService holds the node port.
        NODE_PORT_CONFLICT = "NodePortConflict";
        /// The installation does not let Apps have the node port.
        NODE_PORT_RESERVED = "NodePortReserved";
        /// A Kubernetes Service or a process of a node has the node port.
        NODE_PORT_TAKEN = "NodePortTaken";
        /// Nothing else is known to use the node ports that are held.
        EXCLUSIVE = "Exclusive";
        /// The cluster has no service address left.
        ADDRESSES_EXHAUSTED = "AddressesExhausted";
        /// The API server refused the Service or its EndpointSlices.
        SERVICE_REFUSED = "ServiceRefused";
        /// A service has a port that is not http, or a node port, and so never sleeps.
        L4_PORTS = "L4Ports";
        /// The node's kernel forwards what it should.
        PROGRAMMED = "Programmed";
        /// The node's kernel refuses a part of what it should forward.
        PARTLY_PROGRAMMED = "PartlyProgrammed";
        /// The node's kernel cannot be programmed, or not any more.
        UNPROGRAMMABLE = "Unprogrammable";
        /// The node has a table of Portolan's name that Portolan did not make.
        FOREIGN_TABLE = "ForeignTable";
    }
}
