//! The search for new inputs: libFuzzer over one target, named by `FUZZ_TARGET`. Arguments are libFuzzer's.
//!
//! `cargo xtask soak` builds it with the compiler's coverage instrumentation and runs each target for a fixed time.
#![no_main]

use std::sync::LazyLock;

use fuzz_targets::Target;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    fuzz_targets::target(&name).unwrap_or_else(|| {
        let known: Vec<_> = fuzz_targets::TARGETS.iter().map(|target| target.name).collect();
        panic!("FUZZ_TARGET={name:?} is not one of {}", known.join(", "))
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (TARGET.run)(bytes);
});
