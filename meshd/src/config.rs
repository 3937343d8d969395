//! The daemon's configuration: one TOML file, read once, unknown keys refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where the configuration is looked for unless `--config` says otherwise. A missing file means all defaults.
pub(crate) const DEFAULT_PATH: &str = "/etc/meshd/meshd.toml";

/// Static settings of one daemon. What changes at run time is an API resource, not a setting.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The one directory with everything that must survive.
    pub(crate) state_dir: PathBuf,
    /// The API's unix socket.
    pub(crate) socket: PathBuf,
    /// Log filter: `error`, `warn`, `info`, `debug`, `trace`, or per target (`info,meshd_control=debug`).
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    pub(crate) network: Network,
    pub(crate) dns: Dns,
    pub(crate) workloads: Workloads,
    pub(crate) remote: Remote,
    pub(crate) coordination: Coordination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// UDP port of the data plane: WireGuard of all VDCs.
    pub(crate) port: u16,
    /// UDP and TCP port of the first VDC's member links; each further VDC uses ten more.
    pub(crate) control_port: u16,
    /// UDP and TCP port of the first VDC's join door, open on registrars only; each further VDC uses ten more.
    pub(crate) door_port: u16,
    /// Names or addresses by which this box is reached from outside (`paris.example.net`, `203.0.113.7`), most
    /// preferred first. A DNS name survives a change of every address.
    pub(crate) advertise: Vec<String>,
    /// Find members on the local network by multicast DNS.
    pub(crate) mdns: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DnsMode {
    /// systemd-resolved where it runs, the stub address elsewhere.
    Auto,
    Resolved,
    Stub,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dns {
    pub(crate) mode: DnsMode,
    /// Where the stub answers.
    pub(crate) stub: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Workloads {
    /// `crun` or `runc`, by path, instead of meshd's own parent of containers: without terminals, logs, attach and exec.
    #[serde(deserialize_with = "path_or_none")]
    pub(crate) runtime: Option<PathBuf>,
    /// meshd's own parent of containers, unless it lies beside the daemon or where packages put it.
    #[serde(deserialize_with = "path_or_none")]
    pub(crate) shim: Option<PathBuf>,
    /// The control group below which containers are, absolute below each hierarchy's mount.
    pub(crate) cgroup: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Remote {
    /// Let nodes with the role operator run containers here and see all of them.
    pub(crate) accept_operators: bool,
    /// Directories of this host that containers which they run may have as volumes.
    pub(crate) volumes: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Coordination {
    /// After how many seconds a voter of a coordination group that does not answer is replaced.
    pub(crate) replace_after_s: u64,
    /// How many seconds a node must have answered before it becomes a voter.
    pub(crate) steady_after_s: u64,
}

impl Default for Coordination {
    fn default() -> Self {
        Self { replace_after_s: 600, steady_after_s: 15 }
    }
}

/// An empty path stands for none, so that a file can show the default.
fn path_or_none<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<PathBuf>, D::Error> {
    PathBuf::deserialize(text).map(|path| Some(path).filter(|path| !path.as_os_str().is_empty()))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/meshd".into(),
            socket: "/run/meshd/meshd.sock".into(),
            log: "info".into(),
            log_format: LogFormat::Text,
            network: Network::default(),
            dns: Dns::default(),
            workloads: Workloads::default(),
            remote: Remote::default(),
            coordination: Coordination::default(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { port: 4710, control_port: 4712, door_port: 4713, advertise: vec![], mdns: true }
    }
}

impl Default for Workloads {
    fn default() -> Self {
        Self { runtime: None, shim: None, cgroup: "/meshd".into() }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self { mode: DnsMode::Auto, stub: meshd_dns::STUB }
    }
}

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {path} is not valid")]
    Parse {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error("the configuration {path} is not valid: {why}")]
    Value { path: PathBuf, why: String },
}

impl Config {
    /// Reads and checks the file. `path` none: the default path, where a missing file means defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and, where it can, the line and key.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if !required && e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let config: Self =
            toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        config.check().map_err(|why| ConfigError::Value { path: path.to_owned(), why })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let network = &self.network;
        let ports = [network.port, network.control_port, network.door_port];
        if ports.contains(&0) || ports[0] == ports[1] || ports[1] == ports[2] || ports[0] == ports[2] {
            return Err(format!(
                "network.port, control_port and door_port must be three different ports, got {ports:?}"
            ));
        }
        if network.advertise.len() > 8 {
            return Err("network.advertise takes at most 8 names or addresses".into());
        }
        crate::logging::check_filter(&self.log)?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let cgroup = &self.workloads.cgroup;
        if !cgroup.strip_prefix('/').is_some_and(|path| path.split('/').all(plain)) {
            return Err(format!("workloads.cgroup is an absolute path such as /meshd, got {cgroup:?}"));
        }
        let Coordination { replace_after_s: replace, steady_after_s: steady } = self.coordination;
        if !(5..=86_400).contains(&replace) || !(1..=3_600).contains(&steady) {
            return Err(format!(
                "coordination.replace_after_s is 5 to 86400 and steady_after_s 1 to 3600, got {replace} and {steady}"
            ));
        }
        let plain_path =
            |path: &&PathBuf| !path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if let Some(path) = self.remote.volumes.iter().find(plain_path) {
            return Err(format!("remote.volumes: {} has .. in it", path.display()));
        }
        let programs = self.workloads.runtime.iter().chain(&self.workloads.shim);
        for path in programs.chain(&self.remote.volumes).chain([&self.state_dir, &self.socket]) {
            if !path.is_absolute() {
                return Err(format!("{} must be an absolute path", path.display()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
        std::fs::write(file.path(), text).map_err(|e| e.to_string())?;
        Config::load(Some(file.path())).map_err(|e| {
            let source = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            format!("{e}: {source}")
        })
    }

    #[test]
    fn empty_file_means_defaults_and_all_keys_can_be_set() {
        assert_eq!(load("").expect("valid"), Config::default());
        let config =
            load("log_format = 'json'\n[network]\nport = 51820\nadvertise = ['a.example.net']\n[dns]\nmode = 'off'")
                .expect("valid");
        assert_eq!((config.network.port, config.log_format), (51820, LogFormat::Json));
    }

    #[test]
    fn errors_name_the_key() {
        for (text, name) in [
            ("prot = 1", "prot"),
            ("[network]\nprot = 1", "prot"),
            ("[network]\nport = 4712", "three different"),
            ("log = 'info,meshd_tun=loud'", "meshd_tun=loud"),
            ("log = 'inof'", "inof"),
            ("state_dir = 'x'", "absolute"),
            ("[dns]\nmode = 'magic'", "magic"),
            ("[coordination]\nreplace_after_s = 1", "replace_after_s"),
            ("= 1", "line 1"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.contains(name), "{text}: {error}");
        }
        let error = Config::load(Some(Path::new("/nonexistent/meshd.toml"))).expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/meshd.toml"), "{error}");
    }

    /// Every key as `section.key`, read off what serde says it expects when it meets an unknown one.
    fn all_keys(section: &str) -> Vec<String> {
        let Err(error) = load(&format!("{section}\n\"no such key\" = 1")) else { return vec![] };
        let Some((_, expected)) = error.split_once("unknown field `no such key`, expected ") else { return vec![] };
        let names = expected.split('`').skip(1).step_by(2);
        let prefix = section.trim_matches(['[', ']']);
        let mut keys = vec![];
        for name in names {
            let nested = if prefix.is_empty() { all_keys(&format!("[{name}]")) } else { vec![] };
            match (nested.is_empty(), prefix.is_empty()) {
                (false, _) => keys.extend(nested),
                (true, true) => keys.push(name.to_owned()),
                (true, false) => keys.push(format!("{prefix}.{name}")),
            }
        }
        keys
    }

    #[test]
    fn reference_page_has_every_key_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let (_, rest) = page.split_once("```toml\n").expect("a block with all keys");
        let (block, _) = rest.split_once("```").expect("the block ends");
        assert_eq!(load(block).expect("the block is valid"), Config::default(), "the block shows the defaults");
        let shown: toml::Table = block.parse().expect("the block is TOML");
        let keys = all_keys("");
        assert!(keys.contains(&"network.port".to_owned()) && keys.contains(&"state_dir".to_owned()), "{keys:?}");
        for key in keys {
            let value = match key.split_once('.') {
                Some((section, name)) => shown.get(section).and_then(|table| table.get(name)),
                None => shown.get(&key),
            };
            assert!(value.is_some(), "{key} is missing in the block of docs/configuration.md");
            assert!(page.contains(&format!("| `{key}` |")), "{key} is not explained in docs/configuration.md");
        }
    }
}
