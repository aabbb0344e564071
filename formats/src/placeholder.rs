//! Files whose content was not fetched: the links and pointer files of git-annex (which DataLad uses) and of Git LFS.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// A pointer file is not larger than this (git-annex: 32 KiB; Git LFS: 1 KiB).
const MOST_BYTES: u64 = 32 << 10;
/// How the pointer files begin.
const ANNEX_POINTER: &[u8] = b"/annex/objects/";
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Who keeps a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// DataLad, which uses git-annex.
    DataLad,
    /// git-annex.
    GitAnnex,
    /// Git LFS.
    GitLfs,
}

impl Manager {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Manager::DataLad => "DataLad",
            Manager::GitAnnex => "git-annex",
            Manager::GitLfs => "Git LFS",
        }
    }

    /// The command that fetches a file.
    pub fn command(self, path: &Path) -> String {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default().to_string_lossy());
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.display();
        match self {
            Manager::DataLad => format!("datalad get {}", path.display()),
            Manager::GitAnnex => format!("git -C {folder} annex get {name}"),
            Manager::GitLfs => format!("git -C {folder} lfs pull --include {name}"),
        }
    }
}

/// Whether the path is a link to something that is not there.
pub fn is_dangling(path: &Path) -> bool {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    // A link to itself, or one of a circle, leads nowhere, too.
    is_link && fs::metadata(path).is_err_and(|error| error.kind() != ErrorKind::PermissionDenied)
}

/// An error for a link or pointer file whose content was not fetched; nothing else is looked at.
///
/// # Errors
/// [`Error::NotFetched`], and [`Error::Dangling`] for another link to something that is not there.
pub fn refuse(path: &Path) -> Result<()> {
    if is_dangling(path) {
        let target = fs::read_link(path).unwrap_or_default();
        // `.git/annex/objects/…`, with the separators of any system.
        let is_annex = target.to_string_lossy().replace('\\', "/").contains("/annex/objects/");
        return Err(match is_annex {
            true => not_fetched(path, annex_manager(path)),
            false => Error::Dangling { path: path.into(), target },
        });
    }
    let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MOST_BYTES);
    let mut start = Vec::new();
    if is_small && let Ok(file) = File::open(path) {
        // What cannot be read is reported by whoever reads the file.
        let _ = file.take(LFS_POINTER.len() as u64).read_to_end(&mut start);
    }
    if start.starts_with(ANNEX_POINTER) {
        return Err(not_fetched(path, annex_manager(path)));
    }
    if start.starts_with(LFS_POINTER) { Err(not_fetched(path, Manager::GitLfs)) } else { Ok(()) }
}

/// The bytes of a file.
///
/// # Errors
/// Those of [`refuse`], and the system's.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    refuse(path)?;
    fs::read(path).map_err(Error::io("read", path))
}

fn not_fetched(path: &Path, manager: Manager) -> Error {
    Error::NotFetched { path: path.into(), manager: manager.name(), command: manager.command(path) }
}

/// DataLad if one of the folders above is one of its data sets.
fn annex_manager(path: &Path) -> Manager {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let is_datalad = absolute.ancestors().skip(1).any(|folder| folder.join(".datalad").is_dir());
    if is_datalad { Manager::DataLad } else { Manager::GitAnnex }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn message(path: &Path) -> String {
        let error = refuse(path).unwrap_err();
        format!("{error}; {}", error.hint().unwrap())
    }

    #[test]
    fn what_was_not_fetched_is_named_with_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // As `git annex add` makes them, locked and unlocked, and as `git lfs` does.
        let key = "SHA256E-s7340185--8b39a6b94f0b5dd9a1bd2b1a2c5a7d1b2a1c0b9d3e4f5a6b7c8d9e0f1a2b3c4d.nii.gz";
        symlink(format!(".git/annex/objects/Wz/9k/{key}/{key}"), at("a.nii.gz")).unwrap();
        fs::write(at("b.nii.gz"), format!("/annex/objects/{key}\n")).unwrap();
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        fs::write(at("c.pth"), format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n")).unwrap();
        symlink("elsewhere.nii", at("d.nii")).unwrap();
        let folder = dir.path().display();
        for name in ["a.nii.gz", "b.nii.gz"] {
            let text = message(&at(name));
            assert!(text.contains(&format!("git -C {folder} annex get {name}")), "{text}");
        }
        assert!(message(&at("c.pth")).contains(&format!("git -C {folder} lfs pull --include c.pth")));
        assert!(message(&at("d.nii")).contains("link to elsewhere.nii"), "{}", message(&at("d.nii")));
        fs::create_dir(at(".datalad")).unwrap();
        for name in ["a.nii.gz", "b.nii.gz"] {
            assert!(message(&at(name)).contains(&format!("datalad get {folder}/{name}")));
        }
        // Neither what is there nor what is not.
        fs::write(at("e.nii"), "version 1").unwrap();
        symlink("e.nii", at("f.nii")).unwrap();
        for name in ["e.nii", "f.nii", "gone.nii", "."] {
            refuse(&at(name)).unwrap();
        }
    }
}
