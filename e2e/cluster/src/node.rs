//! A node: containerd with runc, a kubelet, and kube-proxy in nftables mode.
//!
//! The settings that differ from a kubelet's defaults are those that a machine shared with other
//! work and a hybrid cgroup hierarchy ask for; each has its reason beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use crate::addresses::{self, Stack};
use crate::certificates::Authority;
use crate::control_plane;
use crate::machine::Mount;
use crate::network::node_name;
use crate::paths::{ClusterPaths, Paths};
use crate::state::Spec;

/// The image of the container that holds a Pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/portolan/pause:dev";

/// One node of a cluster.
#[derive(Debug, Clone)]
pub struct Node {
    number: u8,
    stack: Stack,
    name: String,
    files: PathBuf,
    disk: PathBuf,
    logs: PathBuf,
}

impl Node {
    /// The node with this number, counted from 1.
    #[must_use]
    pub fn new(cluster: &ClusterPaths, number: u8, stack: Stack) -> Self {
        let name = node_name(number);
        Self {
            number,
            stack,
            files: cluster.machine(&name),
            disk: cluster.disk(&name),
            logs: cluster.logs().join(format!("{name}-pods")),
            name,
        }
    }

    /// The node's name, which is also its machine's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// containerd's socket.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.files.join("containerd.sock")
    }

    /// The mounts of the node's machine: paths that programs do not let us choose.
    #[must_use]
    pub fn mounts(&self) -> Vec<Mount> {
        let bind = |name: &str, to: &str| Mount::Bind(self.disk.join(name), PathBuf::from(to));
        vec![
            // A few hundred megabytes of images. The machine's own disk has other work too, and
            // stalls for seconds when much of it is written or freed.
            Mount::Memory(self.disk.clone()),
            // containerd's shims put their sockets here whatever the configured state folder is.
            Mount::Memory(PathBuf::from("/run/containerd")),
            bind("cni", "/var/lib/cni"),
            bind("log-containers", "/var/log/containers"),
        ]
    }

    /// Writes the configuration of the node's programs and signs its certificates.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_files(&self, authority: &Authority) -> anyhow::Result<()> {
        let address = addresses::node(self.number).to_string();
        authority.server(&format!("{}-kubelet", self.name), &[self.name.clone(), address])?;
        let kubelet =
            authority.client(&format!("system:node:{}", self.name), Some("system:nodes"))?;
        let proxy = authority.client("system:kube-proxy", None)?;
        let api = control_plane::api_url();
        authority.kubeconfig(&self.files.join("kubelet.kubeconfig"), &api, &kubelet)?;
        authority.kubeconfig(&self.files.join("kube-proxy.kubeconfig"), &api, &proxy)?;
        self.write("containerd.toml", &self.containerd())?;
        self.write("cni/10-portolan.conflist", &format!("{:#}\n", self.network()))?;
        self.write("kubelet.json", &format!("{:#}\n", self.kubelet(authority)))?;
        self.write("kube-proxy.json", &format!("{:#}\n", self.proxy()))?;
        // Names outside the cluster are not resolved: the cluster has no way to them.
        self.write("resolv.conf", "# no name server beyond the cluster's own\n")
    }

    /// The processes in the order in which they start.
    #[must_use]
    pub fn processes(&self, paths: &Paths) -> Vec<(String, Spec)> {
        let file = |name: &str| self.files.join(name).display().to_string();
        let spec = |program: PathBuf, args: Vec<String>| Spec {
            machine: Some(self.name.clone()),
            program,
            args,
            env: BTreeMap::new(),
        };
        let ours = paths.programs();
        let addresses = self.stack.node(self.number).into_iter().map(|address| address.to_string());
        let kubelet = vec![
            format!("--config={}", file("kubelet.json")),
            format!("--kubeconfig={}", file("kubelet.kubeconfig")),
            format!("--root-dir={}", self.disk.join("kubelet").display()),
            format!("--cert-dir={}", file("pki")),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", addresses.collect::<Vec<_>>().join(",")),
        ];
        let containerd = vec!["--config".to_owned(), file("containerd.toml")];
        let proxy = vec![format!("--config={}", file("kube-proxy.json"))];
        vec![
            (self.process("containerd"), spec("/usr/bin/containerd".into(), containerd)),
            (self.process("kubelet"), spec(ours.join("kubelet"), kubelet)),
            (self.process("kube-proxy"), spec(ours.join("kube-proxy"), proxy)),
        ]
    }

    /// The recorded name of one of the node's processes.
    #[must_use]
    pub fn process(&self, program: &str) -> String {
        format!("{}/{program}", self.name)
    }

    fn containerd(&self) -> String {
        let root = self.disk.join("containerd");
        let state = self.files.join("containerd");
        let socket = self.containerd_socket();
        let network = self.files.join("cni");
        format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE a lower score cannot be set, and runc gives up when it fails.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{network}"
"#,
            root = root.display(),
            state = state.display(),
            socket = socket.display(),
            network = network.display(),
        )
    }

    /// Pods are routed, never bridged: between two Pods on one bridge the answer to a Service's
    /// address would bypass the translation back.
    fn network(&self) -> Value {
        let ranges = self.stack.pods(self.number).into_iter();
        let ranges: Vec<_> = ranges.map(|range| json!([{ "subnet": range }])).collect();
        let routes = self.stack.everywhere().iter();
        let routes: Vec<_> = routes.map(|everywhere| json!({ "dst": everywhere })).collect();
        json!({
            "cniVersion": "1.0.0",
            "name": "portolan",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.files.join("addresses"),
                        "ranges": ranges,
                        "routes": routes,
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }

    fn kubelet(&self, authority: &Authority) -> Value {
        let ca = authority.certificate_file();
        let pki = ca.parent().expect("the certificate lies in a folder");
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": ca },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": pki.join(format!("{}-kubelet.crt", self.name)),
            "tlsPrivateKeyFile": pki.join(format!("{}-kubelet.key", self.name)),
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket().display()),
            "clusterDNS": [addresses::DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": self.files.join("resolv.conf"),
            "podLogsDir": self.logs,
            // Its default is a folder of the host.
            "volumePluginDir": self.disk.join("volume-plugins"),
            // The machine may mix both cgroup versions, without the controllers' hierarchy that
            // a kubelet wants for itself.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            // The disk is shared with other work: its level is no reason to evict a Pod or to
            // drop an image that nothing could pull again.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": false,
            "maxPods": 250,
            // The API server's own limit is far away; tests create many Pods at once.
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        })
    }

    fn proxy(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": { "kubeconfig": self.files.join("kube-proxy.kubeconfig") },
            "hostnameOverride": self.name,
            "detectLocalMode": "ClusterCIDR",
            "clusterCIDR": self.stack.pod_range(),
            "nftables": { "minSyncPeriod": "50ms", "syncPeriod": "30s" },
            // Its limits are sysctls of the host, which are not ours to set.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
                "udpTimeout": "0s",
                "udpStreamTimeout": "0s",
            },
        })
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.files.join(name);
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("write {}", path.display()))
    }
}
