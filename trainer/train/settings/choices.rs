//! Settings that are one of a few words.

use engine::optimizer::schedule::Shape;

use super::value::Value;
use crate::train::grpo::{advantages::ScaleRewards, loss::LossType};

/// A setting that is written as a word.
pub trait Choice: Copy + PartialEq + 'static {
    /// All values and their words.
    const WORDS: &'static [(Self, &'static str)];

    /// The word for it in files.
    fn name(self) -> &'static str {
        let known = Self::WORDS.iter().find(|(value, _)| *value == self);
        known.expect("every value has a word").1
    }

    /// The value of this name.
    fn from_name(name: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, word)| *word == name).map(|(value, _)| *value)
    }
}

impl<T: Choice> Value for T {
    fn read(value: &toml::de::DeValue<'_>) -> Option<Self> {
        T::from_name(value.as_str()?)
    }

    fn write(&self) -> String {
        format!("\"{}\"", self.name())
    }

    fn allowed() -> Option<String> {
        let words: Vec<_> = T::WORDS.iter().map(|(value, _)| value.write()).collect();
        Some(words.join(" | "))
    }
}

/// The words of enums.
macro_rules! words {
    ($($name:ident { $($variant:ident = $word:literal,)+ })+) => {$(
        impl Choice for $name {
            const WORDS: &'static [($name, &'static str)] = &[$(($name::$variant, $word),)+];
        }
    )+};
}

/// Enums, and their words.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum $name { $($(#[$variant_doc])* $variant,)+ }
        )+
        words! { $($name { $($variant = $word,)+ })+ }
    };
}

words! {
    ScaleRewards { Group = "group", Batch = "batch", None = "none", }
    LossType { Grpo = "grpo", Bnpo = "bnpo", Dapo = "dapo", DrGrpo = "dr_grpo", }
    Shape { Cosine = "cosine", Linear = "linear", Constant = "constant", }
}

choices! {
    /// A recipe.
    Preset {
        /// The j1 recipe with the faults of the original mended, on Qwen3-0.6B.
        J1Nano = "j1-nano",
        /// The same on Qwen3-1.7B.
        J1Micro = "j1-micro",
        /// A recipe for Qwen2.5-Coder-0.5B-Instruct that two cores train in hours.
        Cpu05b = "cpu-0.5b",
        /// The RL stage of SPCT (arXiv 2504.02495).
        Spct = "spct",
        /// The original j1 training on TRL 0.15.2, fault for fault.
        Trl0152 = "trl-0.15.2",
    }
    /// Place that weights are read from; no bit depends on it.
    Weights {
        /// Packed if memory and CPU allow, else mapped.
        Auto = "auto",
        /// In the checkpoint's files.
        Mapped = "mapped",
        /// In a packed copy.
        Packed = "packed",
    }
    /// Treatment of prompts that are too long.
    OverLong {
        /// Pairs with such prompts are left out before the run, and counted.
        Drop = "drop",
        /// Their beginning is cut off, system prompt first: TRL's way.
        TruncateLeft = "truncate-left",
    }
    /// The reply in slot A.
    Orders {
        /// Every pair is shown in both orders, in the same step.
        Both = "both",
        /// Drawn for each pair.
        Random = "random",
    }
    /// Whether the model thinks before it answers.
    Thinking {
        /// The default of its chat template.
        Auto = "auto",
        /// The model thinks first.
        On = "on",
        /// The model does not think.
        Off = "off",
    }
    /// Reference policy of the KL term.
    Reference {
        /// The policy as training began: with the adapter it started from, if it did.
        Start = "start",
        /// The base model, whatever adapter training started from.
        Base = "base",
    }
    /// Which step's adapter is the result.
    Deliver {
        /// The best on held-out pairs, where there are any.
        Best = "best",
        /// The last step.
        Last = "last",
    }
    /// Whether activations are recomputed in the backward pass.
    GradientCheckpointing {
        /// If training without it does not fit the memory.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}
