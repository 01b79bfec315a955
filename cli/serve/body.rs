//! Bodies of answers: whole, or in chunks as they come.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{
    Response, StatusCode,
    body::{Body as HttpBody, Bytes, Frame, SizeHint},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Duration, timeout},
};

use super::error::ApiError;

/// How long a client may leave unread what it was sent.
pub(super) const UNREAD: Duration = Duration::from_secs(60);

/// The body of an answer.
pub(super) enum Body {
    Whole(Bytes),
    /// Dropping it tells the sender that the client has gone.
    Chunks(mpsc::Receiver<Bytes>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Chunks(chunks) => {
                chunks.poll_recv(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Chunks(_) => SizeHint::default(),
        }
    }
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer in JSON.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let bytes = Bytes::from(format!("{value}\n"));
    response(status, "application/json", Body::Whole(bytes))
}

/// An answer in plain text.
pub(super) fn text_response(status: StatusCode, text: String) -> Response<Body> {
    response(status, "text/plain; version=0.0.4; charset=utf-8", Body::Whole(Bytes::from(text)))
}

/// Sends a chunk. A client that has gone, or does not read, is an error.
pub(super) async fn send(chunks: &mpsc::Sender<Bytes>, chunk: Bytes) -> Result<(), ApiError> {
    match timeout(UNREAD, chunks.send(chunk)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(ApiError::internal(&"the client has gone, or does not read")),
    }
}

/// Server-sent events.
pub(super) fn stream_response(chunks: mpsc::Receiver<Bytes>) -> Response<Body> {
    let kind = "text/event-stream; charset=utf-8";
    let mut response = response(StatusCode::OK, kind, Body::Chunks(chunks));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// JSON objects, a line each.
pub(super) fn lines_response(chunks: mpsc::Receiver<Bytes>) -> Response<Body> {
    response(StatusCode::OK, "application/jsonl", Body::Chunks(chunks))
}
