//! The hub against a server on 127.0.0.1 that behaves, and servers that do not.

mod cache;
mod failures;
mod https;
mod local;
mod server;

use super::*;
use server::{COMMIT, FakeHub, Reply, Request, Server};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("j1-hub-{}-{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// The part of the cache that holds acme/judge.
    fn repository(&self) -> PathBuf {
        self.0.join("hub/models--acme--judge")
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.repository().join("blobs").join(etag)
    }

    fn partial(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Settings as from an environment with nothing but HF_HOME and HF_ENDPOINT, and no waiting.
fn config(scratch: &Scratch, endpoint: &str) -> HubConfig {
    let mut config = HubConfig::from_variables(|name| match name {
        "HF_HOME" => Some(scratch.0.clone().into()),
        "HF_ENDPOINT" => Some(endpoint.into()),
        _ => None,
    });
    config.retry = Retry {
        attempts: 3,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(4),
    };
    config.metadata_timeout = Duration::from_secs(5);
    config.download_timeout = Duration::from_secs(5);
    config
}

fn hub(scratch: &Scratch, server: &Server) -> Hub {
    Hub::new(config(scratch, &server.url()))
}

/// An address at which nothing listens.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Resolves acme/judge, quietly.
fn resolve(hub: &Hub) -> Result<PathBuf, HubError> {
    hub.resolve_model("acme/judge", &mut |_| {})
}

/// The events as text, `Received` left out: how many there are is up to the system.
fn record(events: &mut Vec<String>) -> impl FnMut(HubEvent<'_>) {
    |event| {
        if !matches!(event, HubEvent::Received { .. }) {
            events.push(format!("{event:?}"));
        }
    }
}

fn assert_model(directory: &Path, fake: &FakeHub) {
    for (name, bytes, _) in fake.files.iter().filter(|(name, ..)| !name.starts_with('.')) {
        assert!(std::fs::read(directory.join(name)).unwrap() == *bytes, "{name}");
    }
}
