#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_ferry::outside::run("tables", bytes));
