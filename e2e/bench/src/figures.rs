//! Figures over rounds, and the page they are written to.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// One figure over all rounds.
#[derive(Debug, Clone)]
pub(crate) struct Figure(Vec<f64>);

impl Figure {
    /// The figure of these rounds, in any order.
    pub(crate) fn of(rounds: impl IntoIterator<Item = f64>) -> Self {
        let mut rounds: Vec<_> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        Self(rounds)
    }

    /// The middle one, or the mean of the two in the middle; zero without rounds.
    pub(crate) fn median(&self) -> f64 {
        let Self(rounds) = self;
        match rounds.len() {
            0 => 0.0,
            count if count % 2 == 1 => rounds[count / 2],
            count => f64::midpoint(rounds[count / 2 - 1], rounds[count / 2]),
        }
    }

    /// `median (least–greatest)`, with so many decimals.
    pub(crate) fn text(&self, decimals: usize) -> String {
        let least = self.0.first().copied().unwrap_or_default();
        let greatest = self.0.last().copied().unwrap_or_default();
        format!("{:.decimals$} ({least:.decimals$}–{greatest:.decimals$})", self.median())
    }
}

/// A row of a table.
pub(crate) struct Row {
    /// What is measured.
    pub(crate) figure: String,
    /// What it is to be.
    pub(crate) aim: String,
    /// What it was.
    pub(crate) measured: String,
    /// Whether the aim was met; `None`: there is none.
    pub(crate) is_met: Option<bool>,
}

impl Row {
    /// What is only to be known.
    pub(crate) fn known(figure: impl Into<String>, measured: String) -> Self {
        Self { figure: figure.into(), aim: "–".into(), measured, is_met: None }
    }
}

/// Prints a section and replaces it in the page, which keeps its other sections.
pub(crate) fn publish(
    page: &Path,
    title: &str,
    notes: &[String],
    rows: &[Row],
) -> anyhow::Result<()> {
    let mut section = format!("## {title}\n\n");
    for note in notes {
        // A line each, as on every page.
        writeln!(section, "{}", note.replace(". ", ".\n"))?;
    }
    section.push_str("\n| figure | aim | measured | met |\n|---|---|---|---|\n");
    for Row { figure, aim, measured, is_met } in rows {
        let met = match is_met {
            None => "–",
            Some(true) => "yes",
            Some(false) => "no",
        };
        writeln!(section, "| {figure} | {aim} | {measured} | {met} |")?;
    }
    println!("{section}");
    let before = fs::read_to_string(page).unwrap_or_else(|_| "# Benchmarks\n".into());
    fs::write(page, replaced(&before, title, &section)).context("write the page")
}

/// The page with this section in the place of the one of its title, or at the end.
fn replaced(page: &str, title: &str, section: &str) -> String {
    let heading = format!("## {title}\n");
    let Some(start) = page.find(&heading) else {
        return format!("{}\n\n{section}", page.trim_end());
    };
    let rest = &page[start + heading.len()..];
    let end = rest.find("\n## ").map_or(page.len(), |end| start + heading.len() + end + 1);
    format!("{}{section}\n{}", &page[..start], &page[end..]).trim_end().to_owned() + "\n"
}

/// The machine, in one line.
pub(crate) fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = Command::new("uname").arg("-sr").output();
    let kernel = kernel.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    format!("{processors} shared cores, {}.", kernel.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert!((Figure::of([3.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((Figure::of([4.0, 1.0, 2.0, 3.0]).median() - 2.5).abs() < 1e-9);
        assert_eq!(Figure::of([0.5, 1.5, 1.0]).text(1), "1.0 (0.5–1.5)");
    }

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let page = "# Benchmarks\n\n## A\n\nold\n\n## B\n\nother\n";
        let new = replaced(page, "A", "## A\n\nnew\n");
        assert_eq!(new, "# Benchmarks\n\n## A\n\nnew\n\n## B\n\nother\n");
        let more = replaced(&new, "C", "## C\n\nlast\n");
        assert_eq!(more, format!("{}\n\n## C\n\nlast\n", new.trim_end()));
    }
}
