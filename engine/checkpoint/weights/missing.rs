//! Why tensors that config.json asks for are missing, as the tensors that are there tell.

use std::collections::HashSet;

use crate::checkpoint::config::{Config, EMBEDDING, HEAD};
use crate::error::excerpt;

/// What PyTorch's wrappers put between the dots of names.
const WRAPPERS: [&str; 5] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"];

/// The end of a message: what was found in their place, and what to do.
pub(super) fn explain<'a>(
    found: impl Iterator<Item = &'a str> + Clone,
    config: &Config,
    missing: &[String],
) -> String {
    let has = |name: &str| found.clone().any(|found| found == name);
    match missing {
        [name] if name == HEAD => {
            return "config.json does not tie the head to the embeddings; where the model does (and transformers therefore \
                saves no head), set \"tie_word_embeddings\" to true in it"
                .to_owned();
        }
        [name] if name == EMBEDDING && config.tie_word_embeddings && has(HEAD) => {
            return format!(
                "config.json ties the head to the embeddings, and of the two only {HEAD} is there: rename it to {EMBEDDING}"
            );
        }
        _ => {}
    }
    let wanted: HashSet<&str> = missing.iter().map(String::as_str).collect();
    if let Some(name) =
        found.clone().find(|name| name.contains(".lora_") || name.contains(".base_layer."))
    {
        let name = excerpt(name);
        return format!(
            "{name:?} is of a PEFT model that was saved with its adapter inside: save it merged, `model.merge_and_unload().save_pretrained(out)`"
        );
    }
    // A layer's name has all that was put into names.
    let renamed = |name: &'a str| Some((name, renaming(name, &wanted)?));
    let mut of_layers = found.clone().filter(|name| name.contains("layers."));
    let renamed = of_layers.find_map(renamed).or_else(|| found.clone().find_map(renamed));
    if let Some((name, Renaming { to, python })) = renamed {
        let name = excerpt(name);
        return format!(
            "{name:?} is there in place of {to:?}: rename them all, in Python `from safetensors.torch import load_file, save_file; \
                save_file({{{python}: t for n, t in load_file(f).items()}}, out, {{'format': 'pt'}})` for each file f, and in the index"
        );
    }
    for (part, what) in [
        (".qkv_proj.", "q, k and v in one matrix"),
        (".gate_up_proj.", "gate and up in one matrix"),
        (".query_key_value.", "q, k and v in one matrix"),
        (".c_attn.", "q, k and v in one matrix"),
        (".attention.wq.", "Meta's own names"),
    ] {
        if let Some(name) = found.clone().find(|name| format!(".{name}").contains(part)) {
            let (name, family) = (excerpt(name), config.family.model_type());
            return format!(
                "the files have {what} ({name:?}): convert them to the names that transformers' {family} has, or correct model_type"
            );
        }
    }
    if let Some(layers) = layers_that_are_whole(config, missing) {
        return format!(
            "the files have the first {layers} layers, config.json says num_hidden_layers {}: is it that of another size?",
            config.num_hidden_layers
        );
    }
    if found.clone().next().is_none() {
        return "the files have none at all".to_owned();
    }
    let mut names: Vec<String> =
        found.clone().take(3).map(|name| format!("{:?}", excerpt(name))).collect();
    let count = found.count();
    if count > names.len() {
        names.push("…".to_owned());
    }
    format!("the files have {count} ({}): is config.json that of these files?", names.join(", "))
}

struct Renaming {
    /// The name that is called for.
    to: String,
    /// An expression of `n`, the name that is there.
    python: String,
}

/// How this name becomes one of those wanted.
fn renaming(name: &str, wanted: &HashSet<&str>) -> Option<Renaming> {
    let (wraps, parts): (Vec<&str>, Vec<&str>) =
        name.split('.').partition(|part| WRAPPERS.contains(part));
    let unwrapped = parts.join(".");
    if !wraps.is_empty() && wanted.contains(unwrapped.as_str()) {
        let used = WRAPPERS.iter().filter(|wrapper| wraps.contains(wrapper));
        let calls: String = used.map(|wrapper| format!(".replace('{wrapper}.', '')")).collect();
        return Some(Renaming { to: unwrapped, python: format!("n{calls}") });
    }
    // The rest of the name from here on is the same in every checkpoint.
    let at = name.find("layers.").filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.')?;
    let (prefix, rest) = name.split_at(at);
    let to = format!("model.{rest}");
    if !wanted.contains(to.as_str()) {
        return None;
    }
    let plain = prefix.len() <= 60
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    let python = match prefix.strip_suffix("model.") {
        _ if !plain => "new_name(n)".to_owned(),
        _ if prefix.is_empty() => format!("n if n == '{HEAD}' else 'model.' + n"),
        Some(more) if more.ends_with('.') => format!("n.removeprefix('{more}')"),
        _ => format!("n.replace('{prefix}', 'model.')"),
    };
    Some(Renaming { to, python })
}

/// The number of layers of which nothing is missing, if all that is missing are the layers after them.
fn layers_that_are_whole(config: &Config, missing: &[String]) -> Option<usize> {
    let layer = |name: &String| -> Option<usize> {
        name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
    };
    let layers: Option<Vec<usize>> = missing.iter().map(layer).collect();
    let first = layers?.into_iter().min()?;
    let a_layer =
        config.expected_tensors().filter(|tensor| layer(&tensor.name) == Some(first)).count();
    (first > 0 && missing.len() == a_layer * (config.num_hidden_layers - first)).then_some(first)
}
