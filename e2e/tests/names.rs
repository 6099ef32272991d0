//! Names that Pods call services by: cluster DNS answers them, and a call wakes who sleeps.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use portolan_cluster::paths::Paths;
use portolan_cluster::{addresses, wait};
use portolan_e2e::pods::running;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;
use serde_json::{Value, json};

/// How long an answer may take before it counts as none.
const ANSWER: Duration = Duration::from_secs(5);
/// A name that the DNS sample knows from the cluster's own server.
const API_SERVER: &str = "kubernetes.default.svc.cluster.local";

#[tokio::test]
async fn a_name_wakes_its_service_and_goes_with_it() -> anyhow::Result<()> {
    with_platform("names", async |space| {
        let namespace = space.namespace();
        space.apply(&app("caller", &json!({}))).await?;
        let sleeper = json!({
            "port": 8080,
            "scale": { "mode": "Auto", "min": 0, "max": 1, "scaleDownDelaySeconds": 1 },
        });
        space.apply(&app("quiet", &sleeper)).await?;
        let apps =
            ["wait", "--for=condition=Ready", "app/caller", "app/quiet", wait::KUBECTL_PATIENCE];
        space.kubectl(&apps).await?;
        wait::until("the service to sleep", wait::PATIENCE, async || {
            let awake = pods(space, "quiet").await?;
            ensure!(awake.is_empty(), "{awake:?}");
            anyhow::Ok(())
        })
        .await?;
        let name = format!("quiet-web.{namespace}");
        for host in [
            name.clone(),
            format!("{name}.svc"),
            format!("{name}.svc.cluster.local"),
            format!("{name}.svc.cluster.local."),
            format!("{name}:8080"),
            name.to_uppercase(),
        ] {
            let answer = call(space, &host, "/").await.with_context(|| host.clone())?;
            ensure!(answer.contains("in sandbox quiet-"), "{host}: {answer}");
        }
        let unknown = call(space, &format!("quiet-other.{namespace}"), "/").await;
        ensure!(unknown.is_err(), "{unknown:?}");

        space.kubectl(&["delete", "app", "quiet"]).await?;
        wait::until("the name to go", wait::PATIENCE, async || {
            let left = space.kubectl(&["get", "services", "-o", "name"]).await?;
            ensure!(!left.contains("quiet-web"), "{left}");
            let answer = call(space, &name, "/").await;
            ensure!(answer.is_err(), "{answer:?}");
            anyhow::Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_name_leads_to_an_address_of_its_own_while_the_service_has_one() -> anyhow::Result<()> {
    with_platform("names-l4", async |space| {
        space.apply(&app("caller", &json!({}))).await?;
        let (http, both) = (
            json!({ "port": 8080 }),
            json!({ "ports": [
                { "name": "http", "port": 8080 },
                { "name": "wire", "port": 7000, "type": "tcp" },
            ] }),
        );
        space.apply(&app("turns", &http)).await?;
        let apps =
            ["wait", "--for=condition=Ready", "app/caller", "app/turns", wait::KUBECTL_PATIENCE];
        space.kubectl(&apps).await?;
        let host = format!("turns-web.{}", space.namespace());
        until_it_answers(space, &host).await?;

        space.apply(&app("turns", &both)).await?;
        let address = address_of_its_own(space).await?;
        until_it_answers(space, &format!("{host}:8080")).await?;
        // An update keeps the address.
        let mut newer: Value = serde_json::from_str(&app("turns", &both))?;
        newer["spec"]["env"] = json!([{ "name": "VERSION", "value": "2" }]);
        space.apply(&newer.to_string()).await?;
        wait::until("the new version to answer at the name", wait::PATIENCE, async || {
            let answer = call(space, &format!("{host}:8080"), "/").await?;
            ensure!(answer.contains("version 2 "), "{answer}");
            anyhow::Ok(())
        })
        .await?;
        ensure!(address_of_its_own(space).await? == address, "another address than {address}");

        // Back to the gateways, under the same name.
        space.apply(&app("turns", &http)).await?;
        wait::until("the address to go", wait::PATIENCE, async || {
            let left = space.kubectl(&["get", "appservices", "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            anyhow::Ok(())
        })
        .await?;
        until_it_answers(space, &host).await?;
        space.kubectl(&["delete", "app", "turns"]).await?;
        wait::until("everything to go with the App", wait::PATIENCE, async || {
            let kinds = "services,appservices,claims,endpointslices";
            let selector = "portolan.dev/app=turns";
            let left = space.kubectl(&["get", kinds, "-l", selector, "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            anyhow::Ok(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_irc_and_dns_samples_answer_a_pod_at_their_addresses_and_names() -> anyhow::Result<()> {
    with_platform("names-samples", async |space| {
        space.apply(&samples(space)?).await?;
        space.apply(&app("caller", &json!({}))).await?;
        let ready = ["wait", "--for=condition=Ready", wait::KUBECTL_PATIENCE];
        // The Apps first: before, there may be nothing of these names to wait for.
        let apps = ["app/caller", "app/chat", "app/dns"];
        let services = ["appservice/chat-irc", "appservice/dns-resolver"];
        space.kubectl(&[&ready[..], &apps, &services].concat()).await?;
        let callers = running(space.cluster(), space.namespace(), "portolan.dev/app=caller")?;
        let network = callers.first().context("the caller runs")?.process()?.join("ns/net");

        let irc = both_ways(space, &network, "chat-irc").await?;
        for port in [6667, 6697] {
            until_said(&network, &format!("IRC at {irc}:{port}"), || chat((irc, port).into()))
                .await?;
        }
        let dns = SocketAddr::from((both_ways(space, &network, "dns-resolver").await?, 5300));
        let expected = IpAddr::from(addresses::API_SERVICE);
        for (transport, ask) in [("UDP", ask_udp as Ask), ("TCP", ask_tcp as Ask)] {
            until_said(&network, &format!("DNS at {dns} over {transport}"), || {
                let found = ask(dns, API_SERVER)?;
                ensure!(found == expected, "{found} instead of {expected}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

/// The sample of services that do not speak HTTP, with node ports that only this test has.
fn samples(space: &Space) -> anyhow::Result<String> {
    let path = Paths::discover().repository.join("docs/samples/04-l4.yaml");
    let sample = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(sample
        .replace("namespace: portolan-samples", &format!("namespace: {}", space.namespace()))
        .replace("nodePort: 6697", "nodePort: 26698")
        .replace("nodePort: 5300", "nodePort: 25301"))
}

/// The address of a service: what it reports, and what cluster DNS says of its name to a Pod.
async fn both_ways(space: &Space, network: &Path, service: &str) -> anyhow::Result<IpAddr> {
    let path = "jsonpath={.status.clusterIPs[0]}";
    let reported = space.kubectl(&["get", "appservice", service, "-o", path]).await?;
    let reported: IpAddr = reported.trim().parse().context("an address")?;
    let name = format!("{service}.{}.svc.cluster.local", space.namespace());
    until_said(network, &format!("{name} to be known"), || {
        let found = ask_udp((addresses::DNS_SERVICE, 53).into(), &name)?;
        ensure!(found == reported, "{found} instead of {reported}");
        Ok(())
    })
    .await?;
    Ok(reported)
}

/// Talks from a network until that succeeds: a node may know a moment later than the service's
/// report what there is.
async fn until_said(
    network: &Path,
    awaited: &str,
    talk: impl Fn() -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    wait::until(awaited, wait::PATIENCE, async || inside(network, &talk)).await
}

/// A thread is in one network, whatever the others of its process are in.
fn inside<T: Send>(network: &Path, talk: impl FnOnce() -> T + Send) -> T {
    let network = File::open(network).expect("the network of a Pod that runs");
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            setns(network, CloneFlags::CLONE_NEWNET).expect("to enter the network");
            talk()
        });
        talking.join().expect("no panic")
    })
}

/// Registers with an IRC server and reads until it has welcomed us.
fn chat(server: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    // A name of its own: the server may not have noticed yet that the last visitor has left.
    let name = format!("v{}", stream.local_addr()?.port());
    write!(stream, "NICK {name}\r\nUSER {name} 0 * :A visitor\r\n")?;
    let mut said = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.with_context(|| format!("after {said:?}"))?;
        if line.contains(" 001 ") {
            return Ok(());
        }
        said.push(line);
    }
    anyhow::bail!("it closed after {said:?}")
}

/// Asks a name server for the address of a name.
type Ask = fn(SocketAddr, &str) -> anyhow::Result<IpAddr>;

fn ask_udp(server: SocketAddr, name: &str) -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(server)?;
    socket.send(&question(name)?)?;
    let mut answer = [0; 512];
    let size = socket.recv(&mut answer).context("no answer over UDP")?;
    answered(&answer[..size])
}

fn ask_tcp(server: SocketAddr, name: &str) -> anyhow::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&server, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let question = question(name)?;
    let length = u16::try_from(question.len())?.to_be_bytes();
    stream.write_all(&[&length[..], &question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("no answer over TCP")?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    answered(&answer)
}

/// Asks for the IPv4 address of a name.
fn question(name: &str) -> anyhow::Result<Vec<u8>> {
    let mut question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    Ok(question)
}

/// The address in an answer without an error: it is at the end of its one record.
fn answered(message: &[u8]) -> anyhow::Result<IpAddr> {
    ensure!(message.len() > 12 && message[3] & 15 == 0, "refused: {message:?}");
    ensure!(message[6..8] == [0, 1], "not one record: {message:?}");
    let address = message.last_chunk::<4>().context("an address")?;
    Ok((*address).into())
}

/// The echo program as an App with one service `web`.
fn app(name: &str, service: &Value) -> String {
    let mut web = json!({ "name": "web", "terminationGracePeriodSeconds": 1 });
    if service["ports"].is_null() {
        web["port"] = json!(8080);
    }
    let fields = service.as_object().cloned().unwrap_or_default();
    web.as_object_mut().expect("a service is an object").extend(fields);
    let app = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "App",
        "metadata": { "name": name },
        "spec": { "image": "docker.io/portolan/sample-echo:dev", "services": [web] },
    });
    app.to_string()
}

/// What a page answers to a sandbox of the App `caller`.
async fn call(space: &Space, host: &str, path: &str) -> anyhow::Result<String> {
    let pods = pods(space, "caller").await?;
    let pod = pods.first().context("the caller runs")?;
    let page = format!("http://{host}{path}");
    space.kubectl(&["exec", pod, "--", "/sample-echo", "--get", &page]).await
}

async fn until_it_answers(space: &Space, host: &str) -> anyhow::Result<()> {
    wait::until(&format!("{host} to answer"), wait::PATIENCE, async || {
        let answer = call(space, host, "/").await?;
        ensure!(answer.contains("in sandbox turns-"), "{answer}");
        anyhow::Ok(())
    })
    .await
}

async fn address_of_its_own(space: &Space) -> anyhow::Result<String> {
    wait::until("an address", wait::PATIENCE, async || {
        let path = "jsonpath={.status.clusterIPs[0]}";
        let address = space.kubectl(&["get", "appservice", "turns-web", "-o", path]).await?;
        ensure!(!address.is_empty(), "none yet");
        anyhow::Ok(address)
    })
    .await
}

/// The sandboxes of an App that are not on their way out.
async fn pods(space: &Space, app: &str) -> anyhow::Result<Vec<String>> {
    let selector = format!("portolan.dev/app={app}");
    let text = space.kubectl(&["get", "pods", "-l", &selector, "-o", "json"]).await?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().context("a list")?;
    let alive = items.iter().map(|pod| &pod["metadata"]);
    let alive = alive.filter(|metadata| metadata["deletionTimestamp"].is_null());
    Ok(alive.filter_map(|metadata| metadata["name"].as_str().map(str::to_owned)).collect())
}
