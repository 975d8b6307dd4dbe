//! The body of a streamed answer: one frame an event, one write a frame.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::engine::Ticket;
use crate::model::Ending;
use crate::reply::{DONE, Reply};

/// What is fixed about a stream before its first token.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) choices: u32,
    pub(crate) tokens: u32,
    pub(crate) ending: Ending,
    pub(crate) include_usage: bool,
}

/// A streamed answer.
#[derive(Debug)]
pub(crate) struct TokenStream {
    ticket: Ticket,
    reply: Reply,
    shape: Shape,
    /// Tokens of each choice whose events were made.
    rendered: u32,
    /// Events made and not yet handed over: those of one token, at most
    /// `2 · choices`, or those of the end, at most `choices + 2`.
    events: VecDeque<Bytes>,
    ended: bool,
    /// A frame was handed over since hyper last flushed.
    unflushed: bool,
}

impl TokenStream {
    pub(crate) fn new(ticket: Ticket, reply: Reply, shape: Shape) -> Self {
        Self {
            ticket,
            reply,
            shape,
            rendered: 0,
            events: VecDeque::new(),
            ended: false,
            unflushed: false,
        }
    }

    /// Ready when a frame, or the end, can be handed over.
    fn poll_available(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.events.is_empty() || self.ended {
            return Poll::Ready(());
        }
        if self.rendered < self.shape.tokens {
            ready!(self.ticket.poll_tokens(cx, self.rendered));
            self.render_token();
        } else {
            self.render_end();
        }
        Poll::Ready(())
    }

    fn render_token(&mut self) {
        for choice in 0..self.shape.choices {
            if self.rendered == 0 {
                self.events.extend(self.reply.role(choice));
            }
            self.events
                .push_back(self.reply.token(choice, self.rendered));
        }
        self.rendered += 1;
    }

    fn render_end(&mut self) {
        let Shape {
            choices,
            tokens,
            ending,
            ..
        } = self.shape;
        if ending == Ending::Failure {
            self.events.push_back(Reply::failure());
        } else {
            for choice in 0..choices {
                self.events.push_back(self.reply.finish(choice, ending));
            }
            if self.shape.include_usage {
                let completion_tokens = u64::from(choices) * u64::from(tokens);
                self.events.push_back(self.reply.usage(completion_tokens));
            }
        }
        self.events.push_back(DONE);
        self.ended = true;
    }
}

impl Body for TokenStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        ready!(self.poll_available(cx));
        if self.unflushed {
            // hyper gathers frames for as long as it gets any and flushes when
            // there is none: saying "none yet" gives each its own write.
            self.unflushed = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.unflushed = true;
        Poll::Ready(self.events.pop_front().map(|event| Ok(Frame::data(event))))
    }
}
