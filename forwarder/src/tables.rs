//! What workers share: the engine's snapshot and the open ports, replaced
//! together.

use std::sync::Arc;

use weft_engine::{PortId, Snapshot};

use crate::port::Port;

#[derive(Debug)]
pub struct Tables {
    pub snapshot: Snapshot,
    /// Indexed by `PortId`, as the snapshot's ports are.
    pub ports: Vec<Option<Arc<Port>>>,
}

impl Tables {
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.0))?.as_deref()
    }

    /// The open ports and their places.
    pub fn each(&self) -> impl Iterator<Item = (usize, &Arc<Port>)> {
        self.ports
            .iter()
            .enumerate()
            .filter_map(|(place, port)| Some((place, port.as_ref()?)))
    }
}
