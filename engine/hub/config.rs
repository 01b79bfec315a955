//! The settings of the hub, read from the environment as Python's huggingface_hub reads them.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";
/// huggingface_hub's default is 10 s for both; downloads get longer because the CDN sometimes
/// assembles a file before its first byte.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// An access token. It has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(super) secret: String,
    /// The place it was read from, for messages.
    pub(super) source: String,
}

impl Token {
    /// A token and the name of the place it was read from; `None` if it is empty.
    pub fn new(secret: &str, source: impl Into<String>) -> Option<Token> {
        // As huggingface_hub cleans it: a pasted token often carries a line break.
        let secret = secret.replace(['\r', '\n'], "");
        let secret = secret.trim();
        (!secret.is_empty()).then(|| Token { secret: secret.to_string(), source: source.into() })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.source)
    }
}

/// How often and how patiently a request is repeated.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Connections tried for one request, or for one file without real progress in between.
    pub attempts: u32,
    /// Pause before the second attempt; doubles each time.
    pub first_pause: Duration,
    /// The longest pause, also where the server asks for more (Retry-After).
    pub longest_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 5,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// Where the cache and the server are, and how to reach them.
#[derive(Clone)]
pub struct HubConfig {
    /// For a leading `~/` in paths.
    pub home: Option<PathBuf>,
    /// The directory of `models--owner--name`: HF_HUB_CACHE, or HF_HOME/hub.
    pub cache: Option<PathBuf>,
    /// HF_ENDPOINT, without a slash at the end.
    pub endpoint: String,
    /// HF_HUB_OFFLINE: never connect.
    pub offline: bool,
    /// HF_TOKEN, or the token file.
    pub token: Option<Token>,
    /// The proxy for the endpoint's scheme, and the variable it came from.
    pub proxy: Option<(String, String)>,
    /// The value of NO_PROXY.
    pub no_proxy: String,
    /// SSL_CERT_FILE or the like: PEM certificates used in place of the built-in roots.
    pub certificates: Option<(String, PathBuf)>,
    /// HF_HUB_ETAG_TIMEOUT: to connect, and until the answer to a small request begins.
    pub metadata_timeout: Duration,
    /// HF_HUB_DOWNLOAD_TIMEOUT: the longest silence within a download.
    pub download_timeout: Duration,
    /// Repetition of failures that may pass.
    pub retry: Retry,
}

impl HubConfig {
    /// From the process environment.
    pub fn from_env() -> HubConfig {
        HubConfig::from_variables(|name| std::env::var_os(name))
    }

    /// From any source of variables. A variable that is set to nothing counts as not set.
    pub(crate) fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> HubConfig {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_string());
        let first =
            |names: &[&str]| names.iter().find_map(|name| Some((name.to_string(), set(name)?)));

        let home = set("HOME").map(PathBuf::from);
        let path = |value: OsString| expand_home(Path::new(&value), home.as_deref());
        let hugging_face_home = set("HF_HOME").map(path).or_else(|| {
            let base = set("XDG_CACHE_HOME").map(path);
            let base = base.or_else(|| home.as_ref().map(|home| home.join(".cache")));
            Some(base?.join("huggingface"))
        });
        let cache = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .map(|(_, value)| path(value))
            .or_else(|| Some(hugging_face_home.as_ref()?.join("hub")));

        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .iter()
            .find_map(|name| Token::new(&text(name)?, *name))
            .or_else(|| {
                let file = set("HF_TOKEN_PATH").map(path);
                let file = file.or_else(|| Some(hugging_face_home.as_ref()?.join("token")))?;
                let secret = read_token_file(&file)?;
                Token::new(&secret, file.display().to_string())
            });

        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        // The lower-case forms win, as in curl; ALL_PROXY is the last resort.
        let by_scheme: &[&str] = if endpoint.starts_with("http://") {
            &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
        } else {
            &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        };
        let proxy = first(by_scheme)
            .map(|(name, value)| (name, value.to_string_lossy().trim().to_string()));
        let seconds = |name: &str| {
            let seconds = text(name)?.parse::<u64>().ok().filter(|&s| s > 0)?;
            Some(Duration::from_secs(seconds.min(24 * 3600)))
        };
        let certificates = first(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]);

        HubConfig {
            cache,
            endpoint,
            offline: first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
                .is_some_and(|(_, value)| is_true(&value.to_string_lossy())),
            token,
            proxy,
            no_proxy: first(&["no_proxy", "NO_PROXY"])
                .map(|(_, value)| value.to_string_lossy().into_owned())
                .unwrap_or_default(),
            certificates: certificates.map(|(name, value)| (name, path(value))),
            metadata_timeout: seconds("HF_HUB_ETAG_TIMEOUT").unwrap_or(METADATA_TIMEOUT),
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT").unwrap_or(DOWNLOAD_TIMEOUT),
            retry: Retry::default(),
            home,
        }
    }
}

impl fmt::Debug for HubConfig {
    /// Without the proxy's address, which may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .field("token", &self.token)
            .field("proxy", &self.proxy.as_ref().map(|(name, _)| name))
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

/// The path with a leading `~` replaced by the home directory.
pub(super) fn expand_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_path_buf(),
    }
}

/// The words that huggingface_hub takes for yes.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// The token file's text, if it is there and of a token's size.
fn read_token_file(file: &Path) -> Option<String> {
    let size = std::fs::metadata(file).ok()?;
    if !size.is_file() || size.len() > 64 * 1024 {
        return None;
    }
    std::fs::read_to_string(file).ok()
}
