#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fused_fuzz::config(data));
