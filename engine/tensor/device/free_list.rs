//! Buffers that wait to be used again: which of them serves a request.

use std::collections::BTreeMap;

/// Buffers by their length.
pub(crate) struct FreeList<B>(BTreeMap<usize, Vec<B>>);

impl<B> FreeList<B> {
    /// The length of a new buffer for `len` values: eight lengths per octave, so that at most an eighth of
    /// a buffer is not used.
    pub(crate) fn rounded(len: usize) -> usize {
        let step = (len.next_power_of_two() / 8).max(16);
        len.next_multiple_of(step).max(step)
    }

    /// A buffer for `len` values ([rounded](FreeList::rounded)) and at most a quarter more: a value may live long, and the rest
    /// of its buffer is lost to others.
    pub(crate) fn take(&mut self, len: usize) -> Option<B> {
        self.0.range_mut(len..=len * 5 / 4).find_map(|(_, buffers)| buffers.pop())
    }

    /// Takes back a buffer of `len` values.
    pub(crate) fn give_back(&mut self, len: usize, buffer: B) {
        self.0.entry(len).or_default().push(buffer);
    }

    /// Takes all of them.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = B> + use<B> {
        std::mem::take(&mut self.0).into_values().flatten()
    }

    /// Whether there are none.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.values().all(Vec::is_empty)
    }
}

impl<B> Default for FreeList<B> {
    fn default() -> FreeList<B> {
        FreeList(BTreeMap::new())
    }
}
