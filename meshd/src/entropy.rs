//! Randomness of the operating system.

/// Fresh random bytes.
///
/// # Panics
/// If the kernel has none to give, which it never refuses after boot: without them no key can be made.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}
