//! Portolan itself on a cluster: its images, its charts, the samples' images.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::archive::Described;
use crate::cluster::Cluster;
use crate::command;
use crate::images::Known;
use crate::paths::Paths;
use crate::progress::step;
use crate::wait;

/// The namespace Portolan is installed into.
pub const NAMESPACE: &str = "portolan-system";
/// What Helm may take: two Deployments with Pods whose image is on the node already.
const HELM_LIMIT: &str = "120s";

/// Loads the images and installs or upgrades both charts, unless just these are there already.
/// `values` are Helm's `--set` words beyond those that name the image.
///
/// # Errors
/// When a program was not built, or Helm does not succeed in time.
pub fn install(cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
    let paths = Paths::discover();
    let mut ours = Vec::new();
    for image in Known::PLATFORM {
        let title = format!("build and load the image {}", image.name());
        let described = step(&title, || cluster.load(&image.ensure(&paths)?))?;
        if matches!(image, Known::Portolan | Known::PortolanNode) {
            ours.push(described);
        }
    }
    let [portolan, node] = <[_; 2]>::try_from(ours).expect("the platform's images hold its own");
    let stamp = cluster.files().run.join("platform");
    let wanted = fingerprint(&paths, [&portolan, &node], values)?;
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    step("install the charts", || {
        prepare_namespace(cluster)?;
        let charts = paths.repository.join("charts");
        let crds = charts.join("portolan-crds");
        command::output(&mut helm(cluster, "portolan-crds", &crds))?;
        let mut release = helm(cluster, "portolan", &charts.join("portolan"));
        // A tag that stays the same moves no Deployment: the digest in the annotation does.
        let image = ["image.tag=dev", "image.pullPolicy=Never"].map(ToOwned::to_owned);
        let images = [("controller", &portolan), ("gateway", &portolan), ("node", &node)];
        let changed = images.map(|(component, image)| {
            format!("{component}.podAnnotations.image-digest={}", image.digest)
        });
        for value in image.iter().chain(&changed).map(String::as_str).chain(values.iter().copied())
        {
            release.args(["--set", value]);
        }
        command::output(release.args(["--wait", "--timeout", HELM_LIMIT])).map(drop)
    })?;
    fs::write(&stamp, wanted).context("note what is installed")
}

/// Loads the samples' images and installs the CRDs alone, for tests that bring controllers of
/// their own.
///
/// # Errors
/// As [`install`].
pub fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    let paths = Paths::discover();
    step("load the samples and install the CRDs", || {
        cluster.load(&Known::SampleEcho.ensure(&paths)?)?;
        define(cluster)
    })
}

/// Installs the CRDs and makes the namespace of the platform, for those who run its programs
/// themselves.
///
/// # Errors
/// When the API refuses them.
pub fn define(cluster: &Cluster) -> anyhow::Result<()> {
    let crds = Paths::discover().repository.join("crds");
    prepare_namespace(cluster)?;
    let mut apply = cluster.program("kubectl");
    apply.args(["apply", "--server-side", "--force-conflicts", "-f"]);
    command::output(apply.arg(&crds))?;
    let mut established = cluster.program("kubectl");
    established.args(["wait", "--for=condition=Established", wait::KUBECTL_PATIENCE, "-f"]);
    command::output(established.arg(&crds)).map(drop)
}

/// The namespace holds its Pods to the restricted level, as the charts promise to fit it.
fn prepare_namespace(cluster: &Cluster) -> anyhow::Result<()> {
    let manifest = format!(
        "apiVersion: v1\n\
         kind: Namespace\n\
         metadata:\n  \
           name: {NAMESPACE}\n  \
           labels: {{ pod-security.kubernetes.io/enforce: restricted }}\n"
    );
    let mut apply = cluster.program("kubectl");
    command::feed(apply.args(["apply", "--server-side", "-f", "-"]), &manifest)
}

fn helm(cluster: &Cluster, release: &str, chart: &Path) -> Command {
    let mut helm = cluster.program("helm");
    helm.args(["upgrade", "--install", release]).arg(chart).args(["--namespace", NAMESPACE]);
    helm
}

/// Changes with the charts, the images and the values.
fn fingerprint(paths: &Paths, images: [&Described; 2], values: &[&str]) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    images.iter().for_each(|image| hash.update(&image.digest));
    hash.update(values.join("\n"));
    add_folder(&mut hash, &paths.repository.join("charts"))?;
    Ok(data_encoding::HEXLOWER.encode(&hash.finalize()))
}

fn add_folder(hash: &mut Sha256, folder: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().context("list the charts")?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        hash.update(path.as_os_str().as_encoded_bytes());
        if path.is_dir() {
            add_folder(hash, &path)?;
        } else {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            hash.update(text);
        }
    }
    Ok(())
}

/// The host of a Route as [`app`] makes it.
pub fn host(name: &str) -> String {
    format!("{name}.portolan.test")
}

/// Manifests of an App of the sample program, with a Route of its name. `scale` are the fields of
/// its service's scale beside the mode: `min: 1, max: 2`.
pub fn app(namespace: &str, name: &str, scale: &str) -> String {
    let host = host(name);
    format!(
        "---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: {{ name: {name}, namespace: {namespace} }}
spec:
  image: docker.io/portolan/sample-echo:dev
  services:
  - name: web
    port: 8080
    scale: {{ mode: Auto, {scale} }}
---
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: {{ name: {name}, namespace: {namespace} }}
spec: {{ host: {host}, app: {name} }}
"
    )
}
