//! Pulls from registries that stall, lie, redirect, refuse and break.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use workloads_image::{Credentials, Digest, Image, ImageError, Images, Progress, PullOptions, RegistryErrorKind};

use crate::build::{Blob, Tarball, store};
use crate::debian_registry::certificates;
use crate::rogue::{Act, Asked, Goods, Rogue, answer, chunked, open_ended};

/// Checks of which kind a failure is, and what its messages and its hint say.
#[track_caller]
pub(crate) fn refused(result: Result<Image, ImageError>, kind: RegistryErrorKind, words: &[&str]) {
    let error = match result.expect_err("the pull fails") {
        ImageError::Registry(error) => error,
        other => panic!("not the registry's doing: {other:?}"),
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text} / {error}");
        cause = error.source();
    }
    let text = format!("{text} / {}", error.hint());
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.starts_with(&format!("registry {}, asked for ", error.registry())), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

fn goods() -> Goods {
    let noise: Vec<u8> =
        (0_u32..2_000_000).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let base = Tarball::new().directory("etc/").file("etc/hostname", b"base\n").file("noise", &noise);
    let top = Tarball::new().file("etc/hostname", b"top\n");
    Goods::of(vec![Blob::tar(&base.end()), Blob::gzip(&top.end())])
}

pub(crate) fn options() -> PullOptions {
    PullOptions { credential_files: vec![], ..PullOptions::default() }
}

/// For registries that do stall: an honest one may take its time on a machine that is busy.
fn impatient() -> PullOptions {
    PullOptions { stall: Duration::from_millis(500), ..options() }
}

async fn pull(images: &Images, name: &str, options: &PullOptions) -> Result<Image, ImageError> {
    images.pull(name, options, Arc::new(|_: Progress| {})).await
}

/// Pulls from a registry into a store of its own, in which nothing may be left after a failure.
pub(crate) async fn pull_from(rogue: &Rogue, options: &PullOptions) -> Result<Image, ImageError> {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let result = pull(&images, &format!("{}/team/app:1", rogue.name()), options).await;
    if result.is_err() {
        assert_empty(&images, directory.path());
    }
    result
}

fn assert_empty(images: &Images, directory: &Path) {
    assert!(images.list().is_empty());
    for folder in ["layers", "manifests", "configs", "references", "tmp"] {
        assert_eq!(fs::read_dir(directory.join(folder)).expect("it is there").count(), 0, "{folder}");
    }
}

/// A registry that is honest but for what `bends` answers.
fn bent(goods: &Goods, bends: impl Fn(&Asked) -> Option<Act> + Send + Sync + 'static) -> Rogue {
    let goods = goods.clone();
    Rogue::start(move |asked| bends(asked).unwrap_or_else(|| goods.answer(asked).into()))
}

