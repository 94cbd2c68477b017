//! `weft ipam release`: gives addresses back by hand.

use std::{
    io::{self, IsTerminal, Write},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::bail;
use weft_api::{
    ipam::{Held, Release, Released, Reply, Request},
    names::{Handle, Name},
};

use super::{
    Session,
    words::{handle, holder, joined, name},
};

/// Give addresses back that nobody uses any more.
#[derive(Debug, clap::Args)]
#[group(id = "what", required = true, multiple = false, args = ["ip", "handle", "identity"])]
pub struct Args {
    /// These addresses; all or none.
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// All addresses of a handle, as network/container/interface.
    #[arg(long, value_parser = handle)]
    handle: Option<Handle>,
    /// What is kept for an identity, as namespace/pod.
    #[arg(long, value_parser = name)]
    identity: Option<Name>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub fn run(args: Args, session: &mut Session) -> anyhow::Result<ExitCode> {
    let (release, what) = match (args.handle, args.identity) {
        (Some(handle), _) => {
            let what = format!("all addresses of {handle}");
            (Release::Handle { handle }, what)
        }
        (None, Some(identity)) => {
            let what = format!("what is kept for {identity}");
            (Release::Identity { identity }, what)
        }
        (None, None) => addresses(&args.ip, session)?,
    };
    if !args.yes && io::stdin().is_terminal() {
        confirm(&what)?;
    }
    let released = session.ask(&Request::Release(release), |reply| match reply {
        Reply::Released(released) => Some(released),
        _ => None,
    })?;
    session.print(&released, page)
}

/// Bound to what is so now: whoever gets an address meanwhile keeps it.
fn addresses(list: &[IpAddr], session: &mut Session) -> anyhow::Result<(Release, String)> {
    let (mut addresses, mut what) = (Vec::new(), Vec::new());
    for &address in list {
        let allocation = session.address(address)?.allocation;
        what.push(match &allocation {
            Some(allocation) => {
                let node = &allocation.node;
                format!("{address} ({} on node {node})", holder(allocation))
            }
            None => format!("{address} (nobody's)"),
        });
        addresses.push(Held {
            address,
            handle: None,
            sequence: allocation.map(|allocation| allocation.sequence),
        });
    }
    Ok((Release::Addresses { addresses }, what.join(", ")))
}

fn confirm(what: &str) -> anyhow::Result<()> {
    eprint!("release {what}? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        bail!("nothing was released");
    }
    Ok(())
}

fn page(released: &Released) -> String {
    let parts = [
        ("released", &released.released),
        ("kept for its identity", &released.kept),
        ("held by nobody", &released.unallocated),
    ];
    let filled = parts.iter().filter(|(_, addresses)| !addresses.is_empty());
    let page: String = filled
        .map(|(what, addresses)| format!("{what}: {}\n", joined(addresses)))
        .collect();
    if page.is_empty() {
        return "there was nothing to release\n".to_owned();
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fate_is_told() {
        assert_eq!(page(&Released::default()), "there was nothing to release\n");
        let address = |text: &str| vec![text.parse().expect("an address")];
        let released = Released {
            released: address("10.1.0.1"),
            kept: Vec::new(),
            unallocated: address("10.1.0.2"),
        };
        assert_eq!(
            page(&released),
            "released: 10.1.0.1\nheld by nobody: 10.1.0.2\n"
        );
    }
}
