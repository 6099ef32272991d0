//! Whether the holder of a Claim is still there and still asks for the thing. Pure.

use kube::Resource;
use portolan_api::Claim;
use portolan_reconcile::{ObjectKey, Observed};
use serde::Serialize;

use crate::Realm;

/// What is known about the holder of a Claim, as a contender sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum HolderState {
    /// It is the contender itself.
    Own,
    /// It is another object, and it asks for this thing.
    Asks,
    /// It is another object, and it asks for another thing now.
    Left,
    /// It is an object that does not exist any more.
    Gone,
    /// The Claim is not one of this realm on this thing: somebody reserved the name by hand.
    Reserved,
    /// It could not be found out; the text says why.
    Unknown(String),
}

/// What the cache alone can say about the holder of the Claim that has the name for `value`:
/// `None` if only the API server can tell. `cached` is the object under the holder's name, and
/// `asks` whether an object asks for the thing.
pub fn confirmed<K: Resource>(
    realm: Realm,
    (claim, value): (&Claim, &str),
    contender: &K,
    cached: Option<&K>,
    asks: impl Fn(&K) -> bool,
) -> Option<HolderState> {
    if !realm.is_on(claim, value) || !realm.has(claim) {
        return Some(HolderState::Reserved);
    }
    if is_holder(contender, claim) {
        return Some(HolderState::Own);
    }
    cached
        .is_some_and(|cached| is_holder(cached, claim) && asks(cached))
        .then_some(HolderState::Asks)
}

/// What the API server said about the holder of a Claim; `live` is the object under its name.
pub fn judged<K: Resource>(
    claim: &Claim,
    live: Observed<&K>,
    asks: impl Fn(&K) -> bool,
) -> HolderState {
    match live {
        Observed::Present(live) if !is_holder(live, claim) => HolderState::Gone,
        Observed::Present(live) if asks(live) => HolderState::Asks,
        Observed::Present(_) => HolderState::Left,
        Observed::Absent => HolderState::Gone,
        Observed::Unknown(why) => HolderState::Unknown(why),
    }
}

/// Whether this object holds the Claim; one of the same name with another UID does not.
pub fn is_holder(object: &impl Resource, claim: &Claim) -> bool {
    object.meta().uid.as_ref() == Some(&claim.spec.holder.uid)
}

/// The key of the object that holds a Claim.
pub fn holder_key(claim: &Claim) -> ObjectKey {
    ObjectKey::new(&*claim.spec.holder.namespace, &*claim.spec.holder.name)
}

#[cfg(test)]
mod tests {
    use portolan_api::{ClaimKind, Route};
    use serde_json::{from_value, json};

    use super::*;

    const REALM: Realm = Realm { kind: ClaimKind::Host, holder: "Route" };
    const HOST: &str = "shop.example.com";

    fn route(uid: &str, host: &str) -> Route {
        from_value(json!({
            "metadata": { "name": "shop", "namespace": "team-a", "uid": uid },
            "spec": { "host": host, "app": "shop" },
        }))
        .unwrap()
    }

    fn claim() -> Claim {
        REALM.claim(HOST, &REALM.holder(&route("1", HOST)))
    }

    fn asks(route: &Route) -> bool {
        route.spec.host == HOST
    }

    #[track_caller]
    fn check_confirmed(
        claim: &Claim,
        contender: &str,
        cached: Option<Route>,
        expected: Option<HolderState>,
    ) {
        let contender = route(contender, HOST);
        let seen = confirmed(REALM, (claim, HOST), &contender, cached.as_ref(), asks);
        assert_eq!(seen, expected, "{claim:?}");
    }

    #[test]
    fn a_cache_confirms_and_never_denies() {
        check_confirmed(&claim(), "1", None, Some(HolderState::Own));
        check_confirmed(&claim(), "2", Some(route("1", HOST)), Some(HolderState::Asks));
        check_confirmed(&claim(), "2", Some(route("1", "other.example.com")), None);
        check_confirmed(&claim(), "2", Some(route("3", HOST)), None);
        check_confirmed(&claim(), "2", None, None);
    }

    #[test]
    fn what_is_no_claim_of_the_realm_is_reserved() {
        let mut by_hand = claim();
        by_hand.spec.holder.kind = "Administrator".into();
        check_confirmed(&by_hand, "1", None, Some(HolderState::Reserved));
        let mut misnamed = claim();
        misnamed.spec.value = "other.example.com".into();
        check_confirmed(&misnamed, "1", None, Some(HolderState::Reserved));
    }

    #[test]
    fn the_api_server_may_deny() {
        let judge = |live: Observed<&Route>| judged(&claim(), live, asks);
        assert_eq!(judge(Observed::Absent), HolderState::Gone);
        assert_eq!(judge(Observed::Present(&route("3", HOST))), HolderState::Gone);
        assert_eq!(judge(Observed::Present(&route("1", HOST))), HolderState::Asks);
        assert_eq!(judge(Observed::Present(&route("1", "a.example.com"))), HolderState::Left);
        let unknown = HolderState::Unknown("refused".into());
        assert_eq!(judge(Observed::Unknown("refused".into())), unknown);
    }
}
