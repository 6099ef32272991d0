//! Logs: one subscriber per process, to standard error, filtered by directives.

use std::{io, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    Json,
    /// Text, for a person at a terminal.
    Text,
}

impl FromStr for LogFormat {
    type Err = LogsError;

    fn from_str(format: &str) -> Result<Self, Self::Err> {
        match format {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            other => Err(LogsError::Format { given: other.to_owned() }),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The format is neither `json` nor `text`.
    #[error("log format {given:?} is not one of json, text")]
    Format {
        /// What was asked for.
        given: String,
    },
    /// The filter directives could not be parsed.
    #[error("log filter {given:?} is not a list of target=level directives")]
    Filter {
        /// What was asked for.
        given: String,
        /// What the parser disliked.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another subscriber is already installed in this process.
    #[error("logs are already set up in this process")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Installs the process's log subscriber.
///
/// `filter` is a list of `target=level` directives, for example `info,portolan_reconcile=debug`.
///
/// # Errors
///
/// [`LogsError::Filter`] for directives that do not parse, [`LogsError::AlreadySet`] on a second
/// call.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogsError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| LogsError::Filter { given: filter.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(io::stderr))
            .try_init(),
        LogFormat::Text => registry.with(fmt::layer().with_writer(io::stderr)).try_init(),
    }
    .map_err(LogsError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named_in_lower_case() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert_eq!("text".parse::<LogFormat>().unwrap(), LogFormat::Text);
        let error = "xml".parse::<LogFormat>().unwrap_err();
        assert_eq!(error.to_string(), "log format \"xml\" is not one of json, text");
    }

    #[test]
    fn a_filter_that_is_no_directive_is_refused() {
        let error = init(LogFormat::Text, "portolan=loud").unwrap_err();
        assert!(matches!(error, LogsError::Filter { .. }), "{error:?}");
    }
}
