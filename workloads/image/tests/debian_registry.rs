//! Pulls from Debian's `docker-registry`, into which skopeo pushed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use workloads_image::{Credentials, Image, Images, Progress, PullOptions, RegistryErrorKind};

use crate::build::{Blob, Tarball, layout, run, store};
use crate::tree;

/// A registry on this host, ended with the value.
struct Server {
    child: Child,
    name: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The registry's program, unpacked by `cargo xtask` or installed.
fn program() -> PathBuf {
    let folder = std::env::var_os("MESHD_DEBIAN_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debian")), PathBuf::from);
    let unpacked = folder.join("usr/bin/docker-registry");
    if unpacked.exists() { unpacked } else { PathBuf::from("docker-registry") }
}

impl Server {
    /// Starts one; `more` is put under `http:`, `auth` beside it.
    fn start(directory: &Path, more: &str, auth: &str) -> Self {
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n{auth}http:\n  \
             addr: 127.0.0.1:0\n{more}",
            directory.join("storage").display()
        );
        fs::write(&config, text).expect("written");
        let mut child = Command::new(program())
            .args([Path::new("serve"), &config])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry is missing ({error}): cargo xtask test --stage packages"));
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on 127.0.0.1:")?;
                Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
            })
            .expect("the registry says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, name: format!("127.0.0.1:{port}") }
    }

    fn push(&self, source: &str, to: &str, options: &[&str]) {
        let to = format!("docker://{}/{to}", self.name);
        run("skopeo", "skopeo", &[&["copy", "--insecure-policy"], options, &[source, &to]].concat());
    }
}

fn middle() -> Vec<u8> {
    Tarball::new().file("etc/hostname", b"middle\n").hard_link("again", "bin").end()
}

fn layers() -> Vec<Blob> {
    let base =
        Tarball::new().directory("./").directory("etc/").file("etc/hostname", b"base\n").file("bin", &vec![7; 3 << 20]);
    let top = Tarball::new().file("etc/.wh.hostname", b"").symlink("link", "etc");
    vec![Blob::gzip(&base.end()), Blob::zstd(&middle()), Blob::tar(&top.end())]
}

fn source(directory: &Path) -> String {
    let directory = directory.join("layout");
    let layers = layers();
    layout(&directory, "1", &layers);
    // Docker's form knows no zstd.
    let gzipped = Blob::gzip(&middle());
    layout(&directory, "2", &[layers[0].clone(), gzipped, layers[2].clone()]);
    format!("oci:{}", directory.display())
}

fn quiet() -> Arc<impl Fn(Progress) + Send + Sync> {
    Arc::new(|_: Progress| {})
}

/// Compares an image with the layout that was pushed.
fn assert_whole(image: &Image, directory: &Path) {
    let images = store(&directory.join("imported"));
    let ours = images.import_layout(&directory.join("layout"), Some("1"), &mut |_| {}).expect("the layout");
    let tree_of = |image: &Image| {
        let scratch = tempfile::tempdir_in(directory).expect("a directory");
        tree::of_image(image, scratch.path())
    };
    tree::assert_same(&tree_of(image), &tree_of(&ours));
}

#[tokio::test]
async fn registry_without_tls_on_this_host_hands_out_what_was_pushed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path(), "", "");
    let source = source(directory.path());
    server.push(&format!("{source}:1"), "team/app:1", &["--dest-tls-verify=false"]);
    server.push(&format!("{source}:2"), "team/docker:1", &["--dest-tls-verify=false", "--format", "v2s2"]);
    let images = store(&directory.path().join("images"));
    let steps = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&steps);
    let progress = Arc::new(move |step| told.lock().push(step));
    let name = format!("{}/team/app:1", server.name);
    let image = images.pull(&name, &PullOptions::default(), progress).await.expect("the image");
    assert_eq!(image.references, std::slice::from_ref(&name));
    assert_whole(&image, directory.path());
    let whole = steps
        .lock()
        .iter()
        .filter(|step| matches!(step, Progress::Layer { bytes_done, bytes_total, .. } if bytes_done == bytes_total))
        .count();
    assert_eq!(whole, 3, "{:?}", steps.lock());

    // By its digest it is the same image, which needs no download.
    steps.lock().clear();
    let told = Arc::clone(&steps);
    let by_digest = format!("{}/team/app@{}", server.name, image.manifest);
    let again = images.pull(&by_digest, &PullOptions::default(), Arc::new(move |step| told.lock().push(step))).await;
    let again = again.expect("the image");
    assert_eq!(again.references, [name, by_digest]);
    assert!(steps.lock().iter().all(|step| matches!(step, Progress::Stored { .. })), "{:?}", steps.lock());

    // In Docker's form, whose layers are compressed anew: the same trees.
    let name = format!("{}/team/docker:1", server.name);
    let docker = images.pull(&name, &PullOptions::default(), quiet()).await.expect("the image");
    assert_ne!(docker.manifest, image.manifest);
    assert_eq!(docker.layers, image.layers);

    let missing = images.pull(&format!("{}/team/app:2", server.name), &PullOptions::default(), quiet()).await;
    crate::registry::refused(missing, RegistryErrorKind::NotFound, &[&server.name, "team/app:2", "not there"]);
}

