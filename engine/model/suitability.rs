//! The models that a GPU's kernels can run.

use super::Precision;
use crate::checkpoint::config::Config;

/// A model that runs on the CPU only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the GPU has no kernels for this model: {what}; use the CPU")]
pub struct Unsuited {
    /// The property that the kernels do not support.
    pub what: String,
}

/// Checks a model's shape and precision against what kernels assert.
pub fn check(config: &Config, precision: Precision) -> Result<(), Unsuited> {
    /// The widths that norms take and that fit a block of attention.
    const LONGEST_ROW: usize = 4096;
    const MOST_HEADS: usize = 16;
    const WIDTHS: [usize; 4] = [16, 32, 64, 128];
    let unsuited = |what: String| Err(Unsuited { what });
    if precision == Precision::F32 {
        return unsuited("they compute in bf16, not in f32".to_string());
    }
    let head_dim = config.head_dim;
    if !WIDTHS.contains(&head_dim) {
        return unsuited(format!("head_dim is {head_dim}, not one of 16, 32, 64, 128"));
    }
    let group = config.num_attention_heads / config.num_key_value_heads;
    if group > MOST_HEADS {
        return unsuited(format!("{group} query heads share a key-value head, at most 16 may"));
    }
    for (name, size) in
        [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)]
    {
        if !size.is_multiple_of(8) {
            return unsuited(format!("{name} is {size}, not a multiple of 8"));
        }
    }
    if config.hidden_size > LONGEST_ROW {
        return unsuited(format!("hidden_size is {}, at most 4096", config.hidden_size));
    }
    if config.vocab_size > kernels::cpu::sample::MAX_VOCAB {
        return unsuited(format!("vocab_size is {}", config.vocab_size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernels_do_not_take_is_named() {
        let config = Config::qwen3(1024, 3072);
        assert_eq!(check(&config, Precision::Bf16), Ok(()));
        assert!(check(&config, Precision::F32).unwrap_err().to_string().contains("bf16"));
        let refused = |config: Config, word: &str| {
            let error = check(&config, Precision::Bf16).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("use the CPU"), "{error}");
        };
        refused(Config { head_dim: 80, ..config.clone() }, "head_dim is 80");
        refused(Config { hidden_size: 1020, ..config.clone() }, "hidden_size is 1020");
        refused(Config { hidden_size: 8192, ..config.clone() }, "hidden_size is 8192");
        let many = Config { num_attention_heads: 32, num_key_value_heads: 1, ..config };
        refused(many, "32 query heads");
    }
}
