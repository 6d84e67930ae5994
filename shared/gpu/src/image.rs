//! Whether bytes are a whole ELF file. The driver is told no length: it believes what the headers say.

/// ELF's magic number, and that numbers are of 64 bits, little-endian.
const START: &[u8] = b"\x7fELF\x02\x01";
const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
/// A section that has no bytes in the file.
const NO_BITS: u64 = 8;

/// Whether every table and section that the headers name lies within the bytes.
pub(crate) fn is_whole_elf(bytes: &[u8]) -> bool {
    if !bytes.starts_with(START) || bytes.len() < HEADER_BYTES {
        return false;
    }
    let header = |at, size| number(bytes, at, size);
    let (segments, segment_bytes, num_segments) = (header(0x20, 8), header(0x36, 2), header(0x38, 2));
    let (sections, section_bytes, num_sections) = (header(0x28, 8), header(0x3A, 2), header(0x3C, 2));
    // No segments is nothing unusual; a file without sections has no kernels.
    if num_sections == 0 || section_bytes != SECTION_BYTES as u64 {
        return false;
    }
    let is_inside =
        |start: u64, len: u64| start.checked_add(len).is_some_and(|end| end <= bytes.len() as u64);
    if !is_inside(segments, segment_bytes * num_segments)
        || !is_inside(sections, section_bytes * num_sections)
    {
        return false;
    }
    (0..num_sections as usize).all(|idx| {
        let at = sections as usize + idx * SECTION_BYTES;
        let (kind, start, len) = (header(at + 4, 4), header(at + 0x18, 8), header(at + 0x20, 8));
        kind == NO_BITS || is_inside(start, len)
    })
}

/// The little-endian number of `size` bytes at a place; 0 where there is none.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let digits = bytes.get(at..at.saturating_add(size)).unwrap_or_default();
    digits.iter().rev().fold(0, |number, &digit| number << 8 | u64::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two sections: none, and one of five bytes at the end.
    fn file() -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + 2 * SECTION_BYTES + 5];
        bytes[..START.len()].copy_from_slice(START);
        bytes[0x28] = HEADER_BYTES as u8;
        bytes[0x3A] = SECTION_BYTES as u8;
        bytes[0x3C] = 2;
        let section = HEADER_BYTES + SECTION_BYTES;
        bytes[section + 4] = 1;
        bytes[section + 0x18] = (HEADER_BYTES + 2 * SECTION_BYTES) as u8;
        bytes[section + 0x20] = 5;
        bytes
    }

    #[test]
    fn a_file_is_whole_or_refused() {
        let whole = file();
        assert!(is_whole_elf(&whole));
        for len in 0..whole.len() {
            assert!(!is_whole_elf(&whole[..len]), "cut to {len} bytes");
        }
        // The very numbers that would overflow.
        for at in [0x20, 0x28, HEADER_BYTES + SECTION_BYTES + 0x18, HEADER_BYTES + SECTION_BYTES + 0x20] {
            let mut broken = whole.clone();
            broken[at..at + 8].fill(0xFF);
            assert!(!is_whole_elf(&broken), "{at:#x}");
        }
    }
}