/// Certificates of an authority and of a server on this host: PEM, and the server's key.
pub(crate) struct Certificates {
    pub(crate) authority: String,
    pub(crate) server: String,
    pub(crate) key: String,
}

pub(crate) fn certificates() -> Certificates {
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = authority.self_signed(&authority_key).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("parameters");
    let server = server.signed_by(&key, &authority, &authority_key).expect("a certificate");
    Certificates { authority: authority.pem(), server: server.pem(), key: key.serialize_pem() }
}

/// A registry with TLS and users.
fn guarded(directory: &Path) -> (Server, Certificates) {
    let certificates = certificates();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).expect("written");
        path
    };
    let (certificate, key) = (file("server.crt", &certificates.server), file("server.key", &certificates.key));
    let users = directory.join("users");
    run("htpasswd", "apache2-utils", &["-Bbc", &users.display().to_string(), "anna", "geheim: ä"]);
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display());
    let server = Server::start(directory, &tls, &auth);
    fs::create_dir(directory.join("trusted")).expect("a folder");
    fs::write(directory.join("trusted/ca.crt"), &certificates.authority).expect("written");
    let trusted = directory.join("trusted").display().to_string();
    let source = source(directory);
    server.push(&format!("{source}:1"), "team/app:1", &["--dest-creds", "anna:geheim: ä", "--dest-cert-dir", &trusted]);
    (server, certificates)
}

#[tokio::test]
async fn registry_with_users_and_a_private_authority_hands_out_to_whom_it_knows() {
    let directory = tempfile::tempdir().expect("a directory");
    let (server, certificates) = guarded(directory.path());
    let images = store(&directory.path().join("images"));
    let name = format!("{}/team/app:1", server.name);
    let ca_pem = vec![certificates.authority.into_bytes()];
    let nobody = PullOptions { ca_pem, credential_files: vec![], ..PullOptions::default() };
    let pull = |options: PullOptions| {
        let (images, name): (&Images, &str) = (&images, &name);
        async move { images.pull(name, &options, quiet()).await }
    };
    let denied = pull(nobody.clone()).await;
    crate::registry::refused(denied, RegistryErrorKind::Denied, &[&server.name, "team/app:1", "unknown"]);

    let user = |password: &str| Credentials { username: "anna".to_owned(), password: password.to_owned() };
    let denied = pull(PullOptions { credentials: Some(user("falsch")), ..nobody.clone() }).await;
    crate::registry::refused(denied, RegistryErrorKind::Denied, &["401", "credentials were given"]);

    let image = pull(PullOptions { credentials: Some(user("geheim: ä")), ..nobody.clone() }).await;
    assert_whole(&image.expect("the image"), directory.path());

    images.remove(&name).expect("it has that name");
    images.gc(&std::collections::BTreeSet::new()).expect("collected");
    let file = directory.path().join("docker.json");
    let auth = data_encoding::BASE64.encode("anna:geheim: ä".as_bytes());
    let text = serde_json::json!({ "auths": { format!("https://{}", server.name): { "auth": auth } } });
    fs::write(&file, text.to_string()).expect("written");
    let credential_files = vec![directory.path().join("missing"), file];
    let image = pull(PullOptions { credential_files, ..nobody }).await.expect("the image");
    assert_eq!(image.layers.len(), 3);

    let plain = images.pull(&name, &PullOptions { credential_files: vec![], ..PullOptions::default() }, quiet()).await;
    crate::registry::refused(plain, RegistryErrorKind::Invalid, &["HTTPS server"]);
}
