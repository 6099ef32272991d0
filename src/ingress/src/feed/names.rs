//! Which service bears a name inside the cluster. Pure.

use std::collections::{BTreeMap, BTreeSet};

use portolan_api::names;

use crate::model::ServiceKey;

/// The services of all Apps by their name, `<app>-<service>.<namespace>`.
///
/// Two services of a namespace can have the same (`a-b` with `c`, `a` with `b-c`). Then neither is
/// answered: whichever of them were chosen, the callers of the other would reach a program that
/// they did not mean.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// In no order. Nearly always one, for which a set would have room for eleven.
    bearers: BTreeMap<String, Vec<ServiceKey>>,
}

impl Names {
    /// An App has come, changed or gone. Returns the names concerned, each with the one service
    /// that bears it now, if it is one.
    pub(crate) fn change(
        &mut self,
        old: &[ServiceKey],
        new: &[ServiceKey],
    ) -> BTreeMap<String, Option<ServiceKey>> {
        let gone = old.iter().filter(|service| !new.contains(service));
        let come = new.iter().filter(|service| !old.contains(service));
        let mut changed = BTreeSet::new();
        for service in gone {
            let name = name_of(service);
            if let Some(bearers) = self.bearers.get_mut(&name) {
                bearers.retain(|bearer| bearer != service);
                if bearers.is_empty() {
                    self.bearers.remove(&name);
                }
            }
            changed.insert(name);
        }
        for service in come {
            let name = name_of(service);
            let bearers = self.bearers.entry(name.clone());
            let bearers = bearers.or_insert_with(|| Vec::with_capacity(1));
            if !bearers.contains(service) {
                bearers.push(service.clone());
            }
            changed.insert(name);
        }
        changed
            .into_iter()
            .map(|name| {
                let bearer = self.bearer(&name);
                (name, bearer)
            })
            .collect()
    }

    fn bearer(&self, name: &str) -> Option<ServiceKey> {
        let bearers = self.bearers.get(name)?;
        bearers.first().filter(|_| bearers.len() == 1).cloned()
    }
}

fn name_of(service: &ServiceKey) -> String {
    format!("{}.{}", names::app_service(&service.app, &service.service), service.namespace)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::Names;
    use crate::model::ServiceKey;

    fn mk_service(namespace: &str, app: &str, service: &str) -> ServiceKey {
        ServiceKey { namespace: namespace.into(), app: app.into(), service: service.into() }
    }

    #[track_caller]
    fn check(
        names: &mut Names,
        (old, new): (&[ServiceKey], &[ServiceKey]),
        expected: &[(&str, Option<&ServiceKey>)],
    ) {
        let changed = names.change(old, new);
        let changed: Vec<_> =
            changed.iter().map(|(name, bearer)| (name.as_str(), bearer.as_ref())).collect();
        assert_eq!(changed, expected);
    }

    #[test]
    fn a_service_bears_its_name_as_long_as_it_exists() {
        let (web, api) = (mk_service("team-a", "shop", "web"), mk_service("team-a", "shop", "api"));
        let (both, one) = ([web.clone(), api.clone()], [api.clone()]);
        let mut names = Names::default();
        let expected = [("shop-api.team-a", Some(&api)), ("shop-web.team-a", Some(&web))];
        check(&mut names, (&[], &both), &expected);
        check(&mut names, (&both, &both), &[]);
        check(&mut names, (&both, &one), &[("shop-web.team-a", None)]);
        check(&mut names, (&one, &[]), &[("shop-api.team-a", None)]);
        assert!(names.bearers.is_empty(), "nothing is left behind: {names:?}");
    }

    #[test]
    fn a_name_that_two_services_bear_is_nobodys() {
        let (first, second) = (mk_service("team-a", "a-b", "c"), mk_service("team-a", "a", "b-c"));
        let (first, second) = ([first], [second]);
        let mut names = Names::default();
        check(&mut names, (&[], &first), &[("a-b-c.team-a", Some(&first[0]))]);
        check(&mut names, (&[], &second), &[("a-b-c.team-a", None)]);
        check(&mut names, (&second, &[]), &[("a-b-c.team-a", Some(&first[0]))]);
    }

    #[test]
    fn the_same_name_in_another_namespace_is_another() {
        let (here, there) =
            (mk_service("team-a", "shop", "web"), mk_service("team-b", "shop", "web"));
        let mut names = Names::default();
        check(&mut names, (&[], from_ref(&here)), &[("shop-web.team-a", Some(&here))]);
        check(&mut names, (&[], from_ref(&there)), &[("shop-web.team-b", Some(&there))]);
    }
}
