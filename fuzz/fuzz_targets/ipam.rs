#![no_main]

#[path = "../bodies/ipam.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::ipam(bytes));
