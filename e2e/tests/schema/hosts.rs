//! `Route` and `Domain`: hosts, suffixes, certificates.

use serde_json::{Value, json};

use crate::support::{ACCEPTED, Rows, check, object};

const NOT_A_HOST: &str = "spec.host | host must be a lower-case DNS name";

#[tokio::test]
async fn a_route_names_a_host() -> anyhow::Result<()> {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    let rows: Rows<'_> = &[
        ("shop.example.com", ACCEPTED),
        ("localhost", ACCEPTED),
        ("'*.example.com'", ACCEPTED),
        ("'*.a.b.c'", ACCEPTED),
        ("'*'", ACCEPTED),
        ("xn--bcher-kva.example", ACCEPTED),
        ("1.example.com", ACCEPTED),
        (&longest, ACCEPTED),
        (&format!("a{longest}"), "spec.host | may not be more than 253"),
        (&format!("a{label}.com"), NOT_A_HOST),
        ("''", "spec.host | at least 1 chars"),
        ("Shop.example.com", NOT_A_HOST),
        ("shop.example.com.", "spec.host | without a dot at its end"),
        ("shop..example.com", NOT_A_HOST),
        ("-shop.example.com", NOT_A_HOST),
        ("my_shop.example.com", NOT_A_HOST),
        ("https://shop.example.com", "spec.host | no scheme, port or path"),
        ("shop.example.com:443", "spec.host | no scheme, port or path"),
        ("shop.example.com/a", "spec.host | no scheme, port or path"),
        ("bücher.example", NOT_A_HOST),
        ("'*.com'", "spec.host | a wildcard host needs at least two labels after '*.'"),
        ("'*example.com'", NOT_A_HOST),
        ("'a.*.example.com'", NOT_A_HOST),
        ("'*.*.example.com'", NOT_A_HOST),
        ("'**'", NOT_A_HOST),
        ("10.1.2.3", "spec.host | host must be a name, not an IP address"),
    ];
    check(|host| route(json!({ "host": host, "app": "shop" })), rows).await
}

#[tokio::test]
async fn a_route_names_a_service_and_how_to_reach_it() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{host: a.example, app: shop}", ACCEPTED),
        ("{host: a.example, app: shop, service: api, tls: {secretName: shop-tls}}", ACCEPTED),
        ("{host: a.example}", "spec.app: Required value"),
        ("{app: shop}", "spec.host: Required value"),
        ("{host: a.example, app: Shop}", "spec.app | lower-case letters"),
        ("{host: a.example, app: shop, service: a b}", "spec.service | lower-case letters"),
        ("{host: a.example, app: shop, tls: {}}", "spec.tls.secretName: Required value"),
        (
            "{host: a.example, app: shop, tls: {secretName: 'a; rm'}}",
            "spec.tls.secretName | name of an object",
        ),
        ("{host: '*', app: shop, tls: {secretName: a}}", "spec | default route has no certificate"),
        ("{host: a.example, app: shop, redirect: Disabled}", ACCEPTED),
        ("{host: a.example, app: shop, redirect: false}", "spec.redirect | string"),
        ("{host: a.example, app: shop, redirect: Never}", "spec.redirect: Unsupported value"),
        ("{host: a.example, app: shop, timeouts: {responseSeconds: 5, idleSeconds: 5}}", ACCEPTED),
        (
            "{host: a.example, app: shop, timeouts: {responseSeconds: 0}}",
            "responseSeconds | equal to 1",
        ),
        ("{host: a.example, app: shop, timeouts: {idleSeconds: 86401}}", "idleSeconds | 86400"),
        ("{host: a.example, app: shop, maxBodyBytes: 10485760}", ACCEPTED),
        ("{host: a.example, app: shop, maxBodyBytes: -1}", "spec.maxBodyBytes | equal to 0"),
        ("{host: a.example, app: shop, maxBodyBytes: 10Mi}", "spec.maxBodyBytes | integer"),
        ("{host: a.example, app: shop, path: /api}", "unknown field \"spec.path\""),
    ];
    check(route, rows).await
}

#[tokio::test]
async fn a_domain_names_a_suffix_and_namespaces() -> anyhow::Result<()> {
    const NOT_A_SUFFIX: &str = "spec.suffix | suffix must be a lower-case DNS name";
    let rows: Rows<'_> = &[
        ("{suffix: example.com, namespaces: [team-a, team-b]}", ACCEPTED),
        ("{suffix: com, namespaces: ['*']}", ACCEPTED),
        ("{suffix: '*', namespaces: []}", ACCEPTED),
        ("{suffix: '*.example.com', namespaces: []}", NOT_A_SUFFIX),
        ("{suffix: .example.com, namespaces: []}", NOT_A_SUFFIX),
        ("{suffix: example.com., namespaces: []}", NOT_A_SUFFIX),
        ("{suffix: Example.com, namespaces: []}", NOT_A_SUFFIX),
        ("{suffix: example.com}", "spec.namespaces: Required value"),
        ("{namespaces: [a]}", "spec.suffix: Required value"),
        ("{suffix: a, namespaces: [a, a]}", "spec.namespaces[1]: Duplicate value: \"a\""),
        ("{suffix: a, namespaces: ['']}", "spec.namespaces[0] | at least 1 chars"),
        ("{suffix: a, namespaces: [Team]}", "spec.namespaces | namespaces are names of namespaces"),
        ("{suffix: a, namespaces: ['team-*']}", "spec.namespaces | or '*' for all of them"),
    ];
    check(|spec| object("Domain", "example", &spec), rows).await
}

fn route(spec: Value) -> Value {
    object("Route", "shop", &spec)
}