/// A registry that answers one path in its own way.
fn bent_at(goods: &Goods, end: &str, act: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Rogue {
    let end = end.to_owned();
    bent(goods, move |asked| asked.path.ends_with(&end).then(|| act(asked)))
}

fn head_and(length: usize, body: &[u8]) -> Vec<u8> {
    answer("200 OK", &[&format!("Content-Length: {length}")], body)
}

#[tokio::test]
async fn index_leads_to_the_image_of_this_machine() {
    let goods = goods();
    let architecture = workloads_image::Platform::host().architecture;
    let entry = |architecture: &str, digest: &Digest, size: usize| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let other = entry("mips64", &Digest::of(b"other"), 5);
    let index = |size| {
        let own = entry(&architecture, &goods.digest(), size);
        serde_json::json!({ "schemaVersion": 2, "manifests": [other, own] }).to_string().into_bytes()
    };
    let serve = |index: Vec<u8>| {
        bent_at(&goods, "/manifests/1", move |asked| {
            assert!(asked.headers.contains_key("accept"));
            answer("200 OK", &["Content-Type: application/vnd.oci.image.index.v1+json"], &index).into()
        })
    };
    let rogue = serve(index(goods.manifest.len()));
    let image = pull_from(&rogue, &options()).await.expect("the image");
    assert_eq!(image.manifest, goods.digest());
    assert_eq!(rogue.count(&format!("/manifests/{}", goods.digest())), 1);

    let rogue = serve(index(goods.manifest.len() + 1));
    let error = pull_from(&rogue, &options()).await.expect_err("the size is another");
    assert!(matches!(error, ImageError::Size { .. }), "{error:?}");
}

#[tokio::test]
async fn stored_layers_are_not_fetched_again() {
    let goods = goods();
    let more = Goods::of(vec![goods.layers[0].clone(), Blob::gzip(&Tarball::new().file("more", b"more").end())]);
    let (first, second) = (bent(&goods, |_| None), bent(&more, |_| None));
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    pull(&images, &format!("{}/a:1", first.name()), &options()).await.expect("the image");
    pull(&images, &format!("{}/b:1", second.name()), &options()).await.expect("the image");
    assert_eq!((second.count(&more.layer(0)), second.count(&more.layer(1))), (0, 1));
    // A second time only the manifest is asked for.
    pull(&images, &format!("{}/c:1", second.name()), &options()).await.expect("the image");
    assert_eq!(second.asked().len(), 4);
}

#[tokio::test]
async fn registry_that_stalls_is_named() {
    let goods = goods();
    let layer = goods.layers[0].bytes.clone();
    let half = layer[..layer.len() / 2].to_vec();
    let length = layer.len();
    let rogue = bent_at(&goods, &goods.layer(0), move |asked| match asked.header("range") {
        "" => Act::Hang(head_and(length, &half)),
        _ => Act::Hang(b"HTTP/1.1 206 Partial Content\r\n".to_vec()),
    });
    let began = Instant::now();
    refused(
        pull_from(&rogue, &impatient()).await,
        RegistryErrorKind::Unreachable,
        &[&rogue.name(), "0.5 s", "try again"],
    );
    assert!(began.elapsed() < Duration::from_secs(20));

    let rogue = bent_at(&goods, &goods.layer(0), move |_| Act::Hang(head_and(length, b"")));
    refused(pull_from(&rogue, &impatient()).await, RegistryErrorKind::Unreachable, &["stalled", "0.5 s"]);
    assert_eq!(rogue.count(&goods.layer(0)), 1);

    let rogue = bent_at(&goods, "/manifests/1", |_| Act::Hang(vec![]));
    refused(pull_from(&rogue, &impatient()).await, RegistryErrorKind::Unreachable, &["began no answer"]);

    // A byte now and then is not a stall in the word's sense, and helps nobody.
    let drips = layer[..10_000].to_vec();
    let rogue = bent_at(&goods, &goods.layer(0), move |asked| match asked.header("range") {
        "" => Act::Drip(head_and(length, &drips)),
        _ => Act::Hang(vec![]),
    });
    refused(pull_from(&rogue, &impatient()).await, RegistryErrorKind::Unreachable, &["0.5 s"]);
}

#[tokio::test]
async fn redirects_are_followed_to_a_bound_and_without_saying_who_asks() {
    let goods = goods();
    let rogue = Rogue::start(|asked| answer("302 Found", &[&format!("Location: {}", asked.path)], b"").into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["redirected 6 times"]);
    assert_eq!(rogue.asked().len(), 6);

    for location in ["ftp://elsewhere/", "http://user@host/", "http://"] {
        let rogue = Rogue::start(move |_| answer("302 Found", &[&format!("Location: {location}")], b"").into());
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["no address"]);
    }
    let rogue = Rogue::start(|_| answer("307 Moved", &["Location: http://192.0.2.1/x"], b"").into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["plain HTTP", "192.0.2.1"]);

    let storage = Arc::new(bent(&goods, |_| None));
    let to = Arc::clone(&storage);
    let rogue = bent(&goods, move |asked| {
        if asked.header("authorization").is_empty() {
            return Some(answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b"").into());
        }
        let location = format!("Location: http://localhost:{}{}?signature=x", to.port(), asked.path);
        asked.path.contains("/blobs/").then(|| answer("307 Temporary Redirect", &[&location], b"").into())
    });
    let credentials = Some(Credentials { username: "u".to_owned(), password: "p".to_owned() });
    // The storage finds its blobs by the path's end, so its answer to a query is none.
    let denied = pull_from(&rogue, &PullOptions { credentials: credentials.clone(), ..options() }).await;
    refused(denied, RegistryErrorKind::NotFound, &["blob unknown to registry"]);
    assert_eq!(storage.asked().len(), 1);

    let to = Arc::new(bent(&goods, |_| None));
    let storage = Arc::clone(&to);
    let rogue = bent(&goods, move |asked| {
        if asked.header("authorization").is_empty() {
            return Some(answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b"").into());
        }
        let location = format!("Location: http://localhost:{}{}", to.port(), asked.path);
        asked.path.contains("/blobs/").then(|| answer("307 Temporary Redirect", &[&location], b"").into())
    });
    pull_from(&rogue, &PullOptions { credentials, ..options() }).await.expect("the image");
    assert_eq!(storage.asked().len(), 3);
    assert!(storage.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
}

