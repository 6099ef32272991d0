//! Sample programs: a multi-port server, a WebSocket and gRPC echo.
