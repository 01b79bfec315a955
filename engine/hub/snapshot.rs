//! The files that make a model or an adapter.

use super::HubError;
use super::cache::Repository;
use super::reference::{Reference, check_file_name};
use crate::checkpoint::weights::unread_format;
use crate::error::read_text;
use std::collections::BTreeSet;
use std::path::Path;

const INDEX: &str = "model.safetensors.index.json";
/// Configurations and tokenizers: the largest tokenizer.json in use has about 35 MB.
const TEXT_LIMIT: u64 = 256 << 20;
/// An index has one line per tensor; those of the largest models stay under 20 MB.
const INDEX_LIMIT: u64 = 64 << 20;
/// Shards of one checkpoint; the largest models have under 200.
const SHARD_LIMIT: usize = 10_000;

/// The files of a directory that the engine opens.
pub(super) struct Contents {
    /// Files without which it is none.
    required: &'static [&'static str],
    /// Files that are nearly always there, and needed then: offline, one is taken as absent only if that was noted.
    expected: &'static [&'static str],
    /// Files that are taken if they are there.
    optional: &'static [&'static str],
    /// The one file of weights.
    weights: &'static str,
    /// Whether an index with shards may replace it.
    sharded: bool,
}

pub(super) const MODEL: Contents = Contents {
    required: &["config.json", "tokenizer.json"],
    expected: &["tokenizer_config.json"],
    optional: &[
        "generation_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/default.jinja",
    ],
    weights: "model.safetensors",
    sharded: true,
};

pub(super) const ADAPTER: Contents = Contents {
    required: &["adapter_config.json"],
    expected: &[],
    optional: &[],
    weights: "adapter_model.safetensors",
    sharded: false,
};

impl Contents {
    /// The file that is reported as missing when there is nothing at all.
    pub(super) fn first(&self) -> &'static str {
        self.required[0]
    }

    /// Files that a repository may do without.
    pub(super) fn wished(&self) -> impl Iterator<Item = &'static str> {
        self.expected.iter().chain(self.optional).copied()
    }

    /// What to do with a file that was given for the directory.
    pub(super) fn advice(&self, file: &Path) -> &'static str {
        let unread = unread_format(file).filter(|_| self.sharded);
        unread.unwrap_or("is a file; give the directory that contains it")
    }

    /// The first file that a cached snapshot lacks.
    pub(super) fn missing(
        &self,
        repository: &Repository,
        commit: &str,
    ) -> Result<Option<String>, HubError> {
        let snapshot = repository.snapshot(commit);
        for file in self.required {
            if !snapshot.join(file).exists() {
                return Ok(Some(file.to_string()));
            }
        }
        for file in self.expected {
            if !snapshot.join(file).exists() && !repository.is_absent(commit, file) {
                return Ok(Some(file.to_string()));
            }
        }
        if snapshot.join(self.weights).exists() {
            return Ok(None);
        }
        if !self.sharded || !snapshot.join(INDEX).exists() {
            return Ok(Some(self.weights.to_string()));
        }
        let shards = self.shards(repository, commit)?;
        Ok(shards.into_iter().map(|(shard, _)| shard).find(|shard| !snapshot.join(shard).exists()))
    }

    /// The files to have before the shards are known, each with the most bytes that are accepted.
    pub(super) fn files(
        &self,
        reference: &Reference,
        listing: &[String],
    ) -> Result<Vec<(String, u64)>, HubError> {
        let has = |file: &str| listing.iter().any(|name| name == file);
        let not_found = |file: &str, hint: String| HubError::FileNotFound {
            repository: reference.id.clone(),
            revision: reference.revision.clone(),
            file: file.to_string(),
            hint,
        };
        let mut files = Vec::new();
        for file in self.required {
            if !has(file) {
                let hint = match (*file, has("adapter_config.json"), has("config.json")) {
                    ("config.json", true, _) => {
                        "this is an adapter: give it as the adapter, and its base as the model"
                    }
                    ("adapter_config.json", _, true) => {
                        "this is a whole model: give it as the model"
                    }
                    ("tokenizer.json", ..) => {
                        "this repository has no fast tokenizer: save one with transformers (AutoTokenizer, use_fast) and give the local directory"
                    }
                    _ => match listing.iter().find_map(|name| unread_format(Path::new(name))) {
                        Some(advice) if !has(self.weights) && !has(INDEX) => {
                            return Err(not_found(file, format!("it has {advice}")));
                        }
                        _ => "is it the repository you mean?",
                    },
                };
                return Err(not_found(file, hint.to_string()));
            }
            files.push((file.to_string(), TEXT_LIMIT));
        }
        let wished = self.wished().filter(|file| has(file));
        files.extend(wished.map(|file| (file.to_string(), TEXT_LIMIT)));
        if has(self.weights) {
            files.push((self.weights.to_string(), u64::MAX));
        } else if self.sharded && has(INDEX) {
            files.push((INDEX.to_string(), INDEX_LIMIT));
        } else {
            let other = [".bin", ".gguf", ".pt", ".safetensors"];
            let other =
                listing.iter().find(|name| other.iter().any(|ending| name.ends_with(ending)));
            let hint = match (other, other.and_then(|name| unread_format(Path::new(name)))) {
                (Some(_), Some(advice)) if self.sharded => format!("it has {advice}"),
                // `{:?}`: a listing's name is the server's text.
                (Some(other), _) => format!(
                    "it has {other:?}, which is not read: convert it to {} and give the local directory",
                    self.weights
                ),
                (None, _) => "it has no weights".to_string(),
            };
            return Err(not_found(self.weights, hint));
        }
        Ok(files)
    }

    /// The shards that the index of a snapshot names; none if the weights are one file.
    pub(super) fn shards(
        &self,
        repository: &Repository,
        commit: &str,
    ) -> Result<Vec<(String, u64)>, HubError> {
        let snapshot = repository.snapshot(commit);
        let path = snapshot.join(INDEX);
        if !self.sharded || snapshot.join(self.weights).exists() {
            return Ok(Vec::new());
        }
        let bad =
            |reason: &str| HubError::BadIndex { path: path.clone(), reason: reason.to_string() };
        let index: serde_json::Value = serde_json::from_str(&read_text(&path, INDEX_LIMIT)?)
            .map_err(|error| bad(&format!("no JSON: {error}")))?;
        let map = index["weight_map"].as_object();
        let map = map.ok_or_else(|| bad("it has no object \"weight_map\""))?;
        let mut shards = BTreeSet::new();
        for shard in map.values() {
            let shard = shard.as_str();
            shards.insert(shard.ok_or_else(|| bad("\"weight_map\" names a file by no string"))?);
        }
        if shards.is_empty() {
            return Err(bad("\"weight_map\" is empty"));
        }
        if shards.len() > SHARD_LIMIT {
            return Err(bad("it names more than 10000 shards"));
        }
        for shard in &shards {
            let reason = match check_file_name(shard) {
                Err(reason) => reason,
                Ok(()) if !shard.ends_with(".safetensors") => "a shard ends with .safetensors",
                Ok(()) => continue,
            };
            return Err(HubError::UnsafeFileName {
                repository: repository.id.clone(),
                file: shard.to_string(),
                reason,
            });
        }
        Ok(shards.into_iter().map(|shard| (shard.to_string(), u64::MAX)).collect())
    }
}
