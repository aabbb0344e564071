//! Every crate that the program is made of has a licence that `deny.toml` allows, and comes from crates.io.

use serde_json::Value;
use spdx::{Expression, LicenseReq};
use std::collections::BTreeSet;
use std::process::Command;

/// The packages of the lock file, ours left out. Those of the CUDA build may have to be fetched.
fn packages() -> Vec<Value> {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().filter(|package| !package["source"].is_null()).cloned().collect()
}

fn allowed() -> BTreeSet<String> {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let file: toml::Table = file.parse().unwrap();
    file["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_dependency_may_be_given_away_with_the_program() {
    let (packages, allowed) = (packages(), allowed());
    assert!(packages.len() > 200, "only {} packages: the metadata is not that of the whole program", packages.len());
    let mut refused = Vec::new();
    for package in &packages {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let license = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        let may = |licence: &LicenseReq| allowed.contains(&licence.to_string());
        match Expression::parse(&license) {
            Ok(expression) if expression.evaluate(may) => {}
            Ok(_) => refused.push(format!("{name} {version}: {license} is not among the licences that deny.toml allows")),
            Err(_) => refused.push(format!("{name} {version}: {license:?} is no SPDX expression")),
        }
        let source = package["source"].as_str().unwrap();
        if source != "registry+https://github.com/rust-lang/crates.io-index" {
            refused.push(format!("{name} {version}: comes from {source}"));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn a_licence_that_is_not_allowed_is_seen() {
    let allowed = allowed();
    let may = |text: &str| Expression::parse(text).unwrap().evaluate(|licence| allowed.contains(&licence.to_string()));
    assert!(may("MIT OR GPL-3.0-only") && may("(MIT AND BSD-3-Clause) OR Apache-2.0"));
    assert!(!may("GPL-3.0-only") && !may("MIT AND GPL-3.0-only") && !may("AGPL-3.0-or-later"));
}
