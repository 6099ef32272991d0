//! Pieces of schema that several kinds share: rules with a message that says what to do, and
//! schemas of Kubernetes types that theirs leave unbounded.

use kube_core::{Message, Rule};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Fields of a sandbox template that are declared only to be refused, with their type in the Pod
/// template (a CEL rule sees no field without a type) and what to do instead.
pub(crate) const REFUSED_TEMPLATE_FIELDS: [(&str, &str, &str); 13] = [
    (
        "automountServiceAccountToken",
        "boolean",
        "a token is mounted when serviceAccountName is set",
    ),
    ("containers", "array", "use image, command, args, env and ports of the service"),
    ("hostIPC", "boolean", "sandboxes do not share the node's namespaces"),
    ("hostNetwork", "boolean", "open a nodePort on a port of the service instead"),
    ("hostPID", "boolean", "sandboxes do not share the node's namespaces"),
    ("hostname", "string", "sandboxes are reached through their service"),
    ("metadata", "object", "write labels and annotations directly under template"),
    ("nodeName", "string", "use nodeSelector or affinity"),
    ("restartPolicy", "string", "sandboxes always restart"),
    ("schedulerName", "string", "sandboxes use the default scheduler"),
    ("spec", "object", "write the fields of the Pod's spec directly under template"),
    ("subdomain", "string", "sandboxes are reached through their service"),
    (
        "terminationGracePeriodSeconds",
        "integer",
        "use terminationGracePeriodSeconds of the service",
    ),
];

/// A regular expression for a lower-case DNS name of labels of at most 63 characters.
pub(crate) const DNS_NAME: &str =
    "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*";

/// The rule that refuses one of [`REFUSED_TEMPLATE_FIELDS`].
pub(crate) fn refused(field: &str, instead: &str) -> Value {
    json!({
        "rule": format!("!has(self.{field})"),
        "message": format!("template.{field} is not yours to set; {instead}"),
    })
}

/// A rule with the message that is shown when it does not hold.
pub(crate) fn rule(rule: &str, message: &str) -> Rule {
    Rule::new(rule).message(message)
}

/// A name that becomes a part of object names, DNS names or port names.
pub(crate) fn is_name() -> Rule {
    rule(
        "self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "a name is made of lower-case letters, digits and hyphens, starts with a letter and does \
         not end with a hyphen",
    )
}

/// A name that Kubernetes takes for an object such as a Secret: it is printed into commands, too.
pub(crate) fn is_object_name() -> Rule {
    rule(
        "self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')",
        "the name of an object is made of lower-case letters, digits, hyphens and dots, and begins and \
         ends with a letter or digit",
    )
}

/// 53/tcp and 53/udp are two ports, 8080/http and 8080/tcp are one.
pub(crate) fn distinct_ports() -> Rule {
    let once = "self.exists_one(q, q.port == p.port && (q.type == 'udp') == (p.type == 'udp'))";
    Rule::new(format!("self.all(p, {once})")).message(Message::Expression(format!(
        "self.filter(p, !{once}).map(p, 'duplicate port %d/%s: http and tcp share the transport \
         tcp, and each number may be used once for each transport'.format([p.port, \
         {TRANSPORT}]))[0]"
    )))
}

/// As [`distinct_ports`], for what the ports of one service open on nodes.
pub(crate) fn distinct_node_ports() -> Rule {
    let once = "(!has(p.nodePort) || self.exists_one(q, has(q.nodePort) && \
                q.nodePort == p.nodePort && (q.type == 'udp') == (p.type == 'udp')))";
    Rule::new(format!("self.all(p, {once})")).message(Message::Expression(format!(
        "self.filter(p, !{once}).map(p, 'nodePort %d/%s is asked for by two ports; give each its \
         own'.format([p.nodePort, {TRANSPORT}]))[0]"
    )))
}

/// As [`distinct_node_ports`], for the services of one App.
pub(crate) fn distinct_node_ports_of_services() -> Rule {
    let holds = "has(t.ports) && t.ports.exists(q, has(q.nodePort) && q.nodePort == p.nodePort && \
                 (q.type == 'udp') == (p.type == 'udp'))";
    let once = format!("(!has(p.nodePort) || self.services.exists_one(t, {holds}))");
    Rule::new(format!("self.services.all(s, !has(s.ports) || s.ports.all(p, {once}))")).message(
        Message::Expression(format!(
            "'the services %s ask for the same nodePort and transport; give each its own'.format([\
             self.services.filter(s, has(s.ports) && s.ports.exists(p, !{once})).map(s, s.name)])"
        )),
    )
}

