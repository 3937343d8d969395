//! The configuration of an image: what to run, as whom, where, and the digests of its layers unpacked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::{Digest, DigestError};
use crate::manifest::{CONFIG_BYTES_MAX, LAYERS_MAX, Platform};

/// Longest text of an argument, a value or a path.
const TEXT_BYTES_MAX: usize = 128 << 10;
/// Longest path.
const PATH_BYTES_MAX: usize = 4_096;
/// Most entries of a list: arguments, variables, volumes, ports, labels.
const ENTRIES_MAX: usize = 4_096;
/// Where the signals of real time begin and end on Linux, as the C libraries count them.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// What to run; [`Self::command`] follows it.
    pub entrypoint: Vec<String>,
    /// What to run, or the arguments of [`Self::entrypoint`].
    pub command: Vec<String>,
    /// The environment, in its order.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute.
    pub workdir: String,
    /// As whom: names or numbers, `USER[:GROUP]`; empty is root.
    pub user: String,
    /// Paths that hold data of their own, absolute.
    pub volumes: Vec<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<u8>,
    /// Ports that it listens on, and whether by UDP.
    pub exposed: Vec<(u16, bool)>,
    /// How to ask whether it is well.
    pub health: Option<HealthCheck>,
    /// Labels, ascending by name.
    pub labels: Vec<(String, String)>,
}

/// How to ask a workload whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What to run in it, ready to be executed: a check by shell has its shell in front.
    pub args: Vec<String>,
    /// From the end of one check to the next.
    pub interval: Duration,
    /// How long a check may take.
    pub timeout: Duration,
    /// How many failed checks in a row mean that it is not well.
    pub retries: u32,
    /// How long failures do not count after the start.
    pub start_period: Duration,
}

/// A whole configuration document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// For which machine the image is.
    pub platform: Platform,
    /// When it was made, as it says.
    pub created: Option<String>,
    /// How to run it.
    pub image: ImageConfig,
    /// The digests of the layers' tars, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Why some bytes are no configuration of an image.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Longer than any configuration is.
    #[error("the configuration has {size_bytes} bytes and may have {CONFIG_BYTES_MAX}")]
    TooLong {
        /// How long it is.
        size_bytes: u64,
    },
    /// The bytes are no JSON of a configuration.
    #[error("the configuration cannot be read as JSON of an image")]
    Json(#[source] serde_json::Error),
    /// A digest of a layer that is none.
    #[error("diff_ids of the configuration has an entry that cannot be read")]
    DiffId(#[source] DigestError),
    /// Something in it cannot be used.
    #[error("{field} of the configuration {why}")]
    Field {
        /// Its name in the document.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

#[derive(Deserialize)]
struct RawConfig {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RawImage>,
    rootfs: RawRoot,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawImage {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealth>,
    shell: Option<Vec<String>>,
}

/// A list of words, or (in old images) one word alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHealth {
    test: Option<Vec<String>>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    retries: Option<i64>,
}

/// Reads the configuration of an image.
///
/// # Errors
///
/// [`ConfigError`]: too long, no JSON of a configuration, or something in it that could not be run.
pub fn decode(bytes: &[u8]) -> Result<Config, ConfigError> {
    let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size_bytes > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong { size_bytes });
    }
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
    if raw.rootfs.kind.as_deref().is_some_and(|kind| kind != "layers") {
        return Err(ConfigError::Field { field: "rootfs.type", why: "is not \"layers\"" });
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() > LAYERS_MAX {
        return Err(ConfigError::Field { field: "rootfs.diff_ids", why: "has more entries than layers are taken" });
    }
    let diff_ids = diff_ids.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(ConfigError::DiffId)?;
    let platform = Platform {
        os: raw.os.unwrap_or_else(|| "linux".to_owned()),
        architecture: raw.architecture.unwrap_or_default(),
        variant: raw.variant,
    };
    let created = raw.created.filter(|text| text.len() <= 64 && text.is_ascii());
    Ok(Config { platform: platform.normalized(), created, image: image(raw.config.unwrap_or_default())?, diff_ids })
}

fn image(raw: RawImage) -> Result<ImageConfig, ConfigError> {
    let health = match raw.healthcheck {
        Some(health) => health_check(health, raw.shell)?,
        None => None,
    };
    let labels: Vec<(String, String)> = raw.labels.unwrap_or_default().into_iter().collect();
    bounded("Labels", labels.iter().flat_map(|(name, value)| [name, value]), labels.len())?;
    let user = raw.user.unwrap_or_default();
    bounded("User", [&user], 1)?;
    Ok(ImageConfig {
        entrypoint: words("Entrypoint", raw.entrypoint)?,
        command: words("Cmd", raw.cmd)?,
        env: environment(raw.env.unwrap_or_default())?,
        workdir: absolute("WorkingDir", &raw.working_dir.unwrap_or_default())?,
        user,
        volumes: volumes(raw.volumes.unwrap_or_default())?,
        stop_signal: match raw.stop_signal.filter(|text| !text.is_empty()) {
            Some(text) => Some(signal(&text).ok_or(ConfigError::Field { field: "StopSignal", why: "is no signal" })?),
            None => None,
        },
        exposed: exposed(raw.exposed_ports.unwrap_or_default())?,
        health,
        labels,
    })
}

/// Checks that texts can become C strings and are not beyond all measure.
fn bounded<'a>(
    field: &'static str,
    texts: impl IntoIterator<Item = &'a String>,
    count: usize,
) -> Result<(), ConfigError> {
    if count > ENTRIES_MAX {
        return Err(ConfigError::Field { field, why: "has more entries than are taken" });
    }
    for text in texts {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ConfigError::Field { field, why: "has a text longer than a kernel takes" });
        }
        if text.contains('\0') {
            return Err(ConfigError::Field { field, why: "has a text with a zero byte" });
        }
    }
    Ok(())
}

