//! Hosts to which a registry redirects: they hand out content and are told nothing.

use std::sync::Arc;

use workloads_image::{Credentials, PullOptions, RegistryErrorKind};

use crate::build::{Blob, Tarball};
use crate::registry::{options, pull_from, refused};
use crate::rogue::{Goods, Rogue, answer};

fn goods() -> Goods {
    Goods::of(vec![Blob::gzip(&Tarball::new().file("file", b"content").end())])
}

fn known() -> PullOptions {
    let credentials = Some(Credentials { username: "u".to_owned(), password: "p".to_owned() });
    PullOptions { credentials, ..options() }
}

/// A storage that wants to know who asks, and a thief to whom it sends for that. Everything of both is by name
/// `localhost`, and the registry by its address, so that they are hosts of their own.
#[tokio::test]
async fn storage_is_not_told_who_asks_whatever_it_wants() {
    let goods = goods();
    for from_start in [true, false] {
        for scheme in ["Bearer", "Basic"] {
            let thief = Arc::new(Rogue::start(|_| answer("200 OK", &[], br#"{"token":"stolen"}"#).into()));
            let realm = format!("http://localhost:{}/token", thief.port());
            let challenge = format!("WWW-Authenticate: {scheme} realm=\"{realm}\"");
            let storage = Arc::new(Rogue::start(move |_| answer("401 Unauthorized", &[&challenge], b"").into()));
            let (to, served) = (storage.port(), goods.clone());
            let rogue = Rogue::start(move |asked| {
                if !from_start && asked.header("authorization").is_empty() {
                    return answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b"").into();
                }
                let location = format!("Location: http://localhost:{to}{}", asked.path);
                if asked.path.contains("/blobs/") {
                    return answer("307 Temporary Redirect", &[&location], b"").into();
                }
                served.answer(asked).into()
            });
            let place = format!("http://localhost:{}/v2/team/app/blobs/", storage.port());
            let result = pull_from(&rogue, &known()).await;
            assert!(thief.asked().is_empty(), "{scheme}: {:?}", thief.asked());
            assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_empty()), "{scheme}");
            assert_eq!(storage.asked().len(), 1, "{scheme}");
            // Nor is the registry told who asks because a storage wants to know it.
            let told = rogue.asked().iter().filter(|asked| !asked.header("authorization").is_empty()).count();
            assert_eq!(told == 0, from_start, "{scheme}");
            refused(result, RegistryErrorKind::Denied, &[&place, "is told to the registry only"]);
        }
    }
}

/// A redirect to the registry itself is no other host: what it wants to know there, it is told.
#[tokio::test]
async fn registry_that_redirects_to_itself_is_told_who_asks() {
    let goods = goods();
    let rogue = Rogue::start(move |asked| {
        if let Some(path) = asked.path.strip_prefix("/v2/team/") {
            return answer("307 Temporary Redirect", &[&format!("Location: /v2/moved/{path}")], b"").into();
        }
        if asked.header("authorization") != "Basic dTpw" {
            return answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b"").into();
        }
        goods.answer(asked).into()
    });
    pull_from(&rogue, &known()).await.expect("the image");
    assert!(rogue.asked().iter().any(|asked| asked.header("authorization") == "Basic dTpw"));
}
