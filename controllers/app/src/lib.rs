//! The app controller.
