//! Checkpoints with random weights, of any shape: what benches run where no trained model is needed.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use half::bf16;
use serde_json::{Map, Value, json};

use crate::{
    checkpoint::config::{Config, ExpectedTensor, Family, RopeScaling},
    files::WriteError,
};

/// Standard deviation of matrices, as Qwen3 initializes them.
const DEVIATION: f32 = 0.02;

/// Half the width of the interval from which a norm's weights are drawn, around 1.
const NORM_SPREAD: f32 = 0.1;

impl Config {
    /// The configuration of a published Qwen3 model by its two widths, the rest of which Qwen3-0.6B (1024,
    /// 3072) and Qwen3-1.7B (2048, 6144) share.
    pub fn qwen3(hidden_size: usize, intermediate_size: usize) -> Config {
        Config {
            family: Family::Qwen3,
            hidden_size,
            num_hidden_layers: 28,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
            intermediate_size,
            vocab_size: 151_936,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: true,
            max_position_embeddings: 40_960,
            dtype: Some(crate::checkpoint::config::FloatType::Bf16),
            eos_token_ids: vec![151_645],
            bos_token_id: Some(151_643),
        }
    }
}

/// Writes `config.json` and `model.safetensors` of this shape into `directory`, which exists: bf16 weights that
/// depend on `seed` and on nothing else (matrices uniform with deviation 0.02, norms near 1, biases 0).
///
/// About a second for Qwen3-0.6B, whose file has 1.2 GB. The files are not synced: they are made to be
/// measured and thrown away.
pub fn write(directory: &Path, config: &Config, seed: u64) -> Result<(), WriteError> {
    let path = directory.join("config.json");
    fs::write(&path, format!("{:#}\n", config_json(config)))
        .map_err(|source| WriteError::new("write", &path, source))?;
    let path = directory.join("model.safetensors");
    write_weights(&path, config, seed).map_err(|source| WriteError::new("write", &path, source))
}

fn config_json(config: &Config) -> Value {
    json!({
        "model_type": config.family.model_type(),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling.to_json(),
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "torch_dtype": "bfloat16",
        "eos_token_id": config.eos_token_ids,
        "bos_token_id": config.bos_token_id,
        "hidden_act": "silu",
    })
}

fn write_weights(path: &Path, config: &Config, seed: u64) -> io::Result<()> {
    let tensors: Vec<ExpectedTensor> = config.expected_tensors().collect();
    let (mut entries, mut end) = (Map::new(), 0);
    for ExpectedTensor { name, shape } in &tensors {
        let start = end;
        end += size_of::<bf16>() * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        entries.insert(name.clone(), entry);
    }
    let mut header = Value::Object(entries).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));

    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for ExpectedTensor { name, shape } in &tensors {
        // A uniform distribution on ±a deviates by a/√3.
        let (center, spread) = match shape.len() {
            1 if name.ends_with("bias") => (0.0, 0.0),
            1 => (1.0, NORM_SPREAD),
            _ => (0.0, DEVIATION * 3f32.sqrt()),
        };
        write_random(&mut file, shape.iter().product(), center, spread, seed ^ hash(name))?;
    }
    file.flush()
}

/// Writes `count` values of center ± spread.
fn write_random(
    file: &mut impl Write,
    count: usize,
    center: f32,
    spread: f32,
    seed: u64,
) -> io::Result<()> {
    /// Values written at a time, a multiple of four.
    const BLOCK: usize = 64 * 1024;
    let scale = spread / 32_768.0;
    let mut block = vec![[0u8; 2]; BLOCK.min(count.next_multiple_of(4))];
    for first in (0..count).step_by(BLOCK) {
        for (four, values) in block.chunks_exact_mut(4).enumerate() {
            let word = mix(seed.wrapping_add((first / 4 + four) as u64));
            for (lane, value) in values.iter_mut().enumerate() {
                let steps = f32::from((word >> (16 * lane)) as i16);
                *value = bf16::from_f32(center + steps * scale).to_le_bytes();
            }
        }
        file.write_all(block[..BLOCK.min(count - first)].as_flattened())?;
    }
    Ok(())
}

/// SplitMix64 (Steele et al. 2014) at a counter.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a of a tensor's name: its weights do not depend on its place.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use kernels::cpu::Matrix;

    use super::*;
    use crate::{
        checkpoint::{config::FloatType, weights::Checkpoint},
        golden,
        language_model::LanguageModel,
        tensor::Device,
    };

    fn tiny(family: Family) -> Config {
        Config {
            family,
            hidden_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            intermediate_size: 80,
            vocab_size: 301,
            tie_word_embeddings: family == Family::Qwen3,
            rope_scaling: match family {
                Family::Qwen3 => RopeScaling::None,
                Family::Qwen2 => RopeScaling::Yarn {
                    factor: 4.0,
                    original: 64,
                    beta_fast: 16.0,
                    beta_slow: 2.0,
                    truncate: false,
                    attention_factor: 1.25,
                },
                Family::Llama => RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original: 64,
                },
            },
            dtype: Some(FloatType::Bf16),
            ..Config::qwen3(0, 0)
        }
    }

    #[test]
    fn is_read_back_as_it_was_asked_for() {
        for family in Family::ALL {
            let directory = tempfile::tempdir().unwrap();
            let config = tiny(family);
            write(directory.path(), &config, 7).unwrap();
            assert_eq!(Config::load(directory.path()).unwrap(), config);
            let device = Device::cpu_threads(1);
            let model =
                LanguageModel::builder(directory.path()).device(&device).open_model().unwrap();
            let logits = golden::logits(&model, &[1, 2, 300]);
            assert!(logits.iter().all(|z| z.is_finite()) && logits[0] != logits[1], "{family:?}");
        }
    }

    #[test]
    fn the_seed_decides_every_bit() {
        let file = |seed| {
            let directory = tempfile::tempdir().unwrap();
            write(directory.path(), &tiny(Family::Qwen3), seed).unwrap();
            fs::read(directory.path().join("model.safetensors")).unwrap()
        };
        assert!(file(1) == file(1), "two files of one seed");
        assert!(file(1) != file(2), "one file for two seeds");
    }

    #[test]
    fn matrices_have_the_deviation_of_qwen3() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &tiny(Family::Qwen3), 3).unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let weight = checkpoint.weight("model.embed_tokens.weight").unwrap();
        let Matrix::Bf16(values) = weight.matrix() else { panic!("not bf16") };
        let squares: f64 = values.iter().map(|x| x.to_f64().powi(2)).sum();
        let deviation = (squares / values.len() as f64).sqrt();
        // Four times what the root of the mean of n squares of a uniform variable deviates by.
        let bound = 4.0 / (5.0 * values.len() as f64).sqrt();
        assert!((deviation / f64::from(DEVIATION) - 1.0).abs() < bound, "{deviation}");
    }
}
