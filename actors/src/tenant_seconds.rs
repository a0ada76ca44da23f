//! Seconds of devices by tenant.

use parking_lot::Mutex;
use prometheus::{Counter, CounterVec, Opts, Registry};
use ragged_raft::ids::TenantId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Tenants that are counted each for itself.
const KNOWN_MAX: usize = 1_000;
/// The name under which the others are.
const OTHERS: &str = "others";

/// Seconds by tenant. Tenants beyond a number of them are counted together, under no tenant's name. Copies count together.
#[derive(Clone)]
pub struct TenantSeconds {
    seconds: CounterVec,
    known: Arc<Mutex<HashSet<TenantId>>>,
}

impl TenantSeconds {
    /// Registers the counter of this name.
    pub fn register(name: &str, help: &str, registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = CounterVec::new(Opts::new(name, help), &["tenant"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(TenantSeconds { seconds, known: Arc::default() })
    }

    /// Counts seconds that were spent for one tenant.
    pub fn add(&self, tenant: TenantId, seconds: f64) {
        self.of(tenant).inc_by(seconds);
    }

    /// Counts seconds that were spent for several, each to its part of the tokens.
    pub fn share_out(&self, seconds: f64, texts: impl Iterator<Item = (TenantId, usize)>) {
        let mut tokens = HashMap::<TenantId, usize>::new();
        for (tenant, length) in texts {
            *tokens.entry(tenant).or_default() += length;
        }
        let all: usize = tokens.values().sum();
        for (tenant, tokens) in tokens {
            self.add(tenant, seconds * tokens as f64 / all.max(1) as f64);
        }
    }

    fn of(&self, tenant: TenantId) -> Counter {
        let mut known = self.known.lock();
        if known.len() < KNOWN_MAX || known.contains(&tenant) {
            known.insert(tenant);
            return self.seconds.with_label_values(&[&tenant.0.to_string()]);
        }
        self.seconds.with_label_values(&[OTHERS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_shared_out_by_tokens_and_tenants_beyond_the_limit_together() {
        let shares = TenantSeconds::register("seconds", "seconds", &Registry::new()).unwrap();
        shares.share_out(4.0, [(TenantId(7), 10), (TenantId(8), 20), (TenantId(7), 10)].into_iter());
        let of = |tenant: &str| shares.seconds.with_label_values(&[tenant]).get();
        assert_eq!((of("7"), of("8")), (2.0, 2.0));
        for tenant in 100..100 + KNOWN_MAX as u64 {
            shares.share_out(1.0, [(TenantId(tenant), 1)].into_iter());
        }
        assert_eq!((of("100"), of(OTHERS)), (1.0, 2.0));
        shares.add(TenantId(7), 1.0);
        assert_eq!(of("7"), 3.0);
    }
}
