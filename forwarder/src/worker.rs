//! One thread: poll, receive, decide, send. The only event loop of the
//! packet path.

use std::sync::Arc;

use weft_engine::Counters;

use crate::{
    tables::Tables,
    uplink::{UplinkConfig, UplinkError},
};

/// All workers of a forwarder, as the control thread sees them.
#[derive(Debug)]
pub struct Workers {}

impl Workers {
    /// Opens the uplink sockets and starts `count` threads on `tables`.
    pub fn start(count: usize, uplink: &UplinkConfig, tables: Tables) -> Result<Self, UplinkError> {
        let _ = (count, uplink, tables);
        todo!()
    }

    /// Puts new tables in force: returns once every worker uses them and has
    /// let go of the queues of ports that are gone.
    pub fn publish(&self, tables: Tables) {
        let _ = tables;
        todo!()
    }

    pub fn tables(&self) -> Arc<Tables> {
        todo!()
    }

    /// One per worker.
    pub fn counters(&self) -> &[Arc<Counters>] {
        todo!()
    }

    /// Whether sends use UDP_SEGMENT; false after the kernel refused it.
    pub fn gso(&self) -> bool {
        todo!()
    }

    pub fn gro(&self) -> bool {
        todo!()
    }
}
