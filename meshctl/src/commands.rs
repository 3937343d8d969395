//! From verbs to calls, and from answers to output.

use std::io::Read;
use std::time::Duration;

use clap::CommandFactory;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vdc_api::{
    BlockCreate, ConnectRequest, DEFAULT_VDC, Endpoint, ErrorCode, EventsQuery, ExplainQuery, ExposureChange,
    GrantChange, InviteCreate, IssuedQuery, JoinEvent, JoinRequest, LeaveRequest, NodeRevoke, OwnerKey, PingQuery,
    SiteAdd, StatusQuery, VdcCreate, VdcRecover, Version, endpoint,
};

use crate::cli::{
    Cli, Completion, Events, Global, InviteVerb, Join, KeyFile, NodeVerb, Output, Peers, Ping, SiteVerb, StatusArgs,
    VdcVerb, Verb,
};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::secret;
use crate::show::{self, Show};
use crate::terminal::Terminal;

mod coord;
mod copy;
mod image;
mod logs;
mod ping;
mod workload;

/// A token is below this many bytes.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

/// Runs one command.
pub(crate) async fn run(cli: Cli, terminal: &mut Terminal) -> Result<(), Failure> {
    let Cli { mut global, verb } = cli;
    check_vdc(&mut global, &verb, std::env::var("MESHCTL_VDC").ok().as_deref())?;
    let client = Client::new(global.socket.clone());
    let vdc = global.vdc.as_deref().unwrap_or(DEFAULT_VDC).to_owned();
    let mut run = Run { client, vdc, global, terminal };
    run.verb(verb).await
}

/// `--vdc` chooses among VDCs; where a verb does not choose, it is a mistake that is better told, as is an empty name. What
/// stands in the environment is not meant for one verb: there, both are passed over.
fn check_vdc(global: &mut Global, verb: &Verb, environment: Option<&str>) -> Result<(), Failure> {
    let recovers = matches!(verb, Verb::Vdc(VdcVerb::Recover(_)));
    let chooses = recovers || !matches!(verb, Verb::Vdc(_) | Verb::Join(_) | Verb::Version | Verb::Completion(_));
    let Some(vdc) = global.vdc.as_deref() else { return Ok(()) };
    if chooses && !vdc.is_empty() {
        return Ok(());
    }
    if environment == Some(vdc) {
        global.vdc = None;
        return Ok(());
    }
    let what = if vdc.is_empty() { "--vdc is empty" } else { "--vdc has no meaning for this command" };
    Err(Failure::new(what).exit(Exit::Usage))
}

struct Run<'a> {
    client: Client,
    vdc: String,
    global: Global,
    terminal: &'a mut Terminal,
}

