//! nginx and HAProxy as Debian ships them, set up for what the gateway does: one host, one
//! backend, connections kept on both sides, no access log, two workers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use portolan_cluster::paths::Paths;
use portolan_cluster::{debian, nginx};
use tokio::process::Command;

use crate::program::Program;
use crate::roles::HOST;

/// Where Debian puts libraries, in an unpacked package.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// HAProxy and what it links beyond the base system.
const HAPROXY: [&str; 4] =
    ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"];
/// The load generator and what it links.
const WRK: [&str; 2] = ["wrk", "libluajit-5.1-2"];

/// Starts nginx.
pub(crate) async fn nginx(
    scratch: &Path,
    address: SocketAddr,
    backend: SocketAddr,
) -> anyhow::Result<Program> {
    let root = nginx::unpacked(&Paths::discover())?;
    let scratch = scratch.join("nginx");
    fs::create_dir_all(&scratch).context("make a folder for nginx")?;
    let temporary = scratch.display();
    let configuration = format!(
        "daemon off; worker_processes 2; pid {temporary}/pid; error_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log off; keepalive_requests 1000000000;\n\
           client_body_temp_path {temporary}/body; proxy_temp_path {temporary}/proxy;\n\
           fastcgi_temp_path {temporary}/f; uwsgi_temp_path {temporary}/u; scgi_temp_path {temporary}/s;\n\
           upstream backend {{ server {backend}; keepalive 128; keepalive_requests 1000000000; }}\n\
           server {{ listen {address}; server_name {HOST};\n\
             location / {{ proxy_pass http://backend; proxy_http_version 1.1;\n\
               proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
               proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}\n\
         }}\n"
    );
    let file = scratch.join("nginx.conf");
    fs::write(&file, configuration).context("write nginx's configuration")?;
    let mut command = Command::new(root.join(nginx::PROGRAM));
    command.args(["-e", "stderr", "-c"]).arg(file);
    Program::start(command, address).await
}

/// Starts HAProxy.
pub(crate) async fn haproxy(
    scratch: &Path,
    address: SocketAddr,
    backend: SocketAddr,
) -> anyhow::Result<Program> {
    let program = "usr/sbin/haproxy";
    let root = debian::unpacked(&Paths::discover(), "haproxy", &HAPROXY, program)?;
    let configuration = format!(
        "global\n  nbthread 2\n\
         defaults\n  mode http\n  timeout connect 3s\n  timeout client 75s\n  timeout server 60s\n  \
         option http-keep-alive\n  option forwardfor\n  http-reuse always\n\
         frontend in\n  bind {address}\n  acl known hdr(host) -i {HOST}\n  use_backend out if known\n\
         backend out\n  server one {backend}\n"
    );
    let file = scratch.join("haproxy.cfg");
    fs::write(&file, configuration).context("write HAProxy's configuration")?;
    let mut command = Command::new(root.join(program));
    command.arg("-db").arg("-f").arg(file).env("LD_LIBRARY_PATH", root.join(LIBRARIES));
    Program::start(command, address).await
}

/// The load generator, ready to be given arguments.
pub(crate) fn wrk() -> anyhow::Result<Command> {
    let program = "usr/bin/wrk";
    let root = debian::unpacked(&Paths::discover(), "wrk", &WRK, program)?;
    let mut command = Command::new(root.join(program));
    command.env("LD_LIBRARY_PATH", root.join(LIBRARIES));
    Ok(command)
}
