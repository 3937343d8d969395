//! Running, listing and ending containers.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vdc_api::{
    AttachRequest, ErrorCode, ExecRequest, HealthSpec, Phase, PullPolicy, RegistryAccess, RemoveQuery, RestartPolicy,
    RunEvent, SignalRequest, StatsEvent, StatsQuery, StopRequest, WaitQuery, WorkloadRun, WorkloadView, endpoint,
};

use super::Run;
use crate::cli::{
    Attach, Exec, Kill, On, Output, Ps, PullChoice, Registry, RestartChoice, Rm, RunArgs, Stats, Stop, Users,
    WorkloadVerb,
};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::progress::Bar;
use crate::raw;
use crate::session::{Ended, Takes, talk};
use crate::show::{self, Show as _, StatsRow, StatsTable};

/// What `run` and `exec` end with if the program was not started: as container tools do.
const NOT_STARTED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How long the reason of an end without a word is waited for.
const REASON_TIME: Duration = Duration::from_secs(5);
/// Between two looks at what workloads use.
const STATS_STEP: Duration = Duration::from_secs(1);
/// Longest file of variables, certificates, and longest password.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Run<'_> {
    pub(super) async fn workload_verb(&mut self, verb: WorkloadVerb) -> Result<(), Failure> {
        match verb {
            WorkloadVerb::Run(args) => self.run_container(*args).await.map_err(not_started),
            WorkloadVerb::Ps(args) => self.ps(args).await,
            WorkloadVerb::Inspect(args) => {
                let (client, vdc) = self.to(args.on);
                let view = client.read(endpoint::WORKLOAD_SHOW, &[&vdc, &args.workload], &()).await?;
                self.print(&view)
            }
            WorkloadVerb::Logs(args) => self.logs(args).await,
            WorkloadVerb::Exec(args) => self.exec(args).await.map_err(not_started),
            WorkloadVerb::Attach(args) => self.attach(args).await.map_err(not_started),
            WorkloadVerb::Cp(args) => self.cp(args).await,
            WorkloadVerb::Stats(args) => self.stats(args).await,
            WorkloadVerb::Stop(args) => self.stop(args, false).await,
            WorkloadVerb::Restart(args) => self.stop(args, true).await,
            WorkloadVerb::Start(args) => {
                let (client, vdc) = self.to(args.on);
                self.each(&args.names, async |terminal, name| {
                    client.change(terminal, endpoint::WORKLOAD_START, &[&vdc, name], &()).await
                })
                .await
            }
            WorkloadVerb::Kill(args) => self.kill(args).await,
            WorkloadVerb::Rm(args) => self.rm(args).await,
            WorkloadVerb::Wait(args) => {
                let (client, vdc) = self.to(args.on);
                loop {
                    let waited =
                        client.read(endpoint::WORKLOAD_WAIT, &[&vdc, &args.workload], &WaitQuery::default()).await?;
                    let Some(exit) = waited.exit else { continue };
                    let text = match self.global.output {
                        Output::Json => show::json(&exit)?,
                        Output::Table => format!("{}\n", exit.code),
                    };
                    return self.terminal.print(&text);
                }
            }
            WorkloadVerb::Image(verb) => self.image_verb(verb).await,
        }
    }

    /// Whom the verb asks, and about which VDC.
    pub(super) fn to(&self, on: On) -> (Client, String) {
        (self.client.on(on.on), self.vdc.clone())
    }

    // ---- run

    async fn run_container(&mut self, args: RunArgs) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on.clone());
        let (detach, tty, interactive) = (args.detach, args.tty, args.interactive);
        let request = request(args, client.is_remote())?;
        let mut bar = Bar::new(self.terminal.err, self.terminal.err_is_terminal());
        let mut events = client.stream(endpoint::WORKLOAD_RUN, &[&vdc], &(), &request).await?;
        loop {
            let event = events.next().await;
            if !matches!(event, Ok(Some(RunEvent::Pulling(_)))) {
                self.terminal.note(bar.end());
            }
            match event? {
                Some(RunEvent::Pulling(progress)) => self.terminal.note(&bar.text(&progress)),
                Some(RunEvent::Created { .. }) if detach => {}
                Some(RunEvent::Created { id, .. }) => {
                    let takes = Takes { input: interactive, terminal: tty, signals: !tty };
                    let attach = AttachRequest { terminal: tty.then(raw::size).flatten() };
                    let talked = async {
                        let pipe = client.upgrade(endpoint::WORKLOAD_ATTACH, &[&vdc, &id], &attach).await?;
                        talk(pipe, takes).await
                    };
                    let reason = async {
                        loop {
                            match events.next().await {
                                Err(failure) => return failure,
                                Ok(Some(_)) => {}
                                Ok(None) => std::future::pending().await,
                            }
                        }
                    };
                    tokio::pin!(talked, reason);
                    return tokio::select! {
                        biased;
                        // cancel-safe: nothing follows.
                        ended = &mut talked => match ended {
                            // Whoever read the output has seen enough, or a signal came.
                            Err(failure) if failure.message.is_empty() => Err(failure),
                            // It may not have been started, which the run's own stream says.
                            Ok(Ended::Closed) | Err(_) => match tokio::time::timeout(REASON_TIME, reason).await {
                                Ok(failure) => Err(failure),
                                Err(_) => finish(ended?),
                            },
                            Ok(ended) => finish(ended),
                        },
                        // cancel-safe: see there.
                        failure = &mut reason => Err(failure),
                    };
                }
                Some(RunEvent::Started(view)) => return self.print_started(&view),
                None => return Err(Failure::new("meshd ended the run without a result").exit(Exit::NoDaemon)),
            }
        }
    }

    fn print_started(&mut self, view: &WorkloadView) -> Result<(), Failure> {
        let view = show::harmless(view)?;
        for degraded in &view.degraded {
            self.terminal.note(&format!("note: this node cannot do the {}: {}\n", degraded.what, degraded.why));
        }
        let text = match self.global.output {
            Output::Json => show::json(&view)?,
            Output::Table => format!("{}\n", view.name),
        };
        self.terminal.print(&text)
    }

    async fn exec(&mut self, args: Exec) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let terminal = if args.tty { raw::size().or(Some(DEFAULT_SIZE)) } else { None };
        let request = ExecRequest {
            args: args.program,
            env: args.env.into_iter().filter_map(variable).collect(),
            workdir: args.workdir,
            user: args.user,
            terminal,
            stdin: args.interactive,
        };
        let pipe = client.upgrade(endpoint::WORKLOAD_EXEC, &[&vdc, &args.workload], &request).await?;
        let takes = Takes { input: args.interactive, terminal: args.tty, signals: !args.tty };
        finish(talk(pipe, takes).await?)
    }

    async fn attach(&mut self, args: Attach) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let view = client.read(endpoint::WORKLOAD_SHOW, &[&vdc, &args.workload], &()).await?;
        let request = AttachRequest { terminal: view.spec.tty.then(raw::size).flatten() };
        let pipe = client.upgrade(endpoint::WORKLOAD_ATTACH, &[&vdc, &view.id], &request).await?;
        let input = view.spec.stdin && !args.no_stdin;
        finish(talk(pipe, Takes { input, terminal: view.spec.tty, signals: false }).await?)
    }

    // ---- lists

    async fn ps(&mut self, args: Ps) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let mut list = client.read(endpoint::WORKLOAD_LIST, &[&vdc], &()).await?;
        list.workloads.retain(|workload| args.all || workload.phase != Phase::Exited);
        if args.quiet && self.global.output == Output::Table {
            let ids = list.workloads.iter().map(|workload| format!("{}\n", show::harmless_text(&workload.id)));
            return self.terminal.print(&ids.collect::<String>());
        }
        self.print(&list)
    }

    async fn stats(&mut self, args: Stats) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let mut before: BTreeMap<String, StatsEvent> = BTreeMap::new();
        let live = !args.no_stream && self.terminal.out_is_terminal() && self.global.output == Output::Table;
        loop {
            let names = if args.names.is_empty() {
                let list = client.read(endpoint::WORKLOAD_LIST, &[&vdc], &()).await?;
                let running = list.workloads.into_iter().filter(|workload| workload.phase == Phase::Running);
                running.map(|workload| workload.name).collect()
            } else {
                args.names.clone()
            };
            let mut rows = vec![];
            for name in names {
                let query = StatsQuery { follow: false };
                let asked = client.stream(endpoint::WORKLOAD_STATS, &[&vdc, &name], &query, &()).await;
                let mut stream = match asked {
                    // It ended after it was listed.
                    Err(failure) if args.names.is_empty() && failure.code.is_some_and(is_over) => continue,
                    stream => stream?,
                };
                let Some(now) = stream.next().await? else { continue };
                let last = before.insert(name.clone(), now.clone());
                rows.push(StatsRow { name, cpu_share: last.and_then(|last| share(&last, &now)), now });
            }
            let table = StatsTable { rows };
            let text = match self.global.output {
                Output::Json if args.no_stream => show::json(&table.rows)?,
                Output::Json => table.rows.iter().map(show::json_line).collect::<Result<Vec<_>, _>>()?.concat(),
                Output::Table if live => {
                    format!("\u{1b}[H{}\u{1b}[J", table.show(self.terminal.out).replace('\n', "\u{1b}[K\n"))
                }
                Output::Table => table.show(self.terminal.out),
            };
            self.terminal.print(&text)?;
            if args.no_stream {
                return Ok(());
            }
            tokio::time::sleep(STATS_STEP).await;
        }
    }

    // ---- ends

    async fn stop(&mut self, args: Stop, again: bool) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let request = StopRequest { grace_s: args.time };
        self.each(&args.names, async |terminal, name| {
            let mut view = client.change(terminal, endpoint::WORKLOAD_STOP, &[&vdc, name], &request).await?;
            // Longer than a request may take.
            while view.phase == Phase::Stopping {
                client.read(endpoint::WORKLOAD_WAIT, &[&vdc, name], &WaitQuery::default()).await?;
                match client.read(endpoint::WORKLOAD_SHOW, &[&vdc, name], &()).await {
                    Err(failure) if failure.code == Some(ErrorCode::NotFound) => break,
                    shown => view = shown?,
                }
            }
            if again {
                view = client.change(terminal, endpoint::WORKLOAD_START, &[&vdc, name], &()).await?;
            }
            Ok(view)
        })
        .await
    }

    async fn kill(&mut self, args: Kill) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let request = SignalRequest { signal: args.signal };
        self.each(&args.names, async |terminal, name| {
            client.change(terminal, endpoint::WORKLOAD_SIGNAL, &[&vdc, name], &request).await
        })
        .await
    }

    async fn rm(&mut self, args: Rm) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let query = RemoveQuery { force: args.force };
        self.each(&args.names, async |_, name| client.delete(endpoint::WORKLOAD_REMOVE, &[&vdc, name], &query).await)
            .await
    }

    /// Does the same to several; what fails does not keep the others from it.
    pub(super) async fn each<R: Serialize + show::Brief>(
        &mut self,
        names: &[String],
        work: impl AsyncFn(&mut crate::terminal::Terminal, &str) -> Result<R, Failure>,
    ) -> Result<(), Failure> {
        let (mut done, mut failed) = (vec![], None);
        for name in names {
            match work(self.terminal, name).await {
                Ok(answer) => done.push(answer),
                Err(failure) => {
                    if let Some(before) = failed.replace(failure) {
                        self.terminal.note(&before.render(self.terminal.err));
                    }
                }
            }
        }
        let text = match self.global.output {
            Output::Json => show::json(&done)?,
            Output::Table => done.iter().map(|one| format!("{}\n", show::harmless_text(&one.brief()))).collect(),
        };
        self.terminal.print(&text)?;
        failed.map_or(Ok(()), Err)
    }
}

