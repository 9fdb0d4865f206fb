//! See `pollux_fuzz::rings`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pollux_fuzz::rings::run(data));
