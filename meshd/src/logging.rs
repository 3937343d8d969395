//! Logs to standard error: text for people, JSON for collectors.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{Config, LogFormat};

/// Libraries that tell at INFO what concerns only their own developers, addresses among it. The configuration's own
/// filter comes after and wins.
const QUIET: &str = "boringtun=off,openraft=error,hickory_server=warn,libp2p_mdns=off,libp2p=warn,libp2p_swarm=warn,libp2p_quic=warn,quinn=warn,netlink_proto=warn";

/// Checks a log filter directive by directive.
///
/// # Errors
/// A sentence that names the first directive which cannot be understood.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    for directive in directives(filter) {
        let complain = |why: &str| Err(format!("log: {directive:?} is no log directive: {why}"));
        // The parser would take a mistyped level for the name of a target, and log nothing but that.
        let target = directive.split(['=', '[']).next().unwrap_or_default();
        let is_target = target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'));
        let is_level = !directive.is_empty() && directive.parse::<LevelFilter>().is_ok();
        if !is_target || (target == directive && !is_level) {
            return complain("use off, error, warn, info, debug or trace, or TARGET=LEVEL");
        }
        if let Err(error) = directive.parse::<Directive>() {
            return complain(&error.to_string());
        }
    }
    Ok(())
}

/// The directives of a filter: commas within `[span{field=value,…}]` do not separate.
fn directives(filter: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    filter
        .split(move |c| {
            match c {
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(str::trim)
}

/// Starts logging as the configuration says.
///
/// # Errors
/// If the log filter cannot be understood.
pub(crate) fn init(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log))
        .with_context(|| format!("log: {:?} is no log filter", config.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(SystemTime);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_directive_by_directive() {
        for good in
            ["info", "OFF", "info,meshd_control=debug", "warn, meshd_tun=trace", "info,meshd[vdc{name=\"a,b\"}]=debug"]
        {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for (bad, named) in [
            ("", "\"\""),
            ("inof", "\"inof\""),
            ("info,meshd_control=loud", "\"meshd_control=loud\""),
            ("info,,", "\"\""),
            ("info,meshd_tun", "\"meshd_tun\""),
            ("debug;libp2p=warn", "\"debug;libp2p=warn\""),
        ] {
            let error = check_filter(bad).expect_err(bad);
            assert!(error.contains(named), "{bad}: {error}");
        }
    }
}
