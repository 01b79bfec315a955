//! Writing an adapter in PEFT's form, as `save_pretrained` of PEFT 0.21 does: the same keys, the same names, `default` left out.
//!
//! The bytes depend on the adapter alone. adapter_config.json is what makes a directory an adapter, so it is put in place last:
//! at any moment, power cuts included, the directory holds a whole adapter or none. Saving over an adapter with the same
//! configuration, as a run does with its own, leaves the old one or the new one.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use safetensors::tensor::TensorView;
use serde::Serialize;
use serde_json::{Value, json};

use super::modules::Patterns;
use super::{Adapter, AdapterError, CONFIG, LIMIT_BYTES, Projection, WEIGHTS, peft_key};
use crate::checkpoint::weights::Dtype;
use crate::error::read_text;
use crate::files::{StagedFile, WriteError, sync_parent};

/// The version of PEFT that has these keys. PEFT shows it only where it meets a key that it does not know.
const PEFT_VERSION: &str = "0.21.2";

impl Adapter {
    /// Writes adapter_config.json and adapter_model.safetensors (f32) to `directory`, which is created if it is not there.
    pub fn save(&self, directory: &Path) -> Result<(), AdapterError> {
        let existed = directory.exists();
        let created = fs::create_dir_all(directory);
        created.map_err(|source| WriteError::new("create", directory, source))?;
        let saved = self.save_files(directory);
        if saved.is_err() && !existed {
            // The first error is the one to report.
            let _ = fs::remove_dir(directory);
        }
        Ok(saved?)
    }

    fn save_files(&self, directory: &Path) -> Result<(), WriteError> {
        let path = directory.join(CONFIG);
        let (weights, config) = (self.weights_file(), self.config_file());
        let same = read_text(&path, LIMIT_BYTES).is_ok_and(|old| old == config);
        let prepare = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            let written = StagedFile::create(&path).and_then(|mut file| {
                file.write_all(bytes)?;
                file.finish()?;
                Ok(file)
            });
            written.map_err(|source| WriteError::new("write", &path, source))
        };
        let files = [prepare(WEIGHTS, &weights)?, prepare(CONFIG, config.as_bytes())?];
        if !same {
            // Or the old configuration would stand beside the new weights for a moment.
            match fs::remove_file(&path).and_then(|()| sync_parent(&path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::new("replace", &path, error));
                }
                _ => {}
            }
        }
        for file in files {
            let path = file.path().to_owned();
            file.place().map_err(|source| WriteError::new("write", &path, source))?;
        }
        Ok(())
    }

    /// adapter_model.safetensors.
    fn weights_file(&self) -> Vec<u8> {
        let mut tensors = BTreeMap::new();
        for (layer, slots) in self.layers.iter().enumerate() {
            for projection in Projection::ALL {
                let Some(factors) = &slots[projection as usize] else { continue };
                for (is_a, values) in [(true, &factors.a), (false, &factors.b)] {
                    let (rank, other) = (factors.rank, values.len() / factors.rank);
                    let shape = if is_a { vec![rank, other] } else { vec![other, rank] };
                    let bytes: &[u8] = bytemuck::cast_slice(values);
                    let view = TensorView::new(Dtype::F32, shape, bytes);
                    let view = view.expect("a factor has rank times width elements");
                    tensors.insert(peft_key(layer, projection, is_a, "weight"), view);
                }
            }
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(tensors, Some(metadata)).expect("names and shapes are sound")
    }

    /// adapter_config.json.
    fn config_file(&self) -> String {
        let [ranks, alphas] =
            [self.rank_pattern.json(|rank| json!(rank)), self.alpha_pattern.json(alpha)];
        let entries = [
            ("alora_invocation_tokens", Value::Null),
            ("arrow_config", Value::Null),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base_model)),
            ("bias", json!("none")),
            ("corda_config", Value::Null),
            ("ensure_weight_tying", json!(false)),
            ("eva_config", Value::Null),
            ("exclude_modules", Value::Null),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("kasa_config", Value::Null),
            ("layer_replication", Value::Null),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", Value::Null),
            ("loftq_config", json!({})),
            ("lora_alpha", alpha(&self.alpha)),
            ("lora_bias", json!(false)),
            ("lora_dropout", json!(self.dropout)),
            ("lora_ga_config", Value::Null),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", Value::Null),
            ("monteclora_config", Value::Null),
            ("peft_type", json!("LORA")),
            ("peft_version", json!(PEFT_VERSION)),
            ("qalora_group_size", json!(16)),
            ("r", json!(self.rank)),
            ("revision", Value::Null),
            ("target_modules", json!(self.target_modules())),
            ("target_parameters", Value::Null),
            ("task_type", json!("CAUSAL_LM")),
            ("trainable_token_indices", Value::Null),
            ("use_bdlora", Value::Null),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("use_rslora", json!(self.rank_stabilized)),
            ("velora_config", Value::Null),
        ];
        let mut entries = BTreeMap::from(entries.map(|(key, value)| (key, Entry::Value(value))));
        entries.insert("rank_pattern", Entry::Patterns(ranks));
        entries.insert("alpha_pattern", Entry::Patterns(alphas));
        serde_json::to_string_pretty(&entries).expect("no map with other keys than strings") + "\n"
    }

    /// `q_proj` and so on, sorted; whole names where the layers differ in what is changed.
    fn target_modules(&self) -> Vec<String> {
        let changed = |slots: &[Option<_>; 7]| Projection::ALL.map(|p| slots[p as usize].is_some());
        let alike = self.layers.windows(2).all(|pair| changed(&pair[0]) == changed(&pair[1]));
        let mut names = Vec::new();
        for (layer, slots) in
            self.layers.iter().enumerate().take(if alike { 1 } else { usize::MAX })
        {
            for projection in Projection::ALL.into_iter().filter(|p| slots[*p as usize].is_some()) {
                let module = projection.module();
                names.push(match module.rsplit_once('.') {
                    Some((_, name)) if alike => name.to_owned(),
                    _ => format!("model.layers.{layer}.{module}"),
                });
            }
        }
        names.sort();
        names
    }
}

