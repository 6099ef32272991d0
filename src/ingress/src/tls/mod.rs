//! Certificates by server name, replaceable while connections are open.

mod certificates;

pub(crate) use certificates::Certificates;
pub use certificates::{Certificate, CertificateError};
