//! Header blocks: zlib with a dictionary that both sides know, one compressed stream for a whole connection.

use bytes::{Buf as _, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use std::io;

/// Largest header block, inflated, in bytes.
const BLOCK_LIMIT: usize = 64 << 10;

/// Words of the protocol's dictionary (SPDY draft 3, 2.6.10.1), each stands there after its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200+OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The rest of the dictionary, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar \
    Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,\
    image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public\
    privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_ascii_whitespace() {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        bytes.extend(word.bytes().map(|byte| if byte == b'+' { b' ' } else { byte }));
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a SPDY header block: {what}"))
}

/// Reads the header blocks of one connection, in their order.
#[derive(Debug)]
pub(super) struct Inflater {
    stream: Decompress,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self { stream: Decompress::new(true) }
    }

    /// Names and values of a block.
    pub(super) fn read(&mut self, block: &[u8]) -> io::Result<Vec<(String, String)>> {
        let inflated = self.inflate(block)?;
        parse(Bytes::from(inflated)).ok_or_else(|| invalid("its lengths do not fit"))
    }

    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(1024);
        let begun = self.stream.total_in();
        loop {
            let used = usize::try_from(self.stream.total_in() - begun).unwrap_or(usize::MAX);
            let rest = block.get(used..).unwrap_or_default();
            let before = out.len();
            match self.stream.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.stream.set_dictionary(&dictionary()).map_err(invalid)?;
                    continue;
                }
                Err(error) => return Err(invalid(error)),
            }
            let used = usize::try_from(self.stream.total_in() - begun).unwrap_or(usize::MAX);
            if out.len() > BLOCK_LIMIT {
                return Err(invalid("larger than any client's"));
            }
            if out.len() < out.capacity() && (used >= block.len() || out.len() == before) {
                return Ok(out);
            }
            out.reserve(1024);
        }
    }
}

fn parse(mut block: Bytes) -> Option<Vec<(String, String)>> {
    let text = |block: &mut Bytes| {
        let length = usize::try_from(block.try_get_u32().ok()?).ok()?;
        let bytes = (length <= block.len()).then(|| block.split_to(length))?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let count = block.try_get_u32().ok()?;
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((text(&mut block)?, text(&mut block)?));
    }
    Some(headers)
}

/// Writes the header blocks of one connection. Clients accept them without the dictionary.
#[derive(Debug)]
pub(super) struct Deflater {
    stream: Compress,
}

impl Deflater {
    pub(super) fn new() -> Self {
        Self { stream: Compress::new(Compression::fast(), true) }
    }

    /// A block of these headers.
    pub(super) fn write(&mut self, headers: &[(&str, &str)]) -> io::Result<Bytes> {
        let mut block = Vec::new();
        let length = |length: usize| u32::try_from(length).map(u32::to_be_bytes).map_err(invalid);
        block.extend_from_slice(&length(headers.len())?);
        for (name, value) in headers {
            for text in [name, value] {
                block.extend_from_slice(&length(text.len())?);
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(block.len() + 64);
        self.stream.compress_vec(&block, &mut out, FlushCompress::Sync).map_err(invalid)?;
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let (mut one, mut other) = (1_u32, 0_u32);
        for byte in dictionary {
            one = (one + u32::from(byte)) % 65_521;
            other = (other + one) % 65_521;
        }
        // Every stream that uses it names it by this checksum.
        assert_eq!((other << 16) | one, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_of_one_connection_are_read_in_order() {
        let mut stream = Compress::new(Compression::best(), true);
        stream.set_dictionary(&dictionary()).unwrap();
        let mut inflater = Inflater::new();
        for (name, value) in [("streamtype", "error"), ("streamtype", "stdout"), ("port", "8080")] {
            let mut block = vec![0, 0, 0, 1];
            for text in [name, value] {
                block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                block.extend_from_slice(text.as_bytes());
            }
            let mut wire = Vec::with_capacity(4096);
            stream.compress_vec(&block, &mut wire, FlushCompress::Sync).unwrap();
            assert_eq!(inflater.read(&wire).unwrap(), [(name.to_owned(), value.to_owned())]);
        }
    }

    #[test]
    fn blocks_without_dictionary_are_read_too() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let long = "v".repeat(5000);
        for headers in [vec![], vec![("a", "b"), ("c", long.as_str())]] {
            let block = deflater.write(&headers).unwrap();
            let read = inflater.read(&block).unwrap();
            assert!(read.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(headers));
        }
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert!(Inflater::new().read(b"no zlib at all").is_err());
        let mut bomb = Compress::new(Compression::best(), true);
        let mut wire = Vec::with_capacity(1 << 20);
        bomb.compress_vec(&vec![0; 10 << 20], &mut wire, FlushCompress::Sync).unwrap();
        assert!(Inflater::new().read(&wire).is_err());
        let mut short = Compress::new(Compression::best(), true);
        let mut wire = Vec::with_capacity(100);
        short.compress_vec(&[0, 0, 0, 1, 255, 255, 255, 255], &mut wire, FlushCompress::Sync).unwrap();
        assert!(Inflater::new().read(&wire).is_err());
    }
}
