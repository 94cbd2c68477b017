//! What `weft doctor` says of the host port.

use std::fs;

use nix::net::if_::if_nametoindex;
use weft_api::forwarder::HOST_LINK;
use weft_forwarder::probe::Check;

use super::{
    knobs::{self, Scene},
    underlay::Underlay,
};
use crate::target::Target;

const NAME: &str = "host port";
const REMEDY: &str = "run weft host up again";

/// Whether the node and its pods reach each other, and what lies behind it.
/// The underlay's links are known where a forwarder tells.
pub fn check(target: &Target) -> Check {
    if if_nametoindex(HOST_LINK).is_err() {
        let finding = "none in this network namespace; weft host up lets node and pods reach each \
                       other";
        return Check::ok(NAME, finding);
    }
    let (v4, v6) = (has_v4(), has_v6());
    let families = match (v4, v6) {
        (true, true) => "IPv4 and IPv6",
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (false, false) => {
            let finding = format!("{HOST_LINK} is there, and no route by it");
            return Check::warn(NAME, finding, "the node does not reach pods", REMEDY);
        }
    };
    let mut finding = format!("{HOST_LINK} carries {families}");
    let links = links(target).unwrap_or_else(|fault| {
        finding += &format!("; the links of the underlay are unknown: {fault:#}");
        Vec::new()
    });
    let amiss = knobs::amiss(&Scene::look(v4, v6, links));
    if amiss.is_empty() {
        return Check::ok(NAME, finding);
    }
    let mut needs = Vec::new();
    for (found, need) in amiss {
        finding += &format!("; {found}");
        if !needs.contains(&need) {
            needs.push(need);
        }
    }
    Check::warn(NAME, finding, &needs.join("; "), REMEDY)
}

fn links(target: &Target) -> anyhow::Result<Vec<String>> {
    let status = target.connect()?.status()?;
    Ok(Underlay::look(&status.underlay)?.links)
}

/// Whether weft0 has a route by the gateway: pools have.
fn has_v4() -> bool {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().any(|route| {
        let fields: Vec<_> = route.split_whitespace().collect();
        matches!(fields[..], [HOST_LINK, _, via, ..] if via != "00000000")
    })
}

fn has_v6() -> bool {
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    routes.lines().any(|route| {
        let fields: Vec<_> = route.split_whitespace().collect();
        let nowhere = |via: &str| via.bytes().all(|byte| byte == b'0');
        matches!(fields[..], [_, _, _, _, via, .., HOST_LINK] if !nowhere(via))
    })
}
