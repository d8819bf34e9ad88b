//! The lines of a log, read as a stream: plain or gzipped, none of them held beyond its bound.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Longest line that is read, in bytes. Envoy cuts headers of 60 KiB; its lines have a few hundred bytes.
pub const LONGEST: usize = 1 << 20;

/// Reads lines one after the other.
pub struct Lines {
    input: Box<dyn BufRead>,
    line: Vec<u8>,
}

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Its text, without the line's end.
    Text(&'a [u8]),
    /// It is longer than [`LONGEST`] and was passed over.
    TooLong,
}

impl Lines {
    /// The lines of `input`, which is unpacked if it begins as gzip does.
    ///
    /// # Errors
    /// As the input.
    pub fn new(input: impl Read + 'static) -> io::Result<Self> {
        let mut input = BufReader::new(input);
        let gzipped = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead> = match gzipped {
            true => Box::new(BufReader::new(MultiGzDecoder::new(input))),
            false => Box::new(input),
        };
        Ok(Self {
            input,
            line: Vec::new(),
        })
    }

    /// The next line, or none at the end.
    ///
    /// # Errors
    /// As the input; a gzipped one that is cut short, too.
    pub fn read(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let limit = LONGEST as u64 + 1;
        let read = (&mut self.input)
            .take(limit)
            .read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() > LONGEST {
            self.pass_over()?;
            return Ok(Some(Line::TooLong));
        }
        Ok(Some(Line::Text(&self.line)))
    }

    /// Reads to the end of the line and keeps nothing of it.
    fn pass_over(&mut self) -> io::Result<()> {
        self.line = Vec::new();
        self.input.skip_until(b'\n').map(|_| ())
    }
}
