//! Workers that stay where they are.

use std::fs;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use weft_lab::Forwarder;

/// Keeps each worker on one processor, and says how many there are. A thread
/// that moves between two sends leaves packets in the queues of both, and a
/// veth between nodes has no more order than that (net/core/dev.c,
/// `enqueue_to_backlog`).
pub fn pin_workers(forwarder: &Forwarder) -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("allowed processors");
    let processors: Vec<_> = (0..CpuSet::count())
        .filter(|&number| allowed.is_set(number).expect("within its size"))
        .collect();
    let tasks = format!("/proc/{}/task", forwarder.pid());
    let mut workers = 0;
    for task in fs::read_dir(tasks).expect("procfs").flatten() {
        let name = fs::read_to_string(task.path().join("comm")).expect("procfs");
        let Some(number) = name.trim().strip_prefix("weft-worker-") else {
            continue;
        };
        let number: usize = number.parse().expect("a number");
        let task = task.file_name().to_str().and_then(|id| id.parse().ok());
        let mut one = CpuSet::new();
        one.set(processors[number % processors.len()])
            .expect("within its size");
        sched_setaffinity(Pid::from_raw(task.expect("an id")), &one).expect("pinned");
        workers += 1;
    }
    workers
}
