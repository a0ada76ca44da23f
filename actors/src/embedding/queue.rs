//! The queue of an embedder: by urgency, then fairly by tenant, out in batches by token count.

use crate::account_seconds::Account;
use ragged_kernels::TokenSequence;
use ragged_raft::ids::TenantId;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// How soon a text is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for a search.
    Query,
    /// A document on its way in.
    Document,
}

/// One text of a request.
#[derive(Debug)]
pub struct Item {
    /// Whose text it is.
    pub account: Account,
    /// The request that it belongs to.
    pub request: u64,
    /// Its place in the request.
    pub position: usize,
    /// Its tokens.
    pub tokens: TokenSequence,
    /// Since when it waits.
    pub since: Instant,
}

/// Texts that wait for the device.
#[derive(Debug, Default)]
pub struct Queue {
    queries: Lane,
    documents: Lane,
    tokens: usize,
}

/// Texts of one urgency: tenants take turns.
#[derive(Debug, Default)]
struct Lane {
    waiting: HashMap<TenantId, VecDeque<Item>>,
    turns: VecDeque<TenantId>,
}

impl Queue {
    /// Tokens that wait.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds a text.
    pub fn push(&mut self, urgency: Urgency, item: Item) {
        self.tokens += item.tokens.len();
        match urgency {
            Urgency::Query => self.queries.push(item),
            Urgency::Document => self.documents.push(item),
        }
    }

    /// Takes a batch of at most `max_tokens` tokens (but at least one text): queries first, tenants in turn, a text a turn.
    pub fn take_batch(&mut self, max_tokens: usize) -> Vec<Item> {
        let mut batch = Vec::new();
        let mut tokens = 0;
        for lane in [&mut self.queries, &mut self.documents] {
            while let Some(next) = lane.peek() {
                if !batch.is_empty() && tokens + next.tokens.len() > max_tokens {
                    break;
                }
                let Some(item) = lane.pop() else { break };
                tokens += item.tokens.len();
                batch.push(item);
            }
        }
        self.tokens -= tokens;
        batch
    }

    /// Drops the texts of requests that nobody waits for any more.
    pub fn retain(&mut self, mut wanted: impl FnMut(u64) -> bool) {
        let mut tokens = 0;
        for lane in [&mut self.queries, &mut self.documents] {
            for items in lane.waiting.values_mut() {
                items.retain(|item| wanted(item.request));
                tokens += items.iter().map(|item| item.tokens.len()).sum::<usize>();
            }
            lane.waiting.retain(|_, items| !items.is_empty());
            lane.turns.retain(|tenant| lane.waiting.contains_key(tenant));
        }
        self.tokens = tokens;
    }
}

impl Lane {
    fn push(&mut self, item: Item) {
        let items = self.waiting.entry(item.account.tenant).or_default();
        if items.is_empty() {
            self.turns.push_back(item.account.tenant);
        }
        items.push_back(item);
    }

    fn peek(&self) -> Option<&Item> {
        self.waiting.get(self.turns.front()?)?.front()
    }

    fn pop(&mut self) -> Option<Item> {
        let tenant = self.turns.pop_front()?;
        let items = self.waiting.get_mut(&tenant)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(tenant: u64, request: u64, tokens: usize) -> Item {
        let (account, tokens) = (Account::of_tenant(TenantId(tenant)), TokenSequence(vec![7; tokens]));
        Item { account, request, position: 0, tokens, since: Instant::now() }
    }

    #[test]
    fn tenants_take_turns_and_queries_go_first() {
        let mut queue = Queue::default();
        for n in 0..4 {
            queue.push(Urgency::Document, item(1, n, 10));
        }
        queue.push(Urgency::Document, item(2, 10, 10));
        queue.push(Urgency::Query, item(1, 20, 10));
        let order: Vec<u64> = queue.take_batch(40).iter().map(|item| item.request).collect();
        assert_eq!(order, [20, 0, 10, 1]);
    }

    #[test]
    fn a_text_longer_than_a_batch_still_leaves() {
        let mut queue = Queue::default();
        queue.push(Urgency::Document, item(1, 1, 500));
        assert_eq!(queue.take_batch(100).len(), 1);
        assert_eq!(queue.tokens(), 0);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled_and_batches_keep_their_size(
            texts in proptest::collection::vec((0u64..5, any::<bool>(), 1usize..300), 0..200), max in 1usize..600
        ) {
            let mut queue = Queue::default();
            for (n, (tenant, query, tokens)) in texts.iter().enumerate() {
                let urgency = if *query { Urgency::Query } else { Urgency::Document };
                queue.push(urgency, item(*tenant, n as u64, *tokens));
            }
            let mut seen = Vec::new();
            loop {
                let batch = queue.take_batch(max);
                if batch.is_empty() { break; }
                let tokens: usize = batch.iter().map(|item| item.tokens.len()).sum();
                prop_assert!(batch.len() == 1 || tokens <= max);
                seen.extend(batch.iter().map(|item| item.request));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..texts.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(queue.tokens(), 0);
        }
    }
}
