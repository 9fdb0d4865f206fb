//! See `pollux_fuzz::statistics`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pollux_fuzz::statistics::run(data));
