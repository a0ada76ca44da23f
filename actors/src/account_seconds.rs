//! Seconds of devices by tenant and by the tenant's API keys.

use parking_lot::Mutex;
use prometheus::{Counter, CounterVec, Opts, Registry};
use ragged_raft::ids::TenantId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Tenants that are counted each for itself.
const TENANTS_MAX: usize = 1_000;
/// Keys of a tenant that are.
const KEYS_MAX: usize = 32;
/// The name under which the others are.
const OTHERS: &str = "others";

/// Who has something computed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// The tenant.
    pub tenant: TenantId,
    /// Id of the tenant's key that asked; none where no key stands behind it any more, as behind a job.
    pub key: Option<Arc<str>>,
}

impl Account {
    /// A tenant's own.
    pub fn of_tenant(tenant: TenantId) -> Self {
        Account { tenant, key: None }
    }
}

/// Seconds by account. Tenants beyond a number of them are counted together, under nobody's name, and keys of a tenant beyond a number of them as the tenant's own.
/// Copies count together.
#[derive(Clone)]
pub struct AccountSeconds {
    seconds: CounterVec,
    known: Arc<Mutex<HashMap<TenantId, HashSet<Arc<str>>>>>,
}

impl AccountSeconds {
    /// Registers the counter of this name.
    pub fn register(name: &str, help: &str, registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = CounterVec::new(Opts::new(name, help), &["tenant", "key"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(AccountSeconds { seconds, known: Arc::default() })
    }

    /// Counts seconds that were spent for one account.
    pub fn add(&self, account: &Account, seconds: f64) {
        self.of(account).inc_by(seconds);
    }

    /// Counts seconds that were spent for several, each to its part of the tokens.
    pub fn share_out<'a>(&self, seconds: f64, texts: impl Iterator<Item = (&'a Account, usize)>) {
        let mut tokens = HashMap::<&Account, usize>::new();
        for (account, length) in texts {
            *tokens.entry(account).or_default() += length;
        }
        let all: usize = tokens.values().sum();
        for (account, tokens) in tokens {
            self.add(account, seconds * tokens as f64 / all.max(1) as f64);
        }
    }

    fn of(&self, account: &Account) -> Counter {
        let mut known = self.known.lock();
        if known.len() >= TENANTS_MAX && !known.contains_key(&account.tenant) {
            return self.seconds.with_label_values(&[OTHERS, ""]);
        }
        let keys = known.entry(account.tenant).or_default();
        let is_known = |key: &&Arc<str>| keys.contains(*key) || keys.len() < KEYS_MAX && keys.insert((*key).clone());
        let key = account.key.as_ref().filter(is_known);
        self.seconds.with_label_values(&[account.tenant.0.to_string().as_str(), key.map_or("", |key| key)])
    }

    #[cfg(test)]
    pub(crate) fn spent(&self, tenant: &str, key: &str) -> f64 {
        self.seconds.with_label_values(&[tenant, key]).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_shared_out_by_tokens_and_what_is_beyond_the_limits_together() {
        let shares = AccountSeconds::register("seconds", "seconds", &Registry::new()).unwrap();
        let [seven, eight] = [7, 8].map(|tenant| Account::of_tenant(TenantId(tenant)));
        let key = Account { key: Some("a".into()), ..seven.clone() };
        shares.share_out(5.0, [(&seven, 10), (&eight, 20), (&seven, 10), (&key, 10)].into_iter());
        assert_eq!((shares.spent("7", ""), shares.spent("8", ""), shares.spent("7", "a")), (2.0, 2.0, 1.0));
        for tenant in 100..100 + TENANTS_MAX as u64 {
            shares.share_out(1.0, [(&Account::of_tenant(TenantId(tenant)), 1)].into_iter());
        }
        assert_eq!((shares.spent("100", ""), shares.spent(OTHERS, "")), (1.0, 2.0));
        for number in 0..KEYS_MAX + 5 {
            shares.add(&Account { key: Some(number.to_string().into()), ..eight.clone() }, 1.0);
        }
        assert_eq!((shares.spent("8", "0"), shares.spent("8", "")), (1.0, 2.0 + 5.0));
        shares.add(&key, 1.0);
        assert_eq!(shares.spent("7", "a"), 2.0);
    }
}