#[tokio::test]
async fn nothing_goes_from_https_to_http() {
    let goods = goods();
    let certificates = certificates();
    let trusting = PullOptions { ca_pem: vec![certificates.authority.clone().into_bytes()], ..options() };
    let plain = bent(&goods, |_| None);
    let to = plain.name();
    let rogue = Rogue::with_tls(&certificates.server, &certificates.key, move |asked| {
        answer("302 Found", &[&format!("Location: http://{to}{}", asked.path)], b"").into()
    });
    refused(pull_from(&rogue, &trusting).await, RegistryErrorKind::Unreachable, &["from HTTPS to HTTP", "https://"]);
    let to = plain.name();
    let rogue = Rogue::with_tls(&certificates.server, &certificates.key, move |_| {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{to}/token\"");
        answer("401 Unauthorized", &[&challenge], b"").into()
    });
    refused(pull_from(&rogue, &trusting).await, RegistryErrorKind::Unreachable, &["from HTTPS to HTTP"]);
    assert_eq!(plain.asked().len(), 0);
}

#[tokio::test]
async fn lies_about_lengths_are_found() {
    let goods = goods();
    let layer = goods.layers[1].bytes.clone();
    let size = layer.len();
    let at_layer = |act: Box<dyn Fn(&Asked) -> Act + Send + Sync>| bent_at(&goods, &goods.layer(1), act);
    for length in [size - 1, size + 1, 0, 1 << 40] {
        let body = layer.clone();
        let rogue = at_layer(Box::new(move |_| head_and(length, &body).into()));
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["lied", &length.to_string()]);
    }
    let longer = [layer.as_slice(), b"x"].concat();
    for body in [longer, layer[..size - 1].to_vec()] {
        let rogue =
            at_layer(Box::new(move |_| answer("200 OK", &["Transfer-Encoding: chunked"], &chunked(&body)).into()));
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["lied", "nothing was stored"]);
    }
    // The truth without a length is as good.
    let body = layer.clone();
    let rogue = at_layer(Box::new(move |_| answer("200 OK", &["Transfer-Encoding: chunked"], &chunked(&body)).into()));
    pull_from(&rogue, &options()).await.expect("the image");
    // Always cut at the same place: there is an end to trying.
    let cut = layer[..size / 2].to_vec();
    let rogue = at_layer(Box::new(move |asked| match asked.header("range") {
        "" => head_and(size, &cut).into(),
        _ => answer(
            "206 Partial Content",
            &[
                &format!("Content-Range: bytes {}-{}/*", size / 2, size - 1),
                &format!("Content-Length: {}", size - size / 2),
            ],
            b"",
        )
        .into(),
    }));
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["broke", "5 more tries"]);
    assert_eq!(rogue.count(&goods.layer(1)), 6);

    let rogue = bent_at(&goods, "/manifests/1", |_| head_and(5 << 20, b"{").into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["more than 4194304 bytes"]);
    let endless = vec![b' '; 5 << 20];
    let rogue = bent_at(&goods, "/manifests/1", move |_| {
        answer("200 OK", &["Transfer-Encoding: chunked"], &chunked(&endless)).into()
    });
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["more than 4194304 bytes"]);
}

