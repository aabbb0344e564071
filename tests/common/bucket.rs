//! A store in a bucket of the test's server, and what is done with it in more than one file of tests.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use super::cli::program;
use super::folders::{assert_same_files, copy_folder, files};
use super::s3::Server;
use super::stage_one::{config, fill_whole, write_scan, write_scans};
use sam_ladder_schemas::variants::AugmentPolicy;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The store of most tests.
pub const STORE: &str = "s3://lab/some/s.zarr";

/// Copies a folder's files into the bucket, as any S3 tool would.
pub fn upload(server: &Server, folder: &Path, place: &str) {
    for (name, bytes) in files(folder) {
        let object = server.folder(place).join(name);
        fs::create_dir_all(object.parent().unwrap()).unwrap();
        fs::write(object, bytes).unwrap();
    }
}

/// Removes empty folders, which the server keeps.
fn remove_empty_folders(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            remove_empty_folders(&path);
            fs::remove_dir(&path).ok();
        }
    }
}

pub fn assert_same_objects(server: &Server, place: &str, whole: &Path, what: &str) {
    remove_empty_folders(&server.folder(place));
    assert_same_files(&server.folder(place), &files(whole), what);
}

/// Puts a small store on the server, and grows a copy of it on disk by variants and a scan; the scans, and the grown store.
pub fn small_and_grown(server: &Server, base: &Path) -> (PathBuf, PathBuf) {
    let [scans, small, whole] = ["scans", "small.zarr", "whole.zarr"].map(|name| base.join(name));
    write_scans(&scans);
    fill_whole(&scans, &small, &config(AugmentPolicy::None, 1));
    upload(server, &small, STORE);
    write_scan(&scans, 6, 2);
    copy_folder(&small, &whole);
    fill_whole(&scans, &whole, &config(AugmentPolicy::Flips, 1));
    (scans, whole)
}

/// `train` of three epochs with the server's variables.
pub fn train(server: &Server, place: &str, run: &Path, more: &[&str]) -> Command {
    let mut command =
        program(&["train", "--epochs", "3", "--batch-size", "3", "--warmup", "2", "--read", "stream", "--store", place]);
    command.arg("--run").arg(run).args(more);
    server.tell(&mut command);
    command
}
