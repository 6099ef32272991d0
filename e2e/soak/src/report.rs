//! What visitors noticed, and whether they may have.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::load::{Failure, Tally};
use crate::streams::Cut;

/// Failures that are told in words.
const TOLD_MAX: usize = 5;
/// How long every stream has at most begun.
const OPENING_MAX: Duration = Duration::from_secs(10);

/// What visitors and streams noticed of one thing that was done.
#[derive(Debug)]
pub struct Outcome {
    /// Since when they were there.
    pub begun: Instant,
    /// How long they were there.
    pub took: Duration,
    /// What the visitors got.
    pub tally: Tally,
    /// How many streams ended.
    pub cuts: usize,
    /// Those that ended sooner than they may.
    pub early: Vec<Cut>,
    /// How many never began.
    pub never: usize,
    /// How long anybody may wait for an answer.
    pub wait_max: Duration,
    /// How many connections the node's own proxy led nowhere.
    pub astray: usize,
}

/// One line of the table.
#[derive(Debug)]
pub struct Report {
    /// What was done.
    pub what: String,
    /// How long it took.
    pub took: Duration,
    /// Requests.
    pub asked: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Those of them that had to fail: under way on a program that was killed, or led nowhere.
    pub excused: usize,
    /// How many of these were led nowhere.
    pub astray: usize,
    /// Requests that crossed a GOAWAY.
    pub crossed: usize,
    /// Latencies: half, all but one in a hundred, the greatest.
    pub latency: [Duration; 3],
    /// Streams that ended.
    pub cuts: usize,
    /// What is wrong; empty when nothing is.
    pub faults: Vec<String>,
}

impl Outcome {
    /// A moment in words, to be compared with others of the same line.
    #[must_use]
    pub fn when(&self, moment: Instant) -> String {
        format!("{:.1} s in", moment.saturating_duration_since(self.begun).as_secs_f64())
    }
}

impl Report {
    /// A line from what was noticed. Failures that are excused had to happen.
    pub fn judged(what: String, outcome: &Outcome, is_excused: impl Fn(&Failure) -> bool) -> Self {
        let tally = &outcome.tally;
        let unexcused = tally.failures.iter().filter(|failure| !is_excused(failure));
        let (mut left, mut astray) = (outcome.astray, 0);
        let unexcused: Vec<_> = unexcused
            .filter(|failure| {
                let is_astray = left > 0 && failure.was_refused();
                left -= usize::from(is_astray);
                astray += usize::from(is_astray);
                !is_astray
            })
            .collect();
        let mut faults = Vec::new();
        for failure in unexcused.iter().take(TOLD_MAX) {
            let Failure { begun, ended, way, what } = failure;
            let (took, when) = (ended.saturating_duration_since(*begun), outcome.when(*begun));
            faults.push(format!("{way:?}, sent {when}, after {took:.1?}: {what}"));
        }
        if unexcused.len() > TOLD_MAX {
            faults.push(format!("and {} more requests", unexcused.len() - TOLD_MAX));
        }
        for cut in outcome.early.iter().take(TOLD_MAX) {
            let Cut { gateway, sandbox, what, .. } = cut;
            faults.push(format!("a stream through {gateway} from {sandbox} was cut: {what}"));
        }
        if outcome.early.len() > TOLD_MAX {
            faults.push(format!("and {} more streams", outcome.early.len() - TOLD_MAX));
        }
        if outcome.never > 0 && outcome.took > OPENING_MAX {
            faults.push(format!("{} streams never began", outcome.never));
        }
        if tally.latencies.is_empty() {
            faults.push("nobody was answered".to_owned());
        }
        let waited = tally.latencies.iter().filter(|latency| **latency > outcome.wait_max).count();
        if waited > 0 {
            let (longest, limit) = (tally.quantile(1.0), outcome.wait_max);
            faults.push(format!("{waited} waited for more than {limit:?}, one {longest:.1?}"));
        }
        Self {
            what,
            took: outcome.took,
            asked: tally.asked(),
            failed: tally.failures.len(),
            excused: tally.failures.len() - unexcused.len(),
            astray,
            crossed: tally.crossed,
            latency: [tally.quantile(0.5), tally.quantile(0.99), tally.quantile(1.0)],
            cuts: outcome.cuts,
            faults,
        }
    }

    /// A line for what could not be done to its end.
    #[must_use]
    pub fn broken(what: String, error: &anyhow::Error) -> Self {
        let faults = vec![format!("{error:#}")];
        Self {
            what,
            took: Duration::ZERO,
            asked: 0,
            failed: 0,
            excused: 0,
            astray: 0,
            crossed: 0,
            latency: Default::default(),
            cuts: 0,
            faults,
        }
    }

