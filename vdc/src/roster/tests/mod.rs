mod authority;
mod cases;
mod foundings;
mod golden;
pub(crate) mod lab;
mod lattice;
mod size;
mod workloads;
