//! The flow log: off until it is read, bounded, and no loss is uncounted.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use weft_engine::flow_log::{ATTENTION, FlowLog, PAGE_MAX, Record};
use weft_policy::{Decision, Reason};
use weft_wire::{Key, protocol};

fn record(number: u32, allowed: bool, at: Instant) -> Record {
    let [_, a, b, c] = number.to_be_bytes();
    let decision = match allowed {
        true => Decision::allow(Reason::Unruled),
        false => Decision::deny(Reason::Unruled),
    };
    Record {
        key: Key {
            src: IpAddr::from([10, a, b, c]),
            dst: IpAddr::from([10, 1, 0, 2]),
            protocol: protocol::TCP,
            src_port: 40_000,
            dst_port: 80,
        },
        source: None,
        destination: None,
        egress: None,
        ingress: Some(decision),
        edition: 1,
        packets: 1,
        at,
    }
}

#[test]
fn it_is_written_while_somebody_reads() {
    let (log, now) = (FlowLog::default(), Instant::now());
    assert!(!log.is_on());
    assert_eq!(log.read(Some(0), now), None, "it was never begun");
    let begun = log.read(None, now).expect("it begins");
    assert!(log.is_on() && begun.records.is_empty());
    log.note(record(1, true, now));
    let page = log.read(Some(begun.next), now).expect("it goes on");
    assert_eq!((page.lost, page.records), (0, vec![record(1, true, now)]));
    log.note(record(2, true, now + ATTENTION));
    assert!(!log.is_on());
    assert_eq!(log.read(Some(page.next), now + ATTENTION), None);
    let again = log.read(None, now + ATTENTION).expect("it begins");
    assert_eq!((again.lost, again.records.len()), (0, 0));
}

#[test]
fn a_denied_flow_is_one_record_until_it_is_read() {
    let (log, now) = (FlowLog::default(), Instant::now());
    let begun = log.read(None, now).expect("it begins");
    let packets = |after| {
        let page = log.read(Some(after), now).expect("it goes on");
        let packets = page.records.iter().map(|record| record.packets);
        (page.next, packets.collect::<Vec<_>>())
    };
    for second in 0..3 {
        log.note(record(1, false, now + Duration::from_secs(second)));
        log.note(record(2, true, now));
    }
    let (next, seen) = packets(begun.next);
    assert_eq!(seen, [3, 1, 1, 1], "connections are never one");
    log.note(record(1, false, now));
    assert_eq!(packets(next), (next + 1, vec![1]));
}

#[test]
fn a_slow_reader_is_told_what_it_missed() {
    let (log, now) = (FlowLog::default(), Instant::now());
    let mut after = log.read(None, now).expect("it begins").next;
    let all = 40_000;
    (0..all).for_each(|number| log.note(record(number, true, now)));
    let (mut seen, mut lost) = (Vec::new(), 0);
    loop {
        let page = log.read(Some(after), now).expect("it goes on");
        assert!(page.records.len() <= PAGE_MAX);
        lost += page.lost;
        if page.records.is_empty() {
            break;
        }
        after = page.next;
        seen.extend(page.records);
    }
    assert_eq!(seen.len() as u64 + lost, u64::from(all));
    assert!(seen.len() < all as usize);
    assert_eq!(seen.last(), Some(&record(all - 1, true, now)));
}

#[test]
fn who_would_have_to_wait_is_counted_too() {
    let (log, now) = (FlowLog::default(), Instant::now());
    let begun = log.read(None, now).expect("it begins");
    thread::scope(|scope| {
        for writer in 0..4 {
            let log = &log;
            let numbers = writer * 1_000..(writer + 1) * 1_000;
            scope.spawn(move || numbers.for_each(|number| log.note(record(number, true, now))));
        }
    });
    let (mut after, mut told) = (begun.next, 0);
    while let Some(page) = log.read(Some(after), now).filter(|page| page.next > after) {
        told += page.records.len() as u64 + page.lost;
        after = page.next;
    }
    assert_eq!(told, 4_000);
}
