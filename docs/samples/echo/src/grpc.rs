//! The gRPC services of `echo.proto`, and the health service that probes ask.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};

use crate::pages::{Body, BoxError};
use crate::protobuf::{self, Field};

/// Longest request message; longer ones are answered `RESOURCE_EXHAUSTED`.
const MESSAGE_SIZE_MAX: usize = 4 * 1024 * 1024;
/// Most messages of one stream.
const COUNT_MAX: u64 = 10_000;
/// Longest interval between two messages.
const INTERVAL_MS_MAX: u64 = 60_000;
/// `grpc.health.v1.HealthCheckResponse { status: SERVING }`.
const SERVING: &[u8] = &[0x08, 0x01];

/// A status that is not OK: code of the gRPC specification, and what is wrong.
struct Refusal(u32, &'static str);

const INVALID_ARGUMENT: u32 = 3;
const RESOURCE_EXHAUSTED: u32 = 8;
const UNIMPLEMENTED: u32 = 12;

/// Whether a request is a gRPC call.
pub(crate) fn is_call<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Answers a call.
pub(crate) async fn call(request: Request<Incoming>) -> Response<Body> {
    let method = request.uri().path().to_owned();
    match answer(&method, request.into_body()).await {
        Ok(body) => response(body),
        Err(refusal) => refused(refusal),
    }
}

async fn answer(method: &str, body: Incoming) -> Result<Body, Refusal> {
    match method {
        "/portolan.echo.v1.Echo/Say" => {
            let message = message(body).await?;
            let (text, _, _) = count_request(&message)?;
            Ok(messages(stream::iter([protobuf::text(text)])))
        }
        "/portolan.echo.v1.Echo/Count" => {
            let message = message(body).await?;
            let (text, count, interval) = count_request(&message)?;
            Ok(messages(repeated(protobuf::text(text), count, interval)))
        }
        "/grpc.health.v1.Health/Check" => {
            message(body).await?;
            Ok(messages(stream::iter([Bytes::from_static(SERVING)])))
        }
        _ => Err(Refusal(UNIMPLEMENTED, "no such method, see echo.proto")),
    }
}

/// The one message of a call with a single request.
async fn message(body: Incoming) -> Result<Bytes, Refusal> {
    let collected = Limited::new(body, MESSAGE_SIZE_MAX + 5).collect().await;
    let mut frame =
        collected.map_err(|_| Refusal(RESOURCE_EXHAUSTED, "the message is too large"))?.to_bytes();
    if frame.len() < 5 {
        return Err(Refusal(INVALID_ARGUMENT, "the message is incomplete"));
    }
    let compressed = frame.get_u8() != 0;
    let size = frame.get_u32() as usize;
    if compressed {
        return Err(Refusal(UNIMPLEMENTED, "compression is not supported"));
    }
    if frame.len() != size {
        return Err(Refusal(INVALID_ARGUMENT, "exactly one message is expected"));
    }
    Ok(frame)
}

/// The fields of `CountRequest`, of which `Text` is the beginning.
fn count_request(message: &[u8]) -> Result<(&str, u64, Duration), Refusal> {
    let malformed = Refusal(INVALID_ARGUMENT, "the message is malformed");
    let Some(fields) = protobuf::fields(message) else { return Err(malformed) };
    let (mut text, mut count, mut interval_ms) = ("", 0, 0);
    for field in fields {
        match field {
            (1, Field::Bytes(bytes)) => match std::str::from_utf8(bytes) {
                Ok(valid) => text = valid,
                Err(_) => return Err(malformed),
            },
            (2, Field::Varint(value)) => count = value.min(COUNT_MAX),
            (3, Field::Varint(value)) => interval_ms = value.min(INTERVAL_MS_MAX),
            _ => {}
        }
    }
    Ok((text, count, Duration::from_millis(interval_ms)))
}

fn repeated(
    message: Bytes,
    count: u64,
    interval: Duration,
) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::iter(0..count).then(move |index| {
        let message = message.clone();
        async move {
            if index > 0 {
                tokio::time::sleep(interval).await;
            }
            message
        }
    })
}

/// A body of messages that ends with the status OK in its trailers.
fn messages(messages: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    let frames = messages.map(|message| {
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).expect("messages are bounded"));
        frame.put_slice(&message);
        Frame::data(frame.freeze())
    });
    let trailers = stream::once(async { Frame::trailers(status(0)) });
    StreamBody::new(frames.chain(trailers).map(Ok::<_, BoxError>)).boxed_unsync()
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// A status without a message goes into the headers: "trailers only".
fn refused(Refusal(code, message): Refusal) -> Response<Body> {
    let mut response = response(crate::pages::empty());
    response.headers_mut().extend(status(code));
    response.headers_mut().insert("grpc-message", HeaderValue::from_static(message));
    response
}

fn status(code: u32) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from(code))])
}
