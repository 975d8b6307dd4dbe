//! One request, from the client's head to the head of its answer.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT, HeaderValue};
use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tapedeck_live::connect::{ConnectInstants, Connection};
use tapedeck_live::exchange::{broken, is_delimited};
use tapedeck_wire::response::End;

use crate::client::Client;
use crate::download::{Download, Passing};
use crate::exchange::{Exchange, Guard};
use crate::headers::{request_headers, response_headers, upgrade};
use crate::journal::Journal;
use crate::metrics::Reason;
use crate::rules::Plan;
use crate::tunnel;
use crate::upload::{Upload, UploadBody};
use crate::worker::{Leg, Worker};

/// Answers one request of `client`. What comes before the first wait is done at
/// once: hyper drops the future unpolled where the client has left already, and
/// such a request is recorded, too.
pub(crate) fn handle(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Download>, Infallible>> {
    let begun = begin(worker, client, request);
    async move {
        match begun {
            Ok(passage) => Ok(passage.run().await),
            Err(answer) => Ok(*answer),
        }
    }
}

/// Begins to pass a request on, or answers it.
fn begin(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Passage, Box<Response<Download>>> {
    let refuse = |status, why| Err(Box::new(own(status, why)));
    let t_dispatched_ns = worker.clock.now_ns();
    let (head, body) = request.into_parts();
    let asks_upgrade = !client.is_h2 && upgrade(&head.headers).is_some();
    let plan = match asks_upgrade {
        true => Plan::Pass(Reason::Upgrade),
        false => (worker.settings.rules).plan(&head.method, head.uri.path(), &head.headers),
    };
    if head.method == Method::CONNECT {
        return refuse(StatusCode::NOT_IMPLEMENTED, "this proxy does not tunnel");
    }
    if plan.is_record() && worker.refuses() {
        worker.metrics.refused();
        let why = "recording cannot keep up and --strict was asked for";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let Some(leg) = worker.leg(head.uri.path()) else {
        worker.metrics.unrecorded(Reason::Upstream);
        let why = "tapedeck proxy: no --upstream takes this path";
        return refuse(StatusCode::NOT_FOUND, why);
    };
    let Ok(outgoing) = Outgoing::new(&worker, &leg, &head, asks_upgrade) else {
        return refuse(StatusCode::BAD_REQUEST, "the path cannot be passed on");
    };
    worker.metrics.upstream_request(leg.index);
    let expects = head.headers.contains_key(EXPECT);
    let upload = Rc::new(Upload::new(
        body,
        &client,
        &worker.metrics,
        plan.is_record(),
        expects,
    ));
    let journal = match plan {
        Plan::Record(api, content) => Some(Journal::new(
            &worker,
            &leg.origin,
            &upload,
            &head,
            (api, content),
            t_dispatched_ns,
        )),
        Plan::Pass(reason) => {
            worker.metrics.unrecorded(reason);
            None
        }
    };
    let exchange = Exchange::new(&worker, &upload, journal);
    client.begin(&exchange);
    Ok(Passage {
        worker,
        leg,
        client,
        upload,
        outgoing,
        guard: Guard(exchange),
    })
}

impl Plan {
    fn is_record(self) -> bool {
        matches!(self, Self::Record(..))
    }
}

/// The head of a request as it goes upstream.
struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// The case of header names, as hyper keeps it.
    extensions: Extensions,
}

impl Outgoing {
    fn new(
        worker: &Worker,
        leg: &Leg,
        head: &Parts,
        asks_upgrade: bool,
    ) -> Result<Self, http::Error> {
        let mut headers = request_headers(&head.headers, &leg.host);
        if asks_upgrade {
            tunnel::ask(&head.headers, &mut headers);
        }
        Ok(Self {
            method: head.method.clone(),
            uri: worker.settings.upstreams.all()[leg.index].uri(&head.uri)?,
            headers,
            extensions: head.extensions.clone(),
        })
    }

    fn request(&self, upload: &Rc<Upload>) -> Request<UploadBody> {
        let mut request = Request::new(UploadBody::new(Rc::clone(upload)));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        *request.extensions_mut() = self.extensions.clone();
        if let Some(permit) = upload.permit() {
            hyper::ext::on_informational(&mut request, move |interim| {
                if interim.status() == StatusCode::CONTINUE {
                    permit.grant();
                }
            });
        }
        request
    }
}

/// Where an attempt takes its connection from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Pool,
    Fresh,
}

/// An attempt without an answer.
struct Failed {
    end: End,
    /// A kept-alive connection had been closed before anything was written to it,
    /// so that upstream cannot have seen the request.
    stale: bool,
}

struct Passage {
    worker: Rc<Worker>,
    leg: Rc<Leg>,
    client: Rc<Client>,
    upload: Rc<Upload>,
    outgoing: Outgoing,
    guard: Guard,
}

impl Passage {
    async fn run(self) -> Response<Download> {
        let mut answer = self.attempt(Source::Pool).await;
        if let Err(Failed { end, stale: true }) = answer {
            self.guard.0.fail_attempt(end, true);
            answer = self.attempt(Source::Fresh).await;
        }
        match answer {
            Ok((connection, response)) => self.pass_on(connection, response),
            Err(Failed { end, .. }) => {
                self.worker.metrics.upstream_unanswered(self.leg.index);
                self.upload.drain().await;
                let end = match self.upload.failed() {
                    true => End::Cancelled {
                        error: "the client left while it was sending".to_owned(),
                    },
                    false => end,
                };
                self.guard.0.fail_attempt(end, false);
                let text = "tapedeck proxy: no answer from the upstream server";
                own(StatusCode::BAD_GATEWAY, text)
            }
        }
    }

    async fn attempt(
        &self,
        source: Source,
    ) -> Result<(Connection<UploadBody>, Response<Incoming>), Failed> {
        let pooled = match source {
            Source::Pool => self.leg.pool.take().await,
            Source::Fresh => None,
        };
        let reused = pooled.is_some();
        let mut connection = match pooled {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let exchange = &self.guard.0;
        exchange.connected(connection.conn_id, reused);
        connection.tap.begin_attempt();
        let request = self.outgoing.request(&self.upload);
        let mut response = pin!(connection.sender.send_request(request));
        let head = poll_fn(|cx| {
            connection.poll_step(cx, |connection, cx| {
                exchange.note_sent(connection);
                response.as_mut().poll(cx)
            })
        });
        match head.await {
            Ok(response) => Ok((connection, response)),
            Err(error) => Err(Failed {
                end: broken(&error),
                stale: reused && connection.tap.untouched() && self.upload.is_untouched(),
            }),
        }
    }

    async fn connect(&self) -> Result<Connection<UploadBody>, Failed> {
        let patience = self.worker.settings.connect_timeout;
        let instants = Cell::new(ConnectInstants::default());
        let opened = self.leg.connector.open(&instants);
        let opened = tokio::time::timeout(patience, opened).await;
        self.guard.0.connecting(instants.get());
        let end = match opened {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => End::Broken {
                error: format!("connect: {error}"),
            },
            Err(_) => End::Timeout {
                error: format!("no connection within {patience:?}"),
            },
        };
        Err(Failed { end, stale: false })
    }

    fn pass_on(
        self,
        connection: Connection<UploadBody>,
        response: Response<Incoming>,
    ) -> Response<Download> {
        let (mut head, body) = response.into_parts();
        let exchange = &self.guard.0;
        exchange.answered(&head, connection.tap.last_read());
        let delimited = is_delimited(&head.headers);
        head.version = Version::HTTP_11;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            tunnel::answer(&mut head.headers);
            self.client.tunnel.replace(Some(connection));
            return Response::from_parts(head, Download::Own(None));
        }
        head.headers = response_headers(&head.headers, self.client.is_h2);
        let passing = Passing {
            worker: self.worker,
            leg: self.leg,
            client: self.client,
            guard: self.guard,
            connection: Some(connection),
            body,
            delimited,
        };
        Response::from_parts(head, Download::Upstream(Box::new(passing)))
    }
}

/// An answer of the proxy itself.
fn own(status: StatusCode, text: &'static str) -> Response<Download> {
    let body = Bytes::from_static(text.as_bytes());
    let mut response = Response::new(Download::Own(Some(body)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