/// For a program that wants a terminal where the user has none.
const DEFAULT_SIZE: vdc_api::TerminalSize = vdc_api::TerminalSize { rows: 24, columns: 80 };

/// Whether a workload that was there a moment ago is not any more.
fn is_over(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotFound | ErrorCode::NotRunning)
}

/// Processors in use between two looks.
fn share(before: &StatsEvent, now: &StatsEvent) -> Option<f64> {
    let (then, at) = (vdc_api::parse_rfc3339(&before.at)?, vdc_api::parse_rfc3339(&now.at)?);
    let span = at.checked_sub(then).filter(|span| *span > 0)?;
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let share = now.cpu_ns.saturating_sub(before.cpu_ns) as f64 / span as f64;
    Some(share)
}

/// The exit code of a session.
fn finish(ended: Ended) -> Result<(), Failure> {
    match ended {
        Ended::Program(0) | Ended::Detached => Ok(()),
        Ended::Program(code) => Err(Failure::silent(Exit::Program(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))),
        Ended::Closed => Err(Failure::new("the connection to the program broke off")
            .hint("see how it fares with `meshctl ps --all`, and join it again with `meshctl attach`")),
    }
}

/// A program that did not run has exit codes of its own; a program's own status passes.
fn not_started(failure: Failure) -> Failure {
    let code = match (failure.exit, failure.code) {
        (Exit::Program(_) | Exit::Done | Exit::Interrupted, _) => return failure,
        (_, Some(ErrorCode::ProgramNotFound)) => NOT_FOUND,
        (_, Some(ErrorCode::ProgramNotExecutable)) => NOT_EXECUTABLE,
        _ => NOT_STARTED,
    };
    failure.exit(Exit::Program(code))
}

