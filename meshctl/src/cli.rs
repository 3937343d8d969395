//! The grammar. Every verb's help ends with examples.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use vdc_api::{FlowSpec, PortSpec};

mod coord;
mod workload;

pub(crate) use coord::{CoordVerb, Homes, RecoverArgs, RestoreArgs};
pub(crate) use workload::{
    Attach, Cp, Exec, ImageVerb, Kill, Logs, On, Ps, Pull, PullChoice, Registry, RestartChoice, Rm, RunArgs, Stats,
    Stop, Users, WorkloadVerb,
};

/// Turn Linux boxes at several sites into one private network.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, subcommand_required = true, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "\
Examples:
  meshctl vdc create acme --site paris     # on the first box
  meshctl invite create --site berlin      # a token for the next one
  meshctl join vdc1.…                      # on that one
  meshctl status

Exit codes: 0 done, 1 failed, 2 usage, 3 meshd cannot be reached, 4 refused or not permitted.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// How results are printed: for people, or as the API's values (streams print one value a line).
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    pub(crate) output: Output,
    /// The VDC that is meant, where this box is in several: its local name, or the first digits of its id.
    #[arg(long, global = true, env = "MESHCTL_VDC", hide_env_values = true, value_name = "NAME")]
    pub(crate) vdc: Option<String>,
    /// Where the daemon listens.
    #[arg(long, global = true, env = "MESHCTL_SOCKET", hide_env_values = true, value_name = "PATH", default_value = vdc_api::SOCKET_PATH)]
    pub(crate) socket: PathBuf,
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub(crate) color: ColorChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    // Variants have no help of their own: clap would spread every option over many lines.
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(flatten)]
    Workload(WorkloadVerb),
    /// Create, list and choose virtual datacenters.
    #[command(subcommand)]
    Vdc(VdcVerb),
    /// Let boxes join.
    #[command(subcommand)]
    Invite(InviteVerb),
    /// Join a VDC by token.
    #[command(after_help = "\
Examples:
  meshctl join vdc1.…
  meshctl join vdc1.… --as customer-a --node-name web1
  meshctl join - < token.txt                # keeps the token out of the process list

The daemon carries on if you press Ctrl-C; the same command then shows the result.")]
    Join(Join),
    /// The node and its VDCs at a glance.
    #[command(after_help = "\
Examples:
  meshctl status
  meshctl status --watch
  meshctl status -o json | jq '.vdcs[].problems'")]
    Status(StatusArgs),
    /// Declare ports at which this host may be reached in the VDC; without ports, list what is declared.
    #[command(after_help = "\
Examples:
  meshctl expose 80 443
  meshctl expose 53/udp 8000-8010/tcp
  meshctl expose                            # what every node declared")]
    Expose(Expose),
    /// Withdraw declared ports.
    #[command(after_help = "\
Examples:
  meshctl unexpose 80
  meshctl unexpose 8000-8010/tcp 53/udp")]
    Unexpose(Unexpose),
    /// Ping a node through the overlay.
    #[command(after_help = "\
Examples:
  meshctl ping berlin1
  meshctl ping -c 3 berlin1.berlin
  meshctl ping -i 0.2 -s 1200 berlin1.berlin.acme.internal

Exit code 0 if anything came back, 1 if nothing did.")]
    Ping(Ping),
    /// How this node reaches the others: paths, round-trip times, handshakes, bytes.
    #[command(after_help = "\
Examples:
  meshctl peers
  meshctl peers berlin1                     # with every candidate address")]
    Peers(Peers),
    /// List, show and revoke nodes.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Add and list sites.
    #[command(subcommand)]
    Site(SiteVerb),
    /// The groups that decide what must be decided once: how they stand, recovery, backup.
    #[command(subcommand)]
    Coord(CoordVerb),
    /// Give a node roles and labels, or take them away.
    #[command(after_help = "\
Examples:
  meshctl grant berlin1 --role operator
  meshctl grant berlin1 --label web --label db
  meshctl grant berlin1 --role operator --remove
  meshctl grant berlin1 --role admin        # where an owner key is kept, or with --key-file

