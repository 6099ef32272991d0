//! How many pools verify in the whole cluster, and which Apps wait for their turn.
//!
//! A namespace in which none verifies has room for one App beyond the limit, up to twice the limit
//! in all: one team's 64 slow programs do not hold up all other teams.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use portolan_reconcile::ObjectKey;

/// Counts verifying pools by App, and gives the places that become free to the Apps that wait:
/// first to namespaces that have fewest, so that no team's many rollouts hold up another's one.
#[derive(Debug)]
pub(crate) struct Verifying {
    /// How many pools may verify at once.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<ObjectKey, usize>,
    /// Apps whose pools verify without a place: they have had theirs for longer than they may.
    late: BTreeSet<ObjectKey>,
    /// Pools that have a place: those of Apps that are not late.
    total: usize,
    /// The Apps that wait, by namespace, in the order of their coming; and when each came.
    waiting: BTreeMap<String, BTreeMap<u64, ObjectKey>>,
    arrivals: BTreeMap<ObjectKey, u64>,
    next_arrival: u64,
}

impl Verifying {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// Notes that a pool of `app` went from verifying or not to verifying or not. Returns the Apps
    /// whose turn it is.
    pub(crate) fn note(&self, app: &ObjectKey, was: bool, is: bool) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        let place = usize::from(!state.late.contains(app));
        match (was, is) {
            (false, true) => {
                *state.counts.entry(app.clone()).or_default() += 1;
                state.total += place;
                Vec::new()
            }
            (true, false) => {
                state.total = state.total.saturating_sub(place);
                if let Some(count) = state.counts.get_mut(app) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        state.counts.remove(app);
                    }
                }
                state.turns(self.limit)
            }
            _ => Vec::new(),
        }
    }

    /// Takes the places of an App's pools away, or gives them back. Returns the Apps whose turn it
    /// is.
    pub(crate) fn mark_late(&self, app: &ObjectKey, is_late: bool) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        let places = state.counts.get(app).copied().unwrap_or(0);
        if is_late && state.late.insert(app.clone()) {
            state.total = state.total.saturating_sub(places);
            return state.turns(self.limit);
        }
        if !is_late && state.late.remove(app) {
            state.total += places;
        }
        Vec::new()
    }

    /// Whether there is a place for `app`, which may have some already.
    pub(crate) fn has_room(&self, app: &ObjectKey) -> bool {
        let state = self.state.lock();
        let own = state.places(app);
        let is_first = state.places_in(&app.namespace) == own;
        state.total - own < places_for(is_first, self.limit)
    }

    /// Has `app` wait for a place, behind those of its namespace that wait already. Returns the
    /// Apps whose turn it is: a place may have become free since `app` saw none.
    pub(crate) fn wait(&self, app: &ObjectKey) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        if !state.arrivals.contains_key(app) {
            let arrival = state.next_arrival;
            state.next_arrival += 1;
            state.arrivals.insert(app.clone(), arrival);
            state.waiting.entry(app.namespace.clone()).or_default().insert(arrival, app.clone());
        }
        state.turns(self.limit)
    }

    /// Has `app` wait no more. Returns the Apps whose turn it is: `app` may have left the place
    /// that it was woken for.
    pub(crate) fn leave(&self, app: &ObjectKey) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        let Some(arrival) = state.arrivals.remove(app) else { return Vec::new() };
        if let Some(apps) = state.waiting.get_mut(&app.namespace) {
            apps.remove(&arrival);
            if apps.is_empty() {
                state.waiting.remove(&app.namespace);
            }
        }
        state.turns(self.limit)
    }
}

impl State {
    /// As many of those that wait as places are free. They wait on until they say otherwise, so
    /// that a turn that is not taken is given again.
    fn turns(&self, limit: usize) -> Vec<ObjectKey> {
        let free = |rank: usize| places_for(rank == 0, limit).saturating_sub(self.total);
        let most = free(0);
        if most == 0 {
            return Vec::new();
        }
        let mut ranked: Vec<_> = self
            .waiting
            .iter()
            .flat_map(|(namespace, apps)| {
                // So many verify in the namespace by the time that it is this App's turn.
                let ranks = self.places_in(namespace)..;
                apps.iter().take(most).zip(ranks).map(|((arrival, app), rank)| (rank, arrival, app))
            })
            .collect();
        ranked.sort_unstable();
        let turns = ranked.into_iter().enumerate();
        let turns = turns.take_while(|(before, (rank, ..))| *before < free(*rank));
        turns.map(|(_, (_, _, app))| app.clone()).collect()
    }

    /// How many pools of `app` have a place.
    fn places(&self, app: &ObjectKey) -> usize {
        let own = self.counts.get(app).filter(|_| !self.late.contains(app));
        own.copied().unwrap_or(0)
    }

    fn places_in(&self, namespace: &str) -> usize {
        let apps = self.counts.range(ObjectKey::new(namespace, "")..).map(|(app, _)| app);
        let of_namespace = apps.take_while(|app| app.namespace == namespace);
        of_namespace.map(|app| self.places(app)).sum()
    }
}

