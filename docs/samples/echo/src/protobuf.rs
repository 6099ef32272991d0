//! As much of the Protocol Buffers wire format as two small messages need.

use bytes::{BufMut, Bytes, BytesMut};

/// A field of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: a string, bytes or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, in the order sent; fixed-width fields are skipped.
/// `None` where the message is malformed.
pub(crate) fn fields(mut message: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => fields.push((key >> 3, Field::Varint(varint(&mut message)?))),
            1 => message = message.get(8..)?,
            2 => {
                let size = usize::try_from(varint(&mut message)?).ok()?;
                fields.push((key >> 3, Field::Bytes(message.get(..size)?)));
                message = &message[size..];
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(fields)
}

/// A message with one string in field 1.
pub(crate) fn text(text: &str) -> Bytes {
    let mut message = BytesMut::with_capacity(text.len() + 11);
    message.put_u8(1 << 3 | 2);
    let mut size = text.len();
    while size > 0x7f {
        message.put_u8((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    message.put_u8(size as u8);
    message.put_slice(text.as_bytes());
    message.freeze()
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for position in 0..10 {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_back() {
        for sample in ["", "hello", &"x".repeat(300)] {
            let message = text(sample);
            assert_eq!(fields(&message), Some(vec![(1, Field::Bytes(sample.as_bytes()))]));
        }
    }

    #[test]
    fn numbers_are_read_and_fixed_widths_are_skipped() {
        let message = [0x10, 0xac, 0x02, 0x1d, 1, 2, 3, 4, 0x18, 0x05];
        assert_eq!(fields(&message), Some(vec![(2, Field::Varint(300)), (3, Field::Varint(5))]));
    }

    #[test]
    fn what_is_malformed_is_no_message() {
        for message in [&[0x0a, 5, b'x'][..], &[0x0a], &[0x0b], &[0x10, 0xff], &[0xff; 11]] {
            assert_eq!(fields(message), None, "{message:?}");
        }
    }
}
