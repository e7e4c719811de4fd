//! Blocks that are asked for together and looked at one after another, for whoever may need only the first of them.

use super::{Seen, TOGETHER};
use api::{Block, Cidr};
use datastore::ReadError;
use futures::future::{MaybeDone, maybe_done, poll_fn};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::Poll;

/// Answers in the order of the questions. Dropped, it waits for none that is still to come.
///
/// Where the first is not answered at once, the next are asked too, [`TOGETHER`] at a time: what stands behind a full block
/// costs no trip of its own. A store that answers at once is not asked for what nobody looks at.
pub(crate) struct InTurn<A, F: Future> {
    ask: A,
    not_asked: VecDeque<Cidr>,
    under_way: VecDeque<Pin<Box<MaybeDone<F>>>>,
}

impl<A, F> InTurn<A, F>
where
    A: Fn(Cidr) -> F,
    F: Future<Output = Result<Option<Seen<Block>>, ReadError>>,
{
    /// The blocks of these CIDRs, as `ask` reads them.
    pub(crate) fn new(cidrs: impl IntoIterator<Item = Cidr>, ask: A) -> Self {
        Self { ask, not_asked: cidrs.into_iter().collect(), under_way: VecDeque::new() }
    }

    /// The next one; `Ok(None)` if it is not there, is marked deleted or cannot be understood, or there is no next one.
    ///
    /// Datastore calls: 1 per block, in 1 trip per [`TOGETHER`].
    ///
    /// # Errors
    /// [`ReadError`] if the store did not answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Seen<Block>>, ReadError> {
        let read = poll_fn(|context| {
            if self.under_way.is_empty() {
                self.ask_next();
            }
            let Some(first) = self.under_way.front_mut() else { return Poll::Ready(None) };
            let is_answered = first.as_mut().poll(context).is_ready();
            while !is_answered && self.under_way.len() < TOGETHER && self.ask_next() {}
            for other in self.under_way.iter_mut().skip(1) {
                // Its answer is kept until its turn comes.
                let _ = other.as_mut().poll(context);
            }
            if !is_answered {
                return Poll::Pending;
            }
            let first = self.under_way.pop_front();
            Poll::Ready(first.and_then(|mut first| first.as_mut().take_output()))
        });
        match read.await {
            None | Some(Err(ReadError::Malformed { .. })) => Ok(None),
            Some(read) => read,
        }
    }

    /// Asks for one more, if there is one.
    fn ask_next(&mut self) -> bool {
        let asked = self.not_asked.pop_front().map(|cidr| Box::pin(maybe_done((self.ask)(cidr))));
        let any = asked.is_some();
        self.under_way.extend(asked);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use std::cell::RefCell;

    /// Reads of four blocks, answered when they are asked for the `patience`th time, and which were asked for in the end.
    fn asked(patience: u32, looked_at: usize) -> Vec<String> {
        let asked = RefCell::new(Vec::new());
        let cidrs = ["10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/30", "10.0.0.12/30"];
        let mut blocks = InTurn::new(cidrs.map(|text| text.parse().unwrap()), |cidr: Cidr| {
            asked.borrow_mut().push(cidr.to_string());
            let mut left = patience;
            poll_fn(move |context| {
                left -= 1;
                context.waker().wake_by_ref();
                if left > 0 { Poll::Pending } else { Poll::Ready(Ok(None)) }
            })
        });
        block_on(async {
            for _ in 0..looked_at {
                assert_eq!(blocks.next().await, Ok(None));
            }
        });
        asked.into_inner()
    }

    #[test]
    fn a_store_that_answers_at_once_is_asked_only_for_what_is_looked_at() {
        assert_eq!(asked(1, 2), ["10.0.0.0/30", "10.0.0.4/30"]);
    }

    #[test]
    fn while_the_first_is_waited_for_the_others_are_on_their_way() {
        assert_eq!(asked(2, 1), ["10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/30", "10.0.0.12/30"]);
        assert_eq!(asked(2, 5).len(), 4);
    }
}
