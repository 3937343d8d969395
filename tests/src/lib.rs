//! What the demo and the benches share: named steps with their times ([`steps`]), figures with their goals
//! ([`figures`]), and boxes that run the daemon ([`vdc_lab`]). The lab they run in is `meshlab`; the rules and tests of this package are in `tidy/` and `e2e/`.
#![expect(clippy::print_stdout, reason = "the demo and the benches print their tables")]

pub mod figures;
pub mod steps;
pub mod vdc_lab;
