//! Waiting for a level, and asking for tools by the package that has them.

use std::env;
use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a condition may return: whether it holds, and if not, what was seen instead.
pub trait Condition {
    type Output;

    /// The value if it holds, otherwise what to show if it never does.
    ///
    /// # Errors
    /// What was seen instead.
    fn into_level(self) -> std::result::Result<Self::Output, String>;
}

impl Condition for bool {
    type Output = ();

    fn into_level(self) -> std::result::Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

impl<T> Condition for Option<T> {
    type Output = T;

    fn into_level(self) -> std::result::Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Condition for std::result::Result<T, E> {
    type Output = T;

    fn into_level(self) -> std::result::Result<T, String> {
        // With the causes, which anyhow prints in its alternate form.
        self.map_err(|e| format!("{e:#}"))
    }
}

/// Waits until `condition` holds and returns its value. The condition is looked at once more after the time is up, so a
/// machine that stood still does not fail a test whose level was reached.
///
/// # Errors
/// [`Error::WaitedInVain`] with what the last look saw.
pub fn wait_until<C: Condition>(timeout: Duration, what: &str, mut condition: impl FnMut() -> C) -> Result<C::Output> {
    let start = Instant::now();
    loop {
        let is_last = start.elapsed() >= timeout;
        match condition().into_level() {
            Ok(value) => return Ok(value),
            Err(last) if is_last => return Err(Error::WaitedInVain { what: what.to_owned(), timeout, last }),
            Err(_) => std::thread::sleep(INTERVAL.min(timeout)),
        }
    }
}

/// Fails unless all programs are in `PATH`. Each is `"PROGRAM:DEBIAN_PACKAGE"`, or only its name if both are the same.
///
/// # Errors
/// [`Error::ToolsMissing`] with the packages to install.
pub fn require_tools(tools: &[&str]) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let exists = |program: &str| env::split_paths(&path).any(|dir| is_executable(&dir.join(program)));
    let missing: Vec<(&str, &str)> = tools
        .iter()
        .map(|tool| tool.split_once(':').unwrap_or((tool, tool)))
        .filter(|(program, _)| !exists(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    Err(Error::ToolsMissing(format!("{}; try: apt-get install {}", programs.join(", "), packages.join(" "))))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tools_are_named_with_their_packages() {
        require_tools(&["sh:dash"]).unwrap();
        let error = require_tools(&["sh:dash", "no-such-tool:some-package"]).unwrap_err();
        assert_eq!(error.to_string(), "missing tools: no-such-tool; try: apt-get install some-package");
    }

    #[test]
    fn wait_returns_the_value_or_says_what_it_saw_last() {
        let mut looks = 0;
        let value = wait_until(Duration::from_secs(60), "three looks", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(value.unwrap(), 3);
        let error = wait_until(Duration::ZERO, "a miracle", || Err::<(), _>("rain")).unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns in vain for a miracle; last seen: rain");
    }
}
