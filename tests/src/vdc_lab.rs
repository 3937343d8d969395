//! Boxes that run the built `meshd`, in a lab: what the end-to-end tests, the demo and the benches share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use meshlab::{Host, Lab, LinkOptions, Output, Service, Signal, Site, SiteOptions, wait_until};
use serde_json::Value;

/// How long anything may take that should take a second or two.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Where a box without systemd-resolved asks for the VDC's names.
pub const DNS_STUB: &str = "127.0.0.77";

/// One built binary. `MESHD_BIN_DIR` names the folder; `cargo xtask` sets it.
///
/// # Errors
/// If it was not built.
pub fn binary(name: &str) -> Result<String> {
    let folder = std::env::var_os("MESHD_BIN_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug")), PathBuf::from);
    let path = folder.join(name);
    ensure!(path.exists(), "{} is missing: cargo build -p meshd -p meshctl -p meshd-shim -p coordbox", path.display());
    Ok(path.canonicalize()?.display().to_string())
}

/// A box with a daemon of its own.
pub struct Node {
    pub host: Host,
    daemon: Option<Service>,
    /// Those that were killed: what they left runs until the lab ends.
    killed: Vec<Service>,
    environment: Vec<(String, String)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.host.name())
    }
}

impl Node {
    /// Starts the daemon on a host, with extra lines of configuration.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start(host: Host, config: &str) -> Result<Self> {
        Self::start_with(host, config, vec![])
    }

    /// Like [`Self::start`], with environment variables for the daemon.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start_with(host: Host, config: &str, environment: Vec<(String, String)>) -> Result<Self> {
        let mut this = Self { host, daemon: None, killed: vec![], environment };
        this.host.write_file("/etc/meshd/meshd.toml", &format!("log = \"info,libp2p=warn,quinn=warn\"\n{config}"))?;
        this.start_daemon()?;
        Ok(this)
    }

    /// Starts the daemon (again) and waits until it answers.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start_daemon(&mut self) -> Result<()> {
        let mut command = self.host.command(binary("meshd")?);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        self.daemon = Some(command.spawn()?);
        wait_until(PATIENCE, "the daemon answers", || self.run(&["vdc", "list"]).is_ok_and(|out| out.is_ok()))?;
        Ok(())
    }

    /// Ends the daemon as a power cut would.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill_daemon(&mut self) -> Result<()> {
        // The daemon alone: containers are its children, and outlive it.
        let daemon = self.daemon.take().context("the daemon runs")?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait(PATIENCE)?;
        self.killed.push(daemon);
        Ok(())
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the daemon runs")?.pid())
    }

    /// Runs `meshctl` and returns whatever it did.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let meshctl = binary("meshctl")?;
        let mut all = vec![meshctl.as_str()];
        all.extend(words);
        Ok(self.host.run(&all)?)
    }

    /// Runs `meshctl -o json`; it must succeed.
    ///
    /// # Errors
    /// If it fails or does not print JSON.
    pub fn ctl(&self, words: &[&str]) -> Result<Value> {
        let mut all = vec!["-o", "json"];
        all.extend(words);
        let output = self.run(&all)?;
        ensure!(output.is_ok(), "meshctl {} on {}: {}", words.join(" "), self.host.name(), output.stderr);
        serde_json::from_str(&output.stdout).with_context(|| format!("meshctl {}: {}", words.join(" "), output.stdout))
    }

    /// Runs `meshctl`; it must fail. Returns its exit code and what it said.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn refused(&self, words: &[&str]) -> Result<(i32, String)> {
        let output = self.run(words)?;
        ensure!(!output.is_ok(), "meshctl {} should have been refused", words.join(" "));
        Ok((output.status.code().unwrap_or(-1), output.stderr))
    }

    /// Founds a VDC on this box.
    ///
    /// # Errors
    /// If it is refused.
    pub fn create(&self, vdc: &str, site: &str) -> Result<Value> {
        self.ctl(&["vdc", "create", vdc, "--site", site, "--node-name", self.host.name()])
    }

    /// A fresh invite to a site.
    ///
    /// # Errors
    /// If it is refused.
    pub fn invite(&self, site: &str) -> Result<String> {
        token(&self.ctl(&["invite", "create", "--site", site])?)
    }

    /// Joins by token under the host's name.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join(&self, token: &str) -> Result<()> {
        let output = self.run(&["join", token, "--node-name", self.host.name()])?;
        ensure!(output.is_ok(), "join on {}: {}{}", self.host.name(), output.stdout, output.stderr);
        Ok(())
    }

    /// This box's part of `status`.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn status(&self) -> Result<Value> {
        let status = self.ctl(&["status"])?;
        Ok(status["vdcs"][0].clone())
    }

    /// This box's own overlay address.
    ///
    /// # Errors
    /// If it is in no VDC.
    pub fn address(&self, family: &str) -> Result<String> {
        let status = self.status()?;
        let address = status["node"]["addresses"][family].as_str();
        Ok(address.with_context(|| format!("no {family} address in {status}"))?.to_owned())
    }

    /// Whether the kernel's ping to an overlay address is answered.
    #[must_use]
    pub fn pings(&self, address: &str) -> bool {
        self.host.run(&["ping", "-n", "-c", "1", "-W", "1", address]).is_ok_and(|output| output.is_ok())
    }

    /// The value of one line of `/metrics`, named with its labels.
    ///
    /// # Errors
    /// If there is no such line.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.host.sh("curl -s --unix-socket /run/meshd/meshd.sock http://localhost/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.with_context(|| format!("no {name} in {text}"))
    }

    /// The codes of the problems that `status` shows for the VDC.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn problems(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let problems = status["problems"].as_array().context("a list of problems")?;
        Ok(problems.iter().filter_map(|p| p["code"].as_str().map(str::to_owned)).collect())
    }

    /// Waits until another box answers over the overlay.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_for(&self, other: &Self) -> Result<()> {
        let address = other.address("ipv6")?;
        wait_until(PATIENCE, "the overlay answers", || self.pings(&address))?;
        Ok(())
    }

    /// Sends the host's questions for names to the documented stub first, as an admin without systemd-resolved does.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn use_dns_stub(&self) -> Result<()> {
        Ok(self.host.write_file("/etc/resolv.conf", &format!("nameserver {DNS_STUB}\n"))?)
    }

    /// Serves one page on a port, on all addresses of both families.
    ///
    /// # Errors
    /// If the server does not come up.
    pub fn serve_page(&self, port: u16, text: &str) -> Result<Service> {
        self.host.write_file(self.host.dir().join("www/index.html"), text)?;
        let folder = self.host.dir().join("www").display().to_string();
        let port_text = port.to_string();
        let server =
            self.host.spawn(&["python3", "-m", "http.server", "--bind", "::", "--directory", &folder, &port_text])?;
        let local = format!("http://[::1]:{port}/");
        wait_until(PATIENCE, "the page is served", || {
            self.host.run(&["curl", "-sf", "-m", "2", &local]).is_ok_and(|output| output.is_ok())
        })?;
        Ok(server)
    }

    /// Fetches a page; `None` if it does not come within five seconds.
    ///
    /// # Errors
    /// If curl cannot be run.
    pub fn fetch(&self, url: &str, family: &str) -> Result<Option<String>> {
        let output = self.host.run(&["curl", "-sf", family, "-m", "5", url])?;
        Ok(output.is_ok().then_some(output.stdout))
    }
}

