//! In which forms a wire has the packets between two pods.

use std::collections::BTreeSet;

use weft_lab::Pod;

use super::wiretap::{Wiretap, dissect};

pub const PLAIN: &str = "plain";
pub const TUNNELLED: &str = "vxlan";

pub fn forms(tap: Wiretap, one: &Pod, other: &Pod) -> BTreeSet<&'static str> {
    let theirs: BTreeSet<_> = [one, other]
        .into_iter()
        .flat_map(|pod| [pod.v4().to_string(), pod.v6().to_string()])
        .collect();
    let mut forms = BTreeSet::new();
    for row in dissect(&tap.heard()) {
        let protocols = row[0].replace(":ethertype", "");
        let tunnelled = protocols.contains(":vxlan:eth:ip");
        let plain = protocols.starts_with("eth:ip:") || protocols.starts_with("eth:ipv6:");
        // Addresses of a family, those of the outermost header first: the
        // second is inside the tunnel, or the first where the tunnel is of the
        // other family.
        let inside = |at: usize| {
            let all: Vec<_> = row[at].split(',').collect();
            let outer_too = tunnelled && all.len() > 1;
            all.get(usize::from(outer_too))
                .is_some_and(|address| theirs.contains(*address))
        };
        if inside(1) && inside(2) || inside(3) && inside(4) {
            forms.extend(match (tunnelled, plain) {
                (true, _) => Some(TUNNELLED),
                (false, true) => Some(PLAIN),
                (false, false) => None,
            });
        }
    }
    forms
}
