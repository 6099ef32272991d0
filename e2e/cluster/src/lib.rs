//! A real Kubernetes on this machine, for the demo, the tests and development.
