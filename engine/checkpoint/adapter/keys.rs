//! The tensors of adapter_model.safetensors: PEFT's names, and the values that are accepted.

use std::path::Path;

use super::{AdapterError, Projection};
use crate::checkpoint::weights::Checkpoint;

/// A key of adapter_model.safetensors, taken apart.
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) projection: Projection,
    pub(super) is_a: bool,
    /// `weight`, or `default.weight` as older PEFT wrote it.
    ending: &'static str,
}

impl Place {
    pub(super) fn key_of(&self, is_a: bool) -> String {
        peft_key(self.layer, self.projection, is_a, self.ending)
    }
}

/// The name of a factor in PEFT's files.
pub(crate) fn peft_key(layer: usize, projection: Projection, is_a: bool, ending: &str) -> String {
    let factor = if is_a { "lora_A" } else { "lora_B" };
    let module = projection.module();
    format!("base_model.model.model.layers.{layer}.{module}.{factor}.{ending}")
}

pub(super) fn parse_key(key: &str, layers: usize) -> Result<Place, String> {
    let expected = || {
        "expected base_model.model.model.layers.{layer}.{projection}.lora_A.weight or lora_B.weight"
            .to_owned()
    };
    // Weights of the base model beside the factors, as `save_embedding_layers` and `modules_to_save` put them there.
    if key.ends_with("embed_tokens.weight") || key.ends_with("lm_head.weight") {
        return Err("it is a whole matrix, saved with the adapter, which only changes projections: save it again with \
                    PEFT's save_pretrained(out, save_embedding_layers=False) if that matrix is the base model's, else \
                    merge it, `model.merge_and_unload().save_pretrained(out)`, and give out as the model"
            .to_owned());
    }
    let rest = key.strip_prefix("base_model.model.model.layers.").ok_or_else(expected)?;
    let (layer, rest) = rest.split_once('.').ok_or_else(expected)?;
    let (layer_text, layer) = (layer, layer.parse::<usize>().map_err(|_| expected())?);
    let projection = Projection::ALL.into_iter().find_map(|projection| {
        Some((projection, rest.strip_prefix(projection.module())?.strip_prefix('.')?))
    });
    let (projection, rest) = projection.ok_or_else(expected)?;
    let (is_a, ending) = match rest {
        "lora_A.weight" => (true, "weight"),
        "lora_B.weight" => (false, "weight"),
        "lora_A.default.weight" => (true, "default.weight"),
        "lora_B.default.weight" => (false, "default.weight"),
        _ => return Err(expected()),
    };
    if layer >= layers {
        return Err(format!("the model has {layers} layers, 0 to {}", layers - 1));
    }
    let place = Place { layer, projection, is_a, ending };
    // "+1" and "01" parse as numbers but are no layer's name.
    if layer_text != layer.to_string() { Err(expected()) } else { Ok(place) }
}

pub(super) fn read_factor(
    path: &Path,
    checkpoint: &Checkpoint,
    name: &str,
    expected: [usize; 2],
    why: &'static str,
) -> Result<Vec<f32>, AdapterError> {
    let path = path.to_owned();
    let name_owned = name.to_owned();
    let view = checkpoint.tensor(name)?.expect("the caller found the name in the file");
    if view.shape != expected {
        let got = view.shape.to_vec();
        return Err(AdapterError::Shape { path, name: name_owned, expected, why, got });
    }
    let Some(values) = view.to_f32() else {
        return Err(AdapterError::Dtype { path, name: name_owned, got: view.dtype });
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let value = values[index];
            Err(AdapterError::NotFinite { path, name: name_owned, index, value })
        }
        None => Ok(values),
    }
}
