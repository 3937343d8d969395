//! What the demo, the benches and the end-to-end tests share: named steps with their times ([`steps`]), figures with
//! their goals ([`figures`]), images ([`images`]), workloads ([`containers`]), boxes that run the daemon ([`vdc_lab`]) or
//! systemd-resolved ([`resolver`]) and traffic whose gaps are measured ([`flow`]). The lab they run in is `meshlab`; the
//! rules and tests of this package are in `tidy/` and `e2e/`.
#![expect(clippy::print_stdout, reason = "the demo and the benches print their tables")]

pub mod containers;
pub mod figures;
pub mod flow;
pub mod images;
pub mod resolver;
pub mod steps;
pub mod vdc_lab;
