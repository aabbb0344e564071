//! Folders compared file by file.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file in a folder, by its path.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(folder).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// Asserts that a folder holds the same files with the same bytes.
pub fn assert_same_files(found: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    let found = files(found);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in &found {
        assert!(bytes == &expected[name], "{what}: {} differs", name.display());
    }
}

/// Copies a folder.
pub fn copy_folder(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
