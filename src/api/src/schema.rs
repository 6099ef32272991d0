//! Pieces of schema that several kinds share.

use kube_core::Rule;

/// A rule that refuses a field which Portolan owns, with what to do instead. The field itself is
/// declared by the CRD renderer ([`crate::crds`]), so that it reaches the rule instead of being
/// pruned.
pub(crate) fn refused(field: &str, instead: &str) -> Rule {
    Rule::new(format!("!has(self.{field})"))
        .message(format!("template.{field} is set by Portolan; {instead}").as_str())
}

/// Fields of a sandbox template that are declared only to be refused by [`refused`].
pub(crate) const REFUSED_TEMPLATE_FIELDS: [&str; 7] = [
    "automountServiceAccountToken",
    "containers",
    "hostNetwork",
    "hostname",
    "nodeName",
    "restartPolicy",
    "terminationGracePeriodSeconds",
];
