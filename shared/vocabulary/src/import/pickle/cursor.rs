/// A place in the input. Every read is checked against what is left.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

/// The longest line of a `GLOBAL`: a module's or a class's name.
const MAX_LINE: usize = 256;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn num_left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..len) else {
            return Err(format!("asks for {len} bytes where {} are left", rest.len()));
        };
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    /// A length of four bytes, little-endian, and so many bytes.
    pub(super) fn sized_by_4(&mut self) -> Result<&'a [u8], String> {
        let len = u32::from_le_bytes(self.array()?);
        self.take(len as usize)
    }

    /// A length of one byte, and so many bytes.
    pub(super) fn sized_by_1(&mut self) -> Result<&'a [u8], String> {
        let len = self.byte()?;
        self.take(usize::from(len))
    }

    /// A length of eight bytes, little-endian, and so many bytes.
    pub(super) fn sized_by_8(&mut self) -> Result<&'a [u8], String> {
        let len = u64::from_le_bytes(self.array()?);
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Text up to the end of the line, which is left out.
    pub(super) fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or("has a name without an end")?)?;
        self.at += 1;
        text(line)
    }
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "has a text that is not UTF-8".to_owned())
}
