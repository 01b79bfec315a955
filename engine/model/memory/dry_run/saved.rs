//! What nodes hold, after [`crate::tape::Saved`].

use std::{cell::OnceCell, rc::Rc};

use super::Value;

/// What a node holds of a value it reads.
#[derive(Clone)]
pub(super) enum Saved {
    Held(Value),
    Recomputed(Rc<Recipe>),
}

/// A value that is computed again, and what its recipe holds.
pub(super) struct Recipe {
    pub(super) shape: [usize; 2],
    pub(super) holds: Inputs,
    pub(super) value: OnceCell<Value>,
}

pub(super) enum Inputs {
    RmsNorm { x: Saved },
    Swiglu { _kept: Rc<[Value; 2]> },
    Rope { of: Rc<Recipe> },
    Narrow { _x: Value },
}

impl Inputs {
    /// What must be computed again before the value is, and stays.
    pub(super) fn reads(&self) -> Option<&Saved> {
        match self {
            Inputs::RmsNorm { x } => Some(x),
            Inputs::Rope { of } => of.holds.reads(),
            Inputs::Swiglu { .. } | Inputs::Narrow { .. } => None,
        }
    }
}
