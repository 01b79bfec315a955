//! Settings that are one of a few words.

/// An enum whose values are written as words.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All values.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The word for it in files.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }

            /// The value of this name.
            pub fn from_name(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl super::value::Value for $name {
            fn read(value: &toml::de::DeValue<'_>) -> Option<Self> {
                $name::from_name(value.as_str()?)
            }

            fn write(&self) -> String {
                format!("\"{}\"", self.name())
            }

            fn allowed() -> Option<String> {
                let words: Vec<_> = $name::ALL.iter().map(|value| value.write()).collect();
                Some(words.join(" | "))
            }
        }
    )+};
}

choices! {
    /// A recipe.
    Preset {
        /// The j1 recipe with the faults of the original mended, on Qwen3-0.6B.
        J1Nano = "j1-nano",
        /// The same on Qwen3-1.7B.
        J1Micro = "j1-micro",
        /// The RL stage of SPCT (arXiv 2504.02495).
        Spct = "spct",
        /// The original j1 training on TRL 0.15.2, fault for fault.
        Trl0152 = "trl-0.15.2",
    }
    /// Where weights are read; no bit depends on it.
    Weights {
        /// As memory and CPU allow.
        Auto = "auto",
        /// In the checkpoint's files.
        Mapped = "mapped",
        /// In a packed copy.
        Packed = "packed",
    }
    /// What becomes of prompts that are too long.
    OverLong {
        /// They are left out before the run, and counted.
        Drop = "drop",
        /// Their beginning is cut off, system prompt first: TRL's way.
        TruncateLeft = "truncate-left",
    }
    /// Which reply stands in slot A.
    Orders {
        /// Every pair is shown in both orders, in the same step.
        Both = "both",
        /// Drawn for each pair.
        Random = "random",
    }
    /// Whether the model thinks before it answers.
    Thinking {
        /// As its chat template has it.
        Auto = "auto",
        /// It does.
        On = "on",
        /// It does not.
        Off = "off",
    }
    /// What the KL term compares with.
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
        /// The last.
        Last = "last",
    }
    /// What advantages are divided by.
    ScaleRewards {
        /// The standard deviation of the group.
        Group = "group",
        /// The standard deviation of the step.
        Batch = "batch",
        /// Nothing.
        None = "none",
    }
    /// How the tokens of a step are averaged.
    LossType {
        /// Within each completion first.
        Grpo = "grpo",
        /// Over the tokens of each part.
        Bnpo = "bnpo",
        /// Over the tokens of the step.
        Dapo = "dapo",
        /// Over as many tokens as there could be.
        DrGrpo = "dr_grpo",
    }
    /// The learning rate after the warm-up.
    Schedule {
        /// Half a cosine down to 0.
        Cosine = "cosine",
        /// A line down to 0.
        Linear = "linear",
        /// No change.
        Constant = "constant",
    }
    /// Whether activations are recomputed in the backward pass.
    GradientCheckpointing {
        /// Where memory asks for it.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}
