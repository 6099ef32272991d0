//! The section of `docs/benchmarks.md` that holds the committed counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const HEADING: &str = "## Instructions\n";
const NOTES: &str = "\
Counted by callgrind in the profile of the tests, which is slower than what ships.
Each is a test too, which fails if its count moves by more than 3 %.
Count again with `make bench-instructions`.
";
const TABLE: &str = "| done once | instructions |\n|---|---|\n";

/// The page: what is before the section, its counts, and what is after it.
#[derive(Debug, PartialEq)]
pub(crate) struct Page {
    before: String,
    counts: BTreeMap<String, u64>,
    after: String,
}

impl Page {
    pub(crate) fn read() -> Self {
        let path = path();
        let text = fs::read_to_string(&path);
        Self::parse(&text.unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
    }

    /// Reads the page, changes it and writes it. Only one of a program's tests does at a time.
    pub(crate) fn update(change: impl FnOnce(&mut Self)) {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = Self::read();
        change(&mut page);
        let path = path();
        let written = fs::write(&path, page.text());
        written.unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    pub(crate) fn get(&self, row: &str) -> Option<u64> {
        self.counts.get(row).copied()
    }

    pub(crate) fn set(&mut self, row: &str, count: u64) {
        self.counts.insert(row.to_owned(), count);
    }

    fn parse(text: &str) -> Self {
        let Some((before, rest)) = text.split_once(HEADING) else {
            let before = format!("{}\n\n", text.trim_end());
            return Self { before, counts: BTreeMap::new(), after: String::new() };
        };
        let end = rest.find("\n## ").map_or(rest.len(), |end| end + 1);
        let (section, after) = rest.split_at(end);
        let rows = section.lines().filter_map(|line| {
            let (row, count) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
            Some((row.to_owned(), count.replace(' ', "").parse().ok()?))
        });
        Self { before: before.to_owned(), counts: rows.collect(), after: after.to_owned() }
    }

    fn text(&self) -> String {
        let Self { before, counts, after } = self;
        let mut text = format!("{before}{HEADING}\n{NOTES}\n{TABLE}");
        for (row, count) in counts {
            writeln!(text, "| {row} | {} |", grouped(*count)).expect("a string grows");
        }
        if !after.is_empty() {
            text.push('\n');
        }
        text + after
    }
}

/// The number with a space before each group of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_what_is_around_the_counts() {
        let mut page = Page::parse("# Benchmarks\n\n## A\n\na\n");
        page.set("b", 12_345);
        page.set("a", 7);
        let first = page.text();
        assert!(first.starts_with("# Benchmarks\n\n## A\n\na\n\n## Instructions\n"), "{first}");
        assert!(first.ends_with("|---|---|\n| a | 7 |\n| b | 12 345 |\n"), "{first}");
        let mut page = Page::parse(&format!("{first}\n## B\n\nb\n"));
        page.set("a", 8);
        assert_eq!((page.get("a"), page.get("b"), page.get("c")), (Some(8), Some(12_345), None));
        let second = page.text();
        assert_eq!(second, format!("{}\n## B\n\nb\n", first.replace("| 7 |", "| 8 |")));
        assert_eq!(Page::parse(&second), page);
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let texts = [0, 12, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "12", "999", "1 000", "1 234 567"]);
    }
}
