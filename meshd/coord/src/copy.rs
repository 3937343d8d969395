//! All that a group holds, as it is at one revision.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use vdc_coord::{Reader, Row, Rows as _, Summary, Table};

use crate::env::sound;
use crate::state::Checkpoint;

/// The rows of a group at one revision.
#[derive(Debug)]
pub struct Copy(pub(crate) Arc<Checkpoint>);

impl Copy {
    /// Where it stands.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn summary(&self) -> io::Result<Summary> {
        sound(|| Reader(&*self.0).summary())
    }

    /// Visits keys and values behind a key, about `bytes_max` of them. Says whether there are more.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn rows(&self, behind: &[u8], bytes_max: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let from = if behind.is_empty() { vec![] } else { [behind, b"\0"].concat() };
        let mut bytes = 0;
        sound(|| {
            let mut more = false;
            self.0.scan(Table::Rows, &from, &[], &mut |key, row| {
                more = bytes >= bytes_max;
                if more {
                    return ControlFlow::Break(());
                }
                let row: Row = minicbor::decode(row).expect("rows hold what the machine wrote");
                bytes += key.len() + row.value.len();
                visit(key, &row.value);
                ControlFlow::Continue(())
            })?;
            Ok(more)
        })
    }
}
