//! Who asks a registry: explicit credentials, those of Docker's files and helpers, and the tokens that they buy.
//!
//! Nothing is told before a registry wants to know it, and then to that registry or, over no worse a connection, to the
//! token server that it names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderValue};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::challenge::{self, Challenge};
use crate::fault::{Fault, Said, clean};
use crate::reference::Reference;
use crate::transport::{Ask, Origin, Transport, Url};

/// Longest answer of a token server, and so longest token.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Longest file of credentials.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest answer of a credential helper.
const HELPER_BYTES_MAX: u64 = 64 << 10;
/// How long a credential helper may take.
const HELPER_TIME: Duration = Duration::from_secs(30);
/// What helpers say, and leave with 1, when they know nobody.
const HELPER_NOBODY: &str = "credentials not found";
/// As which a helper hands out a token for tokens instead of a password.
const IDENTITY_USER: &str = "<token>";
/// By which name Docker's files know Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Who asks a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The password, or what the registry takes for one.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What is known of who asks.
#[derive(Clone, PartialEq, Eq)]
enum Known {
    Nobody,
    User(Credentials),
    /// A token that buys tokens.
    Identity(String),
}

impl Known {
    fn whom(&self) -> &'static str {
        match self {
            Self::Nobody => "somebody unknown",
            Self::User(_) | Self::Identity(_) => "the user whose credentials were given",
        }
    }

    fn basic(&self) -> Result<Option<HeaderValue>, Fault> {
        let Self::User(Credentials { username, password }) = self else { return Ok(None) };
        if username.contains(':') || username.chars().chain(password.chars()).any(char::is_control) {
            return Err(Fault::Credentials);
        }
        let text = format!("Basic {}", BASE64.encode(format!("{username}:{password}").as_bytes()));
        let mut value = HeaderValue::from_str(&text).map_err(|_| Fault::Credentials)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Says who asks, once a registry wants to know.
pub(crate) struct Login {
    registry: String,
    repository: String,
    given: Option<Credentials>,
    files: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    authorization: Option<HeaderValue>,
}

impl Login {
    pub(crate) fn new(reference: &Reference, given: Option<Credentials>, files: Vec<PathBuf>) -> Self {
        let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
        Self { registry, repository, given, files, state: Mutex::default() }
    }

    /// What to say to the registry, as far as it wanted to know something before.
    pub(crate) async fn authorization(&self) -> Option<HeaderValue> {
        self.state.lock().await.authorization.clone()
    }

    /// To whom the registry does not hand something.
    pub(crate) async fn whom(&self) -> &'static str {
        self.state.lock().await.known.as_ref().unwrap_or(&Known::Nobody).whom()
    }

    /// Finds what to say to a registry that was not content with what it was told. `None`: there is nothing else.
    pub(crate) async fn renew(
        &self,
        transport: &Transport,
        origin: &Origin,
        headers: &HeaderMap,
        said: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let mut state = self.state.lock().await;
        if state.authorization.is_some() && state.authorization.as_ref() != said {
            // Another request found something meanwhile.
            return Ok(state.authorization.clone());
        }
        let wanted = Wanted::of(headers)?;
        if state.known.is_none() {
            state.known = Some(self.find().await?);
        }
        let known = state.known.clone().unwrap_or(Known::Nobody);
        let value = match wanted {
            Wanted::Basic => known.basic()?,
            Wanted::Bearer { realm, service } => {
                Some(self.token(transport, origin, &known, &realm, service.as_deref()).await?)
            }
        };
        if value.as_ref() == said {
            return Ok(None);
        }
        state.authorization.clone_from(&value);
        Ok(value)
    }

    /// Buys a token that is good for reading this one repository, whatever else the registry proposes.
    async fn token(
        &self,
        transport: &Transport,
        origin: &Origin,
        known: &Known,
        realm: &str,
        service: Option<&str>,
    ) -> Result<HeaderValue, Fault> {
        let url = Url::parse(realm).ok_or_else(|| Fault::Location { to: realm.chars().take(80).collect() })?;
        if origin.tls && !url.origin.tls {
            return Err(Fault::Downgrade { to: url.origin.to_string() });
        }
        let scope = format!("repository:{}:pull", self.repository);
        let mut form = Vec::new();
        if let Some(service) = service {
            form.push(("service", service));
        }
        form.push(("scope", scope.as_str()));
        let mut ask = Ask::get(url);
        if let Known::Identity(token) = known {
            form.extend([("grant_type", "refresh_token"), ("client_id", "meshd"), ("refresh_token", token)]);
            ask.method = Method::POST;
            ask.body = Bytes::from(encode(&form));
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            ask.headers.insert(header::CONTENT_TYPE, kind);
        } else {
            let separator = if ask.url.target.contains('?') { '&' } else { '?' };
            ask.url.target = format!("{}{separator}{}", ask.url.target, encode(&form));
            if let Some(basic) = known.basic()? {
                ask.headers.insert(header::AUTHORIZATION, basic);
            }
        }
        let at = ask.url.to_string();
        let answer = transport.ask(&ask).await?;
        let status = answer.status.as_u16();
        let body = transport.read(answer, TOKEN_BYTES_MAX).await?;
        match status {
            200..300 => {}
            401 | 403 => {
                return Err(Fault::TokenDenied { at, whom: known.whom(), status, said: Said::of(&body) });
            }
            429 | 503 => return Err(Fault::Busy { status, wait: None }),
            _ => return Err(Fault::Status { status, said: Said::of(&body) }),
        }
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let answered: Token = serde_json::from_slice(&body).map_err(|_| Fault::Token { at: at.clone() })?;
        let token = if answered.token.is_empty() { answered.access_token } else { answered.token };
        let value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty());
        let mut value = value.ok_or(Fault::Token { at })?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn find(&self) -> Result<Known, Fault> {
        if let Some(given) = &self.given {
            return Ok(Known::User(given.clone()));
        }
        for path in &self.files {
            let known = self.find_in(path).await?;
            if known != Known::Nobody {
                return Ok(known);
            }
        }
        Ok(Known::Nobody)
    }

    async fn find_in(&self, path: &Path) -> Result<Known, Fault> {
        let wrong = |why: String| Fault::CredentialFile { path: path.display().to_string(), why };
        let copy = path.to_owned();
        let bytes = tokio::task::spawn_blocking(move || crate::layout::read_small(&copy, FILE_BYTES_MAX)).await;
        let bytes = bytes.map_err(|_| wrong("it was not read to its end".to_owned()))?;
        let bytes = match bytes {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Known::Nobody),
            Err(error) => return Err(wrong(why(&error))),
        };
        let file: DockerFile = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let names = self.names();
        let helper = names.iter().find_map(|name| {
            file.helpers.iter().find(|(key, _)| plain_key(key) == *name).map(|(key, helper)| (key.clone(), helper))
        });
        let general = file.store.as_ref().filter(|store| !store.is_empty()).map(|store| {
            let key = if self.registry == "docker.io" { HUB_KEY.to_owned() } else { self.registry.clone() };
            (key, store)
        });
        if let Some((key, helper)) = helper.or(general) {
            let known = ask_helper(helper, &key).await?;
            if known != Known::Nobody {
                return Ok(known);
            }
        }
        let entry = names.iter().find_map(|name| {
            file.auths.iter().find(|(key, entry)| plain_key(key) == *name && !entry.is_empty()).map(|(_, entry)| entry)
        });
        let Some(entry) = entry else { return Ok(Known::Nobody) };
        entry.known().ok_or_else(|| wrong(format!("what it has for {} is not base64 of USER:PASSWORD", self.registry)))
    }

    /// By which names files may know the repository, the closest first.
    fn names(&self) -> Vec<String> {
        let mut name = format!("{}/{}", self.registry, self.repository);
        let mut names = vec![name.clone()];
        while let Some(slash) = name.rfind('/') {
            name.truncate(slash);
            names.push(name.clone());
        }
        names
    }
}

