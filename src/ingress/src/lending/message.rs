//! What gateways say to each other about slots.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ProtocolError;

/// Largest message in bytes. A greeting is cut so that it stays below.
pub(crate) const MESSAGE_SIZE_MAX: usize = 1 << 20;

/// Entries of one [`Message::Hello`]: two names of at most 63 bytes and a number take some 150.
pub(crate) const HOLDS_MAX: usize = 4_000;

/// Largest count a message may carry; sums of them do not overflow.
const COUNT_MAX: u32 = 1 << 20;
/// Longest UID.
const UID_SIZE_MAX: usize = 63;

/// A message. Both ends lend and borrow, so both send all of them. Fields that a later release may
/// add are ignored: gateways of two releases live side by side for as long as an upgrade takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// First of all, in one or more parts: the slots of yours that I still use.
    Hello {
        /// At most some thousands.
        holds: Vec<Hold>,
        /// No part follows.
        is_last: bool,
    },
    /// So many slots I could use at once now; replaces the last one.
    Want {
        /// UID of the pool.
        #[serde(with = "uid")]
        pool: Arc<str>,
        /// Zero ends the want.
        count: u32,
        /// What was refused before is welcome again.
        is_fresh: bool,
    },
    /// Nothing is free now; the want stands in line.
    Later {
        /// UID of the pool.
        #[serde(with = "uid")]
        pool: Arc<str>,
    },
    /// These are yours until you return them.
    Lent(Hold),
    /// Return these as soon as requests end.
    Recall(Hold),
    /// These are yours again.
    Returned {
        /// Which.
        hold: Hold,
        /// The sandbox is of no use here at present.
        is_refused: bool,
    },
}

/// Some slots on one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// UID of the pool.
    #[serde(with = "uid")]
    pub pool: Arc<str>,
    /// UID of the sandbox.
    #[serde(with = "uid")]
    pub sandbox: Arc<str>,
    /// How many.
    pub count: u32,
}

impl Message {
    /// As bytes, at most one mebibyte.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes = serde_json::to_vec(self).expect("strings and numbers can be written");
        debug_assert!(bytes.len() <= MESSAGE_SIZE_MAX, "greetings are cut");
        bytes.into()
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if they are no message, or one that no gateway sends.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        if bytes.len() > MESSAGE_SIZE_MAX {
            return Err(ProtocolError("a message is too long"));
        }
        let message: Self =
            serde_json::from_slice(bytes).map_err(|_| ProtocolError("not a message"))?;
        let is_sane = match &message {
            Self::Hello { holds, .. } => {
                holds.len() <= HOLDS_MAX && holds.iter().all(Hold::is_sane)
            }
            Self::Want { pool, count, .. } => pool.len() <= UID_SIZE_MAX && *count <= COUNT_MAX,
            Self::Later { pool } => pool.len() <= UID_SIZE_MAX,
            Self::Lent(hold) | Self::Recall(hold) | Self::Returned { hold, .. } => hold.is_sane(),
        };
        if is_sane { Ok(message) } else { Err(ProtocolError("a message is out of bounds")) }
    }
}

impl Hold {
    fn is_sane(&self) -> bool {
        let is_short = self.pool.len() <= UID_SIZE_MAX && self.sandbox.len() <= UID_SIZE_MAX;
        is_short && (1..=COUNT_MAX).contains(&self.count)
    }
}

/// Shared strings, without the feature of serde that would write any shared thing.
mod uid {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(uid: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(uid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(from).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(count: u32) -> Hold {
        Hold { pool: "pool".into(), sandbox: "sandbox".into(), count }
    }

    #[test]
    fn every_message_survives_the_way() {
        for message in [
            Message::Hello { holds: vec![hold(1), hold(7)], is_last: true },
            Message::Want { pool: "pool".into(), count: 0, is_fresh: false },
            Message::Later { pool: "pool".into() },
            Message::Lent(hold(3)),
            Message::Recall(hold(1)),
            Message::Returned { hold: hold(2), is_refused: true },
        ] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn what_a_later_release_adds_is_ignored() {
        let later = r#"{"hello":{"holds":[],"is_last":true,"release":2}}"#;
        let hello = Message::Hello { holds: Vec::new(), is_last: true };
        assert_eq!(Message::decode(later.as_bytes()), Ok(hello));
        let later = r#"{"lent":{"pool":"p","sandbox":"s","count":1,"until":3}}"#;
        assert!(Message::decode(later.as_bytes()).is_ok());
    }

    #[test]
    fn the_longest_greeting_is_within_the_size() {
        let uid: Arc<str> = "u".repeat(UID_SIZE_MAX).into();
        let hold = Hold { pool: uid.clone(), sandbox: uid, count: COUNT_MAX };
        let message = Message::Hello { holds: vec![hold; HOLDS_MAX], is_last: false };
        assert!(message.encode().len() <= MESSAGE_SIZE_MAX);
    }

    #[test]
    fn hostile_messages_are_refused() {
        let long = "x".repeat(UID_SIZE_MAX + 1);
        for hostile in [
            String::new(),
            "{}".into(),
            "[".repeat(100_000),
            r#"{"steal":{"pool":"p"}}"#.into(),
            r#"{"lent":{"pool":"p","sandbox":"s","count":0}}"#.into(),
            r#"{"lent":{"pool":"p","sandbox":"s","count":-1}}"#.into(),
            r#"{"lent":{"pool":"p","sandbox":"s","count":4294967295}}"#.into(),
            format!(r#"{{"later":{{"pool":"{long}"}}}}"#),
            " ".repeat(MESSAGE_SIZE_MAX + 1),
        ] {
            assert!(Message::decode(hostile.as_bytes()).is_err(), "{:.60}", hostile);
        }
    }
}
