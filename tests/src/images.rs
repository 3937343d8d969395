//! Images in the form of OCI layouts, made layer by layer with GNU tar, and their roots beside those that umoci unpacks.

pub mod recipes;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use workloads_image::{Images, StoreOptions};

pub use tree::Comparison;

/// What an image is made of; two of the same text are the same image.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Also the name of its layout.
    pub name: &'static str,
    /// What it proves, in a few words.
    pub about: &'static str,
    /// Whether its lowest layer is the small Debian that such images share.
    pub on_debian: bool,
    /// Debian packages whose files, and those of what they depend on, are a layer.
    pub packages: &'static [&'static str],
    /// The layers above, bottom first.
    pub layers: &'static [Layer],
    /// How it is run: the image's `config`, in JSON.
    pub config: &'static str,
    /// What is asked of it.
    pub probes: &'static [Probe],
}

/// One layer: what a shell's script leaves in an empty directory. Names that begin with `.wh.` are whiteouts as they
/// stand. Where the script lists paths in `../without`, those are in the layer only as targets of its hard links; where it
/// lists some in `../only`, nothing else is, not even the directories that they are in.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub script: &'static str,
    pub packing: Packing,
    /// How often this layer comes, each time with another number in `$N`.
    pub times: u32,
}

/// In which form a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Tar,
    Gzip,
    Zstd,
}

/// One question to an image.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// It runs to its end: with these options of `run`, and these words in place of its own.
    Run { options: &'static [&'static str], words: &'static [&'static str] },
    /// It runs in the background until these words, run in it, print this; then it is asked to stop.
    Serve { ask: &'static [&'static str], answer: &'static str },
}

impl Layer {
    /// A layer in a gzip stream, as most are.
    #[must_use]
    pub const fn new(script: &'static str) -> Self {
        Self { script, packing: Packing::Gzip, times: 1 }
    }

    /// In another form.
    #[must_use]
    pub const fn packed(self, packing: Packing) -> Self {
        Self { packing, ..self }
    }
}

/// Where images are made and kept.
#[derive(Debug)]
pub struct Kitchen {
    directory: PathBuf,
}

/// A layer that was made.
#[derive(Clone, Debug)]
struct Blob {
    digest: String,
    size: u64,
    media_type: &'static str,
}

/// The same layer as it is meant, and in a form that umoci reads.
struct Packed {
    diff_id: String,
    ours: Blob,
    plain: Blob,
}

impl Kitchen {
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// The layout of an image, with the tags `1` and, for tools that do not know zstd, `plain`. What was made before of
    /// the same recipe is taken as it is.
    ///
    /// # Errors
    /// If a program that makes it fails.
    pub fn layout(&self, recipe: &Recipe) -> Result<PathBuf> {
        let (layout, text) = (self.directory.join(recipe.name), recipe.recorded());
        if fs::read_to_string(layout.join("recipe")).is_ok_and(|made| made == text) {
            return Ok(layout);
        }
        remove(&layout)?;
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let mut layers = vec![];
        if recipe.on_debian {
            layers.push(self.debian(&layout)?);
        }
        if !recipe.packages.is_empty() {
            let root = self.unpacked(recipe.packages)?;
            layers.push(self.pack(&layout, &root, Packing::Gzip)?);
        }
        for layer in recipe.layers {
            for number in 0..layer.times {
                let root = self.directory.join("work/root");
                remove(&self.directory.join("work"))?;
                fs::create_dir_all(&root)?;
                let mut script = Command::new("sh");
                script.args(["-euc", layer.script]).current_dir(&root).env("N", number.to_string());
                succeed(script.env("LC_ALL", "C"))?;
                layers.push(self.pack(&layout, &root, layer.packing)?);
            }
        }
        remove(&self.directory.join("work"))?;
        finish(&layout, recipe, &layers)?;
        fs::write(layout.join("recipe"), text)?;
        Ok(layout)
    }