/// The messages of an error's causes are what a reader of the file needs.
fn why(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A key of a credential file as a name: older ones are addresses.
fn plain_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key).trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.split_once('/').map_or((key, None), |(host, path)| (host, Some(path))) {
        ("index.docker.io" | "registry-1.docker.io", None) => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

/// What Docker and its kin keep.
#[derive(Deserialize)]
struct DockerFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity: String,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.username.is_empty() && self.identity.is_empty()
    }

    fn known(&self) -> Option<Known> {
        if !self.identity.is_empty() {
            return Some(Known::Identity(self.identity.clone()));
        }
        if self.auth.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Some(Known::User(Credentials { username, password }));
        }
        let text = String::from_utf8(BASE64.decode(self.auth.trim().as_bytes()).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        // Docker once padded passwords.
        let password = password.trim_end_matches('\0').to_owned();
        Some(Known::User(Credentials { username: username.to_owned(), password }))
    }
}

async fn ask_helper(helper: &str, key: &str) -> Result<Known, Fault> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| Fault::Helper { helper: program.clone(), why };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(Fault::Helper { helper: clean(helper, 40), why: "that is no name of a helper".to_owned() });
    }
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that knows what to say without reading may be gone by now.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        let mut said = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(HELPER_BYTES_MAX).read_to_end(&mut said).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, said))
    };
    let (status, said) = match timeout(HELPER_TIME, run).await {
        Err(_) => return Err(failed(format!("it said nothing within {} s", HELPER_TIME.as_secs()))),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(failed("there is no such program here".to_owned()));
        }
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Ok(Ok(ended)) => ended,
    };
    if !status.success() {
        let said = clean(&String::from_utf8_lossy(&said), 120);
        return if said.contains(HELPER_NOBODY) { Ok(Known::Nobody) } else { Err(failed(format!("{status}: {said}"))) };
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer =
        serde_json::from_slice(&said).map_err(|_| failed("its answer is not what helpers answer".to_owned()))?;
    Ok(match answer.username.as_str() {
        IDENTITY_USER => Known::Identity(answer.secret),
        _ => Known::User(Credentials { username: answer.username, password: answer.secret }),
    })
}

