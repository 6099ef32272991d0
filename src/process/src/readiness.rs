//! Readiness: named gates that must all be open before the process takes work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The gates of a process.
///
/// Cheap to clone; all clones are the same set. A process without gates is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// How many gates of that name are still closed; a name stays listed once known.
    closed: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Readiness {
    /// A set without gates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gate, closed. Several gates may share a name: all of them must be open.
    pub fn gate(&self, name: impl Into<String>) -> Gate {
        let name = name.into();
        *self.lock().entry(name.clone()).or_default() += 1;
        Gate { name, open: false, readiness: self.clone() }
    }

    /// The names of the gates that are closed, in order; empty when the process is ready.
    pub fn closed(&self) -> Vec<String> {
        self.lock()
            .iter()
            .filter(|(_, closed)| **closed > 0)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One condition of readiness, held by the component that can tell.
///
/// Dropping a closed gate leaves it closed for ever: a component that went away before it was
/// ready must not make the process look ready.
#[derive(Debug)]
pub struct Gate {
    name: String,
    open: bool,
    readiness: Readiness,
}

impl Gate {
    /// Opens the gate; does nothing if it is open.
    pub fn open(&mut self) {
        if !self.open {
            self.open = true;
            self.move_by(|closed| closed.saturating_sub(1));
        }
    }

    /// Closes the gate; does nothing if it is closed.
    pub fn close(&mut self) {
        if self.open {
            self.open = false;
            self.move_by(|closed| closed + 1);
        }
    }

    fn move_by(&self, change: impl FnOnce(usize) -> usize) {
        let mut gates = self.readiness.lock();
        let closed = gates.entry(self.name.clone()).or_default();
        *closed = change(*closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_gate_is_open() {
        let readiness = Readiness::new();
        assert!(readiness.closed().is_empty());
        let mut apps = readiness.gate("apps");
        let mut pods = readiness.gate("pods");
        assert_eq!(readiness.closed(), ["apps", "pods"]);
        pods.open();
        pods.open();
        assert_eq!(readiness.closed(), ["apps"]);
        apps.open();
        assert!(readiness.closed().is_empty());
        pods.close();
        assert_eq!(readiness.closed(), ["pods"]);
    }

    #[test]
    fn gates_that_share_a_name_must_all_open() {
        let readiness = Readiness::new();
        let mut first = readiness.gate("caches");
        let mut second = readiness.gate("caches");
        first.open();
        assert_eq!(readiness.closed(), ["caches"]);
        second.open();
        assert!(readiness.closed().is_empty());
    }

    #[test]
    fn a_component_that_went_away_closed_stays_closed() {
        let readiness = Readiness::new();
        drop(readiness.gate("feed"));
        assert_eq!(readiness.closed(), ["feed"]);
    }
}
