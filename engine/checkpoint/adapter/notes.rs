//! Notes on an adapter that are no errors: it changes nothing, was made for another model, or has unknown keys.

use super::{Adapter, LoraFactors};
use crate::error::excerpt;

/// Ends of a checkpoint's name that say how it is stored, or how it was tuned or converted, not which model it is.
const VARIANTS: [&str; 21] = [
    "4bit", "8bit", "awq", "base", "bf16", "bnb", "chat", "dynamic", "fp16", "fp8", "gguf", "gptq",
    "hf", "instruct", "int4", "int8", "it", "merged", "mlx", "nf4", "unsloth",
];

impl LoraFactors {
    /// Whether B A is zero whatever the input: a scale of 0, or a factor that is all zeros.
    fn is_zero(&self) -> bool {
        let zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        self.scale == 0.0 || zero(&self.a) || zero(&self.b)
    }
}

impl Adapter {
    /// Notes for using the adapter on `model`, a path or id; none for a sound one.
    pub fn notes(&self, model: &str) -> Vec<String> {
        self.effect_note().into_iter().chain(self.notes_for_training(model)).collect()
    }

    /// Notes for training it further: that it changes nothing yet is no note then.
    pub fn notes_for_training(&self, model: &str) -> Vec<String> {
        self.base_note(model).into_iter().chain(self.unknown_note()).collect()
    }

    /// Whether the model with it computes the same as the base model.
    pub fn changes_nothing(&self) -> bool {
        self.layers.iter().flatten().flatten().all(LoraFactors::is_zero)
    }

    fn effect_note(&self) -> Option<String> {
        if !self.changes_nothing() {
            return None;
        }
        let mut all = self.layers.iter().flatten().flatten();
        let why = if all.clone().all(|factors| factors.scale == 0.0) {
            "lora_alpha is 0 (some tools write that when they convert: put the value it was trained with into adapter_config.json)"
        } else if all.all(|factors| factors.b.iter().all(|value| *value == 0.0)) {
            "B is zero in every matrix, as before the first step of training (or the trained file was lost)"
        } else {
            "alpha, A or B is zero in every matrix"
        };
        Some(format!("the adapter changes nothing: {why}; the model answers as its base does"))
    }

    fn base_note(&self, model: &str) -> Option<String> {
        let base = self.base_model.as_deref().filter(|base| !base.trim().is_empty())?;
        let (own, given) = (family(base), family(model));
        // A directory may be called by the beginning of a name ("./qwen3").
        let alike = own.iter().zip(&given).all(|(own, given)| own == given);
        (!alike).then(|| {
            format!(
                "the adapter says that it was made for \"{}\", and the model is \"{}\": make sure that they are the same",
                excerpt(base),
                excerpt(model)
            )
        })
    }

    fn unknown_note(&self) -> Option<String> {
        let shown = self.unknown_keys.iter().take(3).map(String::as_str).collect::<Vec<_>>();
        let more = match self.unknown_keys.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let keys = shown.join(", ");
        (!shown.is_empty()).then(|| {
            format!(
                "adapter_config.json has keys that are not known here and are left aside, as PEFT does: {keys}{more}"
            )
        })
    }
}

