//! The control plane: etcd, API server, controller manager, scheduler.
//!
//! Tuned for tests: etcd keeps its data in memory and never waits for a disk, and nothing elects
//! a leader, because there is one of each. What a user's manifest meets is as in production:
//! node and RBAC authorisation, every default admission plugin, real certificates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::addresses::{self, Stack};
use crate::certificates::{ADMINISTRATORS, Authority};
use crate::machine::Mount;
use crate::network::CONTROL;
use crate::paths::{ClusterPaths, Paths};
use crate::state::{Ports, Spec};

/// The port of the API server inside the cluster.
pub const API_PORT: u16 = 6443;
/// The API server's process.
pub const API_SERVER: &str = "control/kube-apiserver";

/// The user as which the API server speaks for others.
const FRONT: &str = "front-proxy";

/// The API server's URL inside the cluster's network.
#[must_use]
pub fn api_url() -> String {
    format!("https://{}:{API_PORT}", addresses::CONTROL)
}

/// The mounts of the control plane's machine.
#[must_use]
pub fn mounts(cluster: &ClusterPaths) -> Vec<Mount> {
    vec![Mount::Memory(etcd_data(cluster))]
}

/// Signs all certificates of the control plane, and writes the kubeconfig files of its components
/// and of the administrator.
///
/// # Errors
/// When a key cannot be made or a file cannot be written.
pub fn write_identities(
    cluster: &ClusterPaths,
    authority: &Authority,
    ports: Ports,
) -> anyhow::Result<()> {
    let hosts = [
        "localhost",
        "127.0.0.1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    hosts.push(addresses::CONTROL.to_string());
    hosts.push(addresses::API_SERVICE.to_string());
    authority.server("apiserver", &hosts)?;
    authority.token_keys()?;
    // Kubelets let this one do anything: it is how `kubectl exec` and `logs` reach them.
    let caller = authority.client("kube-apiserver", Some(ADMINISTRATORS))?;
    authority.write("apiserver-kubelet", &caller)?;
    // For API servers behind this one: it vouches to them for the caller.
    let voucher = authority.client(FRONT, None)?;
    authority.write(FRONT, &voucher)?;
    for user in ["kube-controller-manager", "kube-scheduler"] {
        let identity = authority.client(&format!("system:{user}"), None)?;
        authority.kubeconfig(&kubeconfig(cluster, user), &api_url(), &identity)?;
    }
    let administrator = authority.client("portolan-admin", Some(ADMINISTRATORS))?;
    authority.kubeconfig(&admin_kubeconfig(cluster), &api_url(), &administrator)?;
    let loopback = format!("https://127.0.0.1:{}", ports.api);
    authority
        .kubeconfig(&cluster.kubeconfig(), &loopback, &administrator)
        .context("write the administrator's kubeconfig")
}

/// The processes in the order in which they start.
#[must_use]
pub fn processes(paths: &Paths, cluster: &ClusterPaths, stack: Stack) -> Vec<(&'static str, Spec)> {
    let program = |name: &str, args: Vec<String>| Spec {
        machine: Some(CONTROL.to_owned()),
        program: paths.programs().join(name),
        args,
        env: BTreeMap::new(),
    };
    vec![
        ("control/etcd", program("etcd", etcd(cluster))),
        (API_SERVER, program("kube-apiserver", api_server(cluster, stack))),
        (
            "control/kube-controller-manager",
            program("kube-controller-manager", controller_manager(cluster)),
        ),
        ("control/kube-scheduler", program("kube-scheduler", scheduler(cluster))),
    ]
}

/// The administrator's kubeconfig for programs inside the cluster's network.
#[must_use]
pub fn admin_kubeconfig(cluster: &ClusterPaths) -> PathBuf {
    kubeconfig(cluster, "admin")
}

fn etcd_data(cluster: &ClusterPaths) -> PathBuf {
    cluster.machine(CONTROL).join("etcd")
}

fn kubeconfig(cluster: &ClusterPaths, user: &str) -> PathBuf {
    cluster.machine(CONTROL).join(format!("{user}.kubeconfig"))
}

fn etcd(cluster: &ClusterPaths) -> Vec<String> {
    vec![
        flag("data-dir", etcd_data(cluster).display()),
        flag("listen-client-urls", "http://127.0.0.1:2379"),
        flag("advertise-client-urls", "http://127.0.0.1:2379"),
        flag("listen-peer-urls", "http://127.0.0.1:2380"),
        flag("unsafe-no-fsync", true),
        flag("log-level", "warn"),
    ]
}

fn api_server(cluster: &ClusterPaths, stack: Stack) -> Vec<String> {
    let pki = |file: &str| cluster.pki().join(file).display().to_string();
    vec![
        flag("etcd-servers", "http://127.0.0.1:2379"),
        flag("advertise-address", addresses::CONTROL),
        flag("secure-port", API_PORT),
        flag("allow-privileged", true),
        flag("authorization-mode", "Node,RBAC"),
        // A kubelet may change its own node and its own Pods only.
        flag("enable-admission-plugins", "NodeRestriction"),
        // Webhooks are called at their endpoints: the control plane has no kube-proxy.
        flag("enable-aggregator-routing", true),
        flag("service-cluster-ip-range", stack.service_range()),
        flag("client-ca-file", pki("ca.crt")),
        flag("tls-cert-file", pki("apiserver.crt")),
        flag("tls-private-key-file", pki("apiserver.key")),
        flag("kubelet-certificate-authority", pki("ca.crt")),
        flag("kubelet-client-certificate", pki("apiserver-kubelet.crt")),
        flag("kubelet-client-key", pki("apiserver-kubelet.key")),
        flag("kubelet-preferred-address-types", "InternalIP"),
        flag("proxy-client-cert-file", pki("front-proxy.crt")),
        flag("proxy-client-key-file", pki("front-proxy.key")),
        flag("requestheader-client-ca-file", pki("ca.crt")),
        flag("requestheader-allowed-names", FRONT),
        flag("requestheader-username-headers", "X-Remote-User"),
        flag("requestheader-group-headers", "X-Remote-Group"),
        flag("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        flag("service-account-key-file", pki("tokens.pub")),
        flag("service-account-signing-key-file", pki("tokens.key")),
    ]
}

fn controller_manager(cluster: &ClusterPaths) -> Vec<String> {
    let pki = |file: &str| cluster.pki().join(file).display().to_string();
    let mut flags = client(&kubeconfig(cluster, "kube-controller-manager"));
    flags.extend([
        flag("use-service-account-credentials", true),
        flag("root-ca-file", pki("ca.crt")),
        flag("cluster-signing-cert-file", pki("ca.crt")),
        flag("cluster-signing-key-file", pki("ca.key")),
        flag("service-account-private-key-file", pki("tokens.key")),
        // Each node's Pod range is fixed by its number.
        flag("allocate-node-cidrs", false),
    ]);
    flags
}

fn scheduler(cluster: &ClusterPaths) -> Vec<String> {
    client(&kubeconfig(cluster, "kube-scheduler"))
}

fn client(kubeconfig: &Path) -> Vec<String> {
    vec![
        flag("kubeconfig", kubeconfig.display()),
        flag("authentication-kubeconfig", kubeconfig.display()),
        flag("authorization-kubeconfig", kubeconfig.display()),
        flag("bind-address", "127.0.0.1"),
        flag("leader-elect", false),
    ]
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}
