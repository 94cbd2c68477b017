//! The token bucket keeps its rate and its burst.

use std::time::{Duration, Instant};

use weft_engine::limit::Bucket;

#[test]
fn a_burst_passes_then_the_rate() {
    let start = Instant::now() + Duration::from_secs(60);
    let mut bucket = Bucket::new(10, 5);
    let taken = |bucket: &mut Bucket, at| (0..100).filter(|_| bucket.take(at)).count();
    assert_eq!(taken(&mut bucket, start), 5);
    assert_eq!(taken(&mut bucket, start + Duration::from_millis(50)), 0);
    assert_eq!(taken(&mut bucket, start + Duration::from_millis(100)), 1);
    assert_eq!(taken(&mut bucket, start + Duration::from_secs(60)), 5);
}
