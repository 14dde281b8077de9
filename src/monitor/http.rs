//! The monitor: pages over HTTP/1.1.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time;

use super::accept_header::preferred_format;
use super::exposition::Format;
use super::liveness::Liveness;
use super::request_stream::RequestStream;
use super::source::Source;
use super::{metrics, status};
use crate::server::{ConnectionControl, ConnectionService, Readiness, ServiceFuture, ServiceStream};

/// The longest header of a request, in bytes.
const MAX_HEADER: usize = 8 * 1024;

/// How long an answer may take that was asked for before the daemon ends.
const END_TIMEOUT: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Serves the pages of the monitor.
pub struct Monitor {
    pages: Arc<Pages>,
}

struct Pages {
    source: Arc<Source>,
    liveness: Liveness,
}

impl Monitor {
    /// Creates a monitor of this source.
    #[must_use]
    pub fn new(source: Arc<Source>) -> Self {
        Self { pages: Arc::new(Pages { source, liveness: Liveness::default() }) }
    }
}

impl ConnectionService for Monitor {
    fn serve(&self, stream: ServiceStream, mut control: ConnectionControl) -> ServiceFuture {
        let pages = Arc::clone(&self.pages);
        Box::pin(async move {
            let crowd = control.clone();
            let answer = |request| {
                let (pages, crowd) = (Arc::clone(&pages), crowd.clone());
                async move {
                    let mut response = pages.respond(request).await;
                    if crowd.is_crowded() {
                        // Another client waits for this place.
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response)
                }
            };
            let stream = TokioIo::new(RequestStream::new(stream));
            let mut builder = http1::Builder::new();
            // The stream has deadlines of its own.
            builder.half_close(true).header_read_timeout(None).max_buf_size(MAX_HEADER);
            let mut connection = pin!(builder.serve_connection(stream, service_fn(answer)));
            tokio::select! {
                // There is an error if the client breaks off, or its request is invalid.
                _ = &mut connection => return,
                () = control.stopped() => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = time::timeout(END_TIMEOUT, connection).await;
        })
    }
}

impl Pages {
    async fn respond(&self, request: Request<Incoming>) -> Response<String> {
        let is_page = ["/metrics", "/livez", "/readyz", "/status"].contains(&request.uri().path());
        let mut response = if !is_page {
            page(StatusCode::NOT_FOUND, TEXT, "there are /metrics, /livez, /readyz and /status\n".to_owned())
        } else if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are allowed\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        } else if !request.body().is_end_stream() {
            page(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "requests have no bodies here\n".to_owned())
        } else {
            self.page(&request).await
        };
        if !request.body().is_end_stream() {
            // It is not read.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn page(&self, request: &Request<Incoming>) -> Response<String> {
        match request.uri().path() {
            "/metrics" => {
                let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                let format = preferred_format(&accept.collect::<Vec<_>>().join(","));
                self.metrics(format)
            }
            "/livez" => {
                let is_alive = self.liveness.check(&self.source.server).await;
                let problem = (!is_alive).then_some("a thread that serves does not respond");
                health(problem)
            }
            "/readyz" => {
                let readiness = self.source.server.readiness();
                health((readiness != Readiness::Ready).then_some(readiness.as_str()))
            }
            _ => page(StatusCode::OK, JSON, status::write(&self.source)),
        }
    }

    fn metrics(&self, format: Format) -> Response<String> {
        page(StatusCode::OK, format.media_type(), metrics::write(&self.source, format))
    }
}

/// Returns the answer about health; `problem` is why it is not 200.
fn health(problem: Option<&str>) -> Response<String> {
    match problem {
        None => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
        Some(problem) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{problem}\n")),
    }
}

fn page(status: StatusCode, media_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
