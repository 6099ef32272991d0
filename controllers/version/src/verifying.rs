//! How many pools verify in the whole cluster, and which Apps wait for their turn.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use portolan_reconcile::ObjectKey;

/// Counts verifying pools by App, and remembers the Apps to wake when one has finished.
#[derive(Debug, Default)]
pub(crate) struct Verifying {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<ObjectKey, usize>,
    total: usize,
    waiting: BTreeSet<ObjectKey>,
}

impl Verifying {
    /// Notes that a pool of `app` went from verifying or not to verifying or not. Returns the Apps
    /// whose turn it may be: all that wait, when a place has become free.
    pub(crate) fn note(&self, app: &ObjectKey, was: bool, is: bool) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        match (was, is) {
            (false, true) => {
                *state.counts.entry(app.clone()).or_default() += 1;
                state.total += 1;
                Vec::new()
            }
            (true, false) => {
                state.total = state.total.saturating_sub(1);
                if let Some(count) = state.counts.get_mut(app) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        state.counts.remove(app);
                    }
                }
                std::mem::take(&mut state.waiting).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// How many pools of Apps other than `app` verify.
    pub(crate) fn count_others(&self, app: &ObjectKey) -> usize {
        let state = self.state.lock();
        state.total - state.counts.get(app).copied().unwrap_or(0)
    }

    /// Has `app` woken when a place becomes free.
    pub(crate) fn wait(&self, app: &ObjectKey) {
        self.state.lock().waiting.insert(app.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("team", name)
    }

    #[test]
    fn a_finished_pool_wakes_those_that_wait_once() {
        let verifying = Verifying::default();
        assert!(verifying.note(&key("a"), false, true).is_empty());
        assert!(verifying.note(&key("a"), false, true).is_empty());
        verifying.wait(&key("b"));
        verifying.wait(&key("b"));
        assert_eq!(verifying.count_others(&key("b")), 2);
        assert_eq!(verifying.count_others(&key("a")), 0);
        assert!(verifying.note(&key("a"), true, true).is_empty());
        assert_eq!(verifying.note(&key("a"), true, false), [key("b")]);
        assert!(verifying.note(&key("a"), true, false).is_empty());
        assert_eq!(verifying.count_others(&key("b")), 0);
    }
}
