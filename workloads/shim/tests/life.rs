//! From creation to the exit record.

use crate::lab::Lab;
use crate::wire::Command;

#[test]
fn a_program_runs_logs_and_leaves_nothing() {
    let lab = Lab::new(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
    let (mut shim, _) = lab.run();
    let exit = shim.exited();
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.start_failed), (3, None, false, false));
    shim.reap();
    assert_eq!(lab.exit_file(), exit);
    let log = String::from_utf8(lab.log()).expect("text");
    assert!(log.contains("out\n") && log.contains("err\n"), "{log}");
    lab.assert_clean();
    assert_eq!(shim.errors(), "");
    let _ = Command::State;
}
