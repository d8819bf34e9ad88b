//! Calls whose message cannot be read. tonic answers them before a service sees them; here they are counted, and answered as
//! what they are: a fault of the caller.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::status;
use crate::metrics::Metrics;

/// A service whose calls are looked after.
#[derive(Debug, Clone)]
pub struct Watched<S> {
    service: S,
    metrics: Arc<Metrics>,
}

impl<S> Watched<S> {
    /// Looks after `service`.
    pub fn new(service: S, metrics: &Arc<Metrics>) -> Self {
        Self {
            service,
            metrics: metrics.clone(),
        }
    }
}

impl<S: NamedService> NamedService for Watched<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Watched<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Unpin>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Answer {
            answer: self.service.call(request),
            metrics: self.metrics.clone(),
        }
    }
}

/// The answer of a [`Watched`] service.
#[derive(Debug)]
pub struct Answer<F> {
    answer: F,
    metrics: Arc<Metrics>,
}

// tonic's services answer by a boxed future, which may be moved.
impl<F, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(answer.map(|response| status::unread(&self.metrics, response)))
    }
}