An admin whose role is taken away signs nothing more with meshd's own tools. One that is not trusted any more must be
revoked: only that voids what it signs.")]
    Grant(Grant),
    /// Say how a flow would be judged, and which record decides.
    #[command(after_help = "\
Examples:
  meshctl explain lisbon1 berlin1 80
  meshctl explain lisbon1 berlin1 53/udp
  meshctl explain web.berlin paris1.paris 80   # a workload, as `meshctl expose` lists them
  meshctl explain fd5a:3c71:9e02:1::1 berlin1.berlin icmp")]
    Explain(Explain),
    /// Deny flows at once, everywhere, until lifted.
    #[command(after_help = "\
Examples:
  meshctl block --from lisbon1 --reason 'worm, ticket 812'
  meshctl block --to berlin1 --port 445
  meshctl block --port 3389")]
    Block(Block),
    /// Lift a block.
    #[command(after_help = "\
Examples:
  meshctl unblock e7e7e7e7")]
    Unblock(Unblock),
    /// List active blocks.
    #[command(after_help = "\
Examples:
  meshctl blocks
  meshctl blocks -o json")]
    Blocks,
    /// Leave a VDC: end this node's membership and forget its keys.
    #[command(after_help = "\
Examples:
  meshctl leave --vdc acme
  meshctl leave --force                     # even if nobody is left to admit others")]
    Leave(Leave),
    /// Reach a member at an address given by hand, after every address has changed.
    #[command(after_help = "\
Examples:
  meshctl connect 203.0.113.9:4712
  meshctl connect berlin.example.org:4712 --node berlin1
  meshctl connect '[2001:db8::7]:4712'")]
    Connect(Connect),
    /// Renew this node's membership now.
    #[command(after_help = "\
Examples:
  meshctl renew
  meshctl renew --vdc acme")]
    Renew,
    /// What happened: joins, revocations, changes of path, problems.
    #[command(after_help = "\
Examples:
  meshctl events
  meshctl events -n 20 --vdc acme
  meshctl events --follow -o json")]
    Events(Events),
    /// The versions of meshctl and of the daemon.
    #[command(after_help = "\
Examples:
  meshctl version
  meshctl version -o json")]
    Version,
    /// Write a completion script for a shell.
    #[command(after_help = "\
