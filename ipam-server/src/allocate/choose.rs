//! Which pools may serve a request.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_api::{
    ipam::{Allocate, Code, Error, Family, Use},
    names::Name,
};

use super::refusal;
use crate::{book::Book, claim, draft::Draft, pool::Range};

/// The pools that the request names, or all that select its node and its
/// namespace; of one family, enabled and allowed the use.
pub fn pools<'a>(
    draft: &Draft<'a>,
    ask: &Allocate,
    family: Family,
) -> Result<Vec<&'a Range>, Error> {
    let named = named(draft.book, ask)?;
    if !ask.pools.is_empty() {
        let fits = |pool: &&Range| pool.family() == family && pool.allows(ask.purpose);
        let fitting: Vec<_> = named.into_iter().filter(fits).collect();
        if fitting.is_empty() {
            return Err(refusal::no_named_pool(ask, family));
        }
        return Ok(fitting);
    }
    let labels = Some(&ask.namespace_labels);
    let (fitting, reasons) = selecting(draft, &ask.node, family, ask.purpose, labels);
    if fitting.is_empty() {
        return Err(refusal::no_pool(ask, family, &reasons));
    }
    Ok(fitting)
}

/// The pools of a family that serve who names none, and why the others do not.
/// Without labels no namespace is asked for.
pub fn selecting<'a>(
    draft: &Draft<'a>,
    node: &Name,
    family: Family,
    purpose: Use,
    namespace: Option<&BTreeMap<String, String>>,
) -> (Vec<&'a Range>, Vec<String>) {
    let mut fitting = Vec::new();
    let mut reasons = Vec::new();
    for pool in draft.book.pools().filter(|pool| pool.family() == family) {
        let unselected = || namespace.is_some_and(|labels| !pool.selects_namespace(labels));
        match reason(pool, claim::labels(draft, node), purpose) {
            Some(reason) => reasons.push(format!("{} {reason}", pool.name())),
            None if unselected() => {
                reasons.push(format!("{} does not select the namespace", pool.name()));
            }
            None => fitting.push(pool),
        }
    }
    (fitting, reasons)
}

/// Whether a pool is for the use of a node with these labels, if it names none.
pub fn serves(pool: &Range, labels: &BTreeMap<String, String>, purpose: Use) -> bool {
    reason(pool, labels, purpose).is_none()
}

/// Why it is not.
fn reason(pool: &Range, labels: &BTreeMap<String, String>, purpose: Use) -> Option<&'static str> {
    if pool.pool.disabled {
        Some("is disabled")
    } else if pool.pool.manual {
        Some("serves only who names it")
    } else if !pool.allows(purpose) {
        Some("does not allow the use")
    } else if !pool.selects_node(labels) {
        Some("does not select the node")
    } else {
        None
    }
}

/// All pools that the request names, of any family: they exist and are
/// enabled.
pub fn named<'a>(book: &'a Book, ask: &Allocate) -> Result<Vec<&'a Range>, Error> {
    let find = |text: &String| {
        let cidr = text.parse::<IpNet>().ok();
        let is_it = |pool: &&Range| {
            pool.name().as_str() == text || cidr.is_some_and(|cidr| cidr == pool.pool.cidr)
        };
        let pool = book.pools().find(is_it).ok_or_else(|| {
            Error::new(
                Code::NotFound,
                format!(
                    "there is no pool {text}, which {} asks for",
                    ask.attachment.handle()
                ),
                "name one that `weft ipam pool list` shows, or create it",
            )
        })?;
        if pool.pool.disabled {
            return Err(Error::new(
                Code::NoPool,
                format!(
                    "pool {text}, which {} asks for, is disabled",
                    ask.attachment.handle()
                ),
                "enable it, or ask for another",
            ));
        }
        Ok(pool)
    };
    ask.pools.iter().map(find).collect()
}
