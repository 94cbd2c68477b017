//! What workers share: the engine's snapshot and the open ports, replaced
//! together.

use std::sync::Arc;

use weft_engine::Snapshot;

use crate::port::Port;

#[derive(Debug)]
pub struct Tables {
    pub snapshot: Snapshot,
    /// Indexed by `PortId`, as the snapshot's ports are.
    pub ports: Vec<Option<Arc<Port>>>,
}
