//! The `portolan` program: arguments and wiring.

fn main() {}
