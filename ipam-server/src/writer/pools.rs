//! What comes before a writer's first decision: the store is loaded, and the
//! pools of the configuration are made where they are not there.

use tracing::{error, warn};
use weft_api::{
    ipam::{Code, Error, Pool, Reply, Request},
    names::Name,
};

use super::Writer;
use crate::store::StoreError;

/// Why there is nothing to serve, however long one waits.
#[derive(Debug, thiserror::Error)]
pub enum FirstError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("pool {0} of the configuration: {1}")]
    Pool(Name, Error),
}

impl Writer {
    /// Has these pools made once the store is loaded.
    #[must_use]
    pub fn with_pools(mut self, pools: &[Pool]) -> Self {
        self.pools = pools.to_vec();
        self
    }

    /// Loads the store, if that was not done, and makes the pools. A store
    /// that is away is awaited by [`Writer::run`].
    pub fn begin(&mut self) -> Result<(), FirstError> {
        if self.stale {
            match self.reload() {
                Err(fault @ StoreError::Away(_)) => {
                    warn!("{fault}; it is awaited");
                    return Ok(());
                }
                loaded => loaded?,
            }
        }
        let refused = self.make_pools();
        self.flush();
        refused.into_iter().next().map_or(Ok(()), Err)
    }

    /// Those of a store that was awaited.
    pub(super) fn make_pools_late(&mut self) {
        if !self.stale {
            for fault in self.make_pools() {
                error!("{fault}");
            }
        }
    }

    /// Those that cannot be. What cannot be for the while is left for the next
    /// time, where the store is one that is awaited.
    fn make_pools(&mut self) -> Vec<FirstError> {
        let mut refused = Vec::new();
        for pool in std::mem::take(&mut self.pools) {
            match self.make(pool.clone()) {
                Err(FirstError::Pool(_, error))
                    if error.code == Code::Unavailable && self.store.is_shared() =>
                {
                    self.pools.push(pool);
                }
                made => refused.extend(made.err()),
            }
        }
        refused
    }

    /// What operators have since changed of a pool stays.
    fn make(&mut self, pool: Pool) -> Result<(), FirstError> {
        let name = pool.name.clone();
        let failed = |error| FirstError::Pool(name, error);
        let is_it = |old: &Pool| old.name == pool.name && old.cidr == pool.cidr;
        match self.decide(Request::Pools) {
            Ok(Reply::Pools(known)) if known.iter().any(|old| is_it(&old.pool)) => Ok(()),
            Ok(_) => {
                let made = self.decide(Request::PoolCreate(Box::new(pool)));
                made.map(|_| ()).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }
}