#[tokio::test]
async fn web_pages_are_no_images() {
    let goods = goods();
    let page = b"<!DOCTYPE html>\n<html><title>Sign in to the\x1b network</title>";
    for (status, kind) in
        [("200 OK", "text/html"), ("200 OK", "application/json"), ("404 Not Found", "text/HTML; charset=utf-8")]
    {
        let rogue =
            bent_at(&goods, "/manifests/1", move |_| answer(status, &[&format!("Content-Type: {kind}")], page).into());
        let words = ["web page", "<!DOCTYPE html> <html><title>Sign in to the network", "no registry"];
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &words);
    }
    let rogue = bent_at(&goods, &goods.layer(0), move |_| answer("200 OK", &["Content-Type: text/html"], page).into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["web page"]);

    let rogue = Rogue::start(|_| b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec().into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["HTTP/1.1", "check the port"]);
    let rogue = Rogue::start(|_| vec![].into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["without an answer"]);
    let rogue = bent_at(&goods, "/manifests/1", |_| {
        let head = format!("X: {}", "y".repeat(200_000));
        answer("200 OK", &[&head], b"{}").into()
    });
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["HTTP/1.1"]);
    let name = Rogue::start(|_| vec![].into()).name();
    let directory = tempfile::tempdir().expect("a directory");
    let result = pull(&store(directory.path()), &format!("{name}/a"), &options()).await;
    // The listener of the port ends with its next connection, which may be this one.
    assert!(matches!(result, Err(ImageError::Registry(error)) if error.kind() == RegistryErrorKind::Unreachable));
}

/// A registry with a token server under `/token`, which asks `good` about who comes for one.
fn with_tokens(goods: &Goods, accepts: &'static str, good: fn(&Asked) -> bool) -> Rogue {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let rogue = bent(goods, move |asked| {
        if asked.path.starts_with("/token") {
            return Some(if good(asked) {
                answer("200 OK", &[], br#"{"token":"abc.def","expires_in":300}"#).into()
            } else {
                answer("401 Unauthorized", &[], br#"{"details":"incorrect username or password"}"#).into()
            });
        }
        if asked.header("authorization") == accepts {
            return None;
        }
        let realm = format!("http://127.0.0.1:{}/token?from=here", own.load(Ordering::SeqCst));
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:team/app:pull,push\""
        );
        Some(answer("401 Unauthorized", &[&challenge], br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#).into())
    });
    port.store(usize::from(rogue.port()), Ordering::SeqCst);
    rogue
}

#[tokio::test]
async fn tokens_are_bought_for_reading_only_and_once() {
    let goods = goods();
    let rogue = with_tokens(&goods, "Bearer abc.def", |asked| asked.header("authorization").is_empty());
    pull_from(&rogue, &options()).await.expect("the image");
    let tokens: Vec<_> = rogue.asked().into_iter().filter(|asked| asked.path.starts_with("/token")).collect();
    let paths: Vec<&str> = tokens.iter().map(|asked| asked.path.as_str()).collect();
    assert_eq!(paths, ["/token?from=here&service=the%20registry&scope=repository:team/app:pull"]);

    // A user is told to the token server; dTpwOnE= is base64 of u:p:q.
    let rogue = with_tokens(&goods, "Bearer abc.def", |asked| asked.header("authorization") == "Basic dTpwOnE=");
    let user = |password: &str| Some(Credentials { username: "u".to_owned(), password: password.to_owned() });
    pull_from(&rogue, &PullOptions { credentials: user("p:q"), ..options() }).await.expect("the image");
    let denied = pull_from(&rogue, &PullOptions { credentials: user("wrong"), ..options() }).await;
    refused(denied, RegistryErrorKind::Denied, &["/token", "incorrect username or password", "credentials"]);
    let invalid = pull_from(&rogue, &PullOptions { credentials: user("a\nb"), ..options() }).await;
    refused(invalid, RegistryErrorKind::Denied, &["control characters"]);
}

#[tokio::test]
async fn identity_tokens_buy_tokens() {
    let goods = goods();
    let rogue = with_tokens(&goods, "Bearer abc.def", |asked| {
        asked.header("content-type") == "application/x-www-form-urlencoded" && asked.path == "/token?from=here"
    });
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.json");
    let text = serde_json::json!({ "auths": { rogue.name(): { "auth": "", "identitytoken": "x y" } } });
    fs::write(&file, text.to_string()).expect("written");
    pull_from(&rogue, &PullOptions { credential_files: vec![file], ..options() }).await.expect("the image");
    assert_eq!(rogue.count("/token?from=here"), 1);
}

#[tokio::test]
async fn demands_without_end_are_not_followed() {
    let goods = goods();
    let rogue = with_tokens(&goods, "Bearer never", |_| true);
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Denied, &["401", "UNAUTHORIZED", "unknown"]);
    assert_eq!(rogue.asked().len(), 3);

    for (challenge, words) in [
        ("X: y", "a proof of who asks"),
        ("WWW-Authenticate: Negotiate", "Negotiate"),
        ("WWW-Authenticate: Bearer realm=\"\"", "no address"),
        ("WWW-Authenticate: Bearer realm=\"file:///etc/passwd\"", "no address"),
        ("WWW-Authenticate: Bearer realm=\"x", "a proof of who asks"),
    ] {
        let rogue = Rogue::start(move |_| answer("401 Unauthorized", &[challenge], b"").into());
        let result = pull_from(&rogue, &options()).await;
        let kind = if words == "no address" { RegistryErrorKind::Unreachable } else { RegistryErrorKind::Denied };
        refused(result, kind, &[words]);
        assert_eq!(rogue.asked().len(), 1);
    }
    let rogue = Rogue::start(|_| answer("403 Forbidden", &[], b"go away").into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Denied, &["403", "go away"]);

    // Tokens that are none, and one that is as long as a book.
    for body in ["{}", "[]", "{\"token\":\"a\\nb\"}", &format!("{{\"token\":\"{}\"}}", "a".repeat(70_000))] {
        let body = body.to_owned();
        let port = Arc::new(AtomicUsize::new(0));
        let own = Arc::clone(&port);
        let rogue = Rogue::start(move |asked| {
            if asked.path.starts_with("/token") {
                return answer("200 OK", &[], body.as_bytes()).into();
            }
            let realm = format!("http://127.0.0.1:{}/token", own.load(Ordering::SeqCst));
            answer("401 Unauthorized", &[&format!("WWW-Authenticate: Bearer realm=\"{realm}\"")], b"").into()
        });
        port.store(usize::from(rogue.port()), Ordering::SeqCst);
        let error = pull_from(&rogue, &options()).await.expect_err("no token");
        let text = error.to_string();
        assert!(text.contains("answered with none") || text.contains("more than 65536 bytes"), "{text}");
    }
}