/// The words of a path or id that name a model: those of its last part in lower case, without words for forms of storage.
fn family(name: &str) -> Vec<String> {
    let name = name.trim_end_matches(['/', '\\']);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let parts: Vec<&str> = name.split(['/', '\\']).collect();
    // The Hugging Face cache: models--Qwen--Qwen3-0.6B/snapshots/<commit>.
    let cached = parts.iter().rev().find_map(|part| part.strip_prefix("models--"));
    let last = match cached {
        Some(id) => id.rsplit("--").next(),
        None => parts.last().copied(),
    };
    let last = last.unwrap_or_default().to_lowercase();
    let mut words: Vec<&str> = last.split(['-', '_']).collect();
    while words.len() > 1 && words.last().is_some_and(|word| VARIANTS.contains(word)) {
        words.pop();
    }
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, plain, two};
    use serde_json::json;

    #[test]
    fn an_adapter_that_changes_nothing_says_so() {
        let sound = load(&plain(), &two()).unwrap();
        assert_eq!(sound.notes("Qwen/Qwen3-0.6B"), Vec::<String>::new());
        let mut no_alpha = plain();
        no_alpha["lora_alpha"] = json!(0);
        let notes = load(&no_alpha, &two()).unwrap().notes("Qwen/Qwen3-0.6B");
        assert!(
            notes.len() == 1 && notes[0].contains("changes nothing: lora_alpha is 0"),
            "{notes:?}"
        );
        let zeroed = |which: &str| {
            let mut factors = two();
            let all = factors.iter_mut().filter(|(name, ..)| name.contains(which));
            all.for_each(|(_, _, _, data)| data.fill(0));
            load(&plain(), &factors).unwrap()
        };
        let fresh = zeroed("lora_B");
        assert!(
            fresh.changes_nothing() && fresh.notes("qwen3-0.6b")[0].contains("B is zero in every")
        );
        assert!(zeroed("lora_A").notes("qwen3-0.6b")[0].contains("alpha, A or B is zero"));
        // One matrix is enough.
        assert!(!zeroed("layers.0.self_attn.q_proj.lora_B").changes_nothing());
        // Negative zeros are zeros.
        let mut factors = two();
        for (_, _, _, data) in factors.iter_mut().filter(|(name, ..)| name.contains("lora_B")) {
            let zeros = (-0.0f32).to_le_bytes().repeat(data.len() / 4);
            data.copy_from_slice(&zeros);
        }
        assert!(load(&plain(), &factors).unwrap().changes_nothing());
    }

    #[test]
    fn an_adapter_of_another_base_says_so() {
        let of = |base: &str, model: &str| {
            let mut config = plain();
            config["base_model_name_or_path"] = json!(base);
            load(&config, &two()).unwrap().notes(model)
        };
        for (base, model) in [
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main"),
            ("Qwen/Qwen3-0.6B", "/models/qwen3-0.6b/"),
            ("unsloth/Qwen3-0.6B-unsloth-bnb-4bit", "Qwen/Qwen3-0.6B"),
            ("unsloth/qwen2.5-0.5b-instruct-bnb-4bit", "./Qwen2.5-0.5B-Instruct"),
            ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "Qwen2.5-0.5B"),
            ("Qwen/Qwen3-0.6B", "./qwen3"),
            (
                "Qwen/Qwen3-0.6B",
                "cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca",
            ),
            ("", "anything"),
        ] {
            assert_eq!(of(base, model), Vec::<String>::new(), "{base} on {model}");
        }
        for (base, model) in [
            ("Qwen/Qwen2.5-7B", "demo/model"),
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"),
            ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-Coder-0.5B"),
            ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-1B"),
        ] {
            let notes = of(base, model);
            assert!(
                notes.len() == 1 && notes[0].contains(base) && notes[0].contains(model),
                "{notes:?}"
            );
        }
        let hostile = of("x\u{1b}[31m\u{202e}evil", "y");
        assert!(!hostile[0].contains(['\u{1b}', '\u{202e}']), "{hostile:?}");
    }

    #[test]
    fn keys_that_peft_would_leave_aside_are_named() {
        let mut config = plain();
        config["some_new_number"] = json!(0);
        config["other\u{7}"] = json!({"a": 1});
        config["off"] = json!(null);
        let notes = load(&config, &two()).unwrap().notes("Qwen3-0.6B");
        assert_eq!(notes.len(), 1, "{notes:?}");
        let known = notes[0].contains("some_new_number = 0")
            && notes[0].contains(r#"other\u{7} = {"a":1}"#);
        assert!(known && !notes[0].contains("off"), "{notes:?}");
        for number in 0..5 {
            config[format!("more_{number}")] = json!(true);
        }
        assert!(load(&config, &two()).unwrap().notes("Qwen3-0.6B")[0].ends_with("and 4 more"));
    }
}
