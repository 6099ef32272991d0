//! An error with its sources on one line.

use std::{error::Error, fmt};

/// Displays an error and its sources as `outer: inner: innermost`.
///
/// A source whose text its parent already prints is left out: our own errors never print their
/// source, but those of some libraries do, and saying it twice hides what matters.
#[derive(Clone, Copy, Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parent = self.0.to_string();
        f.write_str(&parent)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !parent.contains(&text) {
                write!(f, ": {text}")?;
                parent = text;
            }
            next = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[track_caller]
    fn check(texts: &[&'static str], expected: &str) {
        let chain = texts
            .iter()
            .rev()
            .fold(None, |source, text| Some(Box::new(Link { text, source })))
            .expect("at least one text");
        assert_eq!(ErrorChain(chain.as_ref()).to_string(), expected);
    }

    #[test]
    fn sources_follow_their_parent() {
        check(&["apply pod"], "apply pod");
        check(&["apply pod", "connection reset"], "apply pod: connection reset");
    }

    #[test]
    fn a_source_its_parent_prints_is_dropped() {
        check(&["list pods", "api error: gone", "gone"], "list pods: api error: gone");
        check(&["a: b: c", "b: c", "c"], "a: b: c");
    }

    #[test]
    fn a_source_after_a_dropped_one_is_kept() {
        check(&["read: timed out", "timed out", "10.0.0.1"], "read: timed out: 10.0.0.1");
    }
}
