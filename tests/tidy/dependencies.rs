//! What may come in from outside: licences, sources and banned crates, as `deny.toml` says.
//!
//! The same file drives cargo-deny in the longer tier; docs/decisions/0001-dependency-rules-without-cargo-deny.md tells
//! why these three checks are here as well.

/// Whether an SPDX expression can be satisfied with the allowed licences. The old `A/B` means `A OR B`.
fn satisfied(expression: &str, allowed: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_ascii_whitespace().collect();
    let mut rest = tokens.as_slice();
    let value = any_of(&mut rest, allowed)?;
    if rest.is_empty() { Ok(value) } else { Err(format!("cannot read the licence {expression:?}")) }
}

fn any_of(tokens: &mut &[&str], allowed: &[String]) -> Result<bool, String> {
    let mut value = all_of(tokens, allowed)?;
    while let ["OR", rest @ ..] = *tokens {
        *tokens = rest;
        value |= all_of(tokens, allowed)?;
    }
    Ok(value)
}

fn all_of(tokens: &mut &[&str], allowed: &[String]) -> Result<bool, String> {
    let mut value = single(tokens, allowed)?;
    while let ["AND", rest @ ..] = *tokens {
        *tokens = rest;
        value &= single(tokens, allowed)?;
    }
    Ok(value)
}

fn single(tokens: &mut &[&str], allowed: &[String]) -> Result<bool, String> {
    match *tokens {
        ["(", rest @ ..] => {
            *tokens = rest;
            let value = any_of(tokens, allowed)?;
            match *tokens {
                [")", rest @ ..] => *tokens = rest,
                _ => return Err("a parenthesis is left open".to_owned()),
            }
            Ok(value)
        }
        [name, "WITH", exception, rest @ ..] => {
            *tokens = rest;
            Ok(allowed.contains(&format!("{name} WITH {exception}")))
        }
        ["OR" | "AND" | "WITH" | ")", ..] | [] => Err("a licence is missing".to_owned()),
        [name, rest @ ..] => {
            *tokens = rest;
            Ok(allowed.iter().any(|a| a == name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;
    use crate::workspace::Workspace;

    fn rules(workspace: &Workspace) -> toml::Table {
        let path = workspace.root.join("deny.toml");
        std::fs::read_to_string(path).expect("deny.toml exists").parse().expect("deny.toml is TOML")
    }

    fn strings(value: &toml::Value) -> Vec<String> {
        value.as_array().expect("a list").iter().map(|v| v.as_str().expect("of texts").to_owned()).collect()
    }

    #[test]
    fn licences_are_allowed() {
        let workspace = Workspace::load();
        let rules = rules(&workspace);
        let allowed = strings(&rules["licenses"]["allow"]);
        let mut violations = Vec::new();
        for package in workspace.compiled() {
            let exceptions = rules["licenses"].get("exceptions").and_then(toml::Value::as_array);
            let excepted = exceptions.into_iter().flatten().find(|e| e["crate"].as_str() == Some(&package.name));
            let mut allowed = allowed.clone();
            allowed.extend(excepted.map(|e| strings(&e["allow"])).unwrap_or_default());
            // As cargo-deny has it, but only for what is silent itself.
            let clarified = rules["licenses"].get("clarify").and_then(toml::Value::as_array).into_iter().flatten();
            let clarified = clarified
                .filter(|clarified| {
                    clarified["crate"].as_str() == Some(&format!("{}@{}", package.name, package.version))
                })
                .find_map(|clarified| clarified["expression"].as_str().map(str::to_owned));
            let licence = package.licence.clone().or(clarified);
            let verdict = match &licence {
                None => Err("it names no licence".to_owned()),
                Some(expression) => satisfied(expression, &allowed),
            };
            match verdict {
                Ok(true) => {}
                Ok(false) => violations.push(format!(
                    "{} {}: {}",
                    package.name,
                    package.version,
                    licence.as_deref().unwrap_or_default()
                )),
                Err(why) => violations.push(format!("{} {}: {why}", package.name, package.version)),
            }
        }
        require("each dependency's licence is allowed by deny.toml", "we ship binaries under Apache-2.0", &violations);
    }

    #[test]
    fn sources_are_the_public_registry_or_this_repository() {
        let workspace = Workspace::load();
        let rules = rules(&workspace);
        for key in ["unknown-git", "unknown-registry"] {
            assert_eq!(rules["sources"][key].as_str(), Some("deny"), "deny.toml, sources.{key}");
        }
        let registry = ["registry+https://github.com/rust-lang/crates", ".io-index"].concat();
        let mut violations = Vec::new();
        for package in &workspace.packages {
            let known = match &package.source {
                None => workspace.is_member(&package.name),
                Some(source) => *source == registry,
            };
            if !known {
                violations.push(format!("{} {} from {:?}", package.name, package.version, package.source));
            }
        }
        require("nothing comes from git or a strange registry", "a release can be built again later", &violations);
    }

    #[test]
    fn banned_crates_are_absent() {
        let workspace = Workspace::load();
        let rules = rules(&workspace);
        let banned = rules["bans"]["deny"].as_array().expect("a list").clone();
        assert!(!banned.is_empty());
        let mut violations = Vec::new();
        for package in workspace.compiled() {
            if let Some(ban) = banned.iter().find(|ban| ban["crate"].as_str() == Some(&package.name)) {
                let why = ban["reason"].as_str().expect("each ban says why");
                violations.push(format!("{} {}: {why}", package.name, package.version));
            }
        }
        require("no crate that deny.toml bans is linked", "each ban says why", &violations);
    }

    #[test]
    fn licence_expressions_are_judged() {
        let allowed = ["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
        for (expression, expected) in [
            ("MIT", Ok(true)),
            ("GPL-3.0", Ok(false)),
            ("GPL-3.0 OR MIT", Ok(true)),
            ("GPL-3.0/MIT", Ok(true)),
            ("GPL-3.0 AND MIT", Ok(false)),
            ("MIT AND (GPL-3.0 OR ISC)", Ok(true)),
            ("(MIT OR GPL-3.0) AND GPL-3.0", Ok(false)),
            ("Apache-2.0 WITH LLVM-exception", Ok(true)),
            ("Apache-2.0", Ok(false)),
        ] {
            assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
        }
        for broken in ["", "(MIT", "MIT OR", "MIT MIT", "AND MIT", "MIT)"] {
            assert!(satisfied(broken, &allowed).is_err(), "{broken}");
        }
    }
}
