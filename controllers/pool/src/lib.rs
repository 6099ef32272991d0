//! The pool controller.
