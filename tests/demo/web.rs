//! A real server in a container: its image goes through a registry, its page over sites, and its daemon dies.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use meshlab::wait_until;
use serde_json::json;
use tests::containers::{copy_programs, image};
use tests::resolver::unpacked;
use tests::vdc_lab::PATIENCE;

use crate::{BERLIN, LISBON, PARIS, World};

pub(crate) const URL: &str = "http://web.berlin.acme.internal/";
const PAGE: &str = "hello from nginx in a container";
const REGISTRY_PORT: u16 = 5000;
/// Requests while the daemon dies: for a while before, over its restart, and for a while after.
const REQUESTS: usize = 200;

/// Writes an OCI layout with Debian's nginx, what `ldd` says that it needs, and one page.
fn nginx(layout: &Path) -> Result<()> {
    const CONFIG: &str = "user www-data;\ndaemon off;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log stderr warn;\n\
        events { worker_connections 256; }\nhttp {\n    include mime.types;\n    access_log /dev/stdout;\n    server {\n        \
        listen 80;\n        listen [::]:80;\n        root /var/www/html;\n    }\n}\n";
    let root = layout.with_extension("root");
    for path in ["dev", "etc/nginx", "proc", "run", "sys", "tmp", "var/lib/nginx", "var/www/html"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    copy_programs(&root, &[(&unpacked("usr/sbin/nginx")?, "/usr/sbin/nginx")])?;
    fs::copy(unpacked("etc/nginx/mime.types")?, root.join("etc/nginx/mime.types"))?;
    fs::write(root.join("etc/nginx/nginx.conf"), CONFIG)?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nwww-data:x:33:\n")?;
    fs::write(root.join("var/www/html/index.html"), format!("{PAGE}\n"))?;
    let config = json!({"Env": ["PATH=/usr/sbin"], "Cmd": ["nginx"],
        "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"});
    image(layout, &root, &config)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

pub(crate) fn run(world: &mut World) -> Result<String> {
    let berlin = &world.boxes[BERLIN];
    let dir = berlin.host.dir();
    let address = format!("{}:{REGISTRY_PORT}", berlin.host.v4().context("IPv4")?);
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
        dir.join("registry").display()
    );
    berlin.host.write_file(&config, &text)?;
    let program = unpacked("usr/bin/docker-registry")?.display().to_string();
    world.services.push(berlin.host.spawn(&[&program, "serve", &config.display().to_string()])?);
    wait_until(PATIENCE, "the registry answers", || {
        berlin
            .host
            .run(&["curl", "-sf", "-m", "2", &format!("http://{address}/v2/")])
            .is_ok_and(|output| output.is_ok())
    })?;

    let layout = dir.join("nginx");
    nginx(&layout)?;
    let (source, target) = (format!("oci:{}:1", layout.display()), format!("docker://{address}/nginx:1"));
    let digest_file = dir.join("nginx.digest");
    let skopeo = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "--digestfile"];
    let mut words = skopeo.to_vec();
    let digest_path = digest_file.display().to_string();
    words.extend([digest_path.as_str(), &source, &target]);
    berlin.host.ok(&words)?;
    let digest = berlin.host.read_file(&digest_file)?;
    let pinned = format!("{address}/nginx@{}", digest.trim());

    let started = std::time::Instant::now();
    let options = ["--name", "web", "--port", "80", "--publish", "8080:80", "--plain-http"];
    berlin.run_detached(&[&options[..], &[&pinned]].concat())?;
    let took = started.elapsed();
    let view = berlin.wait_phase("web", "running")?;
    Ok(format!("pulled and started in {} ms: {}, {}", took.as_millis(), pinned, view["addresses"][0]))
}

pub(crate) fn fetch(world: &mut World) -> Result<String> {
    world.boxes[PARIS].use_dns_stub()?;
    for index in [LISBON, PARIS] {
        let asking = &world.boxes[index];
        for family in ["-6", "-4"] {
            wait_until(PATIENCE, "the page", || {
                let page = asking.fetch(URL, family).map_err(|error| error.to_string())?;
                if page.as_deref().is_some_and(|text| text.trim() == PAGE) { Ok(()) } else { Err(format!("{page:?}")) }
            })?;
        }
    }
    // What the world outside of the VDC uses.
    let published = format!("http://{}:8080/", world.boxes[BERLIN].host.v4().context("IPv4")?);
    let page = world.boxes[PARIS].fetch(&published, "-4")?.context("no answer at the published port")?;
    ensure!(page.trim() == PAGE, "{page}");
    Ok(format!("{URL} over both families, {published} from outside"))
}

pub(crate) fn kill(world: &mut World) -> Result<String> {
    let before = world.boxes[BERLIN].inspect("web")?;
    // One line an answer: its number, and how long it took.
    let script = format!(
        "for i in $(seq {REQUESTS}); do \
           curl -sf -m 20 -o /dev/null -w \"answer $i %{{time_total}}\\n\" \"{URL}?request=$i\" || echo \"failed $i\"; \
           sleep 0.02; done"
    );
    let asking = world.boxes[LISBON].host.spawn(&["sh", "-c", &script])?;
    asking.wait_for_log(PATIENCE, "answer 20 ")?;
    world.boxes[BERLIN].kill_daemon()?;
    world.boxes[BERLIN].start_daemon()?;
    ensure!(asking.wait(2 * PATIENCE)?.success(), "{}", asking.log()?);
    let log = asking.log()?;
    let failed = log.lines().filter(|line| line.starts_with("failed ")).count();
    let answers: Vec<f64> =
        log.lines().filter_map(|line| line.strip_prefix("answer ")?.split_once(' ')?.1.trim().parse().ok()).collect();
    ensure!(failed == 0 && answers.len() == REQUESTS, "{failed} failed, {} answered:\n{log}", answers.len());
    let after = world.boxes[BERLIN].wait_phase("web", "running")?;
    ensure!(after["pid"] == before["pid"] && after["restarts"] == before["restarts"], "{before} {after}");
    let slowest = answers.iter().copied().fold(0.0, f64::max);
    Ok(format!("{REQUESTS} requests, 0 failed, the slowest took {:.0} ms; same process", slowest * 1e3))
}

pub(crate) fn look(world: &mut World) -> Result<String> {
    let berlin = &world.boxes[BERLIN];
    let logs = berlin.run(&["logs", "web"])?;
    ensure!(logs.is_ok(), "{}", logs.stderr);
    for number in 1..=REQUESTS {
        let lines = logs.stdout.matches(&format!("/?request={number} ")).count();
        ensure!(lines == 1, "request {number} is in the log {lines} times:\n{}", logs.stdout);
    }
    let tested = berlin.run(&["exec", "web", "nginx", "-v"])?;
    ensure!(tested.is_ok(), "{tested:?}");
    let said = format!("{}{}", tested.stdout, tested.stderr);
    Ok(format!("{REQUESTS} of {REQUESTS} requests in the log; exec web nginx -v: {}", said.trim()))
}
