//! One request on one book: what changes and what is answered. Pure: the
//! clock's time is an argument, and nothing is changed here.

use weft_api::ipam::{Code, Error, Reply, Request, Time};

use crate::{
    admin, allocate,
    book::Book,
    model::{Changes, Key},
    node, release, show, sweep,
};

/// What is to be made durable before the answer may go out.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Empty where the request only asks.
    pub changes: Changes,
    /// Rows that must still be as the book has them, though they are not
    /// written: the pool of a block that is cut, the block of an address
    /// that was there already. With other servers on the same rows, an answer
    /// without changes holds only if these do.
    pub guards: Vec<Key>,
    pub reply: Reply,
}

impl Plan {
    /// Of a request that only asks, or that finds all done.
    pub fn answer(reply: Reply) -> Self {
        Self {
            changes: Vec::new(),
            guards: Vec::new(),
            reply,
        }
    }
}

/// Decides a request. Watch, check and status are the server's own.
pub fn plan(book: &Book, request: &Request, now: Time) -> Result<Plan, Error> {
    match request {
        Request::Allocate(ask) => allocate::allocate(book, ask, now),
        Request::Probe(ask) => {
            allocate::allocate(book, ask, now).map(|plan| Plan::answer(plan.reply))
        }
        Request::Release(release) => release::release(book, release, now),
        Request::Gc(gc) => sweep::gc(book, gc, now),
        Request::Pools => Ok(Plan::answer(show::pools(book))),
        Request::Blocks => Ok(Plan::answer(show::blocks(book))),
        Request::Address { address } => Ok(Plan::answer(show::address(book, *address))),
        Request::Allocations { node, borrowed } => Ok(Plan::answer(show::allocations(
            book,
            node.as_ref(),
            *borrowed,
        ))),
        Request::PoolCreate(pool) => admin::pool_create(book, pool, now),
        Request::PoolDisable { name, disabled } => admin::pool_disable(book, name, *disabled, now),
        Request::PoolDelete { name } => admin::pool_delete(book, name, now),
        Request::Reserve(reservation) => admin::reserve(book, reservation, now),
        Request::Unreserve { name } => admin::unreserve(book, name, now),
        Request::Reservations => Ok(Plan::answer(Reply::Reservations(
            book.reservations().cloned().collect(),
        ))),
        Request::NodePut(node) => node::put(book, node, now),
        Request::NodeDelete { name } => node::delete(book, name, now),
        Request::Nodes => Ok(Plan::answer(Reply::Nodes(book.nodes().cloned().collect()))),
        Request::NodeRegister(node) => node::register(book, node, now),
        Request::NodeLeave { name } => Ok(node::withdraw(book, name, now)),
        Request::Configure(change) => admin::configure(book, change, now),
        Request::Config => Ok(Plan::answer(Reply::Config(book.config().clone()))),
        Request::Watch { .. } | Request::Check { .. } | Request::Status => Err(Error::new(
            Code::Internal,
            "this request changes nothing and was planned",
            "report it as a fault of weft-ipam",
        )),
    }
}
