//! The IPAM server as the source of what nodes there are.
//!
//! [`watch`] holds the connection and the clock; [`view`], which is pure,
//! turns what the server tells into the same [`Nodes`] that `apply` brings.
//! The control thread alone publishes them. While the server is away the
//! tables stay as they are.
//!
//! [`Nodes`]: weft_api::forwarder::Nodes

mod view;
mod watch;

pub use view::{LeftOut, View};
pub use watch::{Following, Told};
