//! The body of a request on its way upstream, copied on the way.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tapedeck_wire::response::MAX_BODY_BYTES;
use tokio::time::Sleep;

use crate::client::Client;
use crate::metrics::Metrics;

/// How long a client that expects `100 Continue` is kept waiting for an upstream
/// that does not know of it.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a request that cannot be passed on is still read.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// What is known of a request's body; shared by hyper, which sends it, and the
/// journal, which records it.
pub(crate) struct Upload {
    client: Rc<Client>,
    metrics: Arc<Metrics>,
    body: RefCell<Incoming>,
    /// The first [`MAX_BODY_BYTES`], where they are to be recorded.
    copy: Option<RefCell<Vec<u8>>>,
    bytes: Cell<u64>,
    /// hyper has asked for the body: it cannot be sent a second time.
    touched: Cell<bool>,
    ended: Cell<bool>,
    failed: Cell<bool>,
    t_received_ns: Cell<Option<i64>>,
    permit: Option<Arc<Permit>>,
}

impl Upload {
    pub(crate) fn new(
        body: Incoming,
        client: &Rc<Client>,
        metrics: &Arc<Metrics>,
        keep: bool,
        expects_continue: bool,
    ) -> Self {
        let ended = body.is_end_stream();
        Self {
            t_received_ns: Cell::new(client.t_read_ns().filter(|_| ended)),
            client: Rc::clone(client),
            metrics: Arc::clone(metrics),
            body: RefCell::new(body),
            copy: keep.then(RefCell::default),
            bytes: Cell::new(0),
            touched: Cell::new(false),
            ended: Cell::new(ended),
            failed: Cell::new(false),
            permit: expects_continue.then(Arc::default),
        }
    }

    /// Whether all of it may still be sent upstream.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.touched.get()
    }

    /// All of it has come.
    pub(crate) fn ended(&self) -> bool {
        self.ended.get()
    }

    /// The client broke off.
    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    /// Bytes that have come.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// When its last byte had arrived.
    pub(crate) fn t_received_ns(&self) -> Option<i64> {
        self.t_received_ns.get()
    }

    /// The copy, and whether it is all of it. The second call gets nothing.
    pub(crate) fn take_copy(&self) -> (Bytes, bool) {
        let copy = self.copy.as_ref().map(RefCell::take).unwrap_or_default();
        let whole = copy.len() as u64 == self.bytes.get();
        (copy.into(), whole)
    }

    /// What an interim answer from upstream lets through.
    pub(crate) fn permit(&self) -> Option<Arc<Permit>> {
        self.permit.clone()
    }

    /// Takes what the client still sends, for the recording alone: as much as is kept
    /// of it, and for a moment only. A client that waits to be asked is not asked.
    pub(crate) async fn drain(&self) {
        if self.copy.is_none() || self.permit.is_some() || self.failed() {
            return;
        }
        let all = async {
            while !self.ended() && self.bytes() < MAX_BODY_BYTES as u64 {
                if !matches!(poll_fn(|cx| self.poll_frame(cx)).await, Some(Ok(_))) {
                    return;
                }
            }
        };
        tokio::time::timeout(DRAIN_PATIENCE, all).await.ok();
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.touched.set(true);
        let mut body = self.body.borrow_mut();
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.note(frame);
                if body.is_end_stream() {
                    self.end();
                }
            }
            Some(Err(_)) => self.failed.set(true),
            None => self.end(),
        }
        Poll::Ready(frame)
    }

    fn note(&self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else {
            return;
        };
        self.bytes.set(self.bytes.get() + data.len() as u64);
        self.metrics.request_bytes(data.len());
        if let Some(copy) = &self.copy {
            let mut copy = copy.borrow_mut();
            let room = MAX_BODY_BYTES - copy.len();
            copy.extend_from_slice(&data[..data.len().min(room)]);
        }
    }

    fn end(&self) {
        if !self.ended.replace(true) {
            self.t_received_ns.set(self.client.t_read_ns());
        }
    }
}

/// Lets the body go once upstream has said `100 Continue`.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    state: Mutex<(bool, Option<Waker>)>,
}

impl Permit {
    pub(crate) fn grant(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.0 = true;
            if let Some(waker) = state.1.take() {
                waker.wake();
            }
        }
    }

    fn is_granted(&self, cx: &Context<'_>) -> bool {
        self.state.lock().map_or(true, |mut state| {
            state.1 = Some(cx.waker().clone());
            state.0
        })
    }
}

/// The body as hyper's client takes it: frame by frame, the next one only when
/// there is room for it.
pub(crate) struct UploadBody {
    upload: Rc<Upload>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl UploadBody {
    pub(crate) fn new(upload: Rc<Upload>) -> Self {
        let patience = upload
            .permit
            .is_some()
            .then(|| Box::pin(tokio::time::sleep(CONTINUE_PATIENCE)));
        Self { upload, patience }
    }

    /// Waits for upstream's `100 Continue`; the client gets its own when its body
    /// is first asked for.
    fn poll_permit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(permit) = &self.upload.permit else {
            return Poll::Ready(());
        };
        let granted = permit.is_granted(cx);
        let waited = self.patience.as_mut();
        let waited = waited.is_none_or(|sleep| sleep.as_mut().poll(cx).is_ready());
        if granted || waited {
            self.patience = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if this.patience.is_some() {
            ready!(this.poll_permit(cx));
        }
        this.upload.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.upload.body.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.upload.body.borrow().size_hint()
    }
}
