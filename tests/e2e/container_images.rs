//! Images of several kinds: their roots are what umoci unpacks, their programs see what the image says. Twenty more, beside
//! podman, are in `conformance/`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::containers::ContainerNode;
use tests::images::recipes::SMALL;
use tests::images::{Kitchen, Recipe, compare};
use tests::vdc_lab::{in_lab, site};

/// What the first words of a run print, and how it ends.
type Expected = (&'static str, &'static [&'static str], &'static [&'static str], i32, &'static str);

const ENVIRONMENT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";

const EXPECTED: [Expected; 11] = [
    ("busybox", &[], &[], 0, "hello\n"),
    (
        "busybox",
        &["-u", "1234:99", "-w", "/etc"],
        &["sh", "-c", "id; pwd; exit 42"],
        42,
        "uid=1234 gid=99 groups=99\n/etc\n",
    ),
    // Logs of many images are links to these, and servers open them anew.
    ("busybox", &["-u", "web"], &["sh", "-c", "echo x >/dev/stdout; echo y >>/dev/stderr"], 0, "x\n"),
    ("busybox", &[], &["sh", "-c", "ln -s /dev/stdout log; echo x >>log"], 0, "x\n"),
    // No layer has this directory, and its user could not make it.
    ("busybox", &["-u", "web", "-w", "/new/place"], &["sh", "-c", "pwd; stat -c '%u %a' ."], 0, "/new/place\n0 755\n"),
    ("scratch", &[], &["x y"], 7, "word /say\nword x y\nin / as 0:0\nHOME=/\n"),
    ("scratch", &["-u", "5:6"], &[], 7, "word /say\nword by\nword itself\nin / as 5:6\nHOME=/\n"),
    (
        "user-volume",
        &[],
        &["sh", "-c", "id; pwd; cat /data/file; echo $HOME; stat -c '%u:%g %a' /data/sub"],
        0,
        "uid=33(web) gid=33(web) groups=26(tape),33(web),50(ssl)\n/srv\none\n/srv\n33:50 2770\n",
    ),
    ("user-volume", &["-u", "web:ssl"], &["id"], 0, "uid=33(web) gid=50(ssl) groups=50(ssl)\n"),
    (
        "links",
        &[],
        &["sh", "-c", "ls /a /gone /opaque /b/c; echo changed >>/a/eins; cat /b/ichi"],
        0,
        "/a:\neins\none\ntwo\n\n/b/c:\nother\n\n/gone:\nagain\n\n/opaque:\nnew\nnewer\none\n",
    ),
    ("links", &[], &["stat", "-c", "%a %h", "/kept/tool"], 0, "4711 1\n"),
];

#[test]
fn images_unpack_as_with_umoci_and_run_as_they_say() -> Result<()> {
    in_lab(|lab| {
        let node = ContainerNode::start(site(lab, "berlin")?.host("berlin1")?, "")?;
        node.create("acme", "berlin")?;
        let scratch = node.host.dir().join("images");
        fs::create_dir_all(&scratch)?;
        let kitchen = Kitchen::new(scratch.join("layouts"))?;
        for recipe in &SMALL {
            let layout = kitchen.layout(recipe).with_context(|| recipe.name)?;
            let compared = compare(&layout, &scratch).with_context(|| recipe.name)?;
            ensure!(compared.differences.is_empty(), "{}: {}", recipe.name, compared.differences.join("\n"));
            let from = format!("oci:{}:1", layout.display());
            node.ctl(&["image", "import", &from, "--tag", &name_of(recipe)])?;
            let mut asked = EXPECTED.iter().filter(|expected| expected.0 == recipe.name).peekable();
            ensure!(asked.peek().is_some(), "{} is asked nothing", recipe.name);
            for (_, options, words, status, expected) in asked {
                let output = node.run(&[&["run", "--rm"], *options, &[&name_of(recipe)], *words].concat())?;
                // What the engine itself says of the container.
                let printed = output.stdout.lines().filter(|line| !line.starts_with("HOSTNAME="));
                let printed: String = printed.map(|line| format!("{line}\n")).collect();
                let printed = printed.replace(ENVIRONMENT, "");
                let answer = (output.status.code(), printed.as_str());
                ensure!(answer == (Some(*status), *expected), "{}: {words:?}: {output:?}", recipe.name);
            }
        }
        Ok(())
    })
}

fn name_of(recipe: &Recipe) -> String {
    format!("localhost/{}:1", recipe.name)
}
