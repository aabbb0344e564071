//! Reads gzip streams as gzip does: several members one after the other, and zeros behind them, with which some archives fill their blocks.

use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, Read};

/// The decompressed bytes of a stream. Anything but another member or zeros behind a member is an error.
pub(crate) struct Gunzip<R: BufRead> {
    /// `None` after the last one.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gunzip<R> {
    pub(crate) fn new(input: R) -> Self {
        Gunzip { member: Some(GzDecoder::new(input)) }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.member = self.member.take().map(GzDecoder::into_inner).map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// The member behind zeros, if there is one.
fn next_member<R: BufRead>(mut input: R) -> io::Result<Option<GzDecoder<R>>> {
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        if bytes.is_empty() {
            return Ok(None);
        }
        let is_all = zeros == bytes.len();
        input.consume(zeros);
        if !is_all {
            return Ok(Some(GzDecoder::new(input)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn gunzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // A small buffer, so that members and zeros end in the middle of one.
        Gunzip::new(io::BufReader::with_capacity(7, bytes)).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn members_and_zeros_are_read_as_gzip_reads_them() {
        let (first, second) = (gzip(b"first"), gzip(b"second"));
        assert_eq!(gunzip(&first).unwrap(), b"first");
        assert_eq!(gunzip(&[&first[..], &[0; 512]].concat()).unwrap(), b"first");
        assert_eq!(gunzip(&[&first[..], &gzip(b""), &second, &[0; 3]].concat()).unwrap(), b"firstsecond");
        // As Python's gzip.
        assert_eq!(gunzip(&[&first[..], &[0; 512], &second].concat()).unwrap(), b"firstsecond");
        for behind in [&b"x"[..], b"\0\0x", b"\x1f", &second[..second.len() - 1]] {
            assert!(gunzip(&[&first[..], behind].concat()).is_err(), "{behind:?}");
        }
        assert!(gunzip(&[0; 512]).is_err() && gunzip(b"").is_err());
    }
}
