//! A pod's attachment: fds that carry frames.

use std::os::fd::OwnedFd;

use weft_api::forwarder::Driver;

#[derive(Debug)]
pub struct Port {}

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("{0}")]
    Descriptor(String),
}

impl Port {
    /// Checks that each fd is what `driver` says and sets it up.
    pub fn open(driver: Driver, fds: Vec<OwnedFd>) -> Result<Self, PortError> {
        let _ = (driver, fds);
        todo!()
    }

    pub fn driver(&self) -> Driver {
        todo!()
    }

    pub fn queues(&self) -> usize {
        todo!()
    }

    /// Whether whole UDP super-frames may be written (USO).
    pub fn takes_udp(&self) -> bool {
        todo!()
    }

    /// Whether whole TCP super-frames may be written.
    pub fn takes_tcp(&self) -> bool {
        todo!()
    }

    /// The pod's link was deleted.
    pub fn gone(&self) -> bool {
        todo!()
    }
}