/// Gateways divide requests by load, so only what goes around them can be bound to an address.
pub(crate) fn session_affinity() -> Rule {
    rule(
        "!has(self.sessionAffinity) || self.sessionAffinity == 'None' || \
         (has(self.portType) && self.portType != 'http') || \
         (has(self.ports) && self.ports.exists(p, p.type != 'http' || has(p.nodePort)))",
        "sessionAffinity: ClientIP needs a port of type tcp or udp, or a nodePort; requests of \
         routes are divided by load",
    )
}

/// The transport of a port `p`, in words of an error message.
const TRANSPORT: &str = "p.type == 'udp' ? 'udp' : 'tcp'";

/// What Portolan sets itself is not to be set by the user.
pub(crate) fn env_port() -> Rule {
    rule(
        "self.all(e, e.name != 'PORT')",
        "PORT is set by Portolan to the first http port, else the first port; remove it",
    )
}

/// As [`env_port`], for the prefix that is reserved.
pub(crate) fn env_prefix() -> Rule {
    rule(
        "self.all(e, !e.name.startsWith('PORTOLAN_'))",
        "names that start with PORTOLAN_ are set by Portolan; choose another name",
    )
}

/// What Kubernetes would refuse only when the Pod is made.
pub(crate) fn env_name() -> Rule {
    rule(
        "self.all(e, e.name.size() > 0 && !e.name.contains('='))",
        "the name of a variable is not empty and has no '='",
    )
}

/// As [`env_name`], for where a variable's value comes from.
pub(crate) fn env_value() -> Rule {
    rule(
        "self.all(e, !has(e.valueFrom) || (!has(e.value) || e.value == '') && \
         [has(e.valueFrom.configMapKeyRef), has(e.valueFrom.fieldRef), \
         has(e.valueFrom.fileKeyRef), has(e.valueFrom.resourceFieldRef), \
         has(e.valueFrom.secretKeyRef)].exists_one(source, source))",
        "a variable has either value, or valueFrom with exactly one source (secretKeyRef, \
         configMapKeyRef, fieldRef, resourceFieldRef or fileKeyRef)",
    )
}

/// A probe says how it looks.
pub(crate) fn probe_handler() -> Rule {
    rule(
        "[has(self.exec), has(self.grpc), has(self.httpGet), has(self.tcpSocket)]\
         .exists_one(handler, handler)",
        "a probe has exactly one of httpGet, tcpSocket, grpc or exec",
    )
}

/// A probe that names a port names one of the service's: Kubernetes would take any name, and the
/// probe would fail for ever. A number is a port's.
pub(crate) fn probe_port(probe: &str) -> Rule {
    let known = |handler: &str| {
        let port = format!("self.health.{probe}.{handler}.port");
        format!(
            "(!has(self.health.{probe}.{handler}) || \
             (type({port}) == int ? {port} >= 1 && {port} <= 65535 : \
             has(self.ports) && self.ports.size() > 0 ? self.ports.exists(p, p.name == {port}) : \
             {port} == (has(self.portName) ? self.portName : \
             has(self.portType) ? self.portType : 'http')))"
        )
    };
    Rule::new(format!(
        "!has(self.health) || !has(self.health.{probe}) || ({} && {})",
        known("httpGet"),
        known("tcpSocket"),
    ))
    .message(Message::Message(format!(
        "health.{probe} names a port that the service does not have; use the name of one of its \
         ports, or a number from 1 to 65535"
    )))
}

/// Amounts that Kubernetes can read, in `limits` or `requests` of a container.
pub(crate) fn quantities(field: &str) -> Rule {
    Rule::new(format!(
        "!has(self.{field}) || self.{field}.all(name, isQuantity(string(self.{field}[name])))"
    ))
    .message(Message::Message(format!(
        "an amount in resources.{field} is not a quantity; write for example cpu: 500m, memory: 256Mi"
    )))
}

/// Keys of labels and annotations that are ours.
pub(crate) fn no_own_keys() -> Rule {
    rule(
        "self.all(key, !key.startsWith('portolan.dev/'))",
        "keys under portolan.dev/ are set by Portolan; choose another prefix",
    )
}

/// A map of at most `COUNT` strings of at most `LENGTH` characters.
pub(crate) fn string_map<const COUNT: usize, const LENGTH: usize>(
    _: &mut SchemaGenerator,
) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": COUNT,
        "additionalProperties": { "type": "string", "maxLength": LENGTH },
    })
}
