//! `weft ipam reserve`, `unreserve` and `reservations`.

use std::process::ExitCode;

use ipnet::IpNet;
use weft_api::{
    ipam::{Reply, Request, Reservation},
    names::Name,
};

use super::{
    Session,
    words::{joined, name},
};
use crate::output::{lines, table};

/// Keep addresses from being newly allocated; held ones stay.
#[derive(Debug, clap::Args)]
pub struct Reserve {
    #[arg(value_parser = name)]
    name: Name,
    #[arg(required = true, value_name = "CIDR")]
    cidrs: Vec<IpNet>,
}

/// Let reserved addresses be allocated again.
#[derive(Debug, clap::Args)]
pub struct Unreserve {
    #[arg(value_parser = name)]
    name: Name,
}

pub fn reserve(args: Reserve, session: &mut Session) -> anyhow::Result<ExitCode> {
    let made = format!("{} is reserved as {}", joined(&args.cidrs), args.name);
    let reservation = Reservation {
        name: args.name,
        cidrs: args.cidrs,
    };
    session.change(&Request::Reserve(reservation), &made)
}

pub fn unreserve(args: Unreserve, session: &mut Session) -> anyhow::Result<ExitCode> {
    let made = format!("reservation {} is gone", args.name);
    session.change(&Request::Unreserve { name: args.name }, &made)
}

pub fn list(session: &mut Session) -> anyhow::Result<ExitCode> {
    let reservations = session.ask(&Request::Reservations, |reply| match reply {
        Reply::Reservations(reservations) => Some(reservations),
        _ => None,
    })?;
    session.print(&reservations, |list| page(list))
}

fn page(reservations: &[Reservation]) -> String {
    if reservations.is_empty() {
        return "nothing is reserved\n".to_owned();
    }
    let mut rows = table(&["reservation", "cidrs"]);
    for reservation in reservations {
        rows.add_row([reservation.name.to_string(), joined(&reservation.cidrs)]);
    }
    lines(&rows)
}
