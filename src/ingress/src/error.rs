//! The answers the gateway gives in its own name: one table of stable codes.

use http::StatusCode;

/// Declares [`Code`] together with its table, so that neither can miss an entry.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $status:ident, $message:literal;)+) => {
        /// A stable error code, sent as `X-Portolan-Error` and in the body.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $variant,)+ }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code as it is sent.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The HTTP status it comes with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)+ }
            }

            /// One sentence for the visitor.
            #[must_use]
            pub const fn message(self) -> &'static str {
                match self { $(Self::$variant => $message,)+ }
            }
        }
    };
}

codes! {
    /// No route answers this host.
    NoRoute = "no_route", NOT_FOUND, "No application answers on this host.";
    /// The host is a label under a routed host, and no preview has this label.
    UnknownPreview = "unknown_preview", NOT_FOUND, "No preview with this label exists, or it has expired.";
    /// A path that is only for the inside.
    Blocked = "blocked", NOT_FOUND, "This path is not served.";
    /// The gateway has not read all routes yet, so it cannot say that this one does not exist.
    NotSynced = "not_synced", SERVICE_UNAVAILABLE, "The gateway is starting. Try again in a moment.";
    /// The service has no active version yet.
    NoVersion = "no_version", SERVICE_UNAVAILABLE, "The application has no active version yet.";
    /// Too many requests wait for this service.
    QueueFull = "queue_full", SERVICE_UNAVAILABLE, "Too many requests are waiting for this application.";
    /// No slot came free in time.
    WaitTimeout = "wait_timeout", SERVICE_UNAVAILABLE, "The application did not become available in time.";
    /// The application does not come up.
    BootFailed = "boot_failed", SERVICE_UNAVAILABLE, "The application failed to start.";
    /// There is no room to start the application.
    NoCapacity = "no_capacity", SERVICE_UNAVAILABLE, "There is no capacity to start the application.";
    /// No connection to the sandbox, also not on the second try.
    UpstreamConnect = "upstream_connect", BAD_GATEWAY, "The application could not be reached.";
    /// The connection to the sandbox broke after the request was sent.
    UpstreamReset = "upstream_reset", BAD_GATEWAY, "The application closed the connection before it answered.";
    /// The sandbox sent something that is not HTTP, or switched protocols unasked.
    UpstreamProtocol = "upstream_protocol", BAD_GATEWAY, "The application sent an invalid response.";
    /// The sandbox did not answer in time.
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, "The application did not answer in time.";
    /// The request is malformed, ambiguous or not for a proxy of this kind.
    BadRequest = "bad_request", BAD_REQUEST, "The request is malformed.";
    /// The host is not one this TLS connection was opened for.
    Misdirected = "misdirected", MISDIRECTED_REQUEST, "This host is not served on this connection.";
    /// The request body is larger than the route allows.
    TooLarge = "too_large", PAYLOAD_TOO_LARGE, "The request body is too large.";
    /// The request body stopped flowing.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request body did not arrive in time.";
    /// The gateway is shutting down and the request had not begun.
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE, "The gateway is shutting down. Try again.";
}

impl Code {
    /// Seconds to send as `Retry-After`: only where the same request may soon succeed.
    #[must_use]
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::NotSynced | Self::NoVersion | Self::ShuttingDown => Some(1),
            Self::QueueFull | Self::WaitTimeout => Some(5),
            Self::BootFailed | Self::NoCapacity => Some(10),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Code;

    #[test]
    fn codes_are_unique_and_snake_case() {
        let codes: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(codes.len(), Code::ALL.len());
        for code in codes {
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
        }
    }

    #[test]
    fn every_unavailable_answer_says_when_to_come_back() {
        for code in Code::ALL {
            let unavailable = code.status() == http::StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(unavailable, code.retry_after().is_some(), "{}", code.as_str());
        }
    }
}
