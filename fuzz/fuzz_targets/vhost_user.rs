//! See `pollux_fuzz::vhost_user`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pollux_fuzz::vhost_user::run(data));
