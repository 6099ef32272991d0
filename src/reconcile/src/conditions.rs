//! Conditions as KEP-1623 has them. Pure: time is an argument.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;

/// The longest message, in bytes. The API allows 32 KiB; nobody reads more than this in a terminal,
/// and conditions of 10 000 objects stay in memory.
const MESSAGE_MAX: usize = 1024;

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Verdict {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known yet, or no longer.
    Unknown,
}

impl Verdict {
    /// The word in a condition's `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Verdict {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One condition that flipped, whose reason changed, or that names something else now: what an
/// Event tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Transition {
    /// The condition's type.
    pub type_: String,
    /// What it was; `None` for a condition that was not there.
    pub from: Option<String>,
    /// What it is.
    pub to: Verdict,
    /// Why.
    pub reason: String,
    /// The condition's message.
    pub message: String,
    /// Whether the message names what stands in the way: another message is another Event then,
    /// and not a repetition of the one before.
    pub is_naming: bool,
}

/// Builds an object's conditions from those it has.
///
/// Types that are not set are dropped. The transition time of a condition is kept as long as its
/// status is; so a status that says the same is the same, byte for byte.
#[derive(Debug)]
pub struct Conditions<'a> {
    observed: &'a [Condition],
    generation: i64,
    now: Timestamp,
    conditions: Vec<Condition>,
    transitions: Vec<Transition>,
}

impl<'a> Conditions<'a> {
    /// Starts from the conditions the object has; `generation` is the object's, as it was read.
    pub fn new(observed: &'a [Condition], generation: i64, now: Timestamp) -> Self {
        Self { observed, generation, now, conditions: Vec::new(), transitions: Vec::new() }
    }

    /// Says how a condition is; a later call for the same type replaces an earlier one.
    ///
    /// `reason` is a documented constant in camel case; `message` says what is wrong, where, and
    /// what to do, and is cut at 1 024 bytes.
    pub fn set(
        &mut self,
        type_: &str,
        verdict: impl Into<Verdict>,
        reason: &str,
        message: impl Into<String>,
    ) -> &mut Self {
        let is_naming = false;
        self.put(is_naming, (type_, verdict.into(), reason, message.into()))
    }

    /// As [`Conditions::set`], for a message that names who or what stands in the way: that it
    /// names another is a transition too. Not for a message in which something counts up.
    pub fn set_naming(
        &mut self,
        type_: &str,
        verdict: impl Into<Verdict>,
        reason: &str,
        message: impl Into<String>,
    ) -> &mut Self {
        let is_naming = true;
        self.put(is_naming, (type_, verdict.into(), reason, message.into()))
    }

    fn put(&mut self, is_naming: bool, word: (&str, Verdict, &str, String)) -> &mut Self {
        let (type_, verdict, reason, message) = word;
        let message = cut(message);
        let before = self.observed.iter().find(|condition| condition.type_ == type_);
        let since = before.filter(|condition| condition.status == verdict.as_str());
        let is_same = before.is_some_and(|was| {
            let is_named = !is_naming || was.message == message;
            was.status == verdict.as_str() && was.reason == reason && is_named
        });
        self.conditions.retain(|condition| condition.type_ != type_);
        self.transitions.retain(|transition| transition.type_ != type_);
        if !is_same {
            self.transitions.push(Transition {
                type_: type_.to_owned(),
                from: before.map(|condition| condition.status.clone()),
                to: verdict,
                reason: reason.to_owned(),
                message: message.clone(),
                is_naming,
            });
        }
        self.conditions.push(Condition {
            type_: type_.to_owned(),
            status: verdict.as_str().to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: since
                .map_or(Time(self.now), |condition| condition.last_transition_time.clone()),
        });
        self
    }

    /// Keeps a condition as it was, with the generation it was about: for what this pass could not
    /// find out. Does nothing if it was not there or has been set.
    pub fn keep(&mut self, type_: &str) -> &mut Self {
        let before = self.observed.iter().find(|condition| condition.type_ == type_);
        if let Some(before) = before
            && !self.conditions.iter().any(|condition| condition.type_ == type_)
        {
            self.conditions.push(before.clone());
        }
        self
    }

    /// The conditions and what changed, both ordered by type.
    pub fn finish(mut self) -> (Vec<Condition>, Vec<Transition>) {
        self.conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
        self.transitions.sort();
        (self.conditions, self.transitions)
    }
}