    /// The root of a small Debian, kept: packages are chosen by what it lacks.
    fn debian_root(&self) -> Result<PathBuf> {
        let root = self.directory.join("base");
        if root.join("var/lib/dpkg/status").exists() {
            return Ok(root);
        }
        let fresh = self.directory.join("base.new");
        remove(&fresh)?;
        let mut debootstrap = Command::new("mmdebstrap");
        debootstrap.args(["--quiet", "--mode=root", "--variant=essential", "--include=perl-base"]);
        for excluded in ["doc", "locale", "man", "zoneinfo"] {
            debootstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
        }
        succeed(debootstrap.arg(codename()?).arg(&fresh))?;
        // What differs from one making to the next.
        for changing in ["etc/resolv.conf", "etc/hostname", "var/log/apt", "var/log/dpkg.log"] {
            remove(&fresh.join(changing))?;
        }
        fs::rename(&fresh, &root)?;
        Ok(root)
    }

    /// The Debian as a layer, made once.
    fn debian(&self, layout: &Path) -> Result<Packed> {
        let (root, shared) = (self.debian_root()?, self.directory.join("base-layer"));
        let record = shared.join("record");
        if !record.exists() {
            remove(&shared)?;
            fs::create_dir_all(shared.join("blobs/sha256"))?;
            let packed = self.pack(&shared, &root, Packing::Gzip)?;
            fs::write(&record, format!("{} {} {}", packed.diff_id, packed.ours.digest, packed.ours.size))?;
        }
        let text = fs::read_to_string(&record)?;
        let [diff_id, digest, size] = text.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("{} is not what was written", record.display());
        };
        let name = format!("blobs/sha256/{digest}");
        fs::hard_link(shared.join(&name), layout.join(&name))?;
        let blob = Blob { digest: digest.to_owned(), size: size.parse()?, media_type: Packing::Gzip.media_type() };
        Ok(Packed { diff_id: diff_id.to_owned(), ours: blob.clone(), plain: blob })
    }

    /// A directory with what is in packages, and in those that they need beside the small Debian.
    fn unpacked(&self, packages: &[&str]) -> Result<PathBuf> {
        let (debian, cache) = (self.debian_root()?, self.directory.join("work/archives"));
        remove(&self.directory.join("work"))?;
        fs::create_dir_all(cache.join("partial"))?;
        let mut download = Command::new("apt-get");
        download.args(["install", "-q", "--yes", "--download-only", "--no-install-recommends"]);
        download.args(["-o", &format!("Dir::State::status={}", debian.join("var/lib/dpkg/status").display())]);
        download.args(["-o", &format!("Dir::Cache::archives={}", cache.display())]);
        download.args(["-o", "Dir::State::extended_states=/dev/null", "-o", "Debug::NoLocking=1"]);
        succeed(download.args(["-o", "APT::Sandbox::User=root"]).args(packages).stdout(Stdio::null()))?;
        let root = self.directory.join("work/root");
        // Links that Debian's root has in place of these directories.
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(root.join("usr").join(name))?;
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
        }
        for archive in fs::read_dir(&cache)? {
            let archive = archive?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                // Not `dpkg -x`, which puts directories in the place of those links.
                let unpack = "dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink --directory \"$2\"";
                succeed(Command::new("sh").args(["-euc", unpack, "sh"]).args([&archive, &root]))?;
            }
        }
        for unused in ["doc", "locale", "man", "lintian"] {
            remove(&root.join("usr/share").join(unused))?;
        }
        remove(&cache)?;
        Ok(root)
    }

    /// Makes a layer of a directory.
    fn pack(&self, layout: &Path, root: &Path, packing: Packing) -> Result<Packed> {
        let tar = self.directory.join("layer.tar");
        let mut pack = Command::new("tar");
        pack.args(["--create", "--format=pax", "--pax-option=delete=atime,delete=ctime", "--sort=name"]);
        pack.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--sparse", "--file"]).arg(&tar);
        let (only, without) = (root.with_file_name("only"), root.with_file_name("without"));
        pack.arg("--directory").arg(root);
        if only.exists() {
            succeed(pack.arg("--no-recursion").arg("--files-from").arg(&only))?;
        } else {
            succeed(pack.arg("."))?;
        }
        if without.exists() {
            succeed(Command::new("tar").arg("--delete").arg("--file").arg(&tar).arg("--files-from").arg(&without))?;
        }
        let diff_id = crate::containers::digest_of(&tar)?;
        let stored = |packing: Packing| -> Result<Blob> {
            let packed = layout.join("packed");
            if let Some(program) = packing.program() {
                let into = fs::File::create(&packed)?;
                succeed(Command::new(program).args(["-c", "-1"]).arg(&tar).stdout(into))?;
            } else {
                fs::copy(&tar, &packed)?;
            }
            let digest = crate::containers::digest_of(&packed)?;
            let size = fs::metadata(&packed)?.len();
            fs::rename(&packed, layout.join("blobs/sha256").join(&digest))?;
            Ok(Blob { digest, size, media_type: packing.media_type() })
        };
        let ours = stored(packing)?;
        let plain = if packing == Packing::Zstd { stored(Packing::Tar)? } else { ours.clone() };
        fs::remove_file(&tar)?;
        Ok(Packed { diff_id, ours, plain })
    }
}

