//! HTTP/2 connections for gRPC: one call at a time on each, as with HTTP/1.1.
//!
//! With one stream a connection, what a read delivers belongs to one answer. hyper is
//! polled by the task that uses the connection and gets one read at a time, and all
//! frames of a read are taken before it gets the next: so a frame has the kernel's
//! stamp of its read, which calls that share a connection could not have.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;

use crate::connect::IDLE_CONNECTIONS;
use crate::tap::{Gated, Stream, TapState};

type Driver = http2::Connection<Gated<Stream>, Full<Bytes>, Tasks>;

/// One connection: hyper's parts and what the tap sees of it.
pub(crate) struct Http2 {
    pub(crate) conn_id: i64,
    pub(crate) sender: http2::SendRequest<Full<Bytes>>,
    pub(crate) tap: Rc<TapState>,
    driver: Driver,
    tasks: Tasks,
    /// The driver takes no more requests.
    closed: bool,
    /// The connection has come to its end.
    ended: bool,
}

impl Http2 {
    /// Begins to speak HTTP/2 on `io`.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub(crate) async fn handshake(
        conn_id: i64,
        io: Gated<Stream>,
        tap: Rc<TapState>,
    ) -> hyper::Result<Self> {
        let tasks = Tasks::default();
        let (sender, driver) = http2::handshake(tasks.clone(), io).await?;
        let mut connection = Self {
            conn_id,
            sender,
            tap,
            driver,
            tasks,
            closed: false,
            ended: false,
        };
        // Our settings leave now, so that they are not counted as the first request's.
        connection.tap.close_gate();
        poll_fn(|cx| {
            connection.drive(cx);
            Poll::Ready(())
        })
        .await;
        Ok(connection)
    }

    /// Polls the connection and `poll` together until neither gets further. All that
    /// one read brought reaches `poll` before the next read is made.
    pub(crate) fn poll_step<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&Self, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        loop {
            if let Poll::Ready(value) = poll(self, cx) {
                return Poll::Ready(value);
            }
            self.tap.open_gate();
            self.drive(cx);
            if let Poll::Ready(value) = poll(self, cx) {
                return Poll::Ready(value);
            }
            if self.ended || !self.tap.gate_refused() {
                return Poll::Pending;
            }
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        self.closed = self.closed || Pin::new(&mut self.driver).poll(cx).is_ready();
        // What is to be written, the connection, and what it has read.
        self.tasks.poll_calls(cx);
        self.ended = self.ended || self.tasks.poll_connection(cx);
        self.tasks.poll_calls(cx);
    }

    pub(crate) fn is_reusable(&self) -> bool {
        !self.ended && !self.closed && self.sender.is_ready()
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What hyper wants polled, kept here and not spawned.
#[derive(Clone, Default)]
struct Tasks {
    /// The first that hyper hands over: it reads and writes.
    connection: Rc<RefCell<Option<Task>>>,
    /// The halves of a call, at most two: its body and its answer.
    calls: Rc<RefCell<Vec<Task>>>,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let task = Box::pin(future);
        let mut connection = self.connection.borrow_mut();
        match &*connection {
            None => *connection = Some(task),
            Some(_) => self.calls.borrow_mut().push(task),
        }
    }
}

impl Tasks {
    /// True when the connection has come to its end.
    fn poll_connection(&self, cx: &mut Context<'_>) -> bool {
        let task = self.connection.borrow_mut().take();
        let Some(mut task) = task else { return true };
        let ended = task.as_mut().poll(cx).is_ready();
        *self.connection.borrow_mut() = Some(task);
        ended
    }

    fn poll_calls(&self, cx: &mut Context<'_>) {
        let mut calls = self.calls.take();
        calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
        calls.append(&mut self.calls.borrow_mut());
        self.calls.replace(calls);
    }
}

/// Idle connections of one worker, newest first.
#[derive(Default)]
pub(crate) struct Http2Pool {
    idle: RefCell<Vec<Http2>>,
}

impl Http2Pool {
    /// An idle connection that the server has not closed as far as is known.
    pub(crate) async fn take(&self) -> Option<Http2> {
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            poll_fn(|cx| {
                // What came meanwhile, a farewell perhaps, is read.
                let nothing = |_: &Http2, _: &mut Context<'_>| Poll::<()>::Pending;
                Poll::Ready(connection.poll_step(cx, nothing).is_ready())
            })
            .await;
            if connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose call is over, for the next.
    pub(crate) fn put(&self, connection: Http2) {
        let mut idle = self.idle.borrow_mut();
        if connection.is_reusable() && idle.len() < IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }
}
