//! A source's objects that come in several parts. Each client has one such
//! set under way at most, and what it does not go on with is forgotten.
//! Invariant: what is given out is every part, from the first to the last,
//! without a gap.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use weft_api::{
    forwarder::{Code, Error, Policies},
    names::Name,
};

use super::{
    OBJECTS_MAX,
    given::{self, Given},
};
use crate::publish::refusal;

/// Most objects of all clients whose last part is yet to come.
const WAITING_MAX: usize = 2 * OBJECTS_MAX;

/// The next part comes sooner than that.
const PART_WITHIN: Duration = Duration::from_secs(30);

/// By client.
#[derive(Debug, Default)]
pub struct Gathering(HashMap<usize, Parts>);

#[derive(Debug)]
struct Parts {
    source: Name,
    /// The part that has to come now.
    next: u32,
    objects: Vec<Given>,
    /// When the last part came.
    at: Instant,
}

#[derive(Debug)]
pub enum Gathered {
    /// More is to come; so many objects are here.
    Part(usize),
    Whole(Name, Vec<Given>),
}

impl Gathering {
    /// A refused part takes those before it with it.
    pub fn take(&mut self, client: usize, part: Policies, now: Instant) -> Result<Gathered, Error> {
        self.0
            .retain(|_, parts| now.saturating_duration_since(parts.at) < PART_WITHIN);
        let begun = self.0.remove(&client);
        let mut parts = match (part.part, begun) {
            (0, _) => Parts {
                source: part.source.clone(),
                next: 0,
                objects: Vec::new(),
                at: now,
            },
            (number, Some(parts)) if parts.next == number && parts.source == part.source => parts,
            (number, _) => {
                let message = format!(
                    "policies: part {number} of source {} does not follow the part before it",
                    part.source
                );
                let hint = "begin again with part 0; parts follow each other on one connection, within 30 s";
                return Err(refusal(Code::Invalid, message, hint));
            }
        };
        let count = parts.objects.len() + part.objects.len();
        if count > OBJECTS_MAX {
            return Err(given::too_many());
        }
        let waiting: usize = self.0.values().map(|parts| parts.objects.len()).sum();
        if part.more && waiting + count > WAITING_MAX {
            let message =
                format!("policies: {waiting} objects of other clients wait for their rest");
            let hint = "begin again when those have ended, in 30 s at the latest";
            return Err(refusal(Code::Oversized, message, hint));
        }
        parts.objects.extend(given::read(part.objects)?);
        if !part.more {
            return Ok(Gathered::Whole(parts.source, parts.objects));
        }
        parts.next += 1;
        parts.at = now;
        self.0.insert(client, parts);
        Ok(Gathered::Part(count))
    }

    /// The client is gone.
    pub fn forget(&mut self, client: usize) {
        self.0.remove(&client);
    }
}
