//! A lease: rows that were put under it go by themselves when whoever holds it
//! is silent for its time. A thread keeps it alive.
//!
//! Invariant: etcd may end a lease before its holder hears of it. So nothing
//! may be taken for safe because a lease lives; what is to be safe compares
//! revisions.

use std::{sync::Arc, thread, time::Duration};

use crate::{
    Error,
    cluster::Cluster,
    message::{
        KeepAliveResponse, LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LeaseGrantRequest,
        LeaseRequest, LeaseResponse, RevokeResponse,
    },
    shared::Shared,
};

/// How often in its time a lease is kept alive.
const KEPT_IN_TIME: u32 = 3;
/// Of a revocation: without it, the lease ends in its time.
const PARTING: Duration = Duration::from_secs(1);

/// Dropping it ends it, and what stands under it.
#[derive(Debug)]
pub struct Lease {
    id: u64,
    cluster: Arc<Cluster>,
    shared: Arc<Shared<Gone>>,
}

/// Whether etcd knows it no more.
type Gone = bool;

impl Lease {
    /// For whole seconds; etcd makes it longer where that is less than an
    /// election takes.
    pub fn grant(cluster: &Arc<Cluster>, time: Duration) -> Result<Self, Error> {
        let query = LeaseGrantRequest {
            seconds: time.as_secs().max(1),
        };
        // One that is granted twice is not kept alive.
        let granted: LeaseResponse = cluster.read(LEASE_GRANT, &query)?;
        let shared = Arc::<Shared<Gone>>::default();
        let (keeping, asked) = (Arc::clone(&shared), Arc::clone(cluster));
        let (id, pause) = (
            granted.id,
            Duration::from_secs(granted.seconds) / KEPT_IN_TIME,
        );
        let spawned = thread::Builder::new()
            .name("etcd lease".to_owned())
            .spawn(move || keep(&keeping, &asked, id, pause));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the lease: it ends in its time");
        }
        Ok(Self {
            id,
            cluster: Arc::clone(cluster),
            shared,
        })
    }

    /// Lets what stands under it live on, for the rest of its time.
    pub fn leave(self) {
        self.shared.state().value = true;
    }

    /// To put rows under it; none once etcd told that it has ended.
    pub fn id(&self) -> Option<u64> {
        (!self.shared.state().value).then_some(self.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.stop();
        if self.id().is_none() {
            return;
        }
        let query = LeaseRequest { id: self.id };
        let endpoint = self.cluster.current();
        let revoked: Result<RevokeResponse, _> =
            self.cluster.post(endpoint, LEASE_REVOKE, &query, PARTING);
        if let Err(fault) = revoked {
            tracing::debug!(?fault, "a lease was not revoked: it ends in its time");
        }
    }
}

fn keep(shared: &Shared<Gone>, cluster: &Cluster, id: u64, pause: Duration) {
    while !shared.wait(pause) {
        let query = LeaseRequest { id };
        let kept: Result<KeepAliveResponse, _> = cluster.read(LEASE_KEEP_ALIVE, &query);
        match kept {
            Ok(KeepAliveResponse { result: Some(kept) }) if kept.seconds == 0 => {
                tracing::warn!("etcd ended a lease: this server was not heard for its time");
                shared.state().value = true;
                return;
            }
            Ok(KeepAliveResponse { result: Some(_) }) => {}
            // Whoever waited for an answer waited long enough.
            Ok(KeepAliveResponse { result: None }) => {
                tracing::info!("a lease was not kept alive; trying again");
            }
            Err(error) => tracing::info!(%error, "a lease was not kept alive; trying again"),
        }
    }
}
