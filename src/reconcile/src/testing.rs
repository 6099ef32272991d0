//! Support for the tests of controllers; never compiled into a program.
