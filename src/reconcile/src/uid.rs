//! UIDs as they are kept: each cache has one for each object.

use std::fmt;

use uuid::Uuid;

/// The UID of an object. Equal when the texts are.
///
/// API servers make UUIDs, which take no room besides this; any other text is kept as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Form);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl Uid {
    /// Whether it is none: the empty text.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Form::Text(text) if text.is_empty())
    }
}

impl Default for Uid {
    fn default() -> Self {
        Self(Form::Text(Box::default()))
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        // Written in another way it would be another text, and so another UID.
        let is_it =
            |uuid: &Uuid| *uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text;
        let uuid = Uuid::try_parse(text).ok().filter(is_it);
        Self(uuid.map_or_else(|| Form::Text(text.into()), |uuid| Form::Uuid(uuid.into_bytes())))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Uuid(bytes) => Uuid::from_bytes(*bytes).fmt(f),
            Form::Text(text) => text.fmt(f),
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_are_equal_when_their_texts_are() {
        let texts = [
            "0f8fad5b-d9cb-469f-a165-70867728950e",
            "0F8FAD5B-D9CB-469F-A165-70867728950E",
            "0f8fad5bd9cb469fa16570867728950e",
            "{0f8fad5b-d9cb-469f-a165-70867728950e}",
            "uid-of-the-pool",
            "",
        ];
        for (one, text) in texts.iter().enumerate() {
            assert_eq!(Uid::from(*text).to_string(), *text);
            for (other, another) in texts.iter().enumerate() {
                assert_eq!(
                    Uid::from(*text) == Uid::from(*another),
                    one == other,
                    "{text} {another}"
                );
            }
        }
        assert!(Uid::default().is_empty() && Uid::default() == Uid::from(""));
        assert!(!Uid::from(texts[0]).is_empty());
    }

    #[test]
    fn a_uuid_takes_no_room_besides() {
        assert!(matches!(Uid::from("0f8fad5b-d9cb-469f-a165-70867728950e").0, Form::Uuid(_)));
        assert_eq!(size_of::<Uid>(), 24);
    }
}