#[tokio::test]
async fn busy_registry_is_waited_for_as_long_as_it_says_to_a_bound() {
    let goods = goods();
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let times = AtomicUsize::new(0);
        let rogue = bent_at(&goods, "/manifests/1", {
            let goods = goods.clone();
            move |asked| match times.fetch_add(1, Ordering::SeqCst) {
                0 => answer(status, &["Retry-After: 1"], b"").into(),
                1 => answer(status, &[], b"").into(),
                _ => goods.answer(asked).into(),
            }
        });
        let began = Instant::now();
        pull_from(&rogue, &options()).await.expect("the image");
        assert!(began.elapsed() >= Duration::from_secs(1));
        let rogue = Rogue::start(move |_| answer(status, &["Retry-After: 3600"], b"").into());
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["busy", "3600 s", "later"]);
        assert_eq!(rogue.asked().len(), 1);
        let rogue = Rogue::start(move |_| answer(status, &["Retry-After: 0"], b"").into());
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["busy"]);
        assert_eq!(rogue.asked().len(), 4);
    }
    let rogue = Rogue::start(|_| answer("500 Oops", &[], br#"{"errors":[{"message":"disk\non fire"}]}"#).into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Unreachable, &["500", "disk on fire", "log"]);
}

#[tokio::test]
async fn content_of_another_digest_is_refused() {
    let goods = goods();
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let asked_for = Digest::of(b"another");
    let rogue = bent(&goods, |_| None);
    let result = pull(&images, &format!("{}/a@{asked_for}", rogue.name()), &options()).await;
    refused(result, RegistryErrorKind::Invalid, &["something else", &asked_for.to_string(), "push the image again"]);

    for header in [format!("Docker-Content-Digest: {asked_for}"), "Docker-Content-Digest: x".to_owned()] {
        let manifest = goods.manifest.clone();
        let rogue = bent_at(&goods, "/manifests/1", move |_| answer("200 OK", &[&header], &manifest).into());
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["that is not what it is"]);
    }
    let config = Digest::of(&goods.config).to_string();
    for (end, bytes, words) in [
        (config, goods.config.clone(), "the configuration sha256:"),
        (goods.layer(0), goods.layers[0].bytes.clone(), "asked for layer sha256:"),
        (goods.layer(1), goods.layers[1].bytes.clone(), "asked for layer sha256:"),
    ] {
        let mut bytes = bytes;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let rogue = bent_at(&goods, &end, move |_| answer("200 OK", &[], &bytes).into());
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &[words, "something else", &end]);
    }
    let bytes = goods.layers[1].bytes.clone();
    let rogue = bent_at(&goods, &goods.layer(1), move |_| answer("200 OK", &["Content-Encoding: gzip"], &bytes).into());
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["encoding", "gzip"]);
}

