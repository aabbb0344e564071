//! The voxels' bytes within a file: as they are, or in a gzip or zlib stream. The file's size bounds what is allocated.

use crate::error::{Error, Problem, Result};
use crate::gzip::Gunzip;
use flate2::bufread::ZlibDecoder;
use std::borrow::Cow;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// No deflate stream expands by more than this factor.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// How bytes lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zlib,
}

impl Packing {
    /// Gzip if the bytes begin as a gzip stream does.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        if bytes.starts_with(&[0x1f, 0x8b]) { Packing::Gzip } else { Packing::Plain }
    }
}

/// Where voxels lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Section {
    /// Bytes of the file before the voxels or the stream that holds them.
    pub(crate) before: u64,
    /// What holds them.
    pub(crate) packing: Packing,
    /// Bytes before the voxels within the stream.
    pub(crate) skip: u64,
    /// Bytes of the voxels.
    pub(crate) len: u64,
}

impl Section {
    /// An error unless a file of this size can hold it.
    pub(crate) fn fits(&self, path: &Path, file_bytes: u64) -> Result<()> {
        let there = file_bytes.saturating_sub(self.before);
        let most = if self.packing == Packing::Plain { there } else { there.saturating_mul(MAX_DEFLATE_RATIO) };
        if self.skip.saturating_add(self.len) > most { Err(self.truncated(path, most)) } else { Ok(()) }
    }

    /// The voxels' bytes; `path` and the format's name are for messages.
    pub(crate) fn of<'a>(&self, path: &Path, format: &'static str, file: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        self.fits(path, file.len() as u64)?;
        let rest = &file[(self.before as usize).min(file.len())..];
        match self.packing {
            Packing::Plain => Ok(Cow::Borrowed(&rest[self.skip as usize..(self.skip + self.len) as usize])),
            Packing::Gzip => self.unpack(path, format, Gunzip::new(rest)).map(Cow::Owned),
            Packing::Zlib => self.unpack(path, format, ZlibDecoder::new(rest)).map(Cow::Owned),
        }
    }

    fn unpack(&self, path: &Path, format: &'static str, mut stream: impl Read) -> Result<Vec<u8>> {
        let what = if self.packing == Packing::Zlib { "zlib" } else { "gzip" };
        let damaged = |error: std::io::Error| Problem::from(format!("damaged {what} data: {error}")).in_file(path, format);
        std::io::copy(&mut (&mut stream).take(self.skip), &mut std::io::sink()).map_err(damaged)?;
        let mut voxels = Vec::new();
        match (&mut stream).take(self.len).read_to_end(&mut voxels) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(damaged(error)),
            _ if (voxels.len() as u64) < self.len => return Err(self.truncated(path, self.skip + voxels.len() as u64)),
            _ => {}
        }
        // Read to the end, where the stream checks its checksum.
        std::io::copy(&mut stream, &mut std::io::sink()).map_err(damaged)?;
        Ok(voxels)
    }

    fn truncated(&self, path: &Path, unpacked: u64) -> Error {
        Error::Truncated { path: path.into(), expected: self.len, found: unpacked.saturating_sub(self.skip) }
    }
}
