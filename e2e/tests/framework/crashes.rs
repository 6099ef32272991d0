//! A crash between any two writes settles to the same state as none.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::ListParams};
use portolan_cluster::wait::until_seen;
use portolan_reconcile::{
    Applied, Cache, Context, Controller, Created, Next, ObjectKey, Pass, ReconcileError,
    Reconciler, Retry, Target, Watch, WriteError, Writer,
    testing::{self, Crash, Strike},
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Place, in_a_namespace};

/// Makes two children for each ConfigMap labelled as a parent, then marks the parent as done.
struct Parents {
    configs: Cache<ConfigMap>,
    writer: Writer,
}

#[derive(Debug, thiserror::Error)]
#[error("reconcile parent")]
struct Failure(#[from] WriteError);

impl ReconcileError for Failure {
    fn category(&self) -> &'static str {
        self.0.category()
    }

    fn retry(&self) -> Retry {
        self.0.retry()
    }
}

impl Parents {
    fn start(place: &Place, client: Client) -> (Context, tokio::task::JoinHandle<()>) {
        let context = testing::context(client);
        let mut controller = Controller::new(&context, "demo");
        let configs = controller.primary(Watch::new().prune().in_namespace(&place.namespace));
        let writer = controller.writer();
        let running = controller.run(Self { configs, writer });
        (context, tokio::spawn(async move { running.await.expect("the controller runs") }))
    }

    fn child(parent: &ConfigMap, name: &str) -> ConfigMap {
        let mut child = ConfigMap::default();
        child.metadata.namespace.clone_from(&parent.metadata.namespace);
        let parent_name = parent.metadata.name.clone().unwrap_or_default();
        child.metadata.name = Some(format!("{parent_name}-{name}"));
        child.data = Some([("parent".to_owned(), parent_name)].into());
        child
    }
}

impl Reconciler for Parents {
    type Error = Failure;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Failure> {
        let Some(parent) = self.configs.get(pass.key()) else { return Ok(Next::Settled) };
        let is_parent = parent.data.as_ref().is_some_and(|data| data.contains_key("children"));
        if !is_parent {
            return Ok(Next::Settled);
        }
        let created = Self::child(&parent, "created");
        if self.configs.get(&ObjectKey::of(&created)).is_none()
            && let Created::Created(live) = self.writer.create(&created).await?
        {
            self.configs.observe(*live, pass);
        }
        let applied = Self::child(&parent, "applied");
        let seen = self.configs.get(&ObjectKey::of(&applied));
        if let Applied::Written(live) =
            self.writer.apply_if_changed(&applied, seen.as_deref()).await?
        {
            self.configs.observe(*live, pass);
        }
        let done = parent.data.as_ref().is_some_and(|data| data.contains_key("done"));
        if !done {
            let fields = json!({"data": {"done": "yes"}});
            self.writer.apply_fields::<ConfigMap, _>(&Target::of(&*parent), &fields).await?;
        }
        Ok(Next::Settled)
    }
}

/// Everything in the namespace that is ours, without what differs from run to run.
async fn state(place: &Place) -> BTreeMap<String, BTreeMap<String, String>> {
    let configs: Api<ConfigMap> = place.configs();
    let listed = configs.list(&ListParams::default()).await.expect("listed");
    let ours = listed.items.into_iter().filter(|config| {
        config.metadata.name.as_deref().is_some_and(|name| name.starts_with("parent"))
    });
    ours.map(|config| (config.metadata.name.unwrap_or_default(), config.data.unwrap_or_default()))
        .collect()
}

/// Runs until the parent is done, with a crash at the given write, and returns the state and how
/// many writes the run before the crash saw.
async fn run(place: &Place, crash: &Crash) -> BTreeMap<String, BTreeMap<String, String>> {
    let (writer, _) = place.writer();
    let parent = place.config("parent", &[("children", "yes")]);
    writer.create(&parent).await.expect("the parent is made");
    let (_, doomed) = Parents::start(place, crash.client(place.client.clone()));
    let is_done = |state: &BTreeMap<String, BTreeMap<String, String>>| {
        state.get("parent").is_some_and(|parent| parent.contains_key("done")) && state.len() == 3
    };
    if timeout(Duration::from_secs(2), crash.struck()).await.is_ok() {
        doomed.abort();
        let (_, second) = Parents::start(place, place.client.clone());
        until_seen("the second life is done", || state(place), is_done).await;
        second.abort();
    } else {
        until_seen("the only life is done", || state(place), is_done).await;
        doomed.abort();
    }
    state(place).await
}

#[tokio::test]
async fn a_crash_at_any_write_settles_to_the_same_state() -> anyhow::Result<()> {
    let writes = {
        let crash = Crash::never();
        let counting = crash.clone();
        in_a_namespace(|place| async move {
            run(&place, &counting).await;
        })
        .await?;
        crash.writes()
    };
    assert_eq!(writes, 3, "two children and a mark");
    for nth in 1..=writes {
        for strike in [Strike::Before, Strike::After] {
            in_a_namespace(move |place| async move {
                let settled = run(&place, &Crash::at(nth, strike)).await;
                let names: Vec<_> = settled.keys().map(String::as_str).collect();
                let expected = ["parent", "parent-applied", "parent-created"];
                assert_eq!(names, expected, "crash {strike:?} write {nth}");
            })
            .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_settled_state_is_not_written_again() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        run(&place, &Crash::never()).await;
        let (context, second) = Parents::start(&place, place.client.clone());
        let passes = || async {
            let page = context.metrics().passes.clone();
            let label =
                portolan_reconcile::metrics::PassLabel { controller: "demo", result: "settled" };
            page.get_or_create(&label).get()
        };
        until_seen("every object had its pass", passes, |passes| *passes >= 3).await;
        assert_eq!(context.metrics().writes_of("demo"), 0);
        second.abort();
    })
    .await
}
