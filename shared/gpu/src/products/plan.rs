//! How products of one shape are computed: the library's objects, and the algorithm of each bucket of rows.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::collections::HashMap;
use std::time::Duration;

use cudarc::cublaslt::sys::{self, cublasLtMatmulAlgo_t};

use super::library::{Descriptor, Handle, Layout, Preference, check};
use super::shape::{ALIGNMENT, Output, Product, Shape};
use crate::{Buffer, Error, Event, Gpu, Result};

/// Candidates that are timed at most.
const MAX_CANDIDATES: usize = 8;
/// Times that each is timed; the fastest counts.
const NUM_RUNS: usize = 3;

/// What every product works with.
pub(super) struct Means<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) handle: &'a Handle,
    pub(super) workspace: &'a Buffer,
}

#[derive(Debug)]
pub(super) struct Plan {
    shape: Shape,
    descriptor: Descriptor,
    weight: Layout,
    x: Layout,
    out: Layout,
    /// By bucket of rows.
    algorithms: HashMap<usize, cublasLtMatmulAlgo_t>,
    /// Where the bucket's algorithm does not do, by the number of rows itself.
    exceptions: HashMap<usize, cublasLtMatmulAlgo_t>,
}

impl Plan {
    /// The library thinks in columns: a row-major matrix is its transpose there, so out ᵀ = weight · xᵀ, of
    /// which weight, being transposed already, is transposed again.
    pub(super) fn new(shape: Shape) -> Result<Self> {
        let element = shape.element.data_type();
        Ok(Self {
            shape,
            descriptor: Descriptor::new()?,
            weight: Layout::new(element, shape.num_inputs, shape.num_outputs)?,
            x: Layout::new(element, shape.num_inputs, 1)?,
            out: Layout::new(shape.output.data_type(shape.element), shape.num_outputs, 1)?,
            algorithms: HashMap::new(),
            exceptions: HashMap::new(),
        })
    }

    /// Computes a product whose views have been checked.
    pub(super) fn run(&mut self, means: &Means<'_>, product: &Product<'_>) -> Result<()> {
        self.x.set_num_cols(product.num_rows)?;
        self.out.set_num_cols(product.num_rows)?;
        let out = product.out.address();
        if let Some(algorithm) = self.exceptions.get(&product.num_rows) {
            return self.start(means, product, algorithm, out);
        }
        let bucket = Shape::bucket(product.num_rows);
        let algorithm = match self.algorithms.get(&bucket) {
            Some(&algorithm) => algorithm,
            None => {
                let algorithm = self.choose(means, product)?;
                self.algorithms.insert(bucket, algorithm);
                algorithm
            }
        };
        if self.start(means, product, &algorithm, out).is_ok() {
            return Ok(());
        }
        // Chosen for another number of rows of the bucket, for this one it needs more workspace or whatever
        // else it lacks.
        let exception = self.candidates(means)?.first().copied().ok_or_else(|| self.no_algorithm(product))?;
        self.exceptions.insert(product.num_rows, exception);
        self.start(means, product, &exception, out)
    }

    /// The fastest algorithm, or the library's first guess where there is no measuring.
    fn choose(&self, means: &Means<'_>, product: &Product<'_>) -> Result<cublasLtMatmulAlgo_t> {
        let candidates = self.candidates(means)?;
        let guess = *candidates.first().ok_or_else(|| self.no_algorithm(product))?;
        if candidates.len() == 1 || means.gpu.context.recording().is_on {
            return Ok(guess);
        }
        // The result goes elsewhere meanwhile: what is added once must not be added again. Also this memory is
        // so large that between two runs it can push everything else out of the cache, where a model's weights
        // are not found either.
        let scratch_bytes = self.shape.out_bytes(product.num_rows)?.max(means.gpu.l2_bytes());
        let scratch = match means.gpu.alloc(scratch_bytes) {
            Ok(scratch) => scratch,
            Err(error) if error.is_out_of_memory() => return Ok(guess),
            Err(error) => return Err(error),
        };
        let mut fastest = (Duration::MAX, guess);
        for candidate in candidates {
            // One that fails is none.
            if let Ok(time) = self.time(means, product, &candidate, &scratch)
                && time < fastest.0
            {
                fastest = (time, candidate);
            }
        }
        Ok(fastest.1)
    }

    fn time(
        &self,
        means: &Means<'_>,
        product: &Product<'_>,
        algorithm: &cublasLtMatmulAlgo_t,
        scratch: &Buffer,
    ) -> Result<Duration> {
        let (before, after) = (Event::timed(means.gpu)?, Event::timed(means.gpu)?);
        let mut best = Duration::MAX;
        // The first run loads the kernel and counts for nothing.
        for run in 0..=NUM_RUNS {
            means.gpu.fill(scratch.slice(0..means.gpu.l2_bytes())?, 0)?;
            before.record()?;
            self.start(means, product, algorithm, scratch.address())?;
            after.record()?;
            after.wait()?;
            if run > 0 {
                best = best.min(after.since(&before)?);
            }
        }
        Ok(best)
    }

    /// What the library would try, best guess first.
    fn candidates(&self, means: &Means<'_>) -> Result<Vec<cublasLtMatmulAlgo_t>> {
        let preference = Preference::new(means.workspace.len(), ALIGNMENT as u32)?;
        let mut found = [const { std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed() };
            MAX_CANDIDATES];
        let mut num_found = 0;
        // SAFETY: all objects live; the array has as many places as is said, and `num_found` outlives the call.
        let asked = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                means.handle.0,
                self.descriptor.0,
                self.weight.0,
                self.x.0,
                self.out.0,
                self.out.0,
                preference.0,
                MAX_CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &raw mut num_found,
            )
        };
        if asked == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        check("cublasLtMatmulAlgoGetHeuristic", asked)?;
        let num_found = usize::try_from(num_found).unwrap_or(0).min(MAX_CANDIDATES);
        let usable = found[..num_found].iter().filter_map(|result| {
            // SAFETY: the library has written as many as it says.
            let result = unsafe { result.assume_init_ref() };
            (result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(result.algo)
        });
        Ok(usable.collect())
    }

    /// Puts a product on the stream, with its result at an address that has room for it.
    fn start(
        &self,
        means: &Means<'_>,
        product: &Product<'_>,
        algorithm: &cublasLtMatmulAlgo_t,
        out: u64,
    ) -> Result<()> {
        let alpha = 1.0_f32;
        let beta = if self.shape.output == Output::AddToF32 { 1.0_f32 } else { 0.0 };
        let pointer = |address: u64| std::ptr::without_provenance_mut::<std::ffi::c_void>(address as usize);
        // SAFETY: all objects live. The views have been checked: as many bytes as the layouts say are
        // allocated, and stay so until the stream is done with them, like the workspace, which the one stream
        // uses for one product at a time. The library reads the two factors before it returns. A context is
        // current.
        check("cublasLtMatmul", unsafe {
            sys::cublasLtMatmul(
                means.handle.0,
                self.descriptor.0,
                (&raw const alpha).cast(),
                pointer(product.weight.address()),
                self.weight.0,
                pointer(product.x.address()),
                self.x.0,
                (&raw const beta).cast(),
                pointer(out),
                self.out.0,
                pointer(out),
                self.out.0,
                algorithm,
                pointer(means.workspace.address()),
                means.workspace.len(),
                means.gpu.context.stream.cast(),
            )
        })
    }

    fn no_algorithm(&self, product: &Product<'_>) -> Error {
        Error::Illegal(format!(
            "cuBLASLt knows no algorithm for {} rows of {:?}",
            product.num_rows, self.shape
        ))
    }
}
