//! Arguments of `j1 serve`.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;

use super::{GenerationArgs, RuntimeArgs, values::parse_size};

/// Arguments of `j1 serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 serve --model ./qwen3 --adapter ./j1-nano --served-model-name j1-nano
  curl http://127.0.0.1:8000/v1/judge -H 'Content-Type: application/json' \\
      -d '{\"prompt\": \"Name a red fruit.\", \"responses\": [\"Cherry.\", \"The sky.\"]}'
  OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python client.py

Paths: /v1/chat/completions, /v1/completions and /v1/models as OpenAI's; /v1/judge and /v1/judge/batch; \
/v1/rerank, /get_reward (OpenRLHF), /classify (verl); /health, /metrics (Prometheus), /version. \
cli/README.md has their fields. What a request to judge gets depends on that request alone: the same \
bytes whatever else runs.

Ctrl-C ends the server when the requests under way are answered, or after --drain.")]
pub(crate) struct Serve {
    /// Checkpoint: a directory, or a Hugging Face id
    #[arg(short = 'm', long, value_name = "DIR|ID", help_heading = "Model")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    /// Name that clients call the model; may be given several times [default: --model]
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "Server")]
    pub(crate) served_model_name: Vec<String>,
    /// Address to listen on. Others than this machine's loopback need --public
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub(crate) host: IpAddr,
    /// Port; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8000, help_heading = "Server")]
    pub(crate) port: u16,
    /// Listen to other machines, too. Requests, answers and keys travel unencrypted: put a proxy with TLS in between
    #[arg(long, help_heading = "Server")]
    pub(crate) public: bool,
    /// Keys, a line each, one of which a client must send (Authorization: Bearer KEY)
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Reply that others are compared with where a request has none (/classify, /get_reward); @FILE reads it
    #[arg(long, value_name = "TEXT", help_heading = "Server")]
    pub(crate) reference: Option<String>,
    /// Write a line for each request to stderr
    #[arg(long, help_heading = "Server")]
    pub(crate) log_requests: bool,

    /// Refuse requests (503, Retry-After) that would wait longer, by how fast others end
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Limits")]
    pub(crate) max_wait: u32,
    /// Refuse requests while so many sequences wait
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Limits")]
    pub(crate) max_queue: usize,
    /// Largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "16MB", value_parser = parse_size, help_heading = "Limits")]
    pub(crate) max_body: u64,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_connections: u32,
    /// Time that requests under way have to end when the server is told to
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Limits")]
    pub(crate) drain: u32,

    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}