#[tokio::test]
async fn broken_download_goes_on_where_it_was() {
    let goods = goods();
    let layer = goods.layers[0].bytes.clone();
    let size = layer.len();
    // Each connection brings a sixth, which is more than a mebibyte.
    let step = size / 6;
    assert!(step > 1 << 20);
    let (bytes, end) = (layer.clone(), goods.layer(0));
    let rogue = bent_at(&goods, &end, move |asked| {
        let from = asked.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        let from: usize = from.map_or(0, |from| from.parse().expect("a number"));
        let until = (from + step).min(size);
        let length = format!("Content-Length: {}", size - from);
        let range = format!("Content-Range: bytes {from}-{}/{size}", size - 1);
        let status = if from == 0 { "200 OK" } else { "206 Partial Content" };
        answer(status, &[&length, &range], &bytes[from..until]).into()
    });
    let steps = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&steps);
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let name = format!("{}/a:1", rogue.name());
    let image = images.pull(&name, &options(), Arc::new(move |step| told.lock().push(step))).await;
    assert_eq!(image.expect("the image").manifest, goods.digest());
    assert!(rogue.count(&end) >= 6, "{}", rogue.count(&end));
    let done: Vec<u64> = steps
        .lock()
        .iter()
        .filter_map(|step| match step {
            Progress::Layer { index: 0, bytes_done, .. } => Some(*bytes_done),
            _ => None,
        })
        .collect();
    assert!(done.is_sorted() && done.last().copied() == u64::try_from(size).ok(), "{done:?}");

    // A server that knows no ranges sends what is known, too.
    let times = AtomicUsize::new(0);
    let bytes = layer.clone();
    let rogue = bent_at(&goods, &end, move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => head_and(size, &bytes[..size / 3]).into(),
        _ => answer("200 OK", &[], &bytes).into(),
    });
    pull_from(&rogue, &options()).await.expect("the image");
    assert_eq!(rogue.count(&end), 2);

    for (status, range) in
        [("206 Partial Content", format!("bytes 0-{}/{size}", size - 1)), ("206 Partial Content", String::new())]
    {
        let (bytes, range) = (layer.clone(), format!("Content-Range: {range}"));
        let rogue = bent_at(&goods, &end, move |asked| match asked.header("range") {
            "" => head_and(size, &bytes[..size / 3]).into(),
            _ => answer(status, &[&range], &bytes).into(),
        });
        refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["another part"]);
    }
    let bytes = layer.clone();
    let rogue = bent_at(&goods, &end, move |asked| match asked.header("range") {
        "" => head_and(size, &bytes[..size / 3]).into(),
        _ => answer("416 Range Not Satisfiable", &[], b"").into(),
    });
    refused(pull_from(&rogue, &options()).await, RegistryErrorKind::Invalid, &["416"]);
}

#[tokio::test]
async fn certificates_that_are_not_trusted_are_explained() {
    let goods = goods();
    let (own, other) = (certificates(), certificates());
    let served = goods.clone();
    let rogue = Rogue::with_tls(&own.server, &own.key, move |asked| served.answer(asked).into());
    let trusting = |pem: &str| PullOptions { ca_pem: vec![pem.as_bytes().to_vec()], ..options() };
    pull_from(&rogue, &trusting(&own.authority)).await.expect("the image");
    let both = format!("{}{}", other.authority, own.authority);
    pull_from(&rogue, &trusting(&both)).await.expect("the image");

    let unknown = pull_from(&rogue, &trusting(&other.authority)).await;
    refused(
        unknown,
        RegistryErrorKind::Unreachable,
        &["TLS", "authority that this node does not trust: give the authority's certificate (PEM)"],
    );
    for pem in ["", "no PEM", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        refused(pull_from(&rogue, &trusting(pem)).await, RegistryErrorKind::Unreachable, &["PEM"]);
    }
    // Its own authority: rustls takes no such certificate for a server's.
    let served = goods.clone();
    let rogue = Rogue::with_tls(&own.server, &own.key, move |asked| served.answer(asked).into());
    let itself = pull_from(&rogue, &trusting(&own.server)).await;
    refused(itself, RegistryErrorKind::Unreachable, &["TLS"]);

    let served = goods.clone();
    let plain = Rogue::start(move |asked| served.answer(asked).into());
    let hang_free = pull_from(&plain, &trusting(&own.authority)).await;
    assert!(matches!(hang_free, Err(ImageError::Registry(error)) if error.kind() == RegistryErrorKind::Unreachable));
}

