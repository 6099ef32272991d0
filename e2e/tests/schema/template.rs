//! `template` of a service: what belongs to the user, and what is refused.

use serde_json::{Value, json};

use crate::support::{ACCEPTED, Rows, check, object};

#[tokio::test]
async fn what_belongs_to_the_user_is_accepted() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{}", ACCEPTED),
        (
            "{resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 1Gi, cpu: 2}}}",
            ACCEPTED,
        ),
        ("{serviceAccountName: shop, runtimeClassName: gvisor, priorityClassName: high}", ACCEPTED),
        ("{nodeSelector: {disk: ssd}, tolerations: [{key: a, operator: Exists}]}", ACCEPTED),
        ("{imagePullSecrets: [{name: registry}]}", ACCEPTED),
        ("{initContainers: [{name: migrate, image: a, command: [./migrate]}]}", ACCEPTED),
        ("{securityContext: {runAsUser: 1000, fsGroup: 1000}}", ACCEPTED),
        ("{containerSecurityContext: {readOnlyRootFilesystem: true}}", ACCEPTED),
        ("{dnsConfig: {options: [{name: ndots, value: '1'}]}}", ACCEPTED),
        ("{hostAliases: [{ip: 10.0.0.1, hostnames: [db]}]}", ACCEPTED),
        (
            "{topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, \
             whenUnsatisfiable: ScheduleAnyway}]}",
            ACCEPTED,
        ),
        (
            "{affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
             {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}}",
            ACCEPTED,
        ),
        (
            "{volumes: [{name: data, persistentVolumeClaim: {claimName: data}}, \
             {name: tmp, emptyDir: {sizeLimit: 1Gi}}], \
             volumeMounts: [{name: data, mountPath: /data}, {name: tmp, mountPath: /tmp}]}",
            ACCEPTED,
        ),
    ];
    check(template, rows).await
}

#[tokio::test]
async fn what_portolan_owns_is_refused_by_name() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{containers: [{name: a, image: b}]}", "template.containers | use image, command"),
        ("{restartPolicy: Never}", "template.restartPolicy | sandboxes always restart"),
        ("{hostNetwork: true}", "template.hostNetwork | open a nodePort"),
        ("{hostPID: true}", "template.hostPID | node's namespaces"),
        ("{hostIPC: true}", "template.hostIPC | node's namespaces"),
        ("{nodeName: node-1}", "template.nodeName | use nodeSelector or affinity"),
        ("{hostname: a}", "template.hostname | reached through their service"),
        ("{subdomain: a}", "template.subdomain | reached through their service"),
        ("{schedulerName: a}", "template.schedulerName | default scheduler"),
        (
            "{terminationGracePeriodSeconds: 5}",
            "template.terminationGracePeriodSeconds | use terminationGracePeriodSeconds of the service",
        ),
        (
            "{automountServiceAccountToken: true}",
            "template.automountServiceAccountToken | when serviceAccountName is set",
        ),
        ("{spec: {nodeSelector: {a: b}}}", "template.spec | directly under template"),
        ("{metadata: {labels: {a: b}}}", "template.metadata | directly under template"),
        ("{dnsPolicy: None}", "unknown field \"spec.services[0].template.dnsPolicy\""),
    ];
    check(template, rows).await
}

#[tokio::test]
async fn labels_under_our_prefix_are_ours() -> anyhow::Result<()> {
    for field in ["labels", "annotations"] {
        let refusal = format!("template.{field} | keys under portolan.dev/ are set by Portolan");
        let rows: Rows<'_> = &[
            ("{team: a, example.com/x: b}", ACCEPTED),
            ("{portolan.dev/app: other}", &refusal),
            ("{team: 3}", "must be of type string"),
        ];
        check(|map| template(json!({ field: map })), rows).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_only_the_pod_would_refuse_is_refused_at_once() -> anyhow::Result<()> {
    const AMOUNT: &str = "is not a quantity; write for example cpu: 500m, memory: 256Mi";
    let limits = format!("template.resources | resources.limits {AMOUNT}");
    let requests = format!("template.resources | resources.requests {AMOUNT}");
    let mount = "template | every volumeMount names a volume of template.volumes";
    let rows: Rows<'_> = &[
        ("{resources: {limits: {memory: 1.5Gi}}}", ACCEPTED),
        ("{resources: {limits: {memory: lots}}}", &limits),
        ("{resources: {limits: {memory: 256MB}}}", &limits),
        ("{resources: {requests: {cpu: 500 m}}}", &requests),
        ("{resources: {requests: {cpu: true}}}", "resources.requests.cpu | string"),
        ("{volumeMounts: [{name: data, mountPath: /data}]}", mount),
        (
            "{volumes: [{name: dat, emptyDir: {}}], volumeMounts: [{name: data, mountPath: /a}]}",
            mount,
        ),
        (
            "{volumes: [{name: a, emptyDir: {}}], \
             volumeMounts: [{name: a, mountPath: /a}, {name: a, mountPath: /a}]}",
            "volumeMounts[1]: Duplicate value",
        ),
        ("{volumes: [{name: a, emptyDir: {}}, {name: a}]}", "volumes[1]: Duplicate value"),
        ("{initContainers: [{name: a}]}", "initContainers | every init container names its image"),
    ];
    check(template, rows).await
}

fn template(template: Value) -> Value {
    let service = json!({ "name": "web", "template": template });
    object("App", "shop", &json!({ "image": "registry.example/shop:1", "services": [service] }))
}
