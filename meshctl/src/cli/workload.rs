//! The grammar of containers and images.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use vdc_api::{LogStream, PortSpec};

use super::{parse_duration, parse_some};

#[derive(Debug, Subcommand)]
pub(crate) enum WorkloadVerb {
    /// Run a container.
    #[command(after_help = "\
Examples:
  meshctl run -d --name web --port 80 --publish 8080:80 registry.example:5000/nginx:1
  meshctl run --rm -it debian:12 bash
  meshctl run --rm -v data:/data -e MODE=fast --memory 256M --cpus 0.5 oci:./image worker
  meshctl run -d --name db --restart always --on site=berlin postgres:16

Without -d the container's input and outputs are yours, and its status is the exit code; Ctrl-P Ctrl-Q leaves it running.
Exit codes: the program's, 125 if it was not started, 126 if it cannot be run, 127 if the image has no such program.")]
    Run(Box<RunArgs>),
    /// List the workloads of a node.
    #[command(after_help = "\
Examples:
  meshctl ps
  meshctl ps --all
  meshctl ps -q --on berlin1                # ids only")]
    Ps(Ps),
    /// Everything about one workload.
    #[command(after_help = "\
Examples:
  meshctl inspect web
  meshctl inspect web -o json | jq .addresses")]
    Inspect(One),
    /// What a workload wrote.
    #[command(after_help = "\
Examples:
  meshctl logs web
  meshctl logs -f --since 10m web           # goes on through restarts of the daemon
  meshctl logs --tail 100 -t web")]
    Logs(Logs),
    /// Run one more program in a running container.
    #[command(after_help = "\
Examples:
  meshctl exec web nginx -t
  meshctl exec -it -u root web sh")]
    Exec(Exec),
    /// Join a running container's input and outputs.
    #[command(after_help = "\
Examples:
  meshctl attach web                        # Ctrl-P Ctrl-Q leaves it running
  meshctl attach --no-stdin web")]
    Attach(Attach),
    /// Copy files out of a container or into it.
    #[command(after_help = "\
Examples:
  meshctl cp web:/etc/nginx/nginx.conf .
  meshctl cp ./site web:/var/www
  meshctl cp web:/var/log - > log.tar       # as a tar stream")]
    Cp(Cp),
    /// What workloads use: processor, memory, processes, network.
    #[command(after_help = "\
Examples:
  meshctl stats
  meshctl stats --no-stream web db")]
    Stats(Stats),
    /// Stop workloads; they stay stopped until they are started.
    #[command(after_help = "\
Examples:
  meshctl stop web
  meshctl stop --time 60 db")]
    Stop(Stop),
    /// Start stopped workloads.
    #[command(after_help = "\
Examples:
  meshctl start web db")]
    Start(Several),
    /// Stop workloads and start them again.
    #[command(after_help = "\
Examples:
  meshctl restart web
  meshctl restart --time 60 db")]
    Restart(Stop),
    /// Send a signal to workloads' first processes.
    #[command(after_help = "\
Examples:
  meshctl kill web
  meshctl kill --signal HUP web")]
    Kill(Kill),
    /// Remove workloads and what they wrote.
    #[command(after_help = "\
Examples:
  meshctl rm web
  meshctl rm --force web db")]
    Rm(Rm),
    /// Wait until a workload has ended, and print its status.
    #[command(after_help = "\
Examples:
  meshctl wait job")]
    Wait(One),
    /// Get, list, name and remove images.
    #[command(subcommand)]
    Image(ImageVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Get an image from a registry.
    #[command(after_help = "\
Examples:
  meshctl image pull debian:12
  meshctl image pull --ca ca.pem registry.example:5000/team/web@sha256:7e3a5c2d8f4b6a1c9e0d2b4f6a8c0e1d3b5f7a9c1e3d5b7f9a1c3e5d7b9f1a3c
  meshctl image pull --username me --password-stdin registry.example/web:1 < password.txt")]
    Pull(Pull),
    /// Take an image from an OCI layout or a file of `docker save`.
    #[command(after_help = "\
Examples:
  meshctl image import oci:./layout:1 --tag localhost/web:1
  meshctl image import docker-archive:./web.tar")]
    Import(Pull),
    /// List the images of a node.
    #[command(after_help = "\
Examples:
  meshctl image ls
  meshctl image ls -o json | jq -r '.images[].names[]'")]
    Ls(On),
    /// Give an image one more name.
    #[command(after_help = "\
Examples:
  meshctl image tag debian:12 localhost/base:1")]
    Tag(Tag),
    /// Take a name from images; an image goes with its last.
    #[command(after_help = "\
Examples:
  meshctl image rm localhost/web:1")]
    Rm(Several),
    /// Remove images without a name that no workload needs.
    #[command(after_help = "\
Examples:
  meshctl image clean")]
    Clean(On),
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct On {
    /// The node to ask instead of this one: its name, NAME.SITE, or site=SITE for any of a site.
    #[arg(long, value_name = "NODE", value_parser = parse_some)]
    pub(crate) on: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its name, or the first digits of its id.
    #[arg(value_parser = parse_some)]
    pub(crate) workload: String,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Several {
    /// Names, or the first digits of ids.
    #[arg(required = true, value_name = "NAME", value_parser = parse_some)]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Those that have ended, too.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Ids only.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Its name, or the first digits of its id.
    #[arg(value_parser = parse_some)]
    pub(crate) workload: String,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Nothing older: a time (2026-03-01T12:00:00Z) or an age (10m, 2h).
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub(crate) since: Option<String>,
    /// Only the last N lines of what is there.
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u32>,
    /// Begin each line with its time.
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Only one of the two outputs.
    #[arg(long, value_name = "stdout|stderr", value_parser = parse_stream)]
    pub(crate) stream: Option<LogStream>,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Its name, or the first digits of its id.
    #[arg(value_parser = parse_some)]
    pub(crate) workload: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<String>,
    /// Its input is yours.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// With a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// A variable above the container's.
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// The user, by name or number, with a group if wanted.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// The directory to begin in.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Its name, or the first digits of its id.
    #[arg(value_parser = parse_some)]
    pub(crate) workload: String,
    /// Only its outputs.
    #[arg(long)]
    pub(crate) no_stdin: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// A path, WORKLOAD:PATH, or - for a tar stream.
    #[arg(value_parser = parse_some)]
    pub(crate) source: String,
    /// A path, WORKLOAD:PATH, or - for a tar stream.
    #[arg(value_parser = parse_some, allow_hyphen_values = true)]
    pub(crate) destination: String,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Names, or the first digits of ids; all that run unless given.
    #[arg(value_name = "NAME", value_parser = parse_some)]
    pub(crate) names: Vec<String>,
    /// Once, and not every second.
    #[arg(long)]
    pub(crate) no_stream: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Names, or the first digits of ids.
    #[arg(required = true, value_name = "NAME", value_parser = parse_some)]
    pub(crate) names: Vec<String>,
    /// Seconds between the stop signal and SIGKILL; the workload's own unless given.
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) time: Option<u32>,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Names, or the first digits of ids.
    #[arg(required = true, value_name = "NAME", value_parser = parse_some)]
    pub(crate) names: Vec<String>,
    /// The signal, by name or number.
    #[arg(short, long, default_value = "KILL", value_parser = parse_some)]
    pub(crate) signal: String,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names, or the first digits of ids.
    #[arg(required = true, value_name = "NAME", value_parser = parse_some)]
    pub(crate) names: Vec<String>,
    /// Kill those that run.
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Registry {
    /// Speak HTTP without TLS to the registry.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// A file with certificates in PEM form that are trusted beside the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Log in to the registry; without it, the node's docker credential files are asked.
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    #[arg(value_parser = parse_some, help = "[REGISTRY/]NAME[:TAG][@DIGEST], oci:DIR[:TAG] or docker-archive:FILE")]
    pub(crate) image: String,
    /// Name it so, too.
    #[arg(long, value_name = "NAME", value_parser = parse_some)]
    pub(crate) tag: Option<String>,
    #[command(flatten)]
    pub(crate) registry: Registry,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// A name, a digest or the first 12 digits of one.
    #[arg(value_parser = parse_some)]
    pub(crate) image: String,
    /// The further name.
    #[arg(value_parser = parse_some)]
    pub(crate) tag: String,
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RestartChoice {
    Never,
    OnFailure,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullChoice {
    Missing,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Users {
    Private,
    Host,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    // One list: whatever stands behind the image is the program's, also what looks like an option.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_names = ["IMAGE", "ARGUMENT"],
        help = "[REGISTRY/]NAME[:TAG][@DIGEST], oci:DIR[:TAG] or docker-archive:FILE; behind it, arguments in place of the image's"
    )]
    pub(crate) image_and_arguments: Vec<String>,
    /// A DNS label: NAME.SITE.VDC.internal leads to it.
    #[arg(long, value_parser = parse_some)]
    pub(crate) name: Option<String>,
    /// Return when it runs.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Remove it when it ends.
    #[arg(long)]
    pub(crate) rm: bool,
    /// Its input is yours.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// With a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// A variable; KEY alone takes its value from here.
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// A file with such variables, one a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// A port that the VDC may reach: 80, 53/udp, 8000-8010.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Vec<PortSpec>,
    /// A port of the host that leads to it.
    #[arg(short, long, value_name = "[IP:]PORT:PORT[/udp]")]
    pub(crate) publish: Vec<String>,
    /// A volume by name, or a path of the host.
    #[arg(short, long, value_name = "SOURCE:PATH[:ro]")]
    pub(crate) volume: Vec<String>,
    /// The directory to begin in.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// The user, by name or number, with a group if wanted.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// The program in place of the image's; empty: none.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// A label for policy, as far as the node's own grant carries it.
    #[arg(short, long, value_name = "LABEL")]
    pub(crate) label: Vec<String>,
    /// The most memory: 64M, 2G.
    #[arg(short, long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) memory: Option<u64>,
    /// The most processors: 0.5, 2.
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(crate) cpus: Option<u32>,
    /// The most processes and threads.
    #[arg(long, value_name = "N")]
    pub(crate) pids: Option<u32>,
    /// Weight among those that use the disks, 10 to 1000.
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) io_weight: Option<u16>,
    /// Whether it is started again when it ends by itself, and after the host's restart.
    #[arg(long, value_enum, default_value_t = RestartChoice::Never, value_name = "WHEN")]
    pub(crate) restart: RestartChoice,
    /// The signal that asks it to stop, in place of the image's.
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stop_timeout: Option<u32>,
    /// A shell's command that tells by its status how it fares.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) health_cmd: Option<String>,
    /// Between two health checks.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_interval: Duration,
    /// After which a health check has failed.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_timeout: Duration,
    /// Failures in a row that make it unhealthy.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) health_retries: u32,
    /// Failures this early do not count.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_start_period: Duration,
    /// Without the image's health check.
    #[arg(long)]
    pub(crate) no_healthcheck: bool,
    /// A capability more: NET_RAW, SYS_PTRACE.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// A capability less, or ALL.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// All capabilities, no filter of system calls, nothing masked; still with users of its own.
    #[arg(long)]
    pub(crate) privileged: bool,
    /// `host`: root in it is root of the host.
    #[arg(long, value_enum, default_value_t = Users::Private, value_name = "WHOSE")]
    pub(crate) userns: Users,
    /// seccomp=unconfined, or new-privileges.
    #[arg(long, value_name = "OPTION", value_parser = ["seccomp=unconfined", "new-privileges"])]
    pub(crate) security_opt: Vec<String>,
    /// The root cannot be written.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// When the registry is asked.
    #[arg(long, value_enum, default_value_t = PullChoice::Missing, value_name = "WHEN")]
    pub(crate) pull: PullChoice,
    #[command(flatten)]
    pub(crate) registry: Registry,
    #[command(flatten)]
    pub(crate) on: On,
}

/// `64M`, `2G`, `1048576`: powers of 1,024, as the field has it.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let error = || format!("{text:?} is not a size: use for example 64M or 2G");
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(error)
}

/// Processors with a fraction, as thousandths.
fn parse_cpus(text: &str) -> Result<u32, String> {
    let error = || format!("{text:?} is not a number of processors: use for example 0.5 or 2");
    let number: f64 = text.parse().map_err(|_| error())?;
    if !(0.001..=1_000_000.0).contains(&number) {
        return Err(error());
    }
    // In range, hence exact enough; whole thousandths are what the kernel is told.
    format!("{:.0}", number * 1_000.0).parse().map_err(|_| error())
}

/// `200ms`, `1.5s`, and what [`parse_duration`] reads; also nothing: `0s`.
fn parse_span(text: &str) -> Result<Duration, String> {
    let milliseconds = text.strip_suffix("ms").and_then(|digits| digits.parse().ok()).map(Duration::from_millis);
    let seconds = || {
        let number: f64 = text.strip_suffix('s')?.parse().ok()?;
        Duration::try_from_secs_f64(number).ok()
    };
    milliseconds.or_else(seconds).map_or_else(|| parse_duration(text), Ok)
}

fn parse_since(text: &str) -> Result<String, String> {
    if vdc_api::parse_rfc3339(text).is_some() {
        return Ok(text.to_owned());
    }
    let age = parse_span(text)
        .map_err(|_| format!("{text:?} is neither a time such as 2026-03-01T12:00:00Z nor an age such as 10m"))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let at = now.saturating_sub(age);
    Ok(vdc_api::rfc3339_ns(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)))
}

fn parse_stream(text: &str) -> Result<LogStream, String> {
    match text {
        "stdout" => Ok(LogStream::Stdout),
        "stderr" => Ok(LogStream::Stderr),
        _ => Err("it is stdout or stderr".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_spans_and_shares_are_read_with_units() {
        for (text, bytes) in
            [("64M", 64 << 20), ("2g", 2 << 30), ("1048576", 1 << 20), ("1KiB", 1_024), ("8mb", 8 << 20)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "0", "99999999999T", "1X"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for (text, millis) in [("0.5", 500), ("2", 2_000), ("0.001", 1)] {
            assert_eq!(parse_cpus(text), Ok(millis), "{text}");
        }
        for text in ["", "0", "-1", "NaN", "inf", "many"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
        for (text, millis) in [("200ms", 200), ("1.5s", 1_500), ("2m", 120_000), ("0s", 0)] {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert!(parse_span("soon").is_err());
        assert_eq!(parse_since("2026-03-01T12:00:00Z").as_deref(), Ok("2026-03-01T12:00:00Z"));
        assert!(parse_since("10m").is_ok_and(|at| vdc_api::parse_rfc3339(&at).is_some()));
        assert!(parse_since("yesterday").is_err());
    }
}
