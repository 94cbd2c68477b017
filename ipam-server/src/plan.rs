//! One request on one book: what changes and what is answered. Pure: the
//! clock's time is an argument, and nothing is changed here.

use weft_api::ipam::Reply;

use crate::model::Changes;

/// What is to be made durable before the answer may go out.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Empty where the request only asks.
    pub changes: Changes,
    pub reply: Reply,
}