/// How many places there are for an App: more for the first of its namespace.
fn places_for(is_first: bool, limit: usize) -> usize {
    if is_first { limit.saturating_mul(2) } else { limit }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(namespace, name)
    }

    #[test]
    fn a_place_that_becomes_free_is_for_the_one_that_waits_longest() {
        let verifying = Verifying::new(2);
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| key("team", name));
        assert!(verifying.note(&a, false, true).is_empty());
        assert!(verifying.note(&a, false, true).is_empty());
        assert_eq!((verifying.has_room(&b), verifying.has_room(&a)), (false, true));
        for app in [&d, &c, &d] {
            assert!(verifying.wait(app).is_empty(), "there is no place");
        }
        assert!(verifying.note(&a, true, true).is_empty());
        assert_eq!(verifying.note(&a, true, false), from_ref(&d), "it came first");
        assert_eq!(verifying.note(&a, true, false), [d.clone(), c.clone()], "neither has begun");
        verifying.note(&d, false, true);
        assert_eq!(verifying.leave(&d), from_ref(&c));
        verifying.note(&c, false, true);
        assert!(verifying.leave(&c).is_empty());
        assert!(verifying.note(&d, true, false).is_empty(), "nobody waits any more");
        assert!(verifying.has_room(&a));
    }

    #[test]
    fn who_is_late_has_no_place_until_it_begins_anew() {
        let verifying = Verifying::new(1);
        let [stuck, waits] = ["stuck", "waits"].map(|name| key("team", name));
        verifying.note(&stuck, false, true);
        verifying.note(&stuck, false, true);
        assert!(verifying.wait(&waits).is_empty(), "there is no place");
        assert_eq!(verifying.mark_late(&stuck, true), from_ref(&waits));
        assert!(verifying.mark_late(&stuck, true).is_empty(), "it is known");
        assert!(verifying.has_room(&waits) && verifying.has_room(&stuck));
        assert_eq!(verifying.note(&stuck, true, false), from_ref(&waits), "it has none to give");
        assert!(verifying.has_room(&waits));
        verifying.mark_late(&stuck, false);
        assert!(!verifying.has_room(&waits), "the other pool of it");
    }

    #[test]
    fn a_place_that_became_free_before_an_app_waited_is_not_lost() {
        let verifying = Verifying::new(1);
        let [a, b] = ["a", "b"].map(|name| key("team", name));
        verifying.note(&a, false, true);
        assert!(!verifying.has_room(&b), "b sees that it has to wait");
        assert!(verifying.note(&a, true, false).is_empty(), "and nobody waits yet");
        assert_eq!(verifying.wait(&b), [b]);
    }

    #[test]
    fn a_turn_that_is_not_taken_goes_to_the_next() {
        let verifying = Verifying::new(1);
        let [a, gone, next] = ["a", "gone", "next"].map(|name| key("team", name));
        verifying.note(&a, false, true);
        verifying.wait(&gone);
        verifying.wait(&next);
        assert_eq!(verifying.note(&a, true, false), from_ref(&gone));
        assert_eq!(verifying.leave(&gone), [next]);
        assert!(verifying.leave(&gone).is_empty(), "it waits no more");
    }

    #[test]
    fn a_namespace_with_one_app_is_not_behind_the_many_of_another() {
        let verifying = Verifying::new(2);
        let [crowd, second] =
            ["crowd", "second"].map(|team| [0, 1, 2, 3].map(|n| key(team, &format!("app-{n}"))));
        verifying.note(&crowd[0], false, true);
        verifying.note(&crowd[1], false, true);
        for app in crowd[2..].iter().chain(&second) {
            verifying.wait(app);
        }
        assert!(!verifying.has_room(&crowd[2]) && verifying.has_room(&second[0]));
        assert_eq!(verifying.wait(&second[0]), from_ref(&second[0]), "the first of its namespace");
        verifying.note(&second[0], false, true);
        assert!(verifying.leave(&second[0]).is_empty(), "its second one is within the limit");
        verifying.note(&crowd[0], true, false);
        verifying.note(&crowd[1], true, false);
        let turns = verifying.wait(&second[1]);
        assert_eq!(turns, from_ref(&crowd[2]), "which has none now");
    }

    #[test]
    fn first_ones_of_many_namespaces_have_twice_the_places() {
        let verifying = Verifying::new(2);
        let apps: Vec<_> = (0..5).map(|n| key(&format!("team-{n}"), "app")).collect();
        for app in &apps[..3] {
            assert!(verifying.has_room(app));
            verifying.note(app, false, true);
        }
        assert_eq!(verifying.wait(&apps[3]), from_ref(&apps[3]));
        verifying.note(&apps[3], false, true);
        assert!(verifying.leave(&apps[3]).is_empty());
        assert!(verifying.wait(&apps[4]).is_empty() && !verifying.has_room(&apps[4]));
    }
}
