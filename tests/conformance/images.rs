//! Twenty images of every kind, unpacked and run by other tools and by us: the same files, the same programs' view.
//! Needs root, the packages that `cargo xtask soak` installs, and about 2 GB.

#[cfg(test)]
mod podman;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use anyhow::{Context as _, Result, ensure};
    use meshlab::wait_until;
    use tests::containers::ContainerNode;
    use tests::images::recipes::ALL;
    use tests::images::{Kitchen, Probe, Recipe, compare};
    use tests::vdc_lab::{PATIENCE, in_lab, site};

    use crate::podman::Podman;

    /// What one question was answered with.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Answer {
        pub(crate) status: i32,
        pub(crate) stdout: String,
    }

    impl Answer {
        /// Without what is another in every container.
        pub(crate) fn new(status: Option<i32>, stdout: &str) -> Self {
            const OWN: [&str; 3] = ["HOSTNAME=", "TERM=", "container="];
            let kept = stdout.lines().filter(|line| !OWN.iter().any(|own| line.starts_with(own)));
            Self { status: status.unwrap_or(-1), stdout: kept.map(|line| format!("{line}\n")).collect() }
        }
    }

    /// Where images are made and kept for the next time.
    fn kitchen() -> Result<Kitchen> {
        let kept = std::env::var_os("MESHD_IMAGES_DIR")
            .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/images")), PathBuf::from);
        std::fs::create_dir_all(&kept)?;
        Kitchen::new(kept.canonicalize()?)
    }

    /// Asks a container of ours.
    fn asked(node: &ContainerNode, image: &str, probe: &Probe) -> Result<Answer> {
        match probe {
            Probe::Run { options, words } => {
                let output = node.run(&[&["run", "--rm"], *options, &[image], *words].concat())?;
                let answer = Answer::new(output.status.code(), &output.stdout);
                if (125..=127).contains(&answer.status) {
                    eprintln!("{image} {options:?} {words:?}: {}", output.stderr);
                }
                Ok(answer)
            }
            Probe::Serve { ask, answer } => {
                node.run_detached(&["--name", "server", image])?;
                let served = served(node, ask, answer).with_context(|| {
                    let logs = node.run(&["logs", "server"]).map(|said| said.stdout + &said.stderr).unwrap_or_default();
                    format!("it wrote:\n{logs}")
                });
                node.ctl(&["rm", "-f", "server"])?;
                served
            }
        }
    }

    /// Waits for a server's answer, and for its health if it has any, and stops it.
    fn served(node: &ContainerNode, ask: &[&str], answer: &str) -> Result<Answer> {
        let mut stdout = String::new();
        wait_until(PATIENCE, "the server answers", || {
            let said = node.run(&[&["exec", "server"], ask].concat());
            stdout = said.map(|said| said.stdout).unwrap_or_default();
            if stdout == answer { Ok(()) } else { Err(stdout.clone()) }
        })?;
        if node.inspect("server")?["health"] != "none" {
            wait_until(PATIENCE, "the server is healthy", || {
                let view = node.inspect("server").map_err(|error| error.to_string())?;
                if view["health"] == "healthy" { Ok(()) } else { Err(view["health"].to_string()) }
            })?;
        }
        node.ctl(&["stop", "server"])?;
        let ended = node.wait_phase("server", "exited")?;
        let status = ended["exit"]["code"].as_i64().and_then(|code| i32::try_from(code).ok());
        Ok(Answer::new(status, &stdout))
    }

    /// One image: a row of the table, and what differs.
    fn put_to_the_test(
        recipe: &Recipe,
        kitchen: &Kitchen,
        node: &ContainerNode,
        podman: &Podman,
        scratch: &Path,
    ) -> Result<(String, Vec<String>)> {
        let layout = kitchen.layout(recipe)?;
        let compared = compare(&layout, scratch)?;
        let mut failures: Vec<_> =
            compared.differences.iter().take(10).map(|line| format!("{}: {line}", recipe.name)).collect();
        let image = format!("localhost/{}:1", recipe.name);
        node.ctl(&["image", "import", &format!("oci:{}:1", layout.display()), "--tag", &image])?;
        let theirs_id = podman.pull(&layout)?;
        let mut alike = 0;
        for probe in recipe.probes {
            let ours = asked(node, &image, probe).with_context(|| format!("{probe:?}"))?;
            let theirs = podman.asked(&theirs_id, probe).with_context(|| format!("{probe:?} under podman"))?;
            if ours == theirs {
                alike += 1;
            } else {
                failures.push(format!("{}: {probe:?}\n  ours   {ours:?}\n  theirs {theirs:?}", recipe.name));
            }
        }
        podman.remove_all()?;
        node.ctl(&["image", "rm", &image])?;
        let (name, about, count) = (recipe.name, recipe.about, recipe.probes.len());
        let (paths, differing) = (compared.paths, compared.differences.len());
        Ok((format!("| {name} | {about} | {paths} | {differing} | {alike} of {count} |"), failures))
    }

    #[test]
    fn twenty_images_are_what_umoci_unpacks_and_podman_runs() -> Result<()> {
        let kitchen = kitchen()?;
        let only: Option<BTreeSet<String>> =
            std::env::var("IMAGES").ok().map(|names| names.split(',').map(str::to_owned).collect());
        in_lab(|lab| {
            let node = ContainerNode::start(site(lab, "berlin")?.host("berlin1")?, "")?;
            node.create("acme", "berlin")?;
            let scratch = tempfile::tempdir()?;
            let podman = Podman::new(scratch.path())?;
            let (mut rows, mut failures) = (vec![], vec![]);
            for recipe in ALL.iter().filter(|recipe| only.as_ref().is_none_or(|only| only.contains(recipe.name))) {
                match put_to_the_test(recipe, &kitchen, &node, &podman, scratch.path()) {
                    Ok((row, differences)) => {
                        println!("{row}");
                        rows.push(row);
                        failures.extend(differences);
                    }
                    Err(error) => failures.push(format!("{}: {error:#}", recipe.name)),
                }
            }
            println!(
                "\n| image | what it is | paths | differ from umoci's | answers as under podman |\n|---|---|---|---|---|"
            );
            println!("{}", rows.join("\n"));
            ensure!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
            Ok(())
        })
    }
}