    /// The verdict.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }
}

/// All lines as a table, and below it what is wrong.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "what                                             took  asked failed excused crossed    p50    p99    max  cut  verdict\n",
    );
    for report in reports {
        let [p50, p99, max] = report.latency.map(|latency| latency.as_millis());
        let verdict = if report.is_good() { "good" } else { "BAD" };
        let took = report.took.as_secs();
        let Report { what, asked, failed, excused, crossed, cuts, .. } = report;
        let _ = writeln!(
            text,
            "{what:<45} {took:>6}s {asked:>6} {failed:>6} {excused:>7} {crossed:>7} {p50:>4}ms {p99:>4}ms {max:>4}ms {cuts:>4}  {verdict}"
        );
    }
    for Report { what, astray, .. } in reports.iter().filter(|report| report.astray > 0) {
        let _ =
            writeln!(text, "\n{what}: kube-proxy led {astray} nowhere while it changed its rules");
    }
    for report in reports.iter().filter(|report| !report.is_good()) {
        let _ = writeln!(text, "\n{}:", report.what);
        for fault in &report.faults {
            let _ = writeln!(text, "- {fault}");
        }
    }
    text
}

/// Excuses what was under way when a program was killed, or was sent before another could answer
/// in its place, and was told so then. What fails after a long wait was taken by another.
pub(crate) fn killed_at(moment: Instant, hand_over: Duration) -> impl Fn(&Failure) -> bool {
    move |failure| {
        let was_told_at_once = failure.ended <= moment + hand_over * 2;
        failure.ended >= moment && failure.begun <= moment + hand_over && was_told_at_once
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Way;

    fn failure(begun: Instant, ended: Instant) -> Failure {
        Failure { begun, ended, way: Way::Single, what: "reset".into() }
    }

    #[test]
    fn a_kill_excuses_what_was_under_way_and_nothing_else() {
        let killed = Instant::now() + Duration::from_secs(100);
        let second = Duration::from_secs(1);
        let is_excused = killed_at(killed, second);
        assert!(is_excused(&failure(killed - second, killed)));
        assert!(is_excused(&failure(killed + second / 2, killed + second)));
        assert!(!is_excused(&failure(killed - second, killed - second / 2)), "before the kill");
        assert!(!is_excused(&failure(killed + second * 2, killed + second * 3)), "after it");
        assert!(!is_excused(&failure(killed, killed + second * 3)), "it waited in vain");
    }

    #[test]
    fn the_table_tells_what_is_wrong() {
        let now = Instant::now();
        let tally = Tally {
            latencies: vec![Duration::from_millis(2)],
            failures: vec![failure(now, now)],
            crossed: 0,
        };
        let (begun, took) = (now - Duration::from_millis(1_500), Duration::ZERO);
        let early = Vec::new();
        let wait_max = Duration::from_millis(1);
        let (cuts, never, astray) = (0, 0, 0);
        let outcome = Outcome { begun, took, tally, cuts, early, never, wait_max, astray };
        let bad = Report::judged("three rollouts".into(), &outcome, |_| false);
        let outcome = Outcome { wait_max: Duration::from_millis(2), ..outcome };
        let good = Report::judged("a kill".into(), &outcome, |_| true);
        assert!(!bad.is_good() && good.is_good());
        let table = table(&[bad, good]);
        let told = "three rollouts:\n- Single, sent 1.5 s in, after 0.0ns: reset\n\
            - 1 waited for more than 1ms, one 2.0ms\n";
        assert!(table.ends_with(told), "{table}");
    }

    #[test]
    fn as_many_refusals_as_the_node_counted_are_excused() {
        let now = Instant::now();
        let refused = || Failure {
            what: "connect: Connection refused (os error 111)".into(),
            ..failure(now, now)
        };
        let excused = |astray: usize, failures: Vec<Failure>| {
            let tally = Tally { latencies: vec![Duration::ZERO], failures, crossed: 0 };
            let (cuts, never, early, wait_max) = (0, 0, Vec::new(), Duration::MAX);
            let (begun, took) = (now, Duration::ZERO);
            let outcome = Outcome { begun, took, tally, cuts, early, never, wait_max, astray };
            let report = Report::unnoticed(String::new(), &outcome);
            (report.excused, report.astray, report.is_good())
        };
        assert_eq!(excused(0, vec![refused()]), (0, 0, false), "a gateway refused it");
        assert_eq!(excused(1, vec![refused()]), (1, 1, true));
        assert_eq!(excused(1, vec![refused(), refused()]), (1, 1, false));
        assert_eq!(excused(1, vec![failure(now, now)]), (0, 0, false), "it was cut");
    }
}
