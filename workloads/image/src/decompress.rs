//! Layers made plain: gzip of any number of members, zstd of any number of frames, or a tar as it is.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Largest window of a zstd frame, which the decoder holds in memory.
const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;
/// How much may come out before the ratio is looked at: small layers of zeros are no bombs.
const RATIO_FREE_BYTES: u64 = 16 << 20;

/// The plain bytes of a layer. How it is compressed is read from its first bytes, as Docker's media types do not say it
/// and the digest of the plain bytes is proven in any case.
///
/// # Errors
///
/// What the source says when it is asked for its first bytes.
pub fn plain<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // A source may give its first bytes one by one.
    let mut head = Vec::with_capacity(4);
    (&mut source).take(4).read_to_end(&mut head)?;
    let source = io::Cursor::new(head.clone()).chain(source);
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(source))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(&head) {
        Box::new(Zstd::new(source))
    } else {
        Box::new(source)
    })
}

/// The magic numbers 0x184D2A50 to 0x184D2A5F, little-endian.
fn is_skippable(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// All frames of a zstd stream, those without content passed over.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW_BYTES_MAX);
        Self { source, decoder, in_frame: false }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(io::Error::other)?;
                }
                let count = self.decoder.read(buffer)?;
                if count > 0 {
                    return Ok(count);
                }
                self.in_frame = false;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => self.in_frame = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

/// A layer that becomes so much larger than it is that it was made to fill the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bomb {
    /// More plain bytes than any layer has.
    #[error("it unpacks to more than {max_bytes} bytes")]
    Size {
        /// How many are taken.
        max_bytes: u64,
    },
    /// More plain bytes for each compressed one than honest content gives.
    #[error("it unpacks to more than {max} times its size")]
    Ratio {
        /// How many are taken.
        max: u64,
    },
}

/// Passes plain bytes on as long as they are in proportion to the compressed ones.
pub(crate) struct Proportion<R> {
    plain: R,
    plain_bytes: u64,
    compressed_bytes: Rc<Cell<u64>>,
    bytes_max: u64,
    ratio_max: u64,
}

impl<R: Read> Proportion<R> {
    /// `compressed_bytes` is counted up by whoever reads the compressed source.
    pub(crate) fn new(plain: R, compressed_bytes: Rc<Cell<u64>>, bytes_max: u64, ratio_max: u64) -> Self {
        Self { plain, plain_bytes: 0, compressed_bytes, bytes_max, ratio_max }
    }
}

impl<R: Read> Read for Proportion<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.plain.read(buffer)?;
        self.plain_bytes = self.plain_bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if self.plain_bytes > self.bytes_max {
            return Err(io::Error::other(Bomb::Size { max_bytes: self.bytes_max }));
        }
        let fair = self.compressed_bytes.get().saturating_mul(self.ratio_max);
        if self.plain_bytes > RATIO_FREE_BYTES && self.plain_bytes > fair {
            return Err(io::Error::other(Bomb::Ratio { max: self.ratio_max }));
        }
        Ok(count)
    }
}