/// An integer where it is one, as people write it.
fn alpha(alpha: &f64) -> Value {
    match alpha.fract() == 0.0 {
        true => json!(*alpha as u64),
        false => json!(alpha),
    }
}

/// A value of adapter_config.json.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Value(Value),
    Patterns(Patterns<Value>),
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, load, plain, two};
    use super::super::{AdapterSettings, LoraFactors};
    use super::*;
    use crate::files::names;

    fn adapter(rank: usize) -> Adapter {
        let targets = Projection::ALL.to_vec();
        let settings =
            AdapterSettings { rank, alpha: 7.5, rank_stabilized: true, dropout: 0.05, targets };
        let mut adapter = Adapter::initialize(&config(), &settings, 1).unwrap();
        adapter.base_model = Some("Qwen/Qwen3-0.6B".to_owned());
        adapter
    }

    #[test]
    fn what_is_saved_is_what_loads() {
        let scratch = tempfile::tempdir().unwrap();
        let loaded = load(&plain(), &two()).unwrap();
        let mut uneven = loaded.clone();
        uneven.layers[1][Projection::Query as usize] = None;
        for (number, adapter) in [adapter(3), loaded, uneven].iter().enumerate() {
            let directory = scratch.path().join(format!("runs/{number}"));
            adapter.save(&directory).unwrap();
            assert_eq!(names(&directory), [CONFIG, WEIGHTS]);
            assert_eq!(Adapter::load(&directory, &config()).unwrap(), *adapter);
        }
    }

    #[test]
    fn an_adapter_is_replaced_by_the_next() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("adapter");
        adapter(3).save(&directory).unwrap();
        let bytes = |name: &str| fs::read(directory.join(name)).unwrap();
        let first = (bytes(CONFIG), bytes(WEIGHTS));
        // The same configuration, other factors; then another configuration.
        let mut second = adapter(3);
        let rank = 3;
        let factors = second.factors(0, Projection::Up).unwrap().clone();
        let b = vec![1.0; factors.b.len()];
        second.set_factors(0, Projection::Up, LoraFactors { b, rank, ..factors });
        for next in [second, adapter(2)] {
            next.save(&directory).unwrap();
            assert_eq!(names(&directory), [CONFIG, WEIGHTS]);
            assert_eq!(Adapter::load(&directory, &config()).unwrap(), next);
        }
        adapter(3).save(&directory).unwrap();
        assert!(first == (bytes(CONFIG), bytes(WEIGHTS)), "the same adapter, the same bytes");
    }

    #[test]
    fn what_cannot_be_saved_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "mine").unwrap();
        for directory in [file.clone(), file.join("below")] {
            let error = adapter(3).save(&directory).unwrap_err();
            assert!(matches!(error, AdapterError::Write(_)), "{error}");
            assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"mine");

        // A directory in the way of the weights: the old adapter is gone then, and no half of the new one is there.
        let blocked = scratch.path().join("blocked");
        fs::create_dir_all(blocked.join(WEIGHTS)).unwrap();
        let error = adapter(3).save(&blocked).unwrap_err();
        assert!(error.to_string().contains(WEIGHTS), "{error}");
        assert_eq!(names(&blocked), [WEIGHTS]);
    }
}
