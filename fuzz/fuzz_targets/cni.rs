#![no_main]

#[path = "../bodies/cni.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::cni(bytes));
