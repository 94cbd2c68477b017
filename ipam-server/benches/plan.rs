//! What one allocation costs, from the question to the book that knows the
//! answer, with few and with many addresses live.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use weft_api::{
    ipam::{Allocate, Attachment, Family, Pool, Request, Use},
    names::Name,
};
use weft_ipam::{
    book::Book,
    model::Value,
    plan::plan,
    store::{Row, Update},
};

const NOW: u64 = 1_770_000_000_000;
/// As many as a large node holds.
const PER_NODE: usize = 100;

fn name(text: String) -> Name {
    Name::new(text).expect("a name")
}

fn ask(number: usize) -> Request {
    Request::Allocate(Box::new(Allocate {
        attachment: Attachment {
            network: name("net".to_owned()),
            container: name(format!("c{number}")),
            interface: name("eth0".to_owned()),
        },
        node: name(format!("n{}", number / PER_NODE)),
        families: vec![Family::V4],
        purpose: Use::Workload,
        addresses: vec![],
        pools: vec![],
        identity: None,
        pod: None,
        namespace_labels: Default::default(),
    }))
}

fn run(book: &mut Book, request: &Request) {
    let plan = plan(book, request, NOW).expect("there is room");
    let revision = book.revision() + 1;
    for (key, value) in plan.changes {
        let row = value.map(|value| Row { value, revision });
        book.apply(&Update { key, row });
    }
}

fn with_live(live: usize) -> Book {
    let mut book = Book::default();
    let pool: Pool =
        serde_json::from_str(r#"{"name": "p", "cidr": "10.0.0.0/8"}"#).expect("a pool");
    let update = Update {
        key: weft_ipam::model::Key::Pool(pool.name.clone()),
        row: Some(Row {
            value: Value::Pool(pool),
            revision: 1,
        }),
    };
    book.apply(&update);
    for number in 0..live {
        run(&mut book, &ask(number));
    }
    book
}

fn allocation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allocate");
    for live in [1_000, 100_000, 1_000_000] {
        // The last node but one has room in a block of its own.
        let mut book = with_live(live);
        let common = ask(live - 1).clone();
        let Request::Allocate(mut more) = common else {
            unreachable!("it allocates")
        };
        more.attachment.container = name("one-more".to_owned());
        let request = Request::Allocate(more);
        group.bench_function(format!("plan, {live} live"), |bencher| {
            bencher.iter(|| plan(black_box(&book), black_box(&request), NOW));
        });
        let mut number = live;
        group.bench_function(format!("plan and apply, {live} live"), |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    ask(number)
                },
                |request| run(&mut book, &request),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, allocation);
criterion_main!(benches);