fn words(field: &'static str, words: Option<Words>) -> Result<Vec<String>, ConfigError> {
    let words = match words {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    };
    bounded(field, &words, words.len())?;
    Ok(words)
}

fn environment(lines: Vec<String>) -> Result<Vec<(String, String)>, ConfigError> {
    bounded("Env", &lines, lines.len())?;
    let mut env: Vec<(String, String)> = Vec::with_capacity(lines.len());
    for line in lines {
        let (name, value) = line.split_once('=').unwrap_or((&line, ""));
        if name.is_empty() {
            return Err(ConfigError::Field { field: "Env", why: "has a variable without a name" });
        }
        // The last one of a name counts, as for every process.
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(env)
}

/// A path made absolute; one with `..` is refused.
fn absolute(field: &'static str, path: &str) -> Result<String, ConfigError> {
    if path.len() > PATH_BYTES_MAX {
        return Err(ConfigError::Field { field, why: "has a path longer than a kernel takes" });
    }
    if path.contains('\0') {
        return Err(ConfigError::Field { field, why: "has a path with a zero byte" });
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(ConfigError::Field { field, why: "has a path with \"..\"" });
    }
    Ok(format!("/{}", parts.join("/")))
}

fn volumes(paths: BTreeMap<String, IgnoredAny>) -> Result<Vec<String>, ConfigError> {
    bounded("Volumes", paths.keys(), paths.len())?;
    let mut volumes = Vec::with_capacity(paths.len());
    for path in paths.keys() {
        let path = absolute("Volumes", path)?;
        if path == "/" {
            return Err(ConfigError::Field { field: "Volumes", why: "names the root itself" });
        }
        volumes.push(path);
    }
    volumes.sort();
    volumes.dedup();
    Ok(volumes)
}

/// Ports are there to be read by people: what is no TCP or UDP port is left out.
fn exposed(ports: BTreeMap<String, IgnoredAny>) -> Result<Vec<(u16, bool)>, ConfigError> {
    bounded("ExposedPorts", ports.keys(), ports.len())?;
    let port = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return None,
        };
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse::<u16>().ok().filter(|number| digits && *number != 0).map(|number| (number, udp))
    };
    let mut ports: Vec<_> = ports.keys().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn health_check(raw: RawHealth, shell: Option<Vec<String>>) -> Result<Option<HealthCheck>, ConfigError> {
    let mut test = raw.test.unwrap_or_default().into_iter();
    let args: Vec<String> = match test.next().as_deref() {
        None | Some("NONE") => return Ok(None),
        Some("CMD") => test.collect(),
        Some("CMD-SHELL") => {
            let shell = shell.filter(|shell| !shell.is_empty());
            let shell = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            shell.into_iter().chain(test.take(1)).collect()
        }
        Some(_) => return Err(ConfigError::Field { field: "Healthcheck", why: "has a test of an unknown kind" }),
    };
    bounded("Healthcheck", &args, args.len())?;
    if args.is_empty() {
        return Ok(None);
    }
    // Nothing and 0 mean the usual value, below 0 nothing can be meant.
    let span = |nanoseconds: Option<i64>, usual: Duration| match u64::try_from(nanoseconds.unwrap_or(0)) {
        Ok(0) => Ok(usual),
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
        Err(_) => Err(ConfigError::Field { field: "Healthcheck", why: "has a time below zero" }),
    };
    let retries = u32::try_from(raw.retries.unwrap_or(0));
    let retries = retries.map_err(|_| ConfigError::Field { field: "Healthcheck", why: "has no number of retries" })?;
    Ok(Some(HealthCheck {
        args,
        interval: span(raw.interval, Duration::from_secs(30))?,
        timeout: span(raw.timeout, Duration::from_secs(30))?,
        retries: if retries == 0 { 3 } else { retries },
        start_period: span(raw.start_period, Duration::ZERO)?,
    }))
}

