//! The table of CUDA entry points: PTX, symbol and parameters of each.

/// A type of parameters, as PTX has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // their names say it
pub enum Param {
    /// 64-bit integers, and addresses.
    U64,
    U32,
    F32,
    F64,
}

/// One `extern "C" __global__` function of `cuda/*.cu`.
#[derive(Debug)]
pub struct Entry {
    /// Stem of its file, without `.cu`.
    pub stem: &'static str,
    /// PTX of that file; empty in a build without feature `cuda`.
    pub module: &'static str,
    /// Its symbol in the PTX.
    pub symbol: &'static str,
    /// Types of its parameters, in order.
    pub params: &'static [Param],
}

macro_rules! param {
    (p) => {
        Param::U64
    };
    (u64) => {
        Param::U64
    };
    (u32) => {
        Param::U32
    };
    (f32) => {
        Param::F32
    };
    (f64) => {
        Param::F64
    };
}

/// A static for each entry point, and the list of all. `p` is an address.
macro_rules! entries {
    ($($stem:literal { $($name:ident = $symbol:literal ($($param:ident)*);)* })*) => {
        $($(
            #[doc = concat!("See `cuda/", $stem, ".cu`.")]
            pub static $name: Entry = Entry {
                stem: $stem,
                #[cfg(feature = "cuda")]
                module: include_str!(concat!(env!("OUT_DIR"), "/", $stem, ".ptx")),
                #[cfg(not(feature = "cuda"))]
                module: "",
                symbol: $symbol,
                params: &[$(param!($param)),*],
            };
        )*)*
        /// All of them, in the order of the files.
        pub static ENTRIES: &[&Entry] = &[$($(&$name),*),*];
    };
}

