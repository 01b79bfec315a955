//! Weight files of other forms, by name, and directories whose safetensors files cannot be opened.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::excerpt;

/// Whether a name, in lower case, is one of a form, and what that is and what to do with it.
type Form = (fn(&str) -> bool, &'static str);

/// The first that fits counts, of a directory the first that any file fits.
const FORMS: [Form; 6] = [
    (
        |name| {
            let pickle = [".pth", ".pt", ".ckpt"].iter().any(|ending| name.ends_with(ending));
            pickle || name.ends_with(".bin") && name.contains("model")
        },
        "PyTorch's pickle format, which can run code and is not read: convert it with Python's \
            transformers, `AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out, safe_serialization=True)`",
    ),
    (
        |name| name.ends_with(".gguf") || name.ends_with(".ggml"),
        "GGUF, which is not read: fetch the checkpoint that it was made from, in safetensors format",
    ),
    (
        |name| name == "adapter_model.safetensors",
        "a LoRA adapter: give it as the adapter and its base model as the model",
    ),
    (
        |name| name.ends_with(".npz"),
        "MLX's older format, which is not read: fetch the checkpoint that it was made from, in safetensors format",
    ),
    (
        |name| name.ends_with(".h5") || name.ends_with(".msgpack"),
        "weights of TensorFlow or Flax, which are not read: convert them with Python's transformers, \
            `AutoModelForCausalLM.from_pretrained(dir, from_flax=True).save_pretrained(out)` (from_tf for TensorFlow)",
    ),
    (
        |name| {
            [".onnx", ".tflite", ".mlmodel", ".nemo", ".engine"].iter().any(|e| name.ends_with(e))
        },
        "a model exported for another program, which is not read: fetch the checkpoint that it was made from, in safetensors format",
    ),
];

/// For a weight file that is not read, by its name: its form, and what to do.
pub(crate) fn of_file(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    FORMS.iter().find(|(fits, _)| fits(&name)).map(|(_, advice)| *advice)
}

/// For a directory without model.safetensors or its index: what it holds, and what to do.
pub(super) fn of_directory(directory: &Path) -> Result<String, std::io::Error> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    let safetensors: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.ends_with(".safetensors") && !name.starts_with("adapter_"))
        .collect();
    if let Some((first, all)) = safetensors.iter().find_map(|name| Some((name, shards(name)?))) {
        let found = safetensors.iter().filter(|name| shards(name).is_some()).count();
        let first = excerpt(first);
        return Ok(format!(
            ", but {found} of {all} shards ({first:?} is the first): fetch the index too, which says what is in them"
        ));
    }
    for (fits, advice) in FORMS {
        if names.iter().any(|name| fits(&name.to_ascii_lowercase())) {
            // An adapter may lie beside weights of another form, and weights beside an adapter's.
            return Ok(format!(", only {advice}"));
        }
    }
    Ok(match safetensors.as_slice() {
        [] => "; give one that transformers saved a checkpoint in".to_owned(),
        [one] => format!(
            ", but {:?}: if it holds the whole model, rename it to model.safetensors",
            excerpt(one)
        ),
        [first, ..] => format!(
            ", but {} files of other names ({:?} is the first): give one that transformers saved a checkpoint in",
            safetensors.len(),
            excerpt(first)
        ),
    })
}

/// The N of a name that ends in `-00001-of-N.safetensors`.
fn shards(name: &str) -> Option<u32> {
    let (start, all) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let number = start.rsplit_once('-')?.1;
    number.parse::<u32>().ok()?;
    all.parse().ok()
}