impl Run<'_> {
    async fn verb(&mut self, verb: Verb) -> Result<(), Failure> {
        let vdc = self.vdc.clone();
        let vdc = vdc.as_str();
        match verb {
            Verb::Workload(verb) => self.workload_verb(verb).await,
            Verb::Vdc(verb) => self.vdc_verb(verb).await,
            Verb::Invite(verb) => self.invite_verb(verb).await,
            Verb::Node(verb) => self.node_verb(verb).await,
            Verb::Site(verb) => self.site_verb(verb).await,
            Verb::Coord(verb) => self.coord_verb(verb).await,
            Verb::Join(args) => self.join(args).await,
            Verb::Status(args) => self.status(args).await,
            Verb::Peers(args) => self.peers(args).await,
            Verb::Ping(args) => self.ping(args).await,
            Verb::Events(args) => self.events(args).await,
            Verb::Version => self.version().await,
            Verb::Completion(args) => self.completion(&args),
            Verb::Expose(args) if args.ports.is_empty() => self.read(endpoint::EXPOSURE_LIST, &[vdc], &()).await,
            Verb::Expose(args) => {
                let add = args.ports.iter().map(ToString::to_string).collect();
                self.change(endpoint::EXPOSURE_CHANGE, &[vdc], &ExposureChange { add, remove: vec![] }).await
            }
            Verb::Unexpose(args) => {
                let remove = args.ports.iter().map(ToString::to_string).collect();
                self.change(endpoint::EXPOSURE_CHANGE, &[vdc], &ExposureChange { add: vec![], remove }).await
            }
            Verb::Grant(args) => {
                let (some, none) = ((args.role, args.label), (vec![], vec![]));
                let (add, remove) = if args.remove { (none, some) } else { (some, none) };
                let (add_roles, add_labels, remove_roles, remove_labels) = (add.0, add.1, remove.0, remove.1);
                let change = GrantChange { add_roles, add_labels, remove_roles, remove_labels, owner_key: None };
                let with_key = |owner_key| GrantChange { owner_key, ..change.clone() };
                self.change_as_owner(endpoint::GRANT, &[vdc, &args.node], args.key, with_key).await
            }
            Verb::Explain(args) => {
                let flow = args.flow.to_string();
                let query = ExplainQuery { source: args.source, destination: args.destination, flow };
                self.read(endpoint::EXPLAIN, &[vdc], &query).await
            }
            Verb::Block(args) => {
                let port = args.port.map(|port| port.to_string());
                let request = BlockCreate { from: args.from, to: args.to, port, reason: args.reason };
                self.change(endpoint::BLOCK_CREATE, &[vdc], &request).await
            }
            Verb::Unblock(args) => self.change(endpoint::BLOCK_LIFT, &[vdc, &args.id], &()).await,
            Verb::Blocks => self.read(endpoint::BLOCK_LIST, &[vdc], &()).await,
            Verb::Leave(args) => self.change(endpoint::LEAVE, &[vdc], &LeaveRequest { force: args.force }).await,
            Verb::Renew => self.change(endpoint::RENEW, &[vdc], &()).await,
            Verb::Connect(args) => {
                let request = ConnectRequest { address: args.address, node: args.node };
                self.change(endpoint::CONNECT, &[vdc], &request).await
            }
        }
    }

    async fn vdc_verb(&mut self, verb: VdcVerb) -> Result<(), Failure> {
        match verb {
            VdcVerb::Create(args) => {
                let request = VdcCreate { name: args.name, site: args.site, node: args.node_name, ipv4: args.ipv4 };
                self.change(endpoint::VDC_CREATE, &[], &request).await
            }
            VdcVerb::List => self.read(endpoint::VDC_LIST, &[], &()).await,
            VdcVerb::Recover(args) => {
                let vdc = self.vdc.clone();
                let with_key = |owner_key| VdcRecover { owner_key, registrar: args.registrar };
                self.change_as_owner(endpoint::VDC_RECOVER, &[&vdc], args.key, with_key).await
            }
            VdcVerb::Use(args) => self.change(endpoint::VDC_USE, &[&args.name], &()).await,
        }
    }

    async fn invite_verb(&mut self, verb: InviteVerb) -> Result<(), Failure> {
        let vdc = self.vdc.clone();
        match verb {
            InviteVerb::Create(args) => {
                let expires_s = args.expires.as_secs();
                let request = InviteCreate { site: args.site, uses: args.uses, expires_s, ephemeral: args.ephemeral };
                self.change(endpoint::INVITE_CREATE, &[&vdc], &request).await
            }
            InviteVerb::List => self.read(endpoint::INVITE_LIST, &[&vdc], &()).await,
            InviteVerb::Revoke(args) => self.change(endpoint::INVITE_REVOKE, &[&vdc, &args.id], &()).await,
        }
    }

    async fn node_verb(&mut self, verb: NodeVerb) -> Result<(), Failure> {
        let vdc = self.vdc.clone();
        match verb {
            NodeVerb::List => self.read(endpoint::NODE_LIST, &[&vdc], &()).await,
            NodeVerb::Show(args) => self.read(endpoint::NODE_SHOW, &[&vdc, &args.node], &()).await,
            NodeVerb::Revoke(args) if args.list => {
                let query = IssuedQuery { keep_through: args.keep_through };
                self.read(endpoint::NODE_ISSUED, &[&vdc, &args.node], &query).await
            }
            NodeVerb::Revoke(args) => {
                let (reason, keep_through) = (args.reason, args.keep_through);
                let with_key = |owner_key| NodeRevoke { reason: reason.clone(), keep_through, owner_key };
                self.change_as_owner(endpoint::NODE_REVOKE, &[&vdc, &args.node], args.key, with_key).await
            }
        }
    }

    async fn site_verb(&mut self, verb: SiteVerb) -> Result<(), Failure> {
        let vdc = self.vdc.clone();
        match verb {
            SiteVerb::Add(args) => {
                let request = SiteAdd { name: args.name, ipv4: args.ipv4, expires_s: args.expires.as_secs() };
                self.change(endpoint::SITE_ADD, &[&vdc], &request).await
            }
            SiteVerb::List => self.read(endpoint::SITE_LIST, &[&vdc], &()).await,
        }
    }

    async fn join(&mut self, args: Join) -> Result<(), Failure> {
        let token = if args.token == "-" { read_token()? } else { args.token };
        let request = JoinRequest { token, name: args.local_name, node: args.node_name };
        let progress = Progress::new(self.terminal.err, self.terminal.err_is_terminal());
        let mut interrupt = Interrupt::catch();
        let work = async {
            let mut events = self.client.stream(endpoint::JOIN, &[], &(), &request).await?;
            loop {
                match events.next().await? {
                    Some(JoinEvent::Step(step)) => self.terminal.note(&progress.step(&step)),
                    Some(JoinEvent::Joined(joined)) => return Ok(joined),
                    None => return Err(Failure::new("meshd ended the join without a result").exit(Exit::NoDaemon)),
                }
            }
        };
        let joined = tokio::select! {
            // cancel-safe: nothing is read after the other arm wins.
            joined = work => joined,
            // cancel-safe: see there.
            () = interrupt.pressed() => Err(Failure::new("interrupted; meshd goes on with the join")
                .exit(Exit::Interrupted)
                .hint("see how it went with `meshctl status`, or run the same command again")),
        };
        if joined.is_err() {
            self.terminal.note(progress.end());
        }
        self.print(&*joined?)
    }

    async fn status(&mut self, args: StatusArgs) -> Result<(), Failure> {
        let query = StatusQuery { vdc: self.global.vdc.clone() };
        if !args.watch {
            return self.read(endpoint::STATUS, &[], &query).await;
        }
        let mut ticks = tokio::time::interval(args.interval.max(Duration::from_millis(500)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let status = self.client.read(endpoint::STATUS, &[], &query).await?;
            let text = match self.global.output {
                Output::Json => show::json_line(&status)?,
                // Home, then clear line by line and what is below: no flicker.
                Output::Table if self.terminal.out_is_terminal() => {
                    let text = show::harmless(&status)?.show(self.terminal.out);
                    format!("\u{1b}[H{}\u{1b}[J", text.replace('\n', "\u{1b}[K\n"))
                }
                Output::Table => show::harmless(&status)?.show(self.terminal.out) + "\n",
            };
            self.terminal.print(&text)?;
        }
    }

    async fn peers(&mut self, args: Peers) -> Result<(), Failure> {
        let vdc = self.vdc.clone();
        let Some(wanted) = args.node else { return self.read(endpoint::PEERS, &[&vdc], &()).await };
        let list = self.client.read(endpoint::PEERS, &[&vdc], &()).await?;
        let is_meant = |peer: &&vdc_api::PeerView| {
            peer.node == wanted
                || format!("{}.{}", peer.node, peer.site) == wanted
                || (wanted.len() >= 4 && peer.key.starts_with(&wanted))
        };
        let found: Vec<_> = list.peers.iter().filter(is_meant).collect();
        match found.as_slice() {
            [peer] => {
                let text = match self.global.output {
                    Output::Json => show::json(peer)?,
                    Output::Table => show::peer(&show::harmless(*peer)?, self.terminal.out),
                };
                self.terminal.print(&text)
            }
            [] => Err(Failure::new(format!("no peer is called {wanted}")).hint("list them with `meshctl peers`")),
            _ => Err(Failure::new(format!("{wanted} is the name of several peers"))
                .exit(Exit::Usage)
                .hint("write it as NAME.SITE, or use the first digits of the key")),
        }
    }

    async fn ping(&mut self, args: Ping) -> Result<(), Failure> {
        let vdc = self.vdc.clone();
        let query = PingQuery {
            target: args.target,
            count: args.count,
            interval_ms: args.interval,
            timeout_ms: args.timeout,
            size_bytes: args.size,
            infra: args.infra,
        };
        let mut interrupt = Interrupt::catch();
        let mut summary = ping::Summary::default();
        let mut events = self.client.stream(endpoint::PING, &[&vdc], &query, &()).await?;
        let ended = loop {
            let event = tokio::select! {
                // cancel-safe: see `Items::next`.
                event = events.next() => event,
                // cancel-safe: see there.
                () = interrupt.pressed() => break Ok(()),
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            };
            summary.add(&event);
            let text = match self.global.output {
                Output::Json => show::json_line(&event)?,
                Output::Table => summary.line(&show::harmless(&event)?),
            };
            self.terminal.print(&text)?;
        };
        if self.global.output == Output::Table {
            self.terminal.print(&summary.end())?;
        }
        ended?;
        if summary.received() > 0 { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
    }

    async fn events(&mut self, args: Events) -> Result<(), Failure> {
        let query = EventsQuery { vdc: self.global.vdc.clone(), after: args.after, limit: Some(args.limit) };
        if !args.follow {
            return self.read(endpoint::EVENTS, &[], &query).await;
        }
        let mut events = self.client.stream(endpoint::EVENTS_STREAM, &[], &query, &()).await?;
        while let Some(event) = events.next().await? {
            let text = match self.global.output {
                Output::Json => show::json_line(&event)?,
                Output::Table => show::harmless(&event)?.show(self.terminal.out),
            };
            self.terminal.print(&text)?;
        }
        Ok(())
    }

    async fn version(&mut self) -> Result<(), Failure> {
        let daemon = self.client.read(endpoint::VERSION, &[], &()).await;
        let versions = Versions { meshctl: env!("CARGO_PKG_VERSION"), meshd: daemon.as_ref().ok().cloned() };
        let text = match (self.global.output, daemon) {
            (Output::Json, _) => show::json(&versions)?,
            (Output::Table, Ok(daemon)) => {
                let commit = daemon.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
                let line = format!("meshd {}{commit}, API {}", daemon.daemon, daemon.api);
                format!("meshctl {}\n{}\n", versions.meshctl, show::harmless_text(&line))
            }
            (Output::Table, Err(failure)) => format!("meshctl {}\nmeshd: {}\n", versions.meshctl, failure.message),
        };
        self.terminal.print(&text)
    }

    fn completion(&mut self, args: &Completion) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(args.shell, &mut Cli::command(), "meshctl", &mut script);
        self.terminal.print(&String::from_utf8_lossy(&script))
    }

    async fn read<Q, R>(&mut self, endpoint: Endpoint<Q, (), R>, parts: &[&str], query: &Q) -> Result<(), Failure>
    where
        Q: Serialize,
        R: Serialize + DeserializeOwned + Show,
    {
        let answer = self.client.read(endpoint, parts, query).await?;
        self.print(&answer)
    }

    async fn change<B, R>(&mut self, endpoint: Endpoint<(), B, R>, parts: &[&str], body: &B) -> Result<(), Failure>
    where
        B: Serialize,
        R: Serialize + DeserializeOwned + Show,
    {
        let answer = self.client.change(self.terminal, endpoint, parts, body).await?;
        self.print(&answer)
    }

    /// Changes something for which an owner key may be needed: the one of the file, or one that is asked for when the daemon
    /// says that it is needed.
    async fn change_as_owner<B, R>(
        &mut self,
        endpoint: Endpoint<(), B, R>,
        parts: &[&str],
        key: KeyFile,
        with_key: impl Fn(Option<OwnerKey>) -> B,
    ) -> Result<(), Failure>
    where
        B: Serialize,
        R: Serialize + DeserializeOwned + Show,
    {
        let key = key.key_file.map(|path| secret::read_key(&path)).transpose()?;
        let given = key.is_some();
        let answer = self.client.change(self.terminal, endpoint, parts, &with_key(key)).await;
        let answer = match answer {
            Err(failure) if failure.code == Some(ErrorCode::OwnerKeyNeeded) && !given && secret::can_ask() => {
                let key = secret::ask_key(&show::harmless_text(&failure.message))?;
                self.client.change(self.terminal, endpoint, parts, &with_key(Some(key))).await?
            }
            answer => answer?,
        };
        self.print(&answer)
    }

    fn print<T: Serialize + DeserializeOwned + Show>(&mut self, value: &T) -> Result<(), Failure> {
        let text = match self.global.output {
            Output::Json => show::json(value)?,
            Output::Table => show::harmless(value)?.show(self.terminal.out),
        };
        self.terminal.print(&text)
    }
}

