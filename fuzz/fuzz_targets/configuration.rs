//! See `pollux_fuzz::configuration`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pollux_fuzz::configuration::run(data));
