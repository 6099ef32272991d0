//! HTTP/2 frames by hand (RFC 9113 section 4.1, RFC 7541 section 6.2.2).

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The bytes before a frame's payload.
pub(crate) const HEAD: usize = 9;

/// One frame.
///
/// # Panics
/// When the payload does not fit a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a small payload").to_be_bytes();
    assert!(size[0] == 0, "a payload of {} bytes fits no frame", payload.len());
    let mut frame = vec![size[1], size[2], size[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The preface, and no settings of our own.
pub(crate) fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A header block: every field a literal with a literal name, as it stands.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // From 127 on, a length takes more bytes than one.
            let size = u8::try_from(text.len()).ok().filter(|size| *size < 127);
            block.push(size.expect("a short text"));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The fields that each request begins with.
pub(crate) fn request(method: &str, path: &str, host: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", host)])
}

/// The number of a client's stream, counted from zero.
pub(crate) fn stream(index: u32) -> u32 {
    2 * index + 1
}
