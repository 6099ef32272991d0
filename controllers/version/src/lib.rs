//! The version controller.
