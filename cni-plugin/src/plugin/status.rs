//! STATUS: whether an ADD would be served.

use weft_api::{
    forwarder::Request,
    ipam::{Reply as IpamReply, Request as IpamRequest},
};
use weft_socket::ipam::Client as IpamClient;

use super::{Order, delegate};
use crate::{
    forwarder::Client,
    protocol::{Failure, Ipam, Weft, code},
};

pub(super) fn status(order: &Order) -> Result<(), Failure> {
    Client::connect(&order.config.forwarder)
        .and_then(|mut client| client.request(&Request::Status))
        .map_err(|error| Failure::new(code::LIMITED, error.to_string()))?;
    match &order.config.ipam {
        Ipam::Weft(weft) => gives_addresses(weft),
        Ipam::Delegate(name) => delegate::run(order, name, "STATUS").map(drop),
    }
}

pub(super) fn gives_addresses(weft: &Weft) -> Result<(), Failure> {
    let reply = IpamClient::connect(&weft.socket)
        .and_then(|mut client| client.request(&IpamRequest::Status))
        .map_err(|error| Failure::new(code::NOT_AVAILABLE, error.to_string()))?;
    match reply {
        IpamReply::Status(status) if status.pools > 0 => Ok(()),
        _ => Err(Failure::new(
            code::NOT_AVAILABLE,
            "the IPAM server has no pool; make one with weft ipam pool",
        )),
    }
}
