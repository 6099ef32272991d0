//! What a read came to know. A read that failed is never taken for absence.

use std::fmt::Display;

use serde::Serialize;

/// The result of looking for one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Observed<T> {
    /// It was looked for and is not there.
    Absent,
    /// It is there.
    Present(T),
    /// It could not be looked for, or what is there could not be understood; the text says why.
    Unknown(String),
}

impl<T> Observed<T> {
    /// From a read that distinguishes "not there" from failure.
    pub fn from_read<E: Display>(read: Result<Option<T>, E>) -> Self {
        match read {
            Ok(Some(found)) => Self::Present(found),
            Ok(None) => Self::Absent,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }

    /// The thing, if it is known to be there.
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(found) => Some(found),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    /// Whether it is known not to be there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// The same knowledge about a borrowed thing.
    pub fn as_ref(&self) -> Observed<&T> {
        match self {
            Self::Absent => Observed::Absent,
            Self::Present(found) => Observed::Present(found),
            Self::Unknown(why) => Observed::Unknown(why.clone()),
        }
    }

    /// The same knowledge about something derived from the thing.
    pub fn map<U>(self, derive: impl FnOnce(T) -> U) -> Observed<U> {
        match self {
            Self::Absent => Observed::Absent,
            Self::Present(found) => Observed::Present(derive(found)),
            Self::Unknown(why) => Observed::Unknown(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_read_is_not_absence() {
        let failed: Result<Option<u8>, &str> = Err("connection refused");
        assert_eq!(Observed::from_read(failed), Observed::Unknown("connection refused".into()));
        assert_eq!(Observed::from_read(Ok::<Option<u8>, &str>(None)), Observed::Absent);
        assert_eq!(Observed::from_read(Ok::<_, &str>(Some(7))), Observed::Present(7));
    }

    #[test]
    fn deriving_keeps_what_is_known() {
        assert_eq!(Observed::Present(7).map(|n| n + 1), Observed::Present(8));
        assert_eq!(Observed::<u8>::Absent.map(|n| n + 1), Observed::Absent);
        let unknown = Observed::<u8>::Unknown("why".into());
        assert_eq!(unknown.as_ref().map(|n| n + 1), Observed::Unknown("why".into()));
        assert!(unknown.is_unknown() && unknown.present().is_none() && !unknown.is_absent());
    }
}
