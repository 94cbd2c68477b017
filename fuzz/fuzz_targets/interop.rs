#![no_main]

#[path = "../bodies/interop.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::interop(bytes));
