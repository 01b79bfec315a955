//! Quantized checkpoints, which are not read: by which program, from config.json and from names and types of tensors.

use safetensors::Dtype;
use serde_json::Value;

use crate::checkpoint::json_object::JsonObject;
use crate::error::excerpt;

/// Values of `quant_method` (transformers' utils/quantization_config.py, and those of vLLM, MLX and ExLlama).
const METHODS: [(&str, &str); 34] = [
    ("aqlm", "AQLM"),
    ("auto-round", "AutoRound"),
    ("awq", "AWQ"),
    ("bitnet", "BitNet"),
    ("bitsandbytes", "bitsandbytes"),
    ("bnb", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors (llm-compressor)"),
    ("eetq", "EETQ"),
    ("exl2", "ExLlamaV2"),
    ("exl3", "ExLlamaV3"),
    ("fbgemm_fp8", "FBGEMM"),
    ("fouroversix", "Four Over Six"),
    ("fp8", "fp8"),
    ("fp_quant", "FP-Quant"),
    ("ggml", "GGML"),
    ("gguf", "GGUF"),
    ("gptq", "GPTQ"),
    ("higgs", "HIGGS"),
    ("hqq", "HQQ"),
    ("marlin", "Marlin"),
    ("metal", "Metal"),
    ("mlx", "MLX"),
    ("modelopt", "ModelOpt"),
    ("mxfp4", "MXFP4"),
    ("mxfp8", "MXFP8"),
    ("nvfp4", "NVFP4"),
    ("quanto", "Quanto"),
    ("quark", "Quark"),
    ("rtn", "rounding to nearest"),
    ("sinq", "SINQ"),
    ("spqr", "SpQR"),
    ("squeezellm", "SqueezeLLM"),
    ("torchao", "torchao"),
    ("vptq", "VPTQ"),
];

/// Ends of names that a program gives to what stands beside or for a matrix; the first that is found decides. Tensors of the
/// families that are read end in `.weight` and `.bias` alone.
const ENDS: [(&str, &str); 36] = [
    (".absmax", "bitsandbytes, 4 bit"),
    (".quant_map", "bitsandbytes, 4 bit"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes, 4 bit"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes, 4 bit"),
    (".SCB", "bitsandbytes, 8 bit"),
    (".g_idx", "GPTQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "GPTQ, AWQ or AutoRound"),
    (".q_invperm", "ExLlamaV2"),
    (".q_weight", "ExLlamaV2"),
    (".trellis", "ExLlamaV3"),
    (".weight_packed", "compressed-tensors (llm-compressor)"),
    (".weight_zero_point", "compressed-tensors (llm-compressor)"),
    (".weight_shape", "compressed-tensors (llm-compressor)"),
    (".weight_scale_inv", "fp8 in blocks"),
    (".weight_scale_2", "ModelOpt's NVFP4"),
    (".weight_scales", "EETQ"),
    (".W_q", "HQQ"),
    (".codebooks", "AQLM"),
    (".codes", "AQLM"),
    (".centroids", "VPTQ"),
    (".res_centroids", "VPTQ"),
    (".dense_weights", "SpQR"),
    (".row_offsets", "SpQR"),
    (".weight._data", "Quanto"),
    (".weight._scale", "Quanto"),
    (".weight_qtype", "Quanto"),
    ("weight_qdata", "torchao"),
    (":qdata", "torchao"),
    (":_data", "torchao"),
    ("_blocks", "MXFP4"),
    (".biases", "MLX"),
    (".weight_scale", "fp8, int8 or BitNet"),
    (".qscales", "a program that calls its scales so"),
    (".scales", "GPTQ, AWQ or MLX"),
    (".zeros", "a program that calls its zero points so"),
];

/// The key of config.json that says that the weights are quantized, and by what.
pub(crate) fn of_config(reader: &JsonObject) -> Option<(&'static str, String)> {
    let (key, value) = ["quantization_config", "compression_config", "quantization"]
        .into_iter()
        .find_map(|key| Some((key, reader.get(key)?)))?;
    let method =
        value.get("quant_method").or_else(|| value.get("quant_type")).and_then(Value::as_str);
    let on = |key: &str| value.get(key).and_then(Value::as_bool) == Some(true);
    let has = |key: &str| value.get(key).is_some();
    let maker = match method {
        Some(method) => {
            let known = METHODS.iter().find(|(name, _)| name.eq_ignore_ascii_case(method));
            known.map_or_else(|| excerpt(method), |(_, maker)| (*maker).to_owned())
        }
        None if key == "compression_config" => "compressed-tensors (llm-compressor)".to_owned(),
        None if on("load_in_4bit") || on("_load_in_4bit") => "bitsandbytes, 4 bit".to_owned(),
        None if on("load_in_8bit") || on("_load_in_8bit") => "bitsandbytes, 8 bit".to_owned(),
        None if has("quant_algo") => "ModelOpt".to_owned(),
        // MLX copies the one key to the other.
        None if has("group_size") && has("bits") => "MLX".to_owned(),
        None => "a program that it does not name".to_owned(),
    };
    Some((key, maker))
}

/// The tensor whose name says that the weights are quantized, and by what.
pub(crate) fn of_names<'a>(
    names: impl Iterator<Item = &'a str>,
) -> Option<(&'a str, &'static str)> {
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let rank = ENDS.iter().position(|(end, _)| name.ends_with(end));
        match (rank, best) {
            (None, _) => {}
            (Some(rank), Some((first, _))) if first <= rank => {}
            (Some(rank), _) => best = Some((rank, name)),
        }
    }
    best.map(|(rank, name)| (name, ENDS[rank].1))
}

/// Whether a matrix of this type holds quantized numbers, or pieces of them.
pub(crate) fn is_packed(dtype: Dtype) -> bool {
    use Dtype::{BF16, BOOL, C64, F16, F32, F64, I64, U64};
    !matches!(dtype, BF16 | F16 | F32 | F64 | C64 | BOOL | I64 | U64)
}
