use std::io::{self, Write};

use fused_vocabulary::TokenId;

use super::output::Output;

/// The header's length: a multiple of 64, as the format asks, and enough for any number of ids.
const HEADER_BYTES: usize = 128;
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// A NumPy file (format 1.0) with one flat array of little-endian 32-bit ids, whose length is known at its end.
pub(super) struct Array<'a> {
    out: Output<'a>,
    separator: Option<TokenId>,
    num_documents: u64,
    num_ids: u64,
}

impl<'a> Array<'a> {
    /// `separator` will stand between two documents.
    pub(super) fn begin(mut out: Output<'a>, separator: Option<TokenId>) -> io::Result<Self> {
        out.write_all(&[0; HEADER_BYTES])?;
        Ok(Self { out, separator, num_documents: 0, num_ids: 0 })
    }

    pub(super) fn push(&mut self, ids: &[TokenId]) -> io::Result<()> {
        let separator = self.separator.filter(|_| self.num_documents > 0);
        for id in separator.iter().chain(ids) {
            self.out.write_all(&id.0.to_le_bytes())?;
            self.num_ids += 1;
        }
        self.num_documents += 1;
        Ok(())
    }

    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.out.write_at_start(&header(self.num_ids))?;
        self.out.finish()
    }
}

fn header(num_ids: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    let len = HEADER_BYTES - MAGIC.len() - 2;
    header.extend_from_slice(&(len as u16).to_le_bytes());
    let shape = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({num_ids},), }}");
    header.extend_from_slice(shape.as_bytes());
    header.resize(HEADER_BYTES - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupt;

    #[test]
    fn the_header_has_its_length_whatever_the_number() {
        for num_ids in [0, 1, u64::MAX] {
            let header = header(num_ids);
            assert_eq!((header.len(), header[127]), (128, b'\n'));
            assert_eq!(u16::from_le_bytes([header[8], header[9]]), 118);
        }
    }

    #[test]
    fn separators_stand_between_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.npy");
        let interrupt = Interrupt::default();
        let mut array = Array::begin(Output::create(&path, &interrupt).unwrap(), Some(TokenId(9))).unwrap();
        for ids in [&[TokenId(1), TokenId(2)][..], &[], &[TokenId(70_000)]] {
            array.push(ids).unwrap();
        }
        assert!(!path.exists());
        array.end().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let ids: Vec<_> =
            bytes[128..].chunks(4).map(|id| u32::from_le_bytes(id.try_into().unwrap())).collect();
        assert_eq!(ids, [1, 2, 9, 9, 70_000]);
        assert!(String::from_utf8_lossy(&bytes[..128]).contains("'shape': (5,)"));
    }

    #[test]
    fn nothing_is_left_of_a_file_that_was_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::default();
        let out = Output::create(&folder.path().join("ids.npy"), &interrupt).unwrap();
        let mut array = Array::begin(out, None).unwrap();
        array.push(&[TokenId(1)]).unwrap();
        drop(array);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
