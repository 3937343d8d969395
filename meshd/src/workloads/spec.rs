//! What a user asks for, checked, and the request to the driver that comes of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use vdc::Name;
use vdc::record::{PortRange, Protocol};
use vdc_api::{self as api, ApiError};
use workloads_container as container;
use workloads_image::{HealthCheck, ImageConfig};

use crate::views;

/// Where programs are looked for if neither the image nor the user says so.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between the stop signal and SIGKILL, unless the user says otherwise.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Longest grace.
const STOP_GRACE_S_MAX: u32 = 86_400;
/// SIGTERM, for images that name no other.
const STOP_SIGNAL: u8 = 15;
/// Ports, publications, volumes and labels of one workload, each.
const LIST_MAX: usize = 64;
/// Words and variables of one workload; the driver bounds their bytes.
const WORDS_MAX: usize = 4_096;
/// The smallest limit of memory with which a container still starts.
const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// A port of the host that leads to one of the workload's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    /// All of the host's addresses unless given.
    pub(crate) host: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

impl Publish {
    /// The workload's port.
    pub(crate) fn range(&self) -> PortRange {
        PortRange { protocol: self.protocol, first: self.port, last: self.port }
    }

    fn held(&self) -> container::HeldPort {
        container::HeldPort { address: self.host, port: self.host_port, udp: self.protocol == Protocol::Udp }
    }
}

/// Where a volume's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeSource {
    /// Kept by the daemon under this name.
    Named(Name),
    /// A path of the host.
    Host(PathBuf),
}

/// A volume as the user named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) source: VolumeSource,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// A [`api::WorkloadRun`] whose texts were understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) run: api::WorkloadRun,
    pub(crate) name: Option<Name>,
    pub(crate) ports: Vec<PortRange>,
    pub(crate) publish: Vec<Publish>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) labels: Vec<Name>,
    env: Vec<(String, String)>,
    add_capabilities: Vec<String>,
    drop_capabilities: Vec<String>,
    stop_signal: Option<u8>,
}

/// What the daemon adds to a specification for one start.
pub(crate) struct Place {
    pub(crate) id: container::WorkloadId,
    pub(crate) generation: u64,
    pub(crate) root: container::RootLayers,
    pub(crate) uid_base: u32,
    pub(crate) netns: PathBuf,
    pub(crate) hostname: String,
    pub(crate) resolv_conf: String,
    pub(crate) hosts: String,
    pub(crate) volumes: Vec<container::Volume>,
}

impl Spec {
    /// Reads what the user wrote.
    ///
    /// # Errors
    /// [`ApiError`] naming the field and what it may be.
    pub(crate) fn check(run: api::WorkloadRun) -> Result<Self, ApiError> {
        let name = run.name.as_deref().map(|text| name("name", text)).transpose()?;
        if run.image.is_empty() {
            return Err(ApiError::bad_request("image", "an image is needed")
                .hint("name one: `meshctl run debian:12`, `oci:DIR` or `docker-archive:FILE`"));
        }
        for (field, length, max) in [
            ("ports", run.ports.len(), LIST_MAX),
            ("publish", run.publish.len(), LIST_MAX),
            ("volumes", run.volumes.len(), LIST_MAX),
            ("labels", run.labels.len(), LIST_MAX),
            ("command", run.command.len(), WORDS_MAX),
            ("env", run.env.len(), WORDS_MAX),
        ] {
            if length > max {
                return Err(ApiError::bad_request(field, format!("at most {max} are possible")));
            }
        }
        if run.memory_bytes.is_some_and(|bytes| bytes < MEMORY_BYTES_MIN) {
            return Err(ApiError::bad_request("memory_bytes", "no container starts with less than 4 MiB"));
        }
        if run.io_weight.is_some_and(|weight| !(10..=1_000).contains(&weight)) {
            return Err(ApiError::bad_request("io_weight", "the weight is 10 to 1,000"));
        }
        if run.pids == Some(0) || run.cpu_millis == Some(0) {
            return Err(ApiError::bad_request("pids", "a limit of 0 lets nothing run"));
        }
        if run.stop_grace_s.is_some_and(|seconds| seconds > STOP_GRACE_S_MAX) {
            return Err(ApiError::bad_request("stop_grace_s", "at most a day: 86400"));
        }
        if run.remove && run.restart != api::RestartPolicy::Never {
            return Err(ApiError::bad_request("restart", "a workload that is removed when it ends is not restarted")
                .hint("leave either --rm or --restart out"));
        }
        if let Some(health) = &run.health
            && (health.args.is_empty() || health.retries == 0 || health.interval_ms < 100 || health.timeout_ms < 100)
        {
            return Err(ApiError::bad_request(
                "health",
                "a health check needs a program, at least 1 retry, and 100 ms or more for interval and time-out",
            ));
        }
        let stop_signal = run.stop_signal.as_deref().map(|text| signal("stop_signal", text)).transpose()?;
        Ok(Self {
            name,
            ports: each("ports", &run.ports, |field, text| {
                let spec: Result<api::PortSpec, _> = text.parse();
                spec.map(views::port_range).map_err(|error| ApiError::bad_request(field, error.to_string()))
            })?,
            publish: each("publish", &run.publish, publication)?,
            volumes: each("volumes", &run.volumes, volume)?,
            labels: each("labels", &run.labels, name_of)?,
            env: each("env", &run.env, variable)?,
            add_capabilities: each("add_capabilities", &run.add_capabilities, capability)?,
            drop_capabilities: match run.drop_capabilities.as_slice() {
                [all] if all.eq_ignore_ascii_case("all") => container::CAPABILITIES.iter().map(|&c| c.into()).collect(),
                some => each("drop_capabilities", some, capability)?,
            },
            stop_signal,
            run,
        })
    }

