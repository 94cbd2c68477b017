//! What the node's kernel translates: pods that leave their pools take the
//! node's address, and ports of the node lead to pods.

use ipnet::IpNet;
use weft_api::forwarder::Port;
use weft_cni::{
    forwarder::Client,
    nat::{self, NatError, TABLE, Ways},
};
use weft_forwarder::probe::Check;

const NAME: &str = "address translation";
const REMEDY: &str = "give the node nftables (modprobe nft_nat nft_masq nft_fib_inet nft_ct), or \
                      run weft egress in place of weft host up";

/// A table that was made, and what was told of it.
#[derive(Debug)]
pub struct Kept {
    ways: Ways,
    told: String,
}

/// Makes the table anew, if it is not as it was made before; else sees that it
/// publishes what the forwarder's ports do.
pub fn keep(ways: Ways, kept: &mut Option<Kept>, forwarder: &mut Client) -> anyhow::Result<String> {
    if let Some(before) = kept.as_ref().filter(|before| before.ways == ways)
        && nat::publish(|| forwarder.ports()).is_ok()
    {
        return Ok(before.told.clone());
    }
    let told = up(&ways, forwarder)?;
    *kept = Some(Kept {
        ways,
        told: told.clone(),
    });
    Ok(told)
}

/// Tells what the table does. A kernel that cannot is no reason to be without
/// weft0.
fn up(ways: &Ways, forwarder: &mut Client) -> anyhow::Result<String> {
    let mut page = String::new();
    match nat::up(ways, || forwarder.ports()) {
        Ok(published) => {
            let Ways { masqueraded, .. } = ways;
            for pool in masqueraded {
                page += &format!("masquerade {pool} outside the pools\n");
            }
            if published > 0 {
                let s = if published == 1 { "" } else { "s" };
                page += &format!("publish {published} port{s} of pods\n");
            }
        }
        Err(NatError::Forwarder(fault)) => return Err(fault.into()),
        Err(fault) => {
            let asked = forwarder.ports()?.iter().any(publishes);
            let (head, so) = match (ways.masqueraded.as_slice(), asked) {
                ([], false) => ("note", "ports of the node cannot lead to pods".to_owned()),
                ([], true) => ("warn", "what pods publish is not reached".to_owned()),
                (pools, _) => ("warn", unmasqueraded(pools)),
            };
            page += &format!("{head}: {fault}\n  so: {so}\n  do: {REMEDY}\n");
        }
    }
    Ok(page)
}

fn publishes(port: &Port) -> bool {
    !port.capabilities.port_mappings.is_empty()
}

fn unmasqueraded(pools: &[IpNet]) -> String {
    let pools: Vec<_> = pools.iter().map(ToString::to_string).collect();
    let pools = pools.join(", ");
    format!("pods of {pools} leave with addresses that outside has no way back to")
}

pub fn down() -> String {
    match nat::down() {
        Ok(true) => format!("table inet {TABLE} is gone\n"),
        Ok(false) => String::new(),
        Err(fault) => format!(
            "warn: {fault}\n  so: ports of the node may still lead to pods\n  do: nft delete table \
             inet {TABLE}\n"
        ),
    }
}

/// Whether this kernel translates for this user, which is tried.
pub fn check() -> Check {
    match nat::probe().and_then(|()| nat::published()) {
        Ok(None) => {
            let finding = format!("nftables does it; there is no table inet {TABLE} here");
            Check::ok(NAME, finding)
        }
        Ok(Some(published)) => {
            let finding = format!(
                "by table inet {TABLE}; ports published: {}",
                published.len()
            );
            Check::ok(NAME, finding)
        }
        Err(NatError::Refused { error, .. })
            if error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            let finding = "unknown: it takes CAP_NET_ADMIN in this network namespace";
            Check::ok(NAME, finding)
        }
        Err(fault) => {
            let consequence = "the kernel neither masquerades pods nor publishes their ports";
            Check::warn(NAME, fault.to_string(), consequence, REMEDY)
        }
    }
}
