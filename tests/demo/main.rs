//! The demo: the README's story with real processes on three simulated sites, as one table of steps and times.
#![expect(clippy::print_stdout, reason = "it prints its story")]

mod web;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use meshlab::{Lab, Service, Site, wait_until};
use tests::containers::ContainerNode;
use tests::steps::{Step, all_done, play, table};
use tests::vdc_lab::{PATIENCE, site};

/// Plays the story of three sites that become one virtual datacenter.
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave the lab running afterwards and print the next commands to try
    #[arg(long)]
    keep: bool,
}

struct World {
    lab: Lab,
    sites: Vec<Site>,
    boxes: Vec<ContainerNode>,
    services: Vec<Service>,
}

const PARIS: usize = 0;
const BERLIN: usize = 1;
const LISBON: usize = 2;
const NAMES: [&str; 3] = ["paris", "berlin", "lisbon"];
const URL: &str = "http://berlin1.berlin.acme.internal/";

const STEPS: &[Step<World>] = &[
    Step { name: "three sites with routers, 20 ms apart, a daemon on each box", run: boot },
    Step { name: "paris: vdc create acme --site paris", run: create },
    Step { name: "berlin and lisbon: join by token", run: join },
    Step { name: "everybody pings everybody over the overlay", run: ping },
    Step { name: "lisbon: berlin's port 80 is closed", run: closed },
    Step { name: "berlin: expose 80; lisbon: curl by name, IPv6 and IPv4", run: curl },
    Step { name: "explain names the deciding record", run: explain },
    Step { name: "iperf3 lisbon to berlin, straight between them", run: traffic },
    Step { name: "berlin's line is cut, and healed", run: cut },
    Step { name: "SIGKILL of berlin's daemon under traffic, restart", run: restart },
    Step { name: "berlin: nginx of Debian packages, pushed to a registry, run by its digest", run: web::run },
    Step { name: "lisbon and paris fetch web.berlin.acme.internal", run: web::fetch },
    Step { name: "SIGKILL of berlin's daemon under requests, restart", run: web::kill },
    Step { name: "berlin: logs and exec of what ran on", run: web::look },
    Step { name: "the VDC's coordination group: what may fail now", run: decide },
    Step { name: "a fourth box joins, is used, and is revoked", run: revoke },
    Step { name: "status and metrics", run: status },
];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let lab = Lab::builder().seed(1).build()?;
    let mut world = World { lab, sites: vec![], boxes: vec![], services: vec![] };
    let rows = play(&mut world, STEPS);
    println!("\n{}", table(&rows));
    if !all_done(&rows) {
        world.lab.print_logs();
        return Ok(ExitCode::FAILURE);
    }
    if arguments.keep {
        println!("The lab keeps running until you press Enter. In another terminal, as root:");
        for member in &world.boxes {
            println!("  {}", member.host.enter_hint());
        }
        println!("and there, for example: meshctl status; meshctl peers; curl {URL}; curl {}", web::URL);
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(world: &mut World) -> Result<String> {
    for name in NAMES {
        let site = site(&world.lab, name)?;
        let host = site.host(&format!("{name}1"))?;
        world.boxes.push(ContainerNode::start(host, "")?);
        world.sites.push(site);
    }
    let target = world.boxes[BERLIN].host.v4().context("IPv4")?.to_string();
    let pinged = world.boxes[PARIS].host.ok(&["ping", "-n", "-q", "-c", "3", "-i", "0.2", &target])?;
    Ok(pinged.lines().last().unwrap_or_default().to_owned())
}

fn create(world: &mut World) -> Result<String> {
    let created = world.boxes[PARIS].create("acme", "paris")?;
    ensure!(created["recovery_key"]["secret"].as_str().is_some_and(|key| key.starts_with("recovery1.")));
    Ok(format!(
        "{}, recovery key printed, {} of {} owners",
        created["vdc"]["ipv6"].as_str().unwrap_or_default(),
        created["recovery_key"]["threshold"],
        created["recovery_key"]["owners"]
    ))
}

fn join(world: &mut World) -> Result<String> {
    let mut times = vec![];
    for index in [BERLIN, LISBON] {
        let token = world.boxes[PARIS].invite(NAMES[index])?;
        let started = Instant::now();
        world.boxes[index].join(&token)?;
        world.boxes[index].wait_for(&world.boxes[PARIS])?;
        times.push(format!("{} ms", started.elapsed().as_millis()));
    }
    Ok(format!("join command to first overlay ping: {}", times.join(", ")))
}

fn ping(world: &mut World) -> Result<String> {
    for from in &world.boxes {
        for to in &world.boxes {
            if from.host.name() != to.host.name() {
                wait_until(PATIENCE, "the roster", || from.ctl(&["node", "show", to.host.name()]).is_ok())?;
                from.wait_for(to)?;
            }
        }
    }
    let pinged = world.boxes[LISBON].run(&["ping", "-c", "3", "-i", "0.2", "berlin1"])?;
    Ok(pinged.stdout.lines().last().unwrap_or_default().to_owned())
}

fn closed(world: &mut World) -> Result<String> {
    let server = world.boxes[BERLIN].serve_page(80, "hello from berlin")?;
    world.services.push(server);
    world.boxes[LISBON].use_dns_stub()?;
    ensure!(world.boxes[LISBON].fetch(URL, "-6")?.is_none(), "it is open");
    Ok("no answer: nothing is allowed that was not declared".into())
}

fn curl(world: &mut World) -> Result<String> {
    world.boxes[BERLIN].ctl(&["expose", "80"])?;
    for family in ["-6", "-4"] {
        wait_until(PATIENCE, "the page", || {
            world.boxes[LISBON].fetch(URL, family).is_ok_and(|text| text.as_deref() == Some("hello from berlin"))
        })?;
    }
    Ok(format!("{URL} answered over both"))
}

fn explain(world: &mut World) -> Result<String> {
    let explained = wait_until(PATIENCE, "lisbon's view", || {
        let explained = world.boxes[LISBON].ctl(&["explain", "lisbon1", "berlin1", "80"]).ok()?;
        (explained["allowed"] == true).then_some(explained)
    })?;
    let record = &explained["decided_by"];
    Ok(format!("{} {} by {}", record["kind"], record["hash"], record["issuer"]))
}

fn traffic(world: &mut World) -> Result<String> {
    world.boxes[BERLIN].ctl(&["expose", "5201", "5201/udp"])?;
    let server = iperf_server(world)?;
    let address = world.boxes[BERLIN].address("ipv6")?;
    let before = world.sites[PARIS].uplink().counters();
    let output = wait_until(PATIENCE, "iperf3 connects", || {
        world.boxes[LISBON].host.ok(&["iperf3", "-c", &address, "-t", "4", "-J"])
    })?;
    // Its last words are still on the way, and the next step cuts the line.
    server.wait(PATIENCE)?;
    let report: serde_json::Value = serde_json::from_str(&output)?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().context("a rate")?;
    let crossed = (world.sites[PARIS].uplink().counters() - before).bytes();
    ensure!(crossed < 1_000_000, "{crossed} bytes crossed paris");
    Ok(format!("{:.0} Mbit/s at 20 ms, nothing of it through paris", bits / 1e6))
}

/// iperf3 on Berlin's box, for one client.
fn iperf_server(world: &World) -> Result<Service> {
    let server = world.boxes[BERLIN].host.spawn(&["iperf3", "-s", "-1", "--forceflush"])?;
    server.wait_for_log(PATIENCE, "listening")?;
    Ok(server)
}

fn cut(world: &mut World) -> Result<String> {
    let address = world.boxes[BERLIN].address("ipv6")?;
    world.sites[BERLIN].uplink().cut();
    wait_until(PATIENCE, "the cut", || !world.boxes[LISBON].pings(&address))?;
    ensure!(world.boxes[PARIS].pings(&world.boxes[LISBON].address("ipv6")?), "the others go on");
    world.sites[BERLIN].uplink().heal();
    let healed = Instant::now();
    wait_until(PATIENCE, "the healing", || world.boxes[LISBON].pings(&address))?;
    Ok(format!("back {} ms after healing", healed.elapsed().as_millis()))
}

fn restart(world: &mut World) -> Result<String> {
    let address = world.boxes[BERLIN].address("ipv6")?;
    let server = iperf_server(world)?;
    let tcp = world.boxes[LISBON].host.spawn(&["iperf3", "-c", &address, "-t", "8", "-b", "20M", "--forceflush"])?;
    tcp.wait_for_log(PATIENCE, "2.00")?;
    let pinging = world.boxes[LISBON].host.spawn(&["ping", "-n", "-D", "-i", "0.05", "-c", "100", &address])?;
    pinging.wait_for_log(PATIENCE, "icmp_seq=5 ")?;
    world.boxes[BERLIN].kill_daemon()?;
    world.boxes[BERLIN].start_daemon()?;
    pinging.wait(PATIENCE)?;
    let gap = longest_gap(&pinging.log()?);
    ensure!(tcp.wait(PATIENCE)?.success(), "the TCP connection ended: {}", tcp.log()?);
    server.wait(PATIENCE)?;
    Ok(format!("longest gap {} ms, the TCP connection lived on", gap.as_millis()))
}

/// The longest time between two answers in the log of `ping -D`.
fn longest_gap(log: &str) -> Duration {
    let times: Vec<f64> = log
        .lines()
        .filter(|line| line.contains("time="))
        .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
        .collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    Duration::from_secs_f64(longest)
}

/// The group of three sites has formed by itself meanwhile.
fn decide(world: &mut World) -> Result<String> {
    let told = wait_until(PATIENCE, "a voter at each site", || {
        let status = world.boxes[LISBON].ctl(&["coord", "status"]).ok()?;
        let vdc = status["groups"].as_array()?.iter().find(|group| group["home"] == "vdc")?.clone();
        let words = vdc["redundancy"]["words"].as_str()?.to_owned();
        (vdc["state"] == "serving" && words.contains("any one of 3 sites may go dark")).then_some(words)
    })?;
    Ok(told)
}

fn revoke(world: &mut World) -> Result<String> {
    let fourth = ContainerNode::start(world.sites[LISBON].host("lisbon2")?, "")?;
    fourth.join(&world.boxes[PARIS].invite("lisbon")?)?;
    let address = world.boxes[BERLIN].address("ipv6")?;
    fourth.wait_for(&world.boxes[BERLIN])?;
    let pinging = fourth.host.spawn(&["ping", "-n", "-D", "-i", "0.05", "-W", "1", "-c", "100", &address])?;
    pinging.wait_for_log(PATIENCE, "icmp_seq=10 ")?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    let revoked = world.boxes[PARIS].ctl(&["node", "revoke", "lisbon2", "--reason", "demo"])?;
    pinging.wait(PATIENCE)?;
    let last = pinging
        .log()?
        .lines()
        .filter(|line| line.contains("time="))
        .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse::<f64>().ok())
        .fold(0.0, f64::max);
    ensure!(!fourth.pings(&address), "it is still answered");
    let after = (last - clock).max(0.0) * 1000.0;
    Ok(format!(
        "last answer {after:.0} ms after the command, {} of {} confirmed",
        revoked["confirmed"], revoked["members"]
    ))
}

fn status(world: &mut World) -> Result<String> {
    let text = world.boxes[PARIS].run(&["status"])?;
    ensure!(text.is_ok(), "{}", text.stderr);
    println!("{}", text.stdout);
    let metrics = world.boxes[PARIS].host.sh("curl -s --unix-socket /run/meshd/meshd.sock http://localhost/metrics")?;
    Ok(format!("{} metrics", metrics.lines().filter(|line| !line.starts_with('#')).count()))
}
