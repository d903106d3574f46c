//! Equal texts and hint lists share one allocation.
//!
//! Endpoints repeat a handful of zones and ports a handful of names; thousands of Services share few namespaces.

use std::sync::Arc;

use rustc_hash::FxHashSet;

/// Texts and hint lists in use. Forgets those that nobody else holds any more.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Pool<str>,
    lists: Pool<[Arc<str>]>,
}

impl Interner {
    /// The shared copy of `text`.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.shared(text, || text.into())
    }

    /// The shared copy of `list`.
    pub fn list(&mut self, list: &[Arc<str>]) -> Arc<[Arc<str>]> {
        self.lists.shared(list, || list.into())
    }

    /// Texts and lists held.
    pub fn len(&self) -> usize {
        self.texts.held.len() + self.lists.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Keeps at most twice as many entries as are in use, plus [`MIN_PURGE`].
#[derive(Debug)]
struct Pool<T: ?Sized> {
    held: FxHashSet<Arc<T>>,
    purge_at: usize,
}

/// Looking for unused entries is not worth it below this number.
const MIN_PURGE: usize = 1024;

impl<T: ?Sized + std::hash::Hash + Eq> Pool<T> {
    fn shared(&mut self, wanted: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(held) = self.held.get(wanted) {
            return Arc::clone(held);
        }
        if self.held.len() >= self.purge_at {
            self.held.retain(|it| Arc::strong_count(it) > 1);
            self.purge_at = (2 * self.held.len()).max(MIN_PURGE);
        }
        let made = make();
        self.held.insert(Arc::clone(&made));
        made
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Pool { held: FxHashSet::default(), purge_at: MIN_PURGE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_an_allocation() {
        let mut interner = Interner::default();
        let (a, b) = (interner.text("zone-a"), interner.text("zone-a"));
        assert!(Arc::ptr_eq(&a, &b));
        let (x, y) = (interner.list(&[a]), interner.list(&[b]));
        assert!(Arc::ptr_eq(&x, &y));
        assert_eq!(interner.len(), 2);
    }

    #[test]
    fn churn_does_not_grow_it() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        for n in 0..100_000 {
            interner.text(&format!("pod-{n}"));
        }
        assert!(interner.len() <= MIN_PURGE + 1, "{}", interner.len());
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