/// Names of the signals 1 to 31 on x86-64 and aarch64.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// A signal by its number or its name: `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`.
#[must_use]
pub fn signal(text: &str) -> Option<u8> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(text) {
        return text.parse().ok().filter(|number| (1..=RTMAX).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = match rest.strip_prefix('+') {
            Some(offset) if digits(offset) => offset.parse().ok()?,
            None if rest.is_empty() => 0,
            _ => return None,
        };
        return RTMIN.checked_add(offset).filter(|number| *number <= RTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let offset = match rest.strip_prefix('-') {
            Some(offset) if digits(offset) => offset.parse().ok()?,
            None if rest.is_empty() => 0,
            _ => return None,
        };
        return RTMAX.checked_sub(offset).filter(|number| *number >= RTMIN);
    }
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    SIGNALS.iter().position(|known| *known == name).and_then(|index| u8::try_from(index + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: serde_json::Value) -> Result<ImageConfig, ConfigError> {
        let document = serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": [] }, "config": config });
        decode(document.to_string().as_bytes()).map(|config| config.image)
    }

    #[test]
    fn everything_that_an_image_says_is_read() {
        let image = read(serde_json::json!({
            "User": "app:www",
            "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "443": {}, "5/sctp": {}, "0/tcp": {}, "+9/tcp": {}, "x": {} },
            "Env": ["PATH=/bin", "EMPTY=", "LONE", "PATH=/sbin", "A=b=c"],
            "Entrypoint": ["/init", "--"],
            "Cmd": "sh",
            "Volumes": { "/data/": {}, "var//lib": {}, "/data": {} },
            "WorkingDir": "srv/./app/",
            "Labels": { "b": "2", "a": "1" },
            "StopSignal": "SIGQUIT",
            "Healthcheck": { "Test": ["CMD-SHELL", "exit 0"], "Interval": 5_000_000_000_i64, "Retries": 0 },
            "Shell": ["/bin/bash", "-ec"],
            "OnBuild": null,
        }));
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let expected = ImageConfig {
            entrypoint: vec!["/init".to_owned(), "--".to_owned()],
            command: vec!["sh".to_owned()],
            env: pairs(&[("PATH", "/sbin"), ("EMPTY", ""), ("LONE", ""), ("A", "b=c")]),
            workdir: "/srv/app".to_owned(),
            user: "app:www".to_owned(),
            volumes: vec!["/data".to_owned(), "/var/lib".to_owned()],
            stop_signal: Some(3),
            exposed: vec![(53, true), (80, false), (443, false)],
            health: Some(HealthCheck {
                args: ["/bin/bash", "-ec", "exit 0"].map(str::to_owned).to_vec(),
                interval: Duration::from_secs(5),
                timeout: Duration::from_secs(30),
                retries: 3,
                start_period: Duration::ZERO,
            }),
            labels: pairs(&[("a", "1"), ("b", "2")]),
        };
        assert_eq!(image.expect("it is read"), expected);
    }

    #[test]
    fn what_an_image_does_not_say_is_nothing() {
        let nulls = serde_json::json!({
            "User": null, "ExposedPorts": null, "Env": null, "Entrypoint": null, "Cmd": null, "Volumes": null,
            "WorkingDir": null, "Labels": null, "StopSignal": "", "Healthcheck": { "Test": ["NONE"] },
        });
        let nothing = ImageConfig { workdir: "/".to_owned(), ..ImageConfig::default() };
        for config in [nulls, serde_json::json!({}), serde_json::Value::Null] {
            assert_eq!(read(config).expect("it is read"), nothing);
        }
    }

    #[test]
    fn what_could_not_be_run_is_refused_by_its_name() {
        for (config, wrong) in [
            (serde_json::json!({ "WorkingDir": "/a/../../b" }), "WorkingDir"),
            (serde_json::json!({ "WorkingDir": "a\u{0}" }), "WorkingDir"),
            (serde_json::json!({ "Volumes": { "/": {} } }), "Volumes"),
            (serde_json::json!({ "Volumes": { "../x": {} } }), "Volumes"),
            (serde_json::json!({ "Env": ["=x"] }), "Env"),
            (serde_json::json!({ "Env": ["A=\u{0}"] }), "Env"),
            (serde_json::json!({ "Env": vec!["A=1"; ENTRIES_MAX + 1] }), "Env"),
            (serde_json::json!({ "Cmd": ["x".repeat(TEXT_BYTES_MAX + 1)] }), "Cmd"),
            (serde_json::json!({ "StopSignal": "SIGNONE" }), "StopSignal"),
            (serde_json::json!({ "Healthcheck": { "Test": ["RUN", "x"] } }), "Healthcheck"),
            (serde_json::json!({ "Healthcheck": { "Test": ["CMD", "x"], "Interval": -1 } }), "Healthcheck"),
            (serde_json::json!({ "Healthcheck": { "Test": ["CMD", "x"], "Retries": -1 } }), "Healthcheck"),
        ] {
            match read(config) {
                Err(ConfigError::Field { field, .. }) => assert_eq!(field, wrong),
                other => panic!("{wrong}: {other:?}"),
            }
        }
    }

    #[test]
    fn document_without_layers_of_its_own_kind_is_refused() {
        let digest = "sha256:zz";
        for (document, fits) in [
            (r#"{"config":{}}"#.to_owned(), "missing field `rootfs`"),
            (r#"{"rootfs":{"type":"blocks"}}"#.to_owned(), "rootfs.type"),
            (format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#), "diff_ids"),
        ] {
            let error = decode(document.as_bytes()).expect_err("it is refused");
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(format!("{error} {source}").contains(fits), "{error}: {source}");
        }
    }

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, number) in [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigterm", Some(15)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("IOT", Some(6)),
            ("0", None),
            ("65", None),
            ("300", None),
            ("-1", None),
            ("+9", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-31", None),
            ("SIGRTMIN3", None),
            ("SIG", None),
            ("", None),
        ] {
            assert_eq!(signal(text), number, "{text:?}");
        }
    }
}
