//! Every rule of the schemas, with what it lets through and what it refuses, against the real API
//! server. A refusal names the field and says what to do.

mod admission;
mod app;
mod chart;
mod derived;
mod hosts;
mod kinds;
mod support;
mod template;