    /// How it is asked to stop, and how long it has.
    pub(crate) fn stop(&self, image: &ImageConfig) -> (u8, Duration) {
        let grace = self.run.stop_grace_s.map_or(STOP_GRACE, |seconds| Duration::from_secs(seconds.into()));
        (self.stop_signal.or(image.stop_signal).unwrap_or(STOP_SIGNAL), grace)
    }

    /// The request to the driver.
    pub(crate) fn request(&self, image: &ImageConfig, place: Place) -> container::StartRequest {
        let run = &self.run;
        let health = match (&run.health, run.no_health) {
            (_, true) => None,
            (Some(given), false) => Some(container::HealthCheck {
                args: given.args.iter().map(|arg| arg.clone().into_bytes()).collect(),
                interval: Duration::from_millis(given.interval_ms),
                timeout: Duration::from_millis(given.timeout_ms),
                retries: given.retries,
                start_period: Duration::from_millis(given.start_period_ms),
            }),
            (None, false) => image.health.as_ref().map(image_health),
        };
        container::StartRequest {
            id: place.id,
            generation: place.generation,
            root: place.root,
            args: self.words(image).into_iter().map(String::into_bytes).collect(),
            env: self.environment(image, &place.hostname),
            workdir: run.workdir.clone().or_else(|| some(&image.workdir)).unwrap_or_else(|| "/".into()),
            user: run.user.clone().unwrap_or_else(|| image.user.clone()),
            tty: run.tty,
            stdin: run.stdin,
            hold_for_attach: run.attach,
            limits: container::Limits {
                memory_bytes: run.memory_bytes,
                cpu_millis: run.cpu_millis,
                pids: run.pids,
                io_weight: run.io_weight,
            },
            security: container::Security {
                privileged: run.privileged,
                user_namespace: !run.host_users,
                add_capabilities: self.add_capabilities.clone(),
                drop_capabilities: self.drop_capabilities.clone(),
                read_only: run.read_only,
                seccomp: !run.no_seccomp,
                no_new_privs: !run.new_privileges,
            },
            volumes: place.volumes,
            held_ports: self.publish.iter().map(Publish::held).collect(),
            health,
            uid_base: place.uid_base,
            netns: place.netns,
            hostname: place.hostname,
            resolv_conf: place.resolv_conf,
            hosts: place.hosts,
            remove: run.remove,
        }
    }

    /// Program and arguments: the image's CMD goes with the image's ENTRYPOINT only.
    fn words(&self, image: &ImageConfig) -> Vec<String> {
        let (entrypoint, own) = match &self.run.entrypoint {
            Some(given) => (given, false),
            None => (&image.entrypoint, true),
        };
        let command = if self.run.command.is_empty() && own { &image.command } else { &self.run.command };
        entrypoint.iter().chain(command).cloned().collect()
    }

    fn environment(&self, image: &ImageConfig, hostname: &str) -> Vec<(String, String)> {
        let mut env: Vec<(String, String)> = vec![("PATH".into(), PATH.into()), ("HOSTNAME".into(), hostname.into())];
        if self.run.tty {
            env.push(("TERM".into(), "xterm".into()));
        }
        for (name, value) in image.env.iter().chain(&self.env) {
            match env.iter_mut().find(|(known, _)| known == name) {
                Some((_, held)) => held.clone_from(value),
                None => env.push((name.clone(), value.clone())),
            }
        }
        env
    }
}