/// What the daemon is asked to run.
fn request(args: RunArgs, remote: bool) -> Result<WorkloadRun, Failure> {
    let mut words = args.image_and_arguments.into_iter();
    let image = words.next().filter(|image| !image.is_empty() && !image.starts_with('-'));
    let image = image.ok_or_else(|| {
        Failure::new("an option that is not known stands where the image is expected")
            .exit(Exit::Usage)
            .hint("see `meshctl run --help`; options of the program stand behind the image")
    })?;
    let mut env = vec![];
    for file in &args.env_file {
        let text = read_file(file)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        env.extend(lines.filter_map(|line| variable(line.to_owned())));
    }
    env.extend(args.env.into_iter().filter_map(variable));
    let has = |option: &str| args.security_opt.iter().any(|given| given == option);
    let health = args.health_cmd.map(|command| HealthSpec {
        args: vec!["/bin/sh".into(), "-c".into(), command],
        interval_ms: millis(args.health_interval),
        timeout_ms: millis(args.health_timeout),
        retries: args.health_retries,
        start_period_ms: millis(args.health_start_period),
    });
    Ok(WorkloadRun {
        image: image_text(&image, remote)?,
        name: args.name,
        command: words.collect(),
        entrypoint: args.entrypoint.map(|program| if program.is_empty() { vec![] } else { vec![program] }),
        env,
        workdir: args.workdir,
        user: args.user,
        tty: args.tty,
        stdin: args.interactive,
        attach: !args.detach,
        ports: args.port.iter().map(ToString::to_string).collect(),
        publish: args.publish,
        volumes: args.volume,
        labels: args.label,
        memory_bytes: args.memory,
        cpu_millis: args.cpus,
        pids: args.pids,
        io_weight: args.io_weight,
        restart: match args.restart {
            RestartChoice::Never => RestartPolicy::Never,
            RestartChoice::OnFailure => RestartPolicy::OnFailure,
            RestartChoice::Always => RestartPolicy::Always,
        },
        stop_signal: args.stop_signal,
        stop_grace_s: args.stop_timeout,
        health,
        no_health: args.no_healthcheck,
        privileged: args.privileged,
        host_users: args.userns == Users::Host,
        add_capabilities: args.cap_add,
        drop_capabilities: args.cap_drop,
        read_only: args.read_only,
        no_seccomp: has("seccomp=unconfined"),
        new_privileges: has("new-privileges"),
        remove: args.rm,
        pull: match args.pull {
            PullChoice::Missing => PullPolicy::Missing,
            PullChoice::Always => PullPolicy::Always,
            PullChoice::Never => PullPolicy::Never,
        },
        registry: access(args.registry, args.interactive)?,
    })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `KEY` alone takes its value from here; without one here, the image's stays.
fn variable(text: String) -> Option<String> {
    if text.contains('=') {
        return Some(text);
    }
    std::env::var(&text).ok().map(|value| format!("{text}={value}"))
}

/// Paths of images are the node's; of this one, they may be relative.
pub(super) fn image_text(image: &str, remote: bool) -> Result<String, Failure> {
    for scheme in ["oci:", "docker-archive:"] {
        let Some(path) = image.strip_prefix(scheme) else { continue };
        if path.starts_with('/') {
            return Ok(image.to_owned());
        }
        if remote {
            return Err(Failure::new(format!("{path} is a path of the other node, and must be absolute"))
                .exit(Exit::Usage)
                .hint(format!("write {scheme}/PATH")));
        }
        let here = std::env::current_dir().map_err(|error| Failure::new("where is this?").caused_by(&error))?;
        let path: PathBuf = here.join(path).components().collect();
        return Ok(format!("{scheme}{}", path.display()));
    }
    Ok(image.to_owned())
}

/// How the registry is spoken to.
pub(super) fn access(registry: Registry, interactive: bool) -> Result<RegistryAccess, Failure> {
    let password = if registry.password_stdin {
        if interactive || std::io::stdin().is_terminal() {
            return Err(Failure::new("standard input is not free for a password")
                .exit(Exit::Usage)
                .hint("pull first: `meshctl image pull --username NAME --password-stdin IMAGE < FILE`"));
        }
        let mut text = String::new();
        let read = std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| Failure::new("cannot read the password from stdin").caused_by(&error))?;
        Some(text.trim_end_matches(['\r', '\n']).to_owned())
    } else {
        None
    };
    let ca_pem = registry.ca.as_deref().map(read_file).transpose()?;
    Ok(RegistryAccess { plain_http: registry.plain_http, ca_pem, username: registry.username, password })
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot read {}", path.display())).caused_by(&error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::new(format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_end_with_their_status_and_refusals_with_codes_of_the_field() {
        let exit = |failure: Failure| not_started(failure).exit;
        let coded = |code| Failure { code: Some(code), ..Failure::new("x") };
        assert_eq!(exit(coded(ErrorCode::ProgramNotFound)), Exit::Program(127));
        assert_eq!(exit(coded(ErrorCode::ProgramNotExecutable)), Exit::Program(126));
        assert_eq!(exit(coded(ErrorCode::PortTaken)), Exit::Program(125));
        assert_eq!(exit(Failure::silent(Exit::Program(7))), Exit::Program(7));
        assert!(finish(Ended::Program(0)).is_ok() && finish(Ended::Detached).is_ok());
        assert_eq!(finish(Ended::Program(143)).expect_err("a status").exit, Exit::Program(143));
    }

    #[test]
    fn paths_of_images_become_absolute_here_and_must_be_elsewhere() {
        let here = std::env::current_dir().expect("somewhere");
        assert_eq!(image_text("oci:./a:1", false), Ok(format!("oci:{}/a:1", here.display())));
        assert_eq!(image_text("oci:/a", true).as_deref(), Ok("oci:/a"));
        assert_eq!(image_text("debian:12", true).as_deref(), Ok("debian:12"));
        assert!(image_text("docker-archive:a.tar", true).is_err());
    }
}
