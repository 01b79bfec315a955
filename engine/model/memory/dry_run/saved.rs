//! What nodes hold, after [`crate::tape::Saved`].

use std::{cell::OnceCell, rc::Rc};

use super::Value;

/// What a node holds of a value it reads.
pub(super) enum Saved {
    Held(Value),
    Recomputed(Rc<Recipe>),
}

/// A value that is computed again, and what its recipe holds.
pub(super) struct Recipe {
    pub(super) shape: [usize; 2],
    pub(super) _holds: Inputs,
    pub(super) value: OnceCell<Value>,
}

pub(super) enum Inputs {
    RmsNorm { _x: Value },
    Swiglu { _kept: Rc<[Value; 2]> },
    Rope { _of: Rc<Recipe> },
    Narrow { _x: Value },
}
