//! What is generated from the types is what lies in the tree. `UPDATE=1` writes it instead:
//! `UPDATE=1 cargo test -p portolan-api --test generated`.

mod reference;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use portolan_api::{conditions, crds};
use serde_json::Value;

const HEADER: &str =
    "# Generated from src/api. To change it, change the types and run: make crds\n---\n";

#[test]
fn crds_are_what_the_types_say() {
    check("crds", &manifests());
}

#[test]
fn the_chart_carries_the_same_crds() {
    let files = manifests();
    for (name, text) in &files {
        assert!(!text.contains("{{"), "{name} would be read as a template by Helm");
    }
    check("charts/portolan-crds/templates", &files);
}

#[test]
fn the_reference_describes_the_same_fields() {
    let path = repository().join("docs/reference.md");
    let page = reference::page(&crds::manifests());
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert!(read(&path) == page, "{} is stale; run `make crds`", path.display());
}

/// A reason that the documentation does not explain leaves its reader alone.
#[test]
fn every_condition_reason_is_explained() {
    let page = read(&repository().join("docs/troubleshooting.md"));
    let silent = |reason: &&&str| !page.contains(&format!("| `{reason}` |"));
    let unexplained: Vec<_> = conditions::reason::ALL.iter().filter(silent).collect();
    assert!(unexplained.is_empty(), "docs/troubleshooting.md has no row for {unexplained:?}");
}

#[test]
fn a_written_crd_reads_back_as_the_same_value() {
    for manifest in crds::manifests() {
        let read: Value = serde_saphyr::from_str(&yaml(&manifest)).unwrap();
        assert_eq!(read, manifest, "{}", file_name(&manifest));
    }
}

fn manifests() -> BTreeMap<String, String> {
    crds::manifests()
        .iter()
        .map(|manifest| (file_name(manifest), format!("{HEADER}{}", yaml(manifest))))
        .collect()
}

fn file_name(manifest: &Value) -> String {
    format!("{}.yaml", manifest["metadata"]["name"].as_str().expect("a manifest has a name"))
}

/// Without folding: a rule that is split over lines cannot be searched for.
fn yaml(manifest: &Value) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(manifest, options).expect("a manifest is plain data")
}

/// `folder` holds exactly these YAML files.
#[track_caller]
fn check(folder: &str, expected: &BTreeMap<String, String>) {
    let folder = repository().join(folder);
    if env::var_os("UPDATE").is_some() {
        for (name, text) in expected {
            fs::write(folder.join(name), text).expect("the tree can be written");
        }
    }
    let present: BTreeMap<String, String> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| (name_of(&path), read(&path)))
        .collect();
    let stale: Vec<_> = expected
        .keys()
        .chain(present.keys())
        .filter(|name| expected.get(*name) != present.get(*name))
        .collect();
    assert!(stale.is_empty(), "stale in {}: {stale:?}; run `make crds`", folder.display());
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("src/api").to_path_buf()
}
