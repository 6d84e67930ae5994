use std::fmt;

use half::{bf16, f16};
use safetensors::Dtype as FileDtype;

/// The element types computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an [`F32`](Self::F32).
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Appends values as elements of this type, little-endian, rounded to the nearest.
    pub fn append(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
        }
    }
}

/// One tensor of a [`Checkpoint`](crate::Checkpoint), row-major, in place in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// The element type.
    pub dtype: Dtype,
    /// The extent of each dimension, outermost first; a scalar's is empty.
    pub shape: &'a [usize],
    /// The elements, little-endian; as many as the shape says. Not aligned to their type: a file may put them anywhere.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// Elements.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.bytes.len() / self.dtype.num_bytes()
    }

    /// A copy in single precision, exact for every type.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        match self.dtype {
            Dtype::F32 => {
                self.bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
            Dtype::F16 => pairs.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Dtype::Bf16 => pairs.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        }
    }
}

/// Any element type that a safetensors file can hold, computed with or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredDtype(pub(crate) FileDtype);

impl StoredDtype {
    /// Bits of one element.
    pub(crate) fn num_bits(self) -> usize {
        self.0.bitsize()
    }
}

impl From<Dtype> for StoredDtype {
    fn from(dtype: Dtype) -> Self {
        Self(match dtype {
            Dtype::F32 => FileDtype::F32,
            Dtype::F16 => FileDtype::F16,
            Dtype::Bf16 => FileDtype::BF16,
        })
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One tensor of a [`Checkpoint`](crate::Checkpoint), of whatever type: to be copied, not to be computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The element type.
    pub dtype: StoredDtype,
    /// The extent of each dimension, outermost first.
    pub shape: &'a [usize],
    /// The elements, in place in the file.
    pub bytes: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_widens_exactly_from_unaligned_bytes() {
        let values = [0.0, -1.5, 0.25, 24.0];
        let f32s: Vec<u8> = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        for (dtype, elements) in [(Dtype::F32, f32s), (Dtype::F16, f16s), (Dtype::Bf16, bf16s)] {
            let mut shifted = vec![0];
            shifted.extend(elements);
            let tensor = Tensor { dtype, shape: &[2, 2], bytes: &shifted[1..] };
            assert_eq!(tensor.num_elements(), 4);
            assert_eq!(tensor.to_f32(), values);
            let mut appended = Vec::new();
            dtype.append(&values, &mut appended);
            assert_eq!(appended, shifted[1..]);
        }
    }
}