Examples:
  meshctl completion bash > /etc/bash_completion.d/meshctl
  meshctl completion zsh > /usr/share/zsh/vendor-completions/_meshctl
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish")]
    Completion(Completion),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VdcVerb {
    /// Create a VDC with this box as its first node.
    #[command(after_help = "\
Examples:
  meshctl vdc create acme --site paris
  meshctl vdc create acme --site paris --node-name gw1 --ipv4 10.200.0.0/14
  meshctl vdc create acme --site paris --ipv4 none

The recovery key is printed once. Put it into a safe.")]
    Create(VdcCreateArgs),
    /// List the VDCs of this box.
    #[command(after_help = "\
Examples:
  meshctl vdc list")]
    List,
    /// Choose the VDC that the host's IPv4 routes lead into and that commands mean by default.
    #[command(after_help = "\
Examples:
  meshctl vdc use acme")]
    Use(VdcUse),
    /// Make this node an admin with the recovery key, after the box that created the VDC was lost.
    #[command(after_help = "\
Examples:
  meshctl vdc recover --registrar           # asks for the key without showing it
  meshctl vdc recover --key-file - < /media/safe/acme.key

Then end the lost box with `meshctl node revoke`, and run this again with --registrar: its sites need somebody else now. The key is
used for this one command and kept nowhere. Running it again changes nothing that is as it should be.")]
    Recover(VdcRecoverArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VdcRecoverArgs {
    /// Also become the registrar of this node's site if it has none, and of sites that nobody serves any more.
    #[arg(long)]
    pub(crate) registrar: bool,
    #[command(flatten)]
    pub(crate) key: KeyFile,
}

/// Where the recovery key comes from.
#[derive(Debug, Args)]
pub(crate) struct KeyFile {
    /// File with the recovery key, or `-` for stdin; asked for on the terminal where it is needed and not given.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VdcCreateArgs {
    /// Its name: lower-case letters, digits and '-'.
    #[arg(value_parser = parse_some)]
    pub(crate) name: String,
    /// Name of the first site.
    #[arg(long, value_parser = parse_some)]
    pub(crate) site: String,
    /// This node's name in it; the host name by default.
    #[arg(long, visible_alias = "as", value_name = "NAME", value_parser = parse_some)]
    pub(crate) node_name: Option<String>,
    /// IPv4 range for all sites, or `none` for IPv6 only.
    #[arg(long, value_name = "CIDR|none", value_parser = parse_some)]
    pub(crate) ipv4: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VdcUse {
    /// Local name of the VDC.
    #[arg(value_parser = parse_some)]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InviteVerb {
    /// Make an invite: a token with which a box joins.
    #[command(after_help = "\
Examples:
  meshctl invite create                     # one box for this site, within an hour
  meshctl invite create --site berlin
  meshctl invite create --uses 20 --expires 2d --ephemeral

The token is printed once. Whoever has it can join.")]
    Create(InviteCreateArgs),
    /// List this registrar's invites.
    #[command(after_help = "\
Examples:
  meshctl invite list
  meshctl invite list -o json")]
    List,
    /// End an invite.
    #[command(after_help = "\
Examples:
  meshctl invite revoke 3f3f3f3f")]
    Revoke(InviteRevoke),
}

#[derive(Debug, Args)]
pub(crate) struct InviteCreateArgs {
    /// Site that the box will belong to; this node's by default. A new site is created if this node is an admin.
    #[arg(long, value_name = "SITE", value_parser = parse_some)]
    pub(crate) site: Option<String>,
    /// How many boxes may join with it.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
    /// How long it is good for: 90s, 30m, 1h, 2d.
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    /// Boxes that join with it are gone as soon as their membership is not renewed.
    #[arg(long)]
    pub(crate) ephemeral: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InviteRevoke {
    /// Its id, or the first digits of it.
    #[arg(value_parser = parse_some)]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token, `vdc1.…`, or `-` to read it from stdin.
    #[arg(value_parser = parse_some)]
    pub(crate) token: String,
    /// What this box will call the VDC; the VDC's own name by default.
    #[arg(long = "as", value_name = "NAME", value_parser = parse_some)]
    pub(crate) local_name: Option<String>,
    /// This node's name in the VDC; the host name by default.
    #[arg(long, value_name = "NAME", value_parser = parse_some)]
    pub(crate) node_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show it again and again until Ctrl-C.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Time between two looks.
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = parse_duration, requires = "watch")]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Expose {
    /// PORT or FIRST-LAST, with /tcp or /udp behind it; TCP by default.
    #[arg(value_name = "PORT")]
    pub(crate) ports: Vec<PortSpec>,
}

#[derive(Debug, Args)]
pub(crate) struct Unexpose {
    /// As they were declared.
    #[arg(value_name = "PORT", required = true)]
    pub(crate) ports: Vec<PortSpec>,
}

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Node, `NAME.SITE`, DNS name or overlay address.
    #[arg(value_parser = parse_some)]
    pub(crate) target: String,
    /// Stop after so many requests.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// Seconds between requests, from 0.1 to 60.
    #[arg(short, long, default_value = "1", value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) interval: u32,
    /// Seconds to wait for each reply, from 0.1 to 60.
    #[arg(short = 'W', long, default_value = "1", value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) timeout: u32,
    /// Payload of each request.
    #[arg(short, long, default_value_t = 56, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(16..=1200))]
    pub(crate) size: u16,
    /// Ask the node's daemon over the infra plane (TLS through the tunnel) instead of its host by ICMP.
    #[arg(long)]
    pub(crate) infra: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Peers {
    /// Only this one, with its candidate addresses.
    #[arg(value_parser = parse_some)]
    pub(crate) node: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes of the VDC.
    #[command(after_help = "\
Examples:
  meshctl node list
  meshctl node list -o json | jq -r '.nodes[].fqdn'")]
    List,
    /// Show one node.
    #[command(after_help = "\
Examples:
  meshctl node show berlin1
  meshctl node show berlin1.berlin")]
    Show(NodeShow),
    /// End a node's membership, at once and for good.
    #[command(after_help = "\
Examples:
  meshctl node revoke berlin1 --reason stolen
  meshctl node revoke b2b2b2b2              # by the first digits of its key
  meshctl node revoke lisbon1 --list        # a registrar: what did it sign?
  meshctl node revoke lisbon1 --keep-through 41 --reason stolen

Revoking an admin or registrar closes it: nothing that its key signs from now on counts. What it signed before stays, up to
record 41 in the last example: members that a later record admitted or renewed are void and must join anew.")]
    Revoke(NodeRevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NodeShow {
    /// Node, `NAME.SITE` or the first digits of its key.
    #[arg(value_parser = parse_some)]
    pub(crate) node: String,
}

#[derive(Debug, Args)]
pub(crate) struct NodeRevokeArgs {
    /// Node, `NAME.SITE` or the first digits of its key.
    #[arg(value_parser = parse_some)]
    pub(crate) node: String,
    /// For the audit log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Only list what the node signed for others, and what would be void; changes nothing.
    #[arg(long, conflicts_with_all = ["reason", "key_file"])]
    pub(crate) list: bool,
    /// Last record of an admin or registrar that still counts: everything after it is void. All that is known by default.
    #[arg(long, value_name = "N")]
    pub(crate) keep_through: Option<u64>,
    #[command(flatten)]
    pub(crate) key: KeyFile,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SiteVerb {
    /// Add a site that has its own registrar: prints the founder invite.
    #[command(after_help = "\
Examples:
  meshctl site add lisbon
  meshctl site add lisbon --ipv4 10.80.0.0/20 --expires 7d

The first box that joins with the printed token becomes the site's registrar: it can then admit, renew and revoke nodes of
its site with every other site out of reach.")]
    Add(SiteAddArgs),
    /// List the sites of the VDC.
    #[command(after_help = "\
Examples:
  meshctl site list")]
    List,
}

#[derive(Debug, Args)]
pub(crate) struct SiteAddArgs {
    /// Its name: lower-case letters, digits and '-'.
    #[arg(value_parser = parse_some)]
    pub(crate) name: String,
    /// Its IPv4 block; the next free one by default.
    #[arg(long, value_name = "CIDR", value_parser = parse_some)]
    pub(crate) ipv4: Option<String>,
    /// How long the founder invite is good for: 30m, 1h, 2d.
    #[arg(long, default_value = "1d", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) expires: Duration,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["role", "label"]))]
pub(crate) struct Grant {
    /// Node, `NAME.SITE` or the first digits of its key.
    #[arg(value_parser = parse_some)]
    pub(crate) node: String,
    /// `operator` or `admin`; may be given several times.
    #[arg(long, value_name = "ROLE", value_parser = parse_some)]
    pub(crate) role: Vec<String>,
    /// Label that policy can refer to; may be given several times.
    #[arg(long, value_name = "LABEL", value_parser = parse_some)]
    pub(crate) label: Vec<String>,
    /// Take them away.
    #[arg(long)]
    pub(crate) remove: bool,
    #[command(flatten)]
    pub(crate) key: KeyFile,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Where the flow starts: node, workload (WORKLOAD.SITE) or overlay address.
    #[arg(value_parser = parse_some)]
    pub(crate) source: String,
    /// Where it goes: node, workload or overlay address.
    #[arg(value_parser = parse_some)]
    pub(crate) destination: String,
    /// PORT, PORT/udp or icmp.
    #[arg(value_name = "PORT")]
    pub(crate) flow: FlowSpec,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["from", "to", "port"]))]
pub(crate) struct Block {
    /// Node that may no longer open flows.
    #[arg(long, value_name = "NODE", value_parser = parse_some)]
    pub(crate) from: Option<String>,
    /// Node to which flows are denied.
    #[arg(long, value_name = "NODE", value_parser = parse_some)]
    pub(crate) to: Option<String>,
    /// Port or range, with /tcp or /udp behind it.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<PortSpec>,
    /// For the audit log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Unblock {
    /// Its id, or the first digits of it.
    #[arg(value_parser = parse_some)]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Leave even if nobody is left to admit others, or nobody could be told.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// HOST:PORT of a member's control port.
    #[arg(value_parser = parse_some)]
    pub(crate) address: String,
    /// The node expected there; any member by default.
    #[arg(long, value_name = "NODE", value_parser = parse_some)]
    pub(crate) node: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what happens from now on, until Ctrl-C.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// At most this many, the newest.
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// Only those after this number.
    #[arg(long, value_name = "SEQ")]
    pub(crate) after: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Completion {
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// Refuses the empty string, which scripts produce from unset variables.
fn parse_some(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("it is empty") } else { Ok(text.to_owned()) }
}

/// `90s`, `30m`, `1h30m`, `2d`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a time: use for example 90s, 30m, 1h30m or 2d");
    let (mut total_s, mut number, mut digits) = (0_u64, 0_u64, false);
    for byte in text.bytes() {
        if byte.is_ascii_digit() {
            number = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0'))).ok_or_else(error)?;
            digits = true;
            continue;
        }
        let unit_s = match byte {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            _ => return Err(error()),
        };
        if !digits {
            return Err(error());
        }
        total_s = number.checked_mul(unit_s).and_then(|s| s.checked_add(total_s)).ok_or_else(error)?;
        (number, digits) = (0, false);
    }
    if digits || total_s == 0 { Err(error()) } else { Ok(Duration::from_secs(total_s)) }
}

/// Seconds with a fraction, as milliseconds.
fn parse_seconds(text: &str) -> Result<u32, String> {
    let error = || format!("{text:?} is not a number of seconds from 0.1 to 60");
    let span = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(error)?;
    u32::try_from(span.as_millis()).ok().filter(|ms| (100..=60_000).contains(ms)).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;

    fn for_each_leaf(command: &Command, path: &str, check: &mut dyn FnMut(&str, &Command)) {
        let mut leaf = true;
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            leaf = false;
            for_each_leaf(sub, &format!("{path} {}", sub.get_name()), check);
        }
        if leaf {
            check(path, command);
        }
    }

    #[test]
    fn grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_leaf_has_help_and_examples_that_parse() {
        let mut leaves = 0;
        for_each_leaf(&Cli::command(), "meshctl", &mut |path, command| {
            leaves += 1;
            let about = command.get_about().unwrap_or_else(|| panic!("{path} has no help")).to_string();
            assert!(about.len() > 10, "{path}: {about}");
            let after = command.get_after_help().unwrap_or_else(|| panic!("{path} has no examples")).to_string();
            let examples: Vec<&str> = after.lines().filter_map(|line| line.strip_prefix("  ")).collect();
            assert!(after.starts_with("Examples:") && !examples.is_empty(), "{path}");
            for example in examples {
                check_example(path, example);
            }
            for argument in command.get_arguments().filter(|a| a.get_id() != "shell") {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
        });
        assert!(leaves >= 27, "the walk found the leaves: {leaves}");
    }

    /// The part of the line before a pipe, redirection or comment must be a valid command line of this leaf.
    fn check_example(path: &str, example: &str) {
        let line = example.split(" # ").next().unwrap_or(example);
        let line = line.split(['|', '>', '<']).next().unwrap_or(line);
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        assert!(words.join(" ").starts_with(path), "{path}: {example}");
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{path}: {example}: {error}");
        }
    }

    #[test]
    fn durations_are_read_with_units() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("1h30m", 5_400), ("2d", 172_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "5", "h", "1h5", "0s", "-1s", "1y", "99999999999999999999s", "9999999999999999d", "1 h"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_seconds("0.2"), Ok(200));
        for text in ["0", "0.05", "61", "NaN", "inf", "-1", ""] {
            assert!(parse_seconds(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn grant_and_block_need_something_to_do() {
        assert!(Cli::try_parse_from(["meshctl", "grant", "berlin1"]).is_err());
        assert!(Cli::try_parse_from(["meshctl", "block", "--reason", "x"]).is_err());
        assert!(Cli::try_parse_from(["meshctl", "unexpose"]).is_err());
        assert!(Cli::try_parse_from(["meshctl", "node", "show", ""]).is_err());
    }
}
