use std::{
    net::UdpSocket,
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};
use weft_api::forwarder::{Bandwidth, Capabilities, Limit};
use weft_cni::link::Attach;
use weft_lab::{Lab, Ledger, Pod, Spec, probe::Family, traffic, use_executable};

fn limit(rate: u64, burst: u64) -> Limit {
    Limit {
        rate: NonZeroU64::new(rate).unwrap(),
        burst: NonZeroU64::new(burst).unwrap(),
    }
}

fn udp(from: &Pod, to: &Pod, d: Duration) -> f64 {
    let rx = to
        .netns
        .run(|| UdpSocket::bind((to.v4(), 0)))
        .unwrap()
        .unwrap();
    rx.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let at = rx.local_addr().unwrap();
    let tx = from
        .netns
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let until = Instant::now() + d;
    thread::scope(|s| {
        s.spawn(|| {
            while Instant::now() < until {
                let start = Instant::now();
                for _ in 0..10 {
                    let _ = tx.send_to(&[7; 1400], at);
                }
                let p = Duration::from_micros(560).saturating_sub(start.elapsed());
                thread::sleep(p);
            }
        });
        let mut n = 0u64;
        let mut buf = [0; 2000];
        while let Ok(_) = rx.recv(&mut buf) {
            n += 1;
        }
        n as f64 * 1442.0 * 8.0 / d.as_secs_f64() / 1e6
    })
}

#[test]
fn measure() {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    const RATE: u64 = 50_000_000;
    for nodes in [1, 2] {
        let mut lab = Lab::up(&Spec {
            nodes,
            pods: 1,
            workers: Some(2),
            ..Spec::default()
        })
        .unwrap();
        for burst in [16, 64, 256, 1024] {
            let l = limit(RATE, burst * 1024 * 8);
            for (name, b) in [
                (
                    "from",
                    Bandwidth {
                        from_pod: Some(l),
                        to_pod: None,
                    },
                ),
                (
                    "to",
                    Bandwidth {
                        from_pod: None,
                        to_pod: Some(l),
                    },
                ),
            ] {
                lab.add_pod_with(
                    Capabilities {
                        bandwidth: b,
                        port_mappings: vec![],
                    },
                    0,
                    Attach::Tap { queues: 2 },
                )
                .unwrap();
                let pod = lab.pods.last().unwrap();
                let other = &lab.pods[nodes - 1];
                let (a, z) = if name == "from" {
                    (pod, other)
                } else {
                    (other, pod)
                };
                let mut row = vec![];
                for cc in ["cubic", "reno", "bbr"] {
                    let s = traffic::stream(a, z, Family::V4, Some(cc), Duration::from_secs(3));
                    row.push(s.map_or(0.0, |s| s.gbit_per_second() * 1000.0));
                }
                let u = udp(a, z, Duration::from_secs(3));
                println!("nodes {nodes} burst {burst:5} KiB {name:5} tcp {row:.1?} udp {u:.1}");
            }
        }
        let l = Ledger::now(lab.nodes[0].forwarder.as_ref().unwrap()).unwrap();
        println!(
            "{:?}",
            l.drops.iter().filter(|(_, v)| **v > 0).collect::<Vec<_>>()
        );
    }
}
