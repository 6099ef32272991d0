//! Rules of this repository that no tool knows: who may depend on whom, what pure modules may
//! name, how long a file may be. Each complaint names the place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which crates of ours a crate may depend on; `CONTROLLERS` stands for each of them.
const OURS: [(&str, &[&str]); 21] = [
    ("src/api", &[]),
    ("src/process", &[]),
    ("src/reconcile", &["portolan-api", "portolan-process"]),
    ("src/claims", &["portolan-api", "portolan-reconcile"]),
    ("src/nft", &[]),
    ("src/ingress", &["portolan-api", "portolan-process", "portolan-reconcile"]),
    ("controllers/app", CONTROLLER),
    ("controllers/gateway", CONTROLLER),
    (
        "controllers/node",
        &["portolan-api", "portolan-nft", "portolan-process", "portolan-reconcile"],
    ),
    ("controllers/version", CONTROLLER),
    ("controllers/pool", CONTROLLER),
    ("controllers/route", CLAIMANT),
    ("controllers/service", CLAIMANT),
    (
        "src/portolan",
        &[
            "portolan-api",
            "portolan-controller-app",
            "portolan-controller-gateway",
            "portolan-controller-pool",
            "portolan-controller-route",
            "portolan-controller-service",
            "portolan-controller-version",
            "portolan-ingress",
            "portolan-process",
            "portolan-reconcile",
        ],
    ),
    ("src/portolan-node", &["portolan-controller-node", "portolan-process", "portolan-reconcile"]),
    ("e2e/bench", &["portolan-api", "portolan-cluster", "portolan-hostile", "portolan-ingress"]),
    ("e2e/cluster", &[]),
    ("e2e/hostile", &[]),
    ("e2e/instructions", &[]),
    ("e2e/soak", &["portolan-cluster", "portolan-hostile"]),
    ("docs/samples/echo", &[]),
];
const CONTROLLER: &[&str] = &["portolan-api", "portolan-process", "portolan-reconcile"];
/// A controller of objects that hold Claims.
const CLAIMANT: &[&str] =
    &["portolan-api", "portolan-claims", "portolan-process", "portolan-reconcile"];

/// Crates of others that a crate must not see.
const NEVER: [(&str, &[&str]); 4] = [
    ("src/api", &["kube", "tokio", "hyper"]),
    ("src/process", &["kube", "k8s-openapi"]),
    ("src/nft", &["kube", "k8s-openapi"]),
    ("e2e/cluster", &["portolan"]),
];

/// Modules of controllers that decide or report, and so may do neither IO nor look at a clock.
const PURE: [&str; 10] = [
    "plan.rs",
    "status.rs",
    "policy.rs",
    "scale.rs",
    "slots.rs",
    "diagnosis.rs",
    "pod.rs",
    "hosts.rs",
    "book.rs",
    "index.rs",
];
/// What gives a pure module away: clients, clocks, entropy, the environment, unordered iteration.
const IMPURE: [&str; 16] = [
    "async fn",
    ".await",
    "Api<",
    "Client",
    "Writer",
    "Cache<",
    "Events",
    "tokio::",
    "Timestamp::now",
    "Zoned::now",
    "SystemTime",
    "Instant::now",
    "fastrand",
    "std::env",
    "env::var",
    "thread_rng",
];

/// Production lines that a file may have.
const LINES: usize = 600;

#[test]
fn a_crate_depends_on_no_other_than_the_table_allows() {
    let complaints = OURS.iter().flat_map(|(folder, allowed)| {
        let manifest = root().join(folder).join("Cargo.toml");
        let ours = dependencies(&manifest).into_iter().filter(|name| name.starts_with("portolan"));
        let extra = ours.filter(|name| !allowed.contains(&name.as_str()));
        extra.map(move |name| format!("{folder}/Cargo.toml: {name}")).collect::<Vec<_>>()
    });
    let never = NEVER.iter().flat_map(|(folder, never)| {
        let found = dependencies(&root().join(folder).join("Cargo.toml"));
        let found = found.into_iter().filter(|name| never.contains(&name.as_str()));
        found.map(move |name| format!("{folder}/Cargo.toml: {name}")).collect::<Vec<_>>()
    });
    report("may not be depended on", complaints.chain(never));
}

#[test]
fn every_crate_of_the_workspace_is_in_the_table() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace manifest");
    let members = manifest.split("members = [").nth(1).and_then(|rest| rest.split(']').next());
    let members =
        members.expect("a list of members").split(',').map(|m| m.trim().trim_matches('"'));
    let known: BTreeSet<_> = OURS.iter().map(|(folder, _)| *folder).chain(["e2e"]).collect();
    let unknown = members.filter(|member| !member.is_empty() && !known.contains(member));
    report("is in no row of the table", unknown.map(ToOwned::to_owned));
}

#[test]
fn decisions_know_no_client_and_no_clock() {
    let pure = sources().into_iter().filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let folder = path.to_string_lossy();
        PURE.contains(&name)
            && (folder.contains("/controllers/") || folder.contains("/ingress/src/"))
    });
    let pure: Vec<_> = pure.filter(|path| !path.ends_with("activator/pool.rs")).collect();
    assert!(pure.len() >= 10, "the pure modules have moved: {pure:?}");
    report(
        "has no place in a pure module",
        pure.iter().flat_map(|path| {
            let text = production(path);
            let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.to_owned()));
            let code = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
            let bad = code.filter(|(_, line)| IMPURE.iter().any(|word| line.contains(word)));
            bad.map(|(number, line)| format!("{}:{number}: {}", shown(path), line.trim()))
                .collect::<Vec<_>>()
        }),
    );
}

#[test]
fn files_stay_short_enough_to_read() {
    report(
        "is too long; split it",
        sources().iter().filter_map(|path| {
            let lines = production(path).lines().count();
            (lines > LINES).then(|| format!("{}: {lines} lines", shown(path)))
        }),
    );
}

#[test]
fn nothing_is_left_behind() {
    // Put together here, so that this file does not find itself.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["dbg", "!("].concat()];
    report(
        "is unfinished",
        sources().iter().flat_map(|path| {
            let text = fs::read_to_string(path).expect("a source file");
            let lines: Vec<_> = text.lines().map(ToOwned::to_owned).enumerate().collect();
            let bad =
                lines.into_iter().filter(|(_, line)| words.iter().any(|word| line.contains(word)));
            bad.map(|(i, line)| format!("{}:{}: {}", shown(path), i + 1, line.trim()))
                .collect::<Vec<_>>()
        }),
    );
}

#[track_caller]
fn report(what: &str, complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<_> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "{what}:\n{}", complaints.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The names in `[dependencies]` of a manifest.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let text =
        fs::read_to_string(manifest).unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
    let mut sections = BTreeMap::<&str, BTreeSet<String>>::new();
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if let Some(name) =
            line.split(['.', ' ', '=']).next().filter(|name| !name.is_empty())
        {
            sections.entry(section).or_default().insert(name.to_owned());
        }
    }
    sections.remove("[dependencies]").unwrap_or_default()
}

/// The Rust files that are shipped: no tests, no build output.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<_> =
        ["src", "controllers", "e2e/bench/src", "e2e/cluster/src", "docs/samples"]
            .iter()
            .map(|folder| root().join(folder))
            .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry"))
        {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "tests" {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") && name != "tests.rs" {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A file up to its inline tests.
fn production(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}
