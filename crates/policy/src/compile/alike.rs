//! Whether two rulebooks judge alike, told from what a change touched and not
//! from all they hold. May err to the safe side: rulebooks that are called
//! alike judge every flow alike, and some others do so too.

use std::{net::IpAddr, sync::Arc};

use super::rulebook::{Endpoint, Holder, Identity, IdentityId, Rulebook};

/// `addresses` may have other holders, `identities` other sets and programs.
pub fn judge_alike(
    before: &Rulebook,
    after: &Rulebook,
    addresses: &[IpAddr],
    identities: &[IdentityId],
) -> bool {
    let identity = |rules: &Rulebook, id: IdentityId| rules.identities().get(id).cloned();
    let ruled_alike = |id: &IdentityId| match (identity(before, *id), identity(after, *id)) {
        (Some(before), Some(after)) => ruled_alike(&before, &after),
        _ => false,
    };
    let held_alike = |address: &IpAddr| held_alike(seen(before, *address), seen(after, *address));
    identities.iter().all(ruled_alike) && addresses.iter().all(held_alike)
}

type Seen<'a> = Option<(&'a Endpoint, &'a Identity)>;

fn seen(rules: &Rulebook, address: IpAddr) -> Seen<'_> {
    let endpoint = rules.endpoint(address)?;
    Some((endpoint, rules.identity(endpoint)))
}

fn ruled_alike(a: &Identity, b: &Identity) -> bool {
    let programs = (a.program.as_ref(), b.program.as_ref());
    let same_program = match programs {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    same_program && a.sets.is_same(&b.sets)
}

fn held_alike(before: Seen<'_>, after: Seen<'_>) -> bool {
    if is_nothing(before) && is_nothing(after) {
        return true;
    }
    let (Some((a, as_one)), Some((b, as_other))) = (before, after) else {
        return false;
    };
    let same_holder = match (&a.holder, &b.holder) {
        (Holder::Pod(a), Holder::Pod(b)) => {
            (&a.name, &a.ports, &a.node) == (&b.name, &b.ports, &b.node)
        }
        (Holder::Node(a), Holder::Node(b)) => a.name == b.name,
        _ => false,
    };
    same_holder && ruled_alike(as_one, as_other)
}

/// Whether rules see nobody there: no policy is for it or names it, and no
/// rule can ask for a port of it by name.
fn is_nothing(seen: Seen<'_>) -> bool {
    seen.is_none_or(|(endpoint, identity)| match &endpoint.holder {
        Holder::Pod(pod) => {
            pod.ports.is_empty() && identity.sets.is_empty() && identity.program.is_none()
        }
        Holder::Node(_) => false,
    })
}