/// A program that is to run in a container that runs already.
///
/// # Errors
/// [`ApiError`] naming the field.
pub(crate) fn exec(request: &api::ExecRequest) -> Result<container::ExecRequest, ApiError> {
    if request.args.is_empty() {
        return Err(ApiError::bad_request("args", "a program is needed").hint("`meshctl exec NAME PROGRAM [ARG…]`"));
    }
    Ok(container::ExecRequest {
        args: request.args.iter().map(|arg| arg.clone().into_bytes()).collect(),
        env: each("env", &request.env, variable)?,
        workdir: request.workdir.clone(),
        user: request.user.clone(),
        tty: request.terminal.map(|size| (size.rows, size.columns)),
        stdin: request.stdin,
    })
}

fn image_health(check: &HealthCheck) -> container::HealthCheck {
    container::HealthCheck {
        args: check.args.iter().map(|arg| arg.clone().into_bytes()).collect(),
        interval: check.interval,
        timeout: check.timeout,
        retries: check.retries,
        start_period: check.start_period,
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn each<T>(
    field: &str,
    texts: &[String],
    read: impl Fn(&str, &str) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    texts.iter().enumerate().map(|(index, text)| read(&format!("{field}[{index}]"), text)).collect()
}

fn name(field: &str, text: &str) -> Result<Name, ApiError> {
    Name::new(text).map_err(|error| {
        ApiError::bad_request(field, format!("{text:?} is no name: {error}"))
            .hint("use lower-case letters, digits and hyphens, 63 at most, a letter or digit first and last")
    })
}

fn name_of(field: &str, text: &str) -> Result<Name, ApiError> {
    name(field, text)
}

fn variable(field: &str, text: &str) -> Result<(String, String), ApiError> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(ApiError::bad_request(field, format!("{text:?} is not KEY=VALUE"))),
    }
}

fn capability(field: &str, text: &str) -> Result<String, ApiError> {
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if container::CAPABILITIES.contains(&full.as_str()) {
        return Ok(full);
    }
    Err(ApiError::bad_request(field, format!("there is no capability {text:?}"))
        .hint("capabilities(7) lists them: NET_RAW, SYS_PTRACE, …"))
}

fn publication(field: &str, text: &str) -> Result<Publish, ApiError> {
    let wrong = || {
        ApiError::bad_request(field, format!("{text:?} is not [IP:]HOST_PORT:PORT[/udp]"))
            .hint("for example `--publish 8080:80` or `--publish 127.0.0.1:5353:53/udp`")
    };
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(wrong()),
    };
    let (front, port) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (host, host_port) = match front.rsplit_once(':') {
        None => (None, front),
        Some((host, host_port)) => {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let is_v6 = host.contains(':');
            let host: IpAddr = bare.unwrap_or(host).parse().map_err(|_| wrong())?;
            if is_v6 && bare.is_none() {
                return Err(wrong());
            }
            (Some(host), host_port)
        }
    };
    let number = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(wrong()),
    };
    Ok(Publish { host, host_port: number(host_port)?, port: number(port)?, protocol })
}

fn volume(field: &str, text: &str) -> Result<Volume, ApiError> {
    let wrong = |why: &str| {
        ApiError::bad_request(field, format!("{text:?} is no volume: {why}"))
            .hint("use NAME:/PATH, /HOST/PATH:/PATH, and :ro behind it for reading only")
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        _ => return Err(wrong("it has two or three parts")),
    };
    let plain = |path: &str| path.starts_with('/') && path.split('/').all(|part| part != "." && part != "..");
    if !plain(target) || target.trim_matches('/').is_empty() {
        return Err(wrong("the path in the container is absolute, without . and .., and not the root"));
    }
    let source = if source.starts_with('/') {
        if !plain(source) {
            return Err(wrong("the path on the host is without . and .."));
        }
        VolumeSource::Host(source.into())
    } else {
        VolumeSource::Named(Name::new(source).map_err(|error| wrong(&error.to_string()))?)
    };
    Ok(Volume { source, target: target.to_owned(), read_only })
}

