//! WebSocket echo, over HTTP/1.1 (RFC 6455) and HTTP/2 (RFC 8441).

use std::future::Future;

use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use crate::pages::{Body, empty, text};

/// Accepts the request, if it asks for a WebSocket. Returns the answer and what then serves the
/// connection.
pub(crate) fn accept(
    mut request: Request<Incoming>,
    stop: CancellationToken,
) -> (Response<Body>, Option<impl Future<Output = ()> + Send + 'static>) {
    let Some(response) = handshake(&request) else {
        let refused = text(StatusCode::UPGRADE_REQUIRED, "this page speaks WebSocket only\n");
        return (refused, None);
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let serving = async move {
        match upgrade.await {
            Ok(upgraded) => {
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
                if let Err(error) = echo(socket, stop).await {
                    eprintln!("WebSocket ended: {error}");
                }
            }
            Err(error) => eprintln!("WebSocket not opened: {error}"),
        }
    };
    (response, Some(serving))
}

/// The answer to a valid handshake; `None` if the request is none.
fn handshake(request: &Request<Incoming>) -> Option<Response<Body>> {
    let headers = request.headers();
    let mut response = Response::new(empty());
    if request.version() == Version::HTTP_2 {
        let websocket = |protocol: &Protocol| protocol.as_str() == "websocket";
        let asked = request.extensions().get::<Protocol>().is_some_and(websocket);
        return (request.method() == Method::CONNECT && asked).then_some(response);
    }
    let asked = request.method() == Method::GET
        && has_token(headers, header::CONNECTION, "upgrade")
        && has_token(headers, header::UPGRADE, "websocket")
        && has_token(headers, header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asked)?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()?;
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Some(response)
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let lists = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Sends every message back until the peer closes; says goodbye once when told to stop.
async fn echo<S>(mut socket: WebSocketStream<S>, stop: CancellationToken) -> Result<(), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut leaving = false;
    loop {
        tokio::select! {
            () = stop.cancelled(), if !leaving => {
                leaving = true;
                let reason = "shutting down".into();
                socket.close(Some(CloseFrame { code: CloseCode::Away, reason })).await?;
            }
            message = socket.next() => match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    if !leaving {
                        socket.send(message).await?;
                    }
                }
                // Pings are answered and the closing handshake is ended by the library.
                Some(Ok(_)) => {}
                Some(Err(Error::ConnectionClosed)) | None => return Ok(()),
                Some(Err(error)) => return Err(error),
            },
        }
    }
}
