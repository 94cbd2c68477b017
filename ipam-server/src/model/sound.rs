//! What a row must be by itself, whoever wrote it: the rest of the core takes
//! it for granted. What runs against other rows is `check`'s.

use std::collections::BTreeSet;

use weft_api::names::Name;

use super::{Block, Key, Value};
use crate::{node, pool, range::Span};

/// Else why the row is not to be believed.
pub(super) fn sound(key: &Key, value: &Value) -> Result<(), String> {
    match (key, value) {
        (Key::Pool(name), Value::Pool(row)) => {
            named(name, &row.name)?;
            pool::shape(row).map_err(|error| error.message)
        }
        (Key::Reservation(name), Value::Reservation(row)) => named(name, &row.name),
        (Key::Node(name), Value::Node(row)) => {
            named(name, &row.name)?;
            node::sound(row).map_err(|error| error.message)
        }
        (Key::Block(cidr), Value::Block(row)) if *cidr != row.cidr => {
            Err(format!("it is of {}", row.cidr))
        }
        (Key::Block(_), Value::Block(row)) => ordinals(row),
        _ => Ok(()),
    }
}

fn named(key: &Name, row: &Name) -> Result<(), String> {
    if key == row {
        return Ok(());
    }
    Err(format!("it is of {row}"))
}

/// None is out of the block, and none is to be given out that is had.
fn ordinals(block: &Block) -> Result<(), String> {
    let size = Span::of(&block.cidr).size();
    let outside = |ordinal: &&u32| u64::from(**ordinal) >= size;
    let mut all = block.free.iter().chain(block.allocations.keys());
    if let Some(ordinal) = all.find(outside) {
        return Err(format!("ordinal {ordinal} is out of its {size} addresses"));
    }
    let mut free = BTreeSet::new();
    for ordinal in &block.free {
        if !free.insert(ordinal) {
            return Err(format!("ordinal {ordinal} is free twice"));
        }
        if block.allocations.contains_key(ordinal) {
            return Err(format!("ordinal {ordinal} is both free and allocated"));
        }
    }
    Ok(())
}