/// A signal by name, with or without `SIG`, or number.
///
/// # Errors
/// [`ApiError`] naming the field.
pub(crate) fn signal(field: &str, text: &str) -> Result<u8, ApiError> {
    workloads_image::config::signal(text).ok_or_else(|| {
        ApiError::bad_request(field, format!("there is no signal {text:?}"))
            .hint("signal(7) lists them: TERM, HUP, USR1, or a number from 1 to 64")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(change: impl FnOnce(&mut api::WorkloadRun)) -> Result<Spec, ApiError> {
        let mut run = api::WorkloadRun { image: "debian:12".into(), ..api::WorkloadRun::default() };
        change(&mut run);
        Spec::check(run)
    }

    #[test]
    fn publications_are_read_in_all_forms() {
        for (text, expected) in [
            ("8080:80", (None, 8080, 80, Protocol::Tcp)),
            ("127.0.0.1:53:5353/udp", (Some("127.0.0.1"), 53, 5353, Protocol::Udp)),
            ("[::1]:1:65535/tcp", (Some("::1"), 1, 65535, Protocol::Tcp)),
        ] {
            let read = publication("publish[0]", text).expect(text);
            let host = expected.0.map(|host| host.parse().expect("valid"));
            assert_eq!(
                (read.host, read.host_port, read.port, read.protocol),
                (host, expected.1, expected.2, expected.3)
            );
        }
        for text in ["80", ":80", "0:80", "80:0", "a:1:2", "::1:1:2", "1:2/sctp", "1:2:3", "+1:2", "1:70000", ""] {
            let error = publication("publish[0]", text).expect_err(text);
            assert_eq!(error.field.as_deref(), Some("publish[0]"), "{text}");
        }
    }

    #[test]
    fn volumes_are_named_or_of_the_host() {
        let read = volume("volumes[0]", "data:/var/lib:ro").expect("valid");
        assert_eq!((read.source, read.read_only), (VolumeSource::Named(Name::new("data").expect("valid")), true));
        let read = volume("volumes[0]", "/srv/x:/x").expect("valid");
        assert_eq!((read.source, read.target.as_str()), (VolumeSource::Host("/srv/x".into()), "/x"));
        for text in ["x", "x:y", "x:/", "x:/..", "/a/../b:/c", "a:/b:rx", "A b:/c", "a:/b:ro:ro", ":/x"] {
            assert!(volume("volumes[0]", text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("SIGHUP", 1), ("64", 64), ("1", 1), ("SYS", 31)] {
            assert_eq!(signal("signal", text).expect(text), number);
        }
        for text in ["", "0", "65", "SIG", "TERMINATE", "-9"] {
            assert!(signal("signal", text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (field, change) in [
            ("image", (|run| run.image.clear()) as fn(&mut api::WorkloadRun)),
            ("name", |run| run.name = Some("Web".into())),
            ("ports[0]", |run| run.ports = vec!["http".into()]),
            ("env[1]", |run| run.env = vec!["A=1".into(), "=2".into()]),
            ("memory_bytes", |run| run.memory_bytes = Some(1)),
            ("restart", |run| (run.remove, run.restart) = (true, api::RestartPolicy::Always)),
            ("add_capabilities[0]", |run| run.add_capabilities = vec!["FLY".into()]),
            ("stop_signal", |run| run.stop_signal = Some("NO".into())),
            ("io_weight", |run| run.io_weight = Some(1)),
            ("publish", |run| run.publish = vec!["1:1".into(); 65]),
        ] {
            assert_eq!(run(change).expect_err(field).field.as_deref(), Some(field));
        }
    }

    #[test]
    fn words_and_variables_follow_the_image_where_the_user_says_nothing() {
        let image = ImageConfig {
            entrypoint: vec!["/entry".into()],
            command: vec!["serve".into()],
            env: vec![("PATH".into(), "/bin".into()), ("A".into(), "image".into())],
            ..ImageConfig::default()
        };
        let words = |change: fn(&mut api::WorkloadRun)| run(change).expect("valid").words(&image);
        assert_eq!(words(|_| {}), ["/entry", "serve"]);
        assert_eq!(words(|run| run.command = vec!["x".into()]), ["/entry", "x"]);
        assert_eq!(words(|run| run.entrypoint = Some(vec!["sh".into()])), ["sh"]);
        assert_eq!(words(|run| (run.entrypoint, run.command) = (Some(vec![]), vec!["y".into()])), ["y"]);
        let spec = run(|run| run.env = vec!["A=user".into(), "B=".into()]).expect("valid");
        let env = spec.environment(&image, "web");
        let value = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!((value("PATH"), value("A"), value("B")), (Some("/bin"), Some("user"), Some("")));
        assert_eq!(value("HOSTNAME"), Some("web"));
        assert_eq!(spec.stop(&ImageConfig { stop_signal: Some(3), ..image.clone() }).0, 3);
        assert_eq!(spec.stop(&image), (15, Duration::from_secs(10)));
    }
}