impl Packing {
    const fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Tar => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

impl Recipe {
    /// An image of a few layers by script.
    #[must_use]
    pub const fn new(
        name: &'static str,
        about: &'static str,
        layers: &'static [Layer],
        config: &'static str,
        probes: &'static [Probe],
    ) -> Self {
        Self { name, about, on_debian: false, packages: &[], layers, config, probes }
    }

    /// On the small Debian, with packages.
    #[must_use]
    pub const fn on_debian(self, packages: &'static [&'static str]) -> Self {
        Self { on_debian: true, packages, ..self }
    }

    /// All that its layout depends on.
    fn recorded(&self) -> String {
        format!("{:?}", (self.on_debian, self.packages, self.layers, self.config))
    }
}

/// Writes the configuration, both manifests and the index.
fn finish(layout: &Path, recipe: &Recipe, layers: &[Packed]) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
    let config: Value = serde_json::from_str(recipe.config).with_context(|| format!("config of {}", recipe.name))?;
    let config = json!({"architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let (digest, size) = crate::containers::blob(&blobs, &config)?;
    let descriptor = |media_type: &str, digest: &str, size: u64| json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size});
    let config = descriptor("application/vnd.oci.image.config.v1+json", &digest, size);
    let mut manifests = vec![];
    for tag in ["1", "plain"] {
        let of_layer = |layer: &Packed| {
            let blob = if tag == "1" { &layer.ours } else { &layer.plain };
            descriptor(blob.media_type, &blob.digest, blob.size)
        };
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config,
            "layers": layers.iter().map(of_layer).collect::<Vec<_>>()});
        let (digest, size) = crate::containers::blob(&blobs, &manifest)?;
        let mut named = descriptor(manifest_type, &digest, size);
        named["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        manifests.push(named);
    }
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": manifests}).to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(())
}

/// Unpacks an image with our store and with umoci, and says in which paths they differ.
///
/// # Errors
/// If one of them does not unpack it.
pub fn compare(layout: &Path, scratch: &Path) -> Result<Comparison> {
    let (store, bundle) = (scratch.join("store"), scratch.join("bundle"));
    let options = StoreOptions { reserve_bytes: 0, ..StoreOptions::default() };
    let images = Images::open(&store, options)?;
    let image = images.import_layout(layout, Some("1"), &mut |_| {})?;
    succeed(Command::new("umoci").args(["unpack", "--image", &format!("{}:plain", layout.display())]).arg(&bundle))?;
    let comparison = tree::compare(&image, &bundle.join("rootfs"), scratch)?;
    drop(images);
    for used in [&store, &bundle] {
        remove(used)?;
    }
    Ok(comparison)
}

/// Runs a program that must succeed, and says what it said otherwise.
fn succeed(command: &mut Command) -> Result<()> {
    let running = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let output = running
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("{} is missing", command.get_program().display()))?;
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Removes a file or a directory with all that is in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// The release that runs here: programs in its images fit its kernel and its mirrors.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("the name of this Debian")?.to_owned())
}
