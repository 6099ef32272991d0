//! The pages say what is in the tree: links lead somewhere, tables are complete.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::fs;
use std::path::{Path, PathBuf};

use portolan_api::conditions::reason;
use portolan_cluster::paths::Paths;

#[test]
fn every_link_within_the_pages_leads_to_a_file() {
    for page in pages() {
        let folder = page.parent().unwrap();
        for target in links(&fs::read_to_string(&page).unwrap()) {
            let path = target.split('#').next().unwrap();
            let is_elsewhere = path.is_empty() || path.contains("://");
            let leads = is_elsewhere || folder.join(path).exists();
            assert!(leads, "{} links to {target}, which does not exist", page.display());
        }
    }
}

#[test]
fn every_sentence_has_a_line() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let mut is_prose = true;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("```") {
                is_prose = !is_prose;
            }
            let is_table_or_list = line.starts_with(['|', '-', ' ', '#']);
            let is_numbered = line.starts_with(|first: char| first.is_ascii_digit());
            if !is_prose || is_table_or_list || is_numbered {
                continue;
            }
            let begins = |end: usize| line[end + 2..].starts_with(|c: char| c.is_uppercase());
            let second = line.match_indices(". ").find(|(end, _)| begins(*end));
            let is_bold = line.starts_with("**");
            assert!(
                second.is_none() || is_bold,
                "{}:{}: two sentences on one line",
                page.display(),
                number + 1
            );
        }
    }
}

#[test]
fn every_reason_and_every_code_is_explained_once() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    // The table above it is of condition types, one of which is called as a reason is.
    let page = page.split_once("## Reasons of Apps").unwrap().1;
    let source = fs::read_to_string(root().join("src/ingress/src/error.rs")).unwrap();
    // The table of the source: `Variant = "code", STATUS, "message";`.
    let codes: Vec<&str> = source
        .lines()
        .filter(|line| line.trim_end().ends_with("\";") && line.contains(" = \""))
        .map(|line| line.split('"').nth(1).unwrap())
        .collect();
    assert!(codes.contains(&"no_route"), "the codes are found: {codes:?}");
    for word in reason::ALL.iter().chain(&codes) {
        let rows = page.matches(&format!("\n| `{word}` |")).count();
        assert_eq!(rows, 1, "docs/troubleshooting.md has {rows} rows for {word}");
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let page = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    for name in names.filter(|name| !name.starts_with("portolan-")) {
        assert!(page.contains(&format!("`{name}`")), "docs/dependencies.md misses {name}");
    }
}

#[test]
fn the_architecture_names_only_files_that_exist() {
    let page = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let words = page.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| word.contains('/') && !word.contains("KIND") && !word.contains('*');
    for path in words.filter(is_path) {
        assert!(root().join(path).exists(), "docs/ARCHITECTURE.md names {path}");
    }
}

fn root() -> PathBuf {
    Paths::discover().repository
}

/// The pages that people write.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let is_generated = path.ends_with("docs/reference.md");
            if path.is_dir() {
                folders.push(path);
            } else if is_page(&path) && !is_generated {
                pages.push(path);
            }
        }
    }
    pages
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// The targets of `[text](target)`.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}