/// Cuts a message at a character border and marks the cut.
fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let mark = "…";
        let end = (0..=MESSAGE_MAX - mark.len()).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push_str(mark);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Timestamp = Timestamp::UNIX_EPOCH;

    fn later() -> Timestamp {
        THEN + std::time::Duration::from_secs(60)
    }

    fn ready(verdict: Verdict, reason: &str) -> Vec<Condition> {
        let mut conditions = Conditions::new(&[], 1, THEN);
        conditions.set("Ready", verdict, reason, "as set up");
        conditions.finish().0
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_flips() {
        let observed = ready(Verdict::True, "Serving");
        let mut conditions = Conditions::new(&observed, 2, later());
        conditions.set("Ready", Verdict::True, "Asleep", "no demand");
        let (conditions, transitions) = conditions.finish();
        assert_eq!(conditions[0].last_transition_time, Time(THEN));
        assert_eq!(conditions[0].observed_generation, Some(2));
        assert_eq!(transitions[0].reason, "Asleep", "a changed reason is worth an Event");

        let mut flipped = Conditions::new(&observed, 2, later());
        flipped.set("Ready", Verdict::False, "CrashLooping", "exit code 1");
        let (flipped, transitions) = flipped.finish();
        assert_eq!(flipped[0].last_transition_time, Time(later()));
        assert_eq!(transitions[0].from.as_deref(), Some("True"));
        assert_eq!(transitions[0].to, Verdict::False);
    }

    #[test]
    fn saying_the_same_again_changes_nothing() {
        let observed = ready(Verdict::True, "Serving");
        let mut conditions = Conditions::new(&observed, 1, later());
        conditions.set("Ready", true, "Serving", "as set up");
        assert_eq!(conditions.finish(), (observed, vec![]));
    }

    #[test]
    fn that_something_else_is_named_is_a_transition_and_that_something_counts_up_is_none() {
        let message = "node port 6697/TCP is held by AppService team-b/game-lobby";
        let mut before = Conditions::new(&[], 1, THEN);
        before.set("Ready", false, "NodePortConflict", message);
        let observed = before.finish().0;
        let transitions = |is_naming: bool, message: &str| {
            let mut conditions = Conditions::new(&observed, 1, later());
            if is_naming {
                conditions.set_naming("Ready", false, "NodePortConflict", message);
            } else {
                conditions.set("Ready", false, "NodePortConflict", message);
            }
            let (conditions, transitions) = conditions.finish();
            assert_eq!(conditions[0].last_transition_time, Time(THEN), "the status is the same");
            transitions
        };
        let other = "node port 6698/TCP is held by AppService team-b/game-lobby";
        assert_eq!(transitions(false, other), []);
        assert_eq!(transitions(true, message), []);
        let expected = Transition {
            type_: "Ready".to_owned(),
            from: Some("False".to_owned()),
            to: Verdict::False,
            reason: "NodePortConflict".to_owned(),
            message: other.to_owned(),
            is_naming: true,
        };
        assert_eq!(transitions(true, other), [expected]);
    }

    #[test]
    fn types_that_are_not_set_are_dropped_and_the_rest_is_ordered() {
        let observed = ready(Verdict::True, "Serving");
        let mut conditions = Conditions::new(&observed, 1, later());
        conditions.set("Progressing", false, "Idle", "").set("Available", true, "Up", "");
        let types: Vec<_> = conditions.finish().0.into_iter().map(|one| one.type_).collect();
        assert_eq!(types, ["Available", "Progressing"]);
    }

    #[test]
    fn a_kept_condition_keeps_its_generation() {
        let observed = ready(Verdict::True, "Serving");
        let mut conditions = Conditions::new(&observed, 5, later());
        conditions.keep("Ready").keep("Missing");
        assert_eq!(conditions.finish(), (observed, vec![]));
    }

    #[test]
    fn the_last_word_on_a_type_counts() {
        let mut conditions = Conditions::new(&[], 1, THEN);
        conditions.set("Ready", true, "Serving", "").set("Ready", false, "Draining", "");
        let (conditions, transitions) = conditions.finish();
        assert_eq!((conditions.len(), conditions[0].reason.as_str()), (1, "Draining"));
        assert_eq!(transitions.len(), 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut conditions = Conditions::new(&[], 1, THEN);
        conditions.set("Ready", false, "Failed", "ä".repeat(2000));
        let message = &conditions.finish().0[0].message;
        assert!(message.len() <= MESSAGE_MAX && message.ends_with('…'), "{}", message.len());
    }
}
