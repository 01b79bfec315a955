//! What is wrong with a request, in OpenAI's form and with vLLM's statuses.

use engine::error::excerpt_of;
use hyper::StatusCode;
use serde_json::{Value, json};

/// Characters of a message: it may quote a client.
const LONGEST: usize = 600;

/// An answer that is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    kind: &'static str,
    message: String,
    /// The field that is wrong.
    param: Option<String>,
    /// Seconds after which to try again.
    pub(super) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: &str) -> ApiError {
        let message = excerpt_of(message, LONGEST);
        ApiError { status, kind, message, param: None, retry_after: None }
    }

    /// The request cannot be understood or done: 400.
    pub(super) fn bad(message: impl AsRef<str>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "BadRequestError", message.as_ref())
    }

    /// The same of one field.
    pub(super) fn field(name: &str, message: impl AsRef<str>) -> ApiError {
        let message = format!("{name}: {}", message.as_ref());
        ApiError { param: Some(excerpt_of(name, 100)), ..ApiError::bad(message) }
    }

    /// A prompt and its completion that do not fit, in the words that clients look for.
    pub(super) fn too_long(positions: usize, asked: usize, prompt: usize) -> ApiError {
        let message = format!(
            "This model's maximum context length is {positions} tokens. However, you requested {asked} output tokens and \
             your prompt contains at least {prompt} input tokens, for a total of at least {} tokens. Please reduce the \
             length of the input prompt or the number of requested output tokens.",
            prompt.saturating_add(asked)
        );
        ApiError { param: Some("input_tokens".to_owned()), ..ApiError::bad(message) }
    }

    /// A model that is not served: 404.
    pub(super) fn no_model(name: &str) -> ApiError {
        let message = format!("The model `{name}` does not exist.");
        let error = ApiError::new(StatusCode::NOT_FOUND, "NotFoundError", &message);
        ApiError { param: Some("model".to_owned()), ..error }
    }

    /// A path that is not served: 404.
    pub(super) fn no_path(path: &str) -> ApiError {
        let message = format!("there is nothing at {path}; GET / lists what there is");
        ApiError::new(StatusCode::NOT_FOUND, "NotFoundError", &message)
    }

    /// A method that the path does not take: 405.
    pub(super) fn method(allowed: &str) -> ApiError {
        let message = format!("this path takes {allowed}");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "BadRequestError", &message)
    }

    /// A body larger than the limit: 413.
    pub(super) fn too_large(limit: usize) -> ApiError {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BadRequestError", &message)
    }

    /// A body that does not arrive: 408.
    pub(super) fn too_slow() -> ApiError {
        let message = "the body did not arrive in time";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "BadRequestError", message)
    }

    /// The queue is full, or the server is about to end: 503, which clients try again.
    pub(super) fn busy(message: &str, retry_after: u64) -> ApiError {
        let error =
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message);
        ApiError { retry_after: Some(retry_after), ..error }
    }

    /// The key is wrong: 401.
    pub(super) fn unauthorized() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "AuthenticationError", "Unauthorized")
    }

    /// The request is not for this host: 403.
    pub(super) fn other_host() -> ApiError {
        let message =
            "the Host header names another host: this server answers to loopback addresses alone";
        ApiError::new(StatusCode::FORBIDDEN, "BadRequestError", message)
    }

    /// The engine failed: 500.
    pub(super) fn internal(error: &dyn std::fmt::Display) -> ApiError {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "InternalServerError", &error.to_string())
    }

    /// A request that the generator does not take: 400.
    pub(super) fn of_request(error: &engine::generate::GenerateError) -> ApiError {
        ApiError::bad(error.to_string())
    }

    /// Seen from one item of a batch.
    pub(super) fn in_item(mut self, index: usize) -> ApiError {
        self.message = format!("items[{index}]: {}", self.message);
        self.param = Some(match self.param {
            Some(param) => format!("items[{index}].{param}"),
            None => format!("items[{index}]"),
        });
        self
    }

    /// The body of the answer.
    pub(super) fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        }})
    }
}