/// How a registry wants to be told.
enum Wanted {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let fields: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
        let challenges: Vec<Challenge> = fields
            .iter()
            .filter_map(|field| challenge::parse(std::str::from_utf8(field.as_bytes()).ok()?).ok())
            .flatten()
            .collect();
        let bearer = challenges.iter().find_map(|challenge| {
            let realm = challenge.parameter("realm").filter(|_| challenge.scheme == "bearer")?;
            let service = challenge.parameter("service").map(str::to_owned);
            Some(Self::Bearer { realm: realm.to_owned(), service })
        });
        let basic = || challenges.iter().any(|challenge| challenge.scheme == "basic").then_some(Self::Basic);
        bearer.or_else(basic).ok_or_else(|| {
            let challenge = fields.first().map(|field| String::from_utf8_lossy(field.as_bytes()).into_owned());
            Fault::Challenge { challenge: clean(&challenge.unwrap_or_default(), 120) }
        })
    }
}

/// `application/x-www-form-urlencoded`.
fn encode(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' | b'/' => {
                    text.push(char::from(byte));
                }
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_files_are_names_however_old_they_are() {
        for (key, expected) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("https://registry.example:5000", "registry.example:5000"),
            ("http://registry.example/v2/", "registry.example"),
            ("registry.example/team", "registry.example/team"),
            ("docker.io/team", "docker.io/team"),
        ] {
            assert_eq!(plain_key(key), expected, "{key}");
        }
    }

    #[test]
    fn closest_name_comes_first() {
        let reference: Reference = "a.example/b/c:1".parse().expect("a name");
        let login = Login::new(&reference, None, Vec::new());
        assert_eq!(login.names(), ["a.example/b/c", "a.example/b", "a.example"]);
    }

    #[test]
    fn entries_of_files_are_read_in_all_their_forms() {
        let user = |username: &str, password: &str| {
            Some(Known::User(Credentials { username: username.to_owned(), password: password.to_owned() }))
        };
        for (entry, expected) in [
            (r#"{"auth":"dTpwOnE="}"#, user("u", "p:q")),
            (r#"{"auth":"dTpwAA=="}"#, user("u", "p")),
            (r#"{"username":"u","password":"p"}"#, user("u", "p")),
            (r#"{"auth":"dTpw","identitytoken":"t"}"#, Some(Known::Identity("t".to_owned()))),
            (r#"{"auth":"dXA="}"#, None),
            (r#"{"auth":"?"}"#, None),
            (r#"{"auth":"/////w=="}"#, None),
        ] {
            let entry: Entry = serde_json::from_str(entry).expect("an entry");
            assert!(entry.known() == expected, "{}", entry.auth);
        }
    }

    #[test]
    fn passwords_are_not_in_debug_output() {
        let credentials = Credentials { username: "anna".to_owned(), password: "geheim".to_owned() };
        assert_eq!(format!("{credentials:?}"), "Credentials { username: \"anna\", .. }");
    }

    #[test]
    fn forms_keep_their_parts_apart() {
        assert_eq!(encode(&[("a", "b&c=d"), ("e", "ä +/:")]), "a=b%26c%3Dd&e=%C3%A4%20%2B/:");
    }
}
