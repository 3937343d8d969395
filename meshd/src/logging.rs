//! Logs to standard error: text for people, JSON for collectors.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{Config, LogFormat};

/// Libraries that tell at INFO what concerns only their own developers, addresses among it. The configuration's own
/// filter comes after and wins.
const QUIET: &str = "boringtun=off,hickory_server=warn,libp2p_mdns=off,libp2p=warn,libp2p_swarm=warn,libp2p_quic=warn,quinn=warn,netlink_proto=warn";

/// Starts logging as the configuration says.
///
/// # Errors
/// If the log filter cannot be understood.
pub(crate) fn init(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log))
        .with_context(|| format!("`log = {:?}` is no log filter", config.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(SystemTime);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
