//! Buffers that are counted instead of held.

use std::{cell::RefCell, rc::Rc};

use crate::tensor::FreeList;

/// A device's buffers.
#[derive(Clone, Default)]
pub(super) struct Memory(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    free: FreeList<usize>,
    /// The values each has room for and, of them, what was written to.
    buffers: Vec<(usize, usize)>,
}

/// A buffer in use; it goes back when it is dropped.
pub(super) struct Slot {
    memory: Memory,
    index: usize,
}

impl Memory {
    /// A buffer for `written` values, as the device would choose it.
    pub(super) fn take(&self, written: usize) -> Slot {
        let Inner { free, buffers } = &mut *self.0.borrow_mut();
        let len = FreeList::<usize>::rounded(written);
        let index = free.take(len).unwrap_or_else(|| {
            buffers.push((len, 0));
            buffers.len() - 1
        });
        let most = &mut buffers[index].1;
        *most = written.max(*most);
        Slot { memory: self.clone(), index }
    }

    /// The values all buffers have room for, and those that were written to.
    pub(super) fn values(&self) -> [usize; 2] {
        let sum = |[room, written]: [usize; 2], (len, most): &(usize, usize)| {
            [room + len, written + most]
        };
        self.0.borrow().buffers.iter().fold([0, 0], sum)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut memory = self.memory.0.borrow_mut();
        let (len, _) = memory.buffers[self.index];
        memory.free.give_back(len, self.index);
    }
}