#[tokio::test]
async fn registry_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    // The kernel answers for a listener that nobody serves, so TLS waits for its first word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = silent.local_addr().expect("it has one").to_string();
    let ca_pem = vec![certificates().authority.into_bytes()];
    let options = PullOptions { ca_pem, connect: Duration::from_millis(500), ..options() };
    let result = pull(&images, &format!("{name}/a"), &options).await;
    refused(result, RegistryErrorKind::Unreachable, &[&name, "within 0.5 s", "firewall"]);
    drop(silent);
    let result = pull(&images, &format!("{name}/a"), &options).await;
    refused(result, RegistryErrorKind::Unreachable, &[&name, "cannot be reached", "refused", "port"]);
    assert_empty(&images, directory.path());
}

#[tokio::test]
async fn dropped_pull_leaves_nothing() {
    let goods = goods();
    let layer = goods.layers[1].bytes.clone();
    let rogue = bent_at(&goods, &goods.layer(1), move |_| Act::Hang(head_and(layer.len(), &layer[..layer.len() / 2])));
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let unpacked = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&unpacked);
    let progress = Arc::new(move |step| {
        if matches!(step, Progress::Layer { index: 0, bytes_done, bytes_total, .. } if bytes_done == bytes_total) {
            told.notify_one();
        }
    });
    let options = PullOptions { stall: Duration::from_secs(60), ..options() };
    let name = format!("{}/a:1", rogue.name());
    tokio::select! {
        result = images.pull(&name, &options, progress) => panic!("it cannot end: {result:?}"),
        () = unpacked.notified() => {}
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_dir(directory.path().join("tmp")).expect("it is there").count() > 0 {
        assert!(Instant::now() < deadline, "what was unpacked is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_empty(&images, directory.path());
}

#[tokio::test]
async fn pulls_of_the_same_image_at_once_do_no_harm() {
    let goods = goods();
    let rogue = bent(&goods, |_| None);
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path());
    let options = options();
    let names: Vec<String> = (0..4).map(|number| format!("{}/a:{}", rogue.name(), number / 2)).collect();
    let pulled = futures::future::join_all(names.iter().map(|name| pull(&images, name, &options))).await;
    for image in pulled {
        assert_eq!(image.expect("the image").manifest, goods.digest());
    }
    assert_eq!(images.list().len(), 1);
    assert_eq!(images.list()[0].references.len(), 2);
    assert_eq!(fs::read_dir(directory.path().join("tmp")).expect("it is there").count(), 0);
    images.gc(&BTreeSet::new()).expect("collected");
    assert_eq!(images.list().len(), 1);
}

#[tokio::test]
async fn downloads_run_ahead_to_a_bound() {
    const COUNT: usize = 12;
    const TOGETHER: usize = 4;
    let layers = (0..COUNT).map(|number| {
        let content = vec![u8::try_from(number).expect("few"); 200_000];
        Blob::tar(&Tarball::new().file(&format!("file-{number}"), &content).end())
    });
    let goods = Goods::of(layers.collect());
    let (first, served) = (goods.layer(0), goods.clone());
    let state = Arc::new((Mutex::new(0_usize), Condvar::new()));
    let (released, early) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let rogue = {
        let (state, released, early) = (Arc::clone(&state), Arc::clone(&released), Arc::clone(&early));
        let config = Digest::of(&goods.config).to_string();
        bent(&goods, move |asked| {
            if !asked.path.contains("/blobs/") || asked.path.ends_with(&config) {
                return None;
            }
            let (count, changed) = &*state;
            let mut count = count.lock();
            *count += 1;
            changed.notify_all();
            early.fetch_or(*count > TOGETHER && !released.load(Ordering::SeqCst), Ordering::SeqCst);
            if asked.path.ends_with(&first) {
                // The lowest layer comes last of those that may be asked for before it is there.
                while *count < TOGETHER {
                    let waited = changed.wait_for(&mut count, Duration::from_secs(20));
                    assert!(!waited.timed_out(), "nothing runs ahead");
                }
                released.store(true, Ordering::SeqCst);
            }
            Some(served.answer(asked).into())
        })
    };
    let image = pull_from(&rogue, &options()).await;
    assert_eq!(image.expect("the image").layers.len(), COUNT);
    assert!(!early.load(Ordering::SeqCst), "more than {TOGETHER} at once");
}

#[tokio::test]
async fn connections_are_used_again_and_replaced_when_they_were_closed() {
    let goods = goods();
    let served = goods.clone();
    let rogue = Rogue::start(move |asked| Act::Keep(open_ended(&served.answer(asked))));
    pull_from(&rogue, &options()).await.expect("the image");
    // One layer each may be on its way at once.
    assert_eq!((rogue.asked().len(), rogue.connections()), (4, 2));
    // Closed without a word, each connection is good for one answer.
    let served = goods.clone();
    let rogue = Rogue::start(move |asked| open_ended(&served.answer(asked)).into());
    pull_from(&rogue, &options()).await.expect("the image");
    assert_eq!((rogue.asked().len(), rogue.connections()), (4, 4));
}

/// In a process of its own, where the helpers are: who asks is what they say.
#[tokio::test]
async fn credential_helpers_are_asked() {
    use std::os::unix::fs::PermissionsExt as _;
    const MARK: &str = "IMAGE_TEST_HELPERS";
    let Some(helpers) = std::env::var_os(MARK) else {
        let helpers = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("good", r#"read server; test -n "$server" || exit 1; echo '{"Username":"u","Secret":"p:q"}'"#),
            ("none", "echo credentials not found in native keychain; exit 1"),
            ("bad", "echo locked; exit 1"),
            ("odd", "echo hello"),
        ] {
            let path = helpers.path().join(format!("docker-credential-{name}"));
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let status = std::process::Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "registry::credential_helpers_are_asked", "--nocapture"])
            .env("PATH", format!("{}:{path}", helpers.path().display()))
            .env(MARK, helpers.path())
            .status();
        assert!(status.expect("it starts").success());
        return;
    };
    let goods = goods();
    let rogue = bent(&goods, |asked| {
        let challenge = "WWW-Authenticate: Basic realm=\"x\"";
        let known = asked.header("authorization") == "Basic dTpwOnE=";
        (!known).then(|| answer("401 Unauthorized", &[challenge], b"").into())
    });
    let pull_with = async |text: serde_json::Value| {
        let file = Path::new(&helpers).join("config.json");
        fs::write(&file, text.to_string()).expect("written");
        pull_from(&rogue, &PullOptions { credential_files: vec![file], ..options() }).await
    };
    let name = rogue.name();
    let with = |helper: &str| serde_json::json!({ "credHelpers": { &name: helper } });
    pull_with(with("good")).await.expect("the image");
    pull_with(serde_json::json!({ "credsStore": "good" })).await.expect("the image");
    pull_with(serde_json::json!({ "auths": { format!("{name}/team"): { "auth": "dTpwOnE=" } } }))
        .await
        .expect("the image");
    pull_with(serde_json::json!({ "credsStore": "none", "auths": { &name: { "auth": "dTpwOnE=" } } }))
        .await
        .expect("the image");
    for (file, words) in [
        (with("missing"), ["docker-credential-missing", "no such program", "install the helper"]),
        (with("../../bin/sh"), ["no name of a helper", "", ""]),
        (with("bad"), ["docker-credential-bad", "locked", "user and password"]),
        (with("odd"), ["docker-credential-odd", "not what helpers answer", ""]),
        (serde_json::json!({ "auths": { &name: { "auth": "!" } } }), ["base64", "config.json", "repair"]),
        (serde_json::json!([1]), ["config.json", "repair the file", ""]),
        (serde_json::json!({ "auths": { "elsewhere": { "auth": "dTpwOnE=" } } }), ["unknown", "401", ""]),
    ] {
        refused(pull_with(file).await, RegistryErrorKind::Denied, &words);
    }
}