/// What `version` prints as JSON.
#[derive(Debug, Serialize)]
struct Versions {
    meshctl: &'static str,
    /// None if the daemon could not be asked.
    meshd: Option<Version>,
}

fn read_token() -> Result<String, Failure> {
    let mut token = String::new();
    std::io::stdin()
        .lock()
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut token)
        .map_err(|error| Failure::new("cannot read the token from stdin").caused_by(&error))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(Failure::new("there is no token on stdin").exit(Exit::Usage));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn vdc_must_be_a_name_that_the_verb_can_use() {
        for (words, environment, expected) in [
            (vec!["meshctl", "renew", "--vdc", "acme"], None, Ok(Some("acme"))),
            (vec!["meshctl", "renew", "--vdc", "acme"], Some("acme"), Ok(Some("acme"))),
            (vec!["meshctl", "renew", "--vdc", ""], None, Err(())),
            (vec!["meshctl", "renew", "--vdc", ""], Some(""), Ok(None)),
            (vec!["meshctl", "vdc", "recover", "--vdc", "acme"], None, Ok(Some("acme"))),
            (vec!["meshctl", "vdc", "list", "--vdc", "acme"], None, Err(())),
            (vec!["meshctl", "vdc", "list", "--vdc", "acme"], Some("acme"), Ok(None)),
        ] {
            let Cli { mut global, verb } = Cli::try_parse_from(&words).expect("valid words");
            let result = check_vdc(&mut global, &verb, environment).map(|()| global.vdc.as_deref());
            assert_eq!(result.map_err(|failure| assert_eq!(failure.exit, Exit::Usage)), expected, "{words:?}");
        }
    }
}