entries! {
    "rms_norm" {
        RMS_NORM_WIDE_F32 = "rms_norm_wide_f32"(p p p u32 f32);
        RMS_NORM_WIDE_BF16 = "rms_norm_wide_bf16"(p p p u32 f32);
        RMS_NORM_NARROW_F32 = "rms_norm_narrow_f32"(p p p u32 u32 f32);
        RMS_NORM_NARROW_BF16 = "rms_norm_narrow_bf16"(p p p u32 u32 f32);
        RMS_NORM_WIDE_BACKWARD = "rms_norm_wide_backward"(p p p p u32 f32 u32);
        RMS_NORM_NARROW_BACKWARD = "rms_norm_narrow_backward"(p p p p u32 u32 f32 u32);
    }
    "rope" {
        ROPE_F32 = "rope_f32"(p p p p u32 u32 u32 f32);
        ROPE_BF16 = "rope_bf16"(p p p p u32 u32 u32 f32);
        ROPE_NORM_64_F32 = "rope_norm_64_f32"(p p p p p u32 u32 f32);
        ROPE_NORM_64_BF16 = "rope_norm_64_bf16"(p p p p p u32 u32 f32);
        ROPE_NORM_128_F32 = "rope_norm_128_f32"(p p p p p u32 u32 f32);
        ROPE_NORM_128_BF16 = "rope_norm_128_bf16"(p p p p p u32 u32 f32);
    }
    "swiglu" {
        SWIGLU_F32 = "swiglu_f32"(p p p u32);
        SWIGLU_BF16 = "swiglu_bf16"(p p p u32);
        SWIGLU_BACKWARD_F32 = "swiglu_backward_f32"(p p p p p u32);
        SWIGLU_BACKWARD_BF16 = "swiglu_backward_bf16"(p p p p p u32);
    }
    "embedding" {
        EMBEDDING_FORWARD = "embedding_forward"(p p p u32);
    }
    "gather" {
        GATHER_FORWARD = "gather_forward"(p p p u32);
        GATHER_BACKWARD = "gather_backward"(p p p p u32);
    }
    "add" {
        ADD_ACCUMULATE = "add_accumulate"(p p u32);
        ADD_SLICES = "add_slices"(p p u32 u32 u32);
    }
    "dropout" {
        DROPOUT_F32 = "dropout_f32"(p p u32 u32 u32 u32 u32 u32 u32 f32);
        DROPOUT_BF16 = "dropout_bf16"(p p u32 u32 u32 u32 u32 u32 u32 f32);
        DROPOUT_ROUNDED = "dropout_rounded"(p p u32 u32 u32 u32 u32 u32 u32 f32);
    }
    "adamw" {
        ADAMW_STEP = "adamw_step"(p p p p u32 f32 f32 f32 f32 f32 f32 f32 f32);
    }
    "norm" {
        NORM_PARTS = "norm_parts"(p p u32);
        NORM_JOIN = "norm_join"(p p u32);
    }
    "matmul" {
        MATMUL_NT_F32 = "matmul_nt_f32"(p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_NT_SWIGLU = "matmul_nt_swiglu"(p p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_NT_NARROW = "matmul_nt_narrow"(p p p u32 u32 u32 u32);
        MATMUL_FEW_NARROW = "matmul_few_narrow"(p p p u32 u32 u32 u32);
        MATMUL_NN_F32 = "matmul_nn_f32"(p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_NN_SWIGLU_BACKWARD = "matmul_nn_swiglu_backward"
            (p p p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_TN = "matmul_tn"(p p p u32 u32 u32 u32 u32);
        MATMUL_FEW_F32_16X16 = "matmul_few_f32_16x16"(p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_F32_16X32 = "matmul_few_f32_16x32"(p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_F32_64X16 = "matmul_few_f32_64x16"(p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_F32_64X32 = "matmul_few_f32_64x32"(p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_SWIGLU_16X16 = "matmul_few_swiglu_16x16"(p p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_SWIGLU_16X32 = "matmul_few_swiglu_16x32"(p p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_SWIGLU_64X16 = "matmul_few_swiglu_64x16"(p p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_FEW_SWIGLU_64X32 = "matmul_few_swiglu_64x32"(p p p p p u32 p p u32 p p u32 u32 u32);
        MATMUL_SPLIT_ROWS = "matmul_split_rows"(p p u32 u32);
        MATMUL_SPLIT_COLUMNS = "matmul_split_columns"(p p u32 u32);
        MATMUL_LORA_HIDDEN = "matmul_lora_hidden"(p p f32 u32 u32 u32);
        MATMUL_ROUND = "matmul_round"(p p u32);
    }
    "attention" {
        ATTENTION_APPEND = "attention_append"(p p p p p u32 u32 u32);
        ATTENTION_ROWS_16 = "attention_rows_16"(p p p p p p p p u32 u32 f32);
        ATTENTION_ROWS_32 = "attention_rows_32"(p p p p p p p p u32 u32 f32);
        ATTENTION_ROWS_64 = "attention_rows_64"(p p p p p p p p u32 u32 f32);
        ATTENTION_ROWS_128 = "attention_rows_128"(p p p p p p p p u32 u32 f32);
        ATTENTION_PART_16 = "attention_part_16"(p p p p p p p u32 u32 f32);
        ATTENTION_PART_32 = "attention_part_32"(p p p p p p p u32 u32 f32);
        ATTENTION_PART_64 = "attention_part_64"(p p p p p p p u32 u32 f32);
        ATTENTION_PART_128 = "attention_part_128"(p p p p p p p u32 u32 f32);
        ATTENTION_JOIN = "attention_join"(p p p p p p u32 u32 u32 f32);
    }
    "attention_backward" {
        ATTENTION_BACKWARD_DELTAS_16 = "attention_backward_deltas_16"(p p p p p u32);
        ATTENTION_BACKWARD_DELTAS_32 = "attention_backward_deltas_32"(p p p p p u32);
        ATTENTION_BACKWARD_DELTAS_64 = "attention_backward_deltas_64"(p p p p p u32);
        ATTENTION_BACKWARD_DELTAS_128 = "attention_backward_deltas_128"(p p p p p u32);
        ATTENTION_BACKWARD_KEYS_16 = "attention_backward_keys_16"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_KEYS_32 = "attention_backward_keys_32"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_KEYS_64 = "attention_backward_keys_64"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_KEYS_128 = "attention_backward_keys_128"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_QUERIES_16 = "attention_backward_queries_16"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_QUERIES_32 = "attention_backward_queries_32"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_QUERIES_64 = "attention_backward_queries_64"
            (p p p p p p p p p p u32 u32 u32 f32);
        ATTENTION_BACKWARD_QUERIES_128 = "attention_backward_queries_128"
            (p p p p p p p p p p u32 u32 u32 f32);
    }
    "log_prob" {
        LOG_PROB_JOIN = "log_prob_join"(p p p p u32 u32 u32 f32);
        LOG_PROB_FINISH = "log_prob_finish"(p p p p p u32 f32);
        LOG_PROB_BACKWARD = "log_prob_backward"(p p p p p u32 u32 u32 f32);
    }
    "repetition_penalty" {
        REPETITION_PENALTY_APPLY = "repetition_penalty_apply"(p p u32 u32);
    }
    "sample" {
        SAMPLE_DRAW = "sample_draw"(p p p p p p p u32 u32);
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Symbols and parameter types of every entry point in PTX.
    fn signatures(ptx: &str) -> Vec<(&str, Vec<Param>)> {
        let entries = ptx.split(".entry ").skip(1).map(|text| {
            let (symbol, rest) = text.split_once('(').expect("an entry point has parameters");
            let (params, _) = rest.split_once(')').expect("an entry point has parameters");
            let of_line = |line: &str| {
                let line = line.trim().strip_prefix(".param .")?;
                Some(match line.split_whitespace().next()? {
                    "u64" | "b64" => Param::U64,
                    "u32" | "b32" => Param::U32,
                    "f32" => Param::F32,
                    "f64" => Param::F64,
                    other => panic!("{symbol} has a parameter of type {other}"),
                })
            };
            (symbol, params.lines().filter_map(of_line).collect())
        });
        entries.collect()
    }

    /// The parameters in the table are those in the PTX.
    #[test]
    fn the_table_is_the_compiled_ptx() {
        let mut modules = BTreeSet::new();
        for entry in ENTRIES {
            modules.insert((entry.stem, entry.module));
            let found = signatures(entry.module);
            let found = found.iter().find(|(symbol, _)| *symbol == entry.symbol);
            let (_, params) = found.unwrap_or_else(|| panic!("no {} in the PTX", entry.symbol));
            assert_eq!(params, entry.params, "{}", entry.symbol);
        }
        for (stem, module) in modules {
            for (symbol, _) in signatures(module) {
                let known =
                    ENTRIES.iter().any(|entry| entry.symbol == symbol && entry.stem == stem);
                assert!(known, "{symbol} of {stem}.cu is not in the table");
            }
        }
    }

    #[test]
    fn the_header_is_one_that_drivers_accept() {
        for entry in ENTRIES {
            assert!(entry.module.contains("\n.version 8.0\n.target sm_80\n"), "{}", entry.stem);
        }
    }
}
