//! Certificates: asked for, granted, used, replaced and lost.

use anyhow::{Context, ensure};
use http::Request;
use portolan_e2e::with_platform;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::support::{Echo, message, said};
use crate::visitor::{self, Reply, empty, get, soon};

/// The name of the Secret in every test.
const SECRET: &str = "shop-tls";

/// A certificate that its owner signed, and the Secret that holds it.
struct Issued {
    root: CertificateDer<'static>,
    secret: Value,
}

fn issue(host: &str) -> anyhow::Result<Issued> {
    let issued = rcgen::generate_simple_self_signed([host.to_owned()])?;
    let secret = tls_secret(&issued.cert.pem(), &issued.signing_key.serialize_pem());
    Ok(Issued { root: issued.cert.der().clone(), secret })
}

fn tls_secret(chain: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": SECRET },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": chain, "tls.key": key },
    })
}

/// Runs a test on an App that answers, with a Route that names a certificate.
async fn with_certificate(
    name: &str,
    test: impl AsyncFnOnce(&Echo<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_platform(name, async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({ "scale": { "max": 1 } })).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        let tls = json!({ "spec": { "tls": { "secretName": SECRET } } }).to_string();
        space.kubectl(&["patch", "route", "echo", "--type=merge", "-p", &tls]).await?;
        test(&echo).await
    })
    .await
}

/// Waits for the reason of `CertificateReady` and returns its message.
async fn until_certificate(echo: &Echo<'_>, expected: &str) -> anyhow::Result<String> {
    let mut told = String::new();
    echo.until(&format!("CertificateReady to be {expected}"), async || {
        let route = echo.object("route", "echo").await?;
        let seen = said(&route, "CertificateReady");
        told = message(&route, "CertificateReady");
        ensure!(seen == expected, "{seen}: {told}");
        let ready = said(&route, "Ready");
        ensure!(ready.starts_with("False") == expected.starts_with("False"), "Ready is {ready}");
        Ok(())
    })
    .await?;
    Ok(told)
}

/// Runs the commands that the condition prints.
async fn grant(echo: &Echo<'_>) -> anyhow::Result<()> {
    let told = until_certificate(echo, "False SecretForbidden").await?;
    let (_, commands) = told.split_once("allow it with: ").context("commands in the message")?;
    for command in commands.split(" && ") {
        let mut words = command.split_whitespace();
        ensure!(words.next() == Some("kubectl"), "{command}");
        echo.space.kubectl(&words.collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// Waits until a new connection is served with this certificate.
async fn until_trusted(echo: &Echo<'_>, issued: &Issued) -> anyhow::Result<()> {
    echo.until("a handshake with the certificate", async || {
        visitor::tls(echo.space, &echo.host(), &issued.root, b"h2").await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_certificate_is_asked_for_granted_and_used() -> anyhow::Result<()> {
    with_certificate("granted", async |echo| {
        let (space, host) = (echo.space, echo.host());
        grant(echo).await?;
        until_certificate(echo, "False SecretNotFound").await?;
        ensure!(echo.version().await? == "1", "no certificate, no redirect");

        space.apply(&tls_secret("not a certificate", "not a key").to_string()).await?;
        let told = until_certificate(echo, "False CertificateInvalid").await?;
        ensure!(told.contains(SECRET) && told.contains("chain"), "{told}");

        let issued = issue(&host)?;
        space.apply(&issued.secret.to_string()).await?;
        until_certificate(echo, "True CertificateInUse").await?;
        until_trusted(echo, &issued).await?;
        let route = echo.object("route", "echo").await?;
        ensure!(route["status"]["url"] == format!("https://{host}"), "{route}");

        let stream = visitor::tls(space, &host, &issued.root, b"h2").await?;
        ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice()));
        let mut sender = visitor::http2(stream).await?;
        let mut ask = async |host: &str| {
            let request = Request::get(format!("https://{host}/headers")).body(empty())?;
            Reply::read(soon("an answer", sender.send_request(request)).await??).await
        };
        let seen = ask(&host).await?;
        ensure!(seen.status == 200 && seen.text().contains(r#"["x-forwarded-proto","https"]"#));
        let other = ask(&format!("other-{host}")).await?;
        ensure!(other.status == 421 && other.header("x-portolan-error") == "misdirected");

        redirects_plain_http(echo).await
    })
    .await
}

async fn redirects_plain_http(echo: &Echo<'_>) -> anyhow::Result<()> {
    let (space, host) = (echo.space, echo.host());
    let ask = async |path: &str| {
        let mut sender = visitor::http1(visitor::plain(space).await?).await?;
        Reply::read(soon("an answer", sender.send_request(get(&host, path))).await??).await
    };
    echo.until("plain http to be redirected", async || {
        let redirect = ask("/a?b=c").await?;
        ensure!(redirect.status == 308, "{redirect:?}");
        ensure!(redirect.header("location") == format!("https://{host}/a?b=c"), "{redirect:?}");
        Ok(())
    })
    .await?;
    let challenge = ask("/.well-known/acme-challenge/token").await?;
    ensure!(challenge.status == 404 && challenge.header("x-version") == "1", "{challenge:?}");
    let plain = r#"{"spec":{"redirect":"Disabled"}}"#;
    space.kubectl(&["patch", "route", "echo", "--type=merge", "-p", plain]).await?;
    echo.until_it_answers("1").await
}

#[tokio::test]
async fn a_certificate_is_replaced_and_lost_while_connections_are_open() -> anyhow::Result<()> {
    with_certificate("replaced", async |echo| {
        let (space, host) = (echo.space, echo.host());
        let (first, second) = (issue(&host)?, issue(&host)?);
        space.apply(&first.secret.to_string()).await?;
        grant(echo).await?;
        until_certificate(echo, "True CertificateInUse").await?;
        until_trusted(echo, &first).await?;
        let stream = visitor::tls(space, &host, &first.root, b"http/1.1").await?;
        let mut open = visitor::http1(stream).await?;

        space.apply(&second.secret.to_string()).await?;
        until_trusted(echo, &second).await?;
        let answer = soon("an answer", open.send_request(get(&host, "/whoami"))).await??;
        ensure!(Reply::read(answer).await?.status == 200, "the old connection lives on");

        // What breaks the Secret does not break what is served.
        space.apply(&tls_secret("not a certificate", "not a key").to_string()).await?;
        until_certificate(echo, "False CertificateInvalid").await?;
        visitor::tls(space, &host, &second.root, b"h2").await.context("the last good one")?;
        space.kubectl(&["delete", "secret", SECRET]).await?;
        until_certificate(echo, "False SecretNotFound").await?;
        visitor::tls(space, &host, &second.root, b"h2").await.context("the last good one")?;

        let without = r#"[{"op":"remove","path":"/spec/tls"}]"#;
        space.kubectl(&["patch", "route", "echo", "--type=json", "-p", without]).await?;
        until_certificate(echo, "True NoCertificate").await?;
        echo.until("the certificate to be gone", async || {
            let handshake = visitor::tls(space, &host, &second.root, b"h2").await;
            ensure!(handshake.is_err(), "it is still served");
            Ok(())
        })
        .await?;
        echo.until_it_answers("1").await
    })
    .await
}
