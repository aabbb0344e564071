//! The structure that `ARCHITECTURE.md` promises, read from the sources.

#[path = "structure/imports.rs"]
mod imports;

use imports::Imports;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Folders of the library crates.
fn crates() -> Vec<String> {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_string()).collect()
}

/// No two files of a crate import from each other, directly or round about. The one exception: a child module may use the items of the modules that it
/// lies in. An import through a re-export counts as an import of the file that defines the item. Code under `#[cfg(test)]` does not count.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = crates().into_iter().map(|name| root().join(name).join("src/lib.rs")).chain([root().join("src/main.rs")]);
    let mut found = Vec::new();
    let mut files = 0;
    for source in sources {
        let imports = Imports::read(&source);
        files += imports.files();
        found.extend(imports.circles());
    }
    assert!(files > 200, "only {files} files were read: the test looks in the wrong place");
    let text: Vec<String> = found.iter().map(|circle| circle.describe(root())).collect();
    assert!(text.is_empty(), "files that import each other in a circle:\n\n{}", text.join("\n"));
}

#[test]
fn a_circle_through_a_re_export_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod shapes; mod drawing; pub use drawing::pen::Pen; pub struct Error;");
    write("shapes.rs", "use crate::{Error, Pen}; pub struct Circle; fn draw(_: Pen) -> Error { Error }");
    write("drawing/mod.rs", "pub mod pen; fn ink() { let _ = format!(\"{}\", pen::WIDTH); }");
    write(
        "drawing/pen.rs",
        "use super::ink; pub const WIDTH: u32 = 1; pub struct Pen; fn trace() { ink(); crate::shapes::Circle; }",
    );
    let circles = Imports::read(&folder.path().join("lib.rs")).circles();
    assert_eq!(circles.len(), 1);
    let text = circles[0].describe(folder.path());
    assert_eq!(text, "drawing/pen.rs -> shapes.rs (Circle)\nshapes.rs -> drawing/pen.rs (Pen)\n");

    // Without the import, but for the test's, there is none: a child may use its parent.
    write(
        "drawing/pen.rs",
        "use super::ink; pub struct Pen; fn trace() { ink() } #[cfg(test)] mod tests { use crate::shapes::Circle; }",
    );
    assert_eq!(Imports::read(&folder.path().join("lib.rs")).circles().len(), 0);
}

/// The column "knows" of `ARCHITECTURE.md`'s map is what the manifests say.
#[test]
fn crates_know_only_what_the_map_says() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for name in crates() {
        let row =
            map.lines().find(|line| line.starts_with(&format!("| `{name}/`"))).unwrap_or_else(|| panic!("{name} has no row"));
        let knows = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let mut knows: Vec<&str> = knows.split('`').skip(1).step_by(2).collect();
        let manifest: toml::Table = fs::read_to_string(root().join(&name).join("Cargo.toml")).unwrap().parse().unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap().keys();
        let mut ours: Vec<&str> = dependencies.filter_map(|key| key.strip_prefix("sam-ladder-")).collect();
        knows.sort();
        ours.sort();
        assert_eq!(ours, knows, "{name}: what Cargo.toml says, and what the map says");
    }
}

/// Each invariant names tests as `file: function`, with `tests/` left out of the path.
#[test]
fn the_invariants_name_tests_that_there_are() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let named = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(": "));
    let mut count = 0;
    for (place, function) in named {
        let candidates = [root().join("tests").join(format!("{place}.rs")), root().join(place)];
        let path = candidates.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("there is no {place}"));
        let files = if path.is_dir() { rust_files(path) } else { vec![path.clone()] };
        let is_there = |file: &PathBuf| fs::read_to_string(file).unwrap().contains(&format!("fn {function}("));
        assert!(files.iter().any(is_there), "{place} has no test {function}");
        count += 1;
    }
    assert!(count > 20, "only {count} tests were found");
}

#[test]
fn libraries_do_not_print() {
    for name in crates() {
        for file in rust_files(&root().join(&name).join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            // Tests may, and documentation shows how.
            let code = text.split("#[cfg(test)]").next().unwrap();
            let prints = ["println!", "eprintln!", "print!(", "dbg!", "indicatif"];
            let testing = file.components().any(|part| part.as_os_str() == "testing") || is_tests(&file);
            let line = code.lines().find(|line| !line.trim_start().starts_with("//") && prints.iter().any(|p| line.contains(p)));
            assert!(testing || line.is_none(), "{}: {}", file.display(), line.unwrap_or_default());
        }
    }
}

/// `println!` panics when its reader has gone.
#[test]
fn the_binary_prints_in_one_place() {
    for file in rust_files(&root().join("src")).iter().filter(|file| !file.ends_with("print.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let prints = ["println!", "print!(", "stdout().", "stderr().lock", "dbg!"];
        let line = text.lines().find(|line| !line.trim_start().starts_with("//") && prints.iter().any(|p| line.contains(p)));
        assert!(line.is_none(), "{}: {}", file.display(), line.unwrap_or_default());
    }
}

/// Whether a file is a module of unit tests: `tests.rs`, `geometry_tests.rs`, `model_test.rs`.
fn is_tests(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| ["test", "tests"].iter().any(|end| stem.to_string_lossy().ends_with(end)))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    let inner = folders.iter().flat_map(|folder| rust_files(folder));
    files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")).chain(inner).collect()
}
