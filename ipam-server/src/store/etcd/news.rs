//! What others write, as the store's news.

use weft_etcd::{
    Tell, Told,
    message::{Event, EventKind},
};

use super::{Named, name_of, row_of};
use crate::{
    model::RowError,
    store::{News, Update},
};

/// Tells events as news, until one is not understood.
pub(super) fn telling(prefix: String, mut tell: Box<dyn FnMut(News) + Send>) -> Tell {
    Box::new(move |told| {
        let news = match told {
            Told::Missed => News::Missed,
            Told::Events { revision, events } => match updates(&prefix, events) {
                Ok(updates) => News::Updates { revision, updates },
                Err(error) => {
                    tracing::warn!(%error, "a row that is not understood");
                    News::Missed
                }
            },
        };
        let more = !matches!(news, News::Missed);
        tell(news);
        more
    })
}

/// Markers are left out: a commit of a marker alone has no updates.
fn updates(prefix: &str, events: Vec<Event>) -> Result<Vec<Update>, RowError> {
    let mut updates = Vec::with_capacity(events.len());
    for event in events {
        let Named::Row(key) = name_of(prefix, &event.kv.key)? else {
            continue;
        };
        let row = match event.kind {
            EventKind::Put => Some(row_of(&key, &event.kv)?),
            EventKind::Delete => None,
        };
        updates.push(Update { key, row });
    }
    Ok(updates)
}