/// The token of a created invite or added site.
///
/// # Errors
/// If there is none.
pub fn token(created: &Value) -> Result<String> {
    let token = created["token"].as_str().or_else(|| created["invite"]["token"].as_str());
    Ok(token.with_context(|| format!("no token in {created}"))?.to_owned())
}

/// A site 10 ms from the core: 20 ms of round trip add up between two such sites' uplinks at their default of 5 ms.
///
/// # Errors
/// If the namespaces cannot be made.
pub fn site(lab: &Lab, name: &str) -> Result<Site> {
    let link = LinkOptions { delay: Duration::from_millis(5), ..LinkOptions::default() };
    Ok(lab.site(name, SiteOptions { link, ..SiteOptions::default() })?)
}

/// Three sites with one box each, all in the VDC `acme` that paris founded.
pub struct ThreeSites {
    pub sites: [Site; 3],
    pub paris: Node,
    pub berlin: Node,
    pub lisbon: Node,
}

impl std::fmt::Debug for ThreeSites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ThreeSites")
    }
}

impl ThreeSites {
    /// Founds the VDC and joins the others by token.
    ///
    /// # Errors
    /// If anything of it is refused.
    pub fn build(lab: &Lab) -> Result<Self> {
        let sites = [site(lab, "paris")?, site(lab, "berlin")?, site(lab, "lisbon")?];
        let start = |index: usize, name: &str| Node::start(sites[index].host(name)?, "");
        let (paris, berlin, lisbon) = (start(0, "paris1")?, start(1, "berlin1")?, start(2, "lisbon1")?);
        paris.create("acme", "paris")?;
        for (member, name) in [(&berlin, "berlin"), (&lisbon, "lisbon")] {
            member.join(&paris.invite(name)?)?;
        }
        Ok(Self { sites, paris, berlin, lisbon })
    }

    /// Waits until everybody has heard of everybody and reaches them.
    ///
    /// # Errors
    /// If that does not happen in time.
    pub fn wait(&self) -> Result<()> {
        let all = [&self.paris, &self.berlin, &self.lisbon];
        for one in all {
            wait_until(PATIENCE, "three members are known", || {
                one.status().is_ok_and(|s| s["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3))
            })?;
            for other in all {
                if one.host.name() != other.host.name() {
                    one.wait_for(other)?;
                }
            }
        }
        Ok(())
    }
}

/// Runs a body in a lab whose logs are printed when it fails, and returns what it found.
///
/// # Errors
/// Those of the body.
pub fn in_lab<T>(body: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
    meshlab::require_tools(&[
        "ip:iproute2",
        "nft:nftables",
        "nsenter:util-linux",
        "ping:iputils-ping",
        "curl:curl",
        "python3:python3",
        "iperf3:iperf3",
    ])?;
    Lab::builder().seed(7).run(body)
}

/// The exit code and text of a refusal must fit: codes are for scripts, texts for people.
///
/// # Errors
/// If they do not.
pub fn expect_refusal((code, text): (i32, String), expected: i32, parts: &[&str]) -> Result<()> {
    if code != expected || !text.contains("error:") || parts.iter().any(|part| !text.contains(part)) {
        bail!("expected exit {expected} and {parts:?}, got exit {code}:\n{text}");
    }
    Ok(())
}
