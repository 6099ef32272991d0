//! Serves the requests of one connection, watches its time limits, ends it on shutdown.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::accept::Reception;
use super::transport::Transport;
use crate::proxy::{self, Client, Vitality};
use crate::settings::Settings;

/// What the HTTP/1 parser allows by itself.
const PARSER_HEADER_COUNT_MAX: usize = 100;

/// How HTTP is spoken, the same for all connections.
pub(super) struct Http(auto::Builder<TokioExecutor>);

impl Http {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            // The time limits are ours: the parser's own would set a timer for every request.
            .header_read_timeout(None)
            // Smaller is refused with a panic.
            .max_buf_size(settings.header_size_max.max(8 * 1024));
        // Setting the number, even to the same, costs an allocation for each request.
        if settings.header_count_max != PARSER_HEADER_COUNT_MAX {
            builder.http1().max_headers(settings.header_count_max);
        }
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.h2_streams_max)
            .max_pending_accept_reset_streams(settings.h2_pending_resets_max)
            .initial_stream_window_size(settings.h2_stream_window)
            .initial_connection_window_size(settings.h2_connection_window)
            .max_send_buf_size(settings.h2_send_buffer)
            .max_header_list_size(u32::try_from(settings.header_size_max).unwrap_or(u32::MAX))
            .keep_alive_interval(settings.h2_ping_interval)
            .keep_alive_timeout(settings.h2_ping_interval)
            .enable_connect_protocol();
        Self(builder)
    }

    const fn builder(&self) -> &auto::Builder<TokioExecutor> {
        &self.0
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<T>(reception: &Reception, stream: T, client: Client)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client = Arc::new(client);
    let io = TokioIo::new(Transport::new(stream, Arc::clone(&client)));
    let service = {
        let client = Arc::clone(&client);
        service_fn(move |request| proxy::handle(Arc::clone(&client), request))
    };
    let mut connection = pin!(reception.http.builder().serve_connection_with_upgrades(io, service));
    let settings = &reception.shared.core.settings;
    // One timer that looks now and then, instead of one that every request sets and clears.
    let first = settings.header_timeout.min(settings.keep_alive).min(settings.write_stall);
    let mut look = pin!(sleep(first));
    // Tokens of its own: polling a shared one takes a lock that all connections would meet in.
    let (leaving, closing) = (reception.leaving.child_token(), reception.closing.child_token());
    let mut has_left = leaving.is_cancelled();
    let mut is_ending = false;
    let mut was_idle = false;
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "Connection ended with an error");
                }
                return;
            }
            // HTTP/2 can say goodbye without crossing with a request.
            () = leaving.cancelled(), if !has_left => {
                has_left = true;
                if client.pulse.is_h2() {
                    connection.as_mut().graceful_shutdown();
                }
            }
            // Polled only once it may come: this runs with every request.
            () = closing.cancelled(), if has_left && !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = look.as_mut() => {
                if !client.streams.cut(settings.write_stall) {
                    return;
                }
                match client.pulse.check(settings) {
                    Vitality::Alive(next) => {
                        let next = next.min(client.streams.patience());
                        look.as_mut().reset(Instant::now() + next);
                    }
                    Vitality::SlowHead | Vitality::Stuck => return,
                    // It was asked to go, and neither closed its side nor sent a request: over
                    // HTTP/2 the goodbye waits for an answer that such a peer need not give.
                    Vitality::Idle if was_idle => return,
                    Vitality::Idle => {
                        (is_ending, was_idle) = (true, true);
                        connection.as_mut().graceful_shutdown();
                        look.as_mut().reset(Instant::now() + settings.header_timeout);
                    }
                }
            }
        }
    }
}
