//! The GPU, numbers to give it, and what is compared with what.

use fused_gpu::{Buffer, Error, Gpu, View};
use fused_kernels::cuda::{Element, Kernels};
use half::{bf16, f16};

pub(crate) const ELEMENTS: [Element; 2] = [Element::Bf16, Element::F16];
/// Bytes before and behind what a kernel writes.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xA5;

/// `None`, and a line about it, where there is no GPU.
pub(crate) fn kernels() -> Option<Kernels> {
    match Gpu::open(0) {
        Ok(gpu) => Some(Kernels::load(&gpu).unwrap()),
        Err(error) if is_absence(&error) && std::env::var_os("FUSED_REQUIRE_GPU").is_none() => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn is_absence(error: &Error) -> bool {
    error.is_absence()
}

/// Reproducible numbers in [-1, 1).
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// What an element type makes of a number.
pub(crate) fn round(element: Element, number: f32) -> f32 {
    match element {
        Element::Bf16 => bf16::from_f32(number).to_f32(),
        Element::F16 => f16::from_f32(number).to_f32(),
    }
}

pub(crate) fn rounded(element: Element, numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|&number| round(element, number)).collect()
}

/// The relative error of rounding once.
pub(crate) fn rounding_error(element: Element) -> f32 {
    match element {
        Element::Bf16 => 2_f32.powi(-9),
        Element::F16 => 2_f32.powi(-12),
    }
}

pub(crate) fn to_bytes(element: Element, numbers: &[f32]) -> Vec<u8> {
    match element {
        Element::Bf16 => numbers.iter().flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect(),
        Element::F16 => numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect(),
    }
}

pub(crate) fn from_bytes(element: Element, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    match element {
        Element::Bf16 => pairs.map(|&pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        Element::F16 => pairs.map(|&pair| f16::from_le_bytes(pair).to_f32()).collect(),
    }
}

pub(crate) fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&quad| f32::from_le_bytes(quad)).collect()
}

pub(crate) fn elements(gpu: &Gpu, element: Element, numbers: &[f32]) -> Buffer {
    gpu.upload(&to_bytes(element, numbers)).unwrap()
}

pub(crate) fn plain<T: bytemuck::NoUninit>(gpu: &Gpu, numbers: &[T]) -> Buffer {
    gpu.upload(bytemuck::cast_slice(numbers)).unwrap()
}

/// Device memory that a kernel writes, between guards.
pub(crate) struct Guarded {
    buffer: Buffer,
    len: usize,
}

impl Guarded {
    pub(crate) fn new(gpu: &Gpu, len: usize) -> Self {
        let buffer = gpu.alloc(len + 2 * GUARD).unwrap();
        gpu.fill(buffer.view(), GUARD_BYTE).unwrap();
        Self { buffer, len }
    }

    pub(crate) fn of(gpu: &Gpu, bytes: &[u8]) -> Self {
        let guarded = Self::new(gpu, bytes.len());
        guarded.buffer.write(GUARD, bytes).unwrap();
        guarded
    }

    pub(crate) fn view(&self) -> View<'_> {
        self.buffer.slice(GUARD..GUARD + self.len).unwrap()
    }

    /// What is there now, after a look at the guards.
    #[track_caller]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.buffer.len()];
        self.buffer.read(&mut bytes).unwrap();
        let is_whole = |guard: &[u8]| guard.iter().all(|&byte| byte == GUARD_BYTE);
        assert!(is_whole(&bytes[..GUARD]) && is_whole(&bytes[GUARD + self.len..]), "written outside");
        bytes[GUARD..GUARD + self.len].to_vec()
    }

    #[track_caller]
    pub(crate) fn f32s(&self) -> Vec<f32> {
        f32s(&self.bytes())
    }

    #[track_caller]
    pub(crate) fn elements(&self, element: Element) -> Vec<f32> {
        from_bytes(element, &self.bytes())
    }
}

/// Asserts that each number is off by no more than `relative` of it and `absolute`.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], wanted: &[f32], relative: f32, absolute: f32) {
    assert_eq!(got.len(), wanted.len());
    for (at, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
        let error = (got - wanted).abs();
        assert!(error <= relative * wanted.abs() + absolute, "element {at}: {got} for {wanted}");
    }
}

/// The error of all together, by that of the right ones.
pub(crate) fn relative_error(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let square = |number: f32| f64::from(number).powi(2);
    let error: f64 = got.iter().zip(wanted).map(|(&got, &wanted)| square(got - wanted)).sum();
    let size: f64 = wanted.iter().map(|&wanted| square(wanted)).sum();
    assert!(error.is_finite() && size > 0.0, "{error} of {size}");
    (error / size).sqrt()
}
