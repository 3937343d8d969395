mod cases;
mod laws;
mod model;
mod wire;

use crate::{Command, Compare, Condition, LeaseId, Op, Transaction};

fn put(key: &str, value: &[u8], lease: Option<LeaseId>) -> Op {
    Op::Put { key: key.as_bytes().to_vec().into(), value: value.to_vec().into(), lease }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.as_bytes().to_vec().into() }
}

fn delete_range(from: &str, to: &str) -> Op {
    Op::DeleteRange { from: from.as_bytes().to_vec().into(), to: to.as_bytes().to_vec().into() }
}

fn read(key: &str) -> Op {
    Op::Read { key: key.as_bytes().to_vec().into() }
}

fn when(key: &str, condition: Condition) -> Compare {
    Compare { key: key.as_bytes().to_vec().into(), condition }
}

fn all(success: Vec<Op>) -> Transaction {
    Transaction { success, ..Transaction::default() }
}

fn transact(success: Vec<Op>) -> Command {
    Command::Transact(all(success))
}
