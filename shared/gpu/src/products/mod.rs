//! Matrix products by cuBLASLt: out[rows, outputs] = x[rows, inputs] · weight[outputs, inputs]ᵀ.
//!
//! cuBLASLt names candidates for a product and guesses which is fastest. The first product of a shape and
//! bucket of rows times them, and the table keeps the winner. Which one that is may differ from one start to
//! the next, and with it the order of summation; within a process a shape and a number of rows always have the
//! same.

mod library;
mod plan;
mod shape;

use std::collections::HashMap;
use std::sync::Arc;

use library::Handle;
use plan::Plan;
pub use shape::{Element, Output, Product, Shape};

use crate::gpu::Context;
use crate::{Buffer, Error, Gpu, Result};

/// Scratch memory of a product: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Shapes in the table at most; a model has about five.
const MAX_SHAPES: usize = 1024;

/// Matrix products of one GPU, with the table of what is fastest.
#[derive(Debug)]
pub struct Products {
    gpu: Gpu,
    workspace: Buffer,
    plans: HashMap<Shape, Plan>,
    // Last, because the plans' objects go before their library.
    handle: BoundHandle,
}

/// The library's handle, which wants its context current when it goes.
#[derive(Debug)]
struct BoundHandle {
    context: Arc<Context>,
    handle: Option<Handle>,
}

impl Products {
    /// Loads the library and allocates 32 MiB of workspace.
    ///
    /// # Errors
    /// The library is not there; no memory is left.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let workspace = gpu.alloc(WORKSPACE_BYTES)?;
        let _bound = gpu.context.bind()?;
        let handle = BoundHandle { context: Arc::clone(&gpu.context), handle: Some(Handle::open()?) };
        Ok(Self { gpu: gpu.clone(), workspace, plans: HashMap::new(), handle })
    }

    /// Computes a product, when the stream gets there. The first of its shape, by [`bucket`](Shape::bucket) of
    /// rows, times the candidates and waits, unless a graph is being recorded: then the library's first guess
    /// is taken, for good.
    ///
    /// # Errors
    /// A view is too short, not at a multiple of 16 bytes or of another GPU, or the sizes are none of a
    /// product; the library knows no algorithm.
    pub fn multiply(&mut self, product: &Product<'_>) -> Result<()> {
        product.check(&self.gpu.context)?;
        if product.num_rows == 0 {
            return Ok(());
        }
        let _bound = self.gpu.context.bind()?;
        if self.plans.len() >= MAX_SHAPES && !self.plans.contains_key(&product.shape) {
            return Err(Error::Illegal(format!("more than {MAX_SHAPES} shapes of matrix products")));
        }
        let plan = match self.plans.entry(product.shape) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Plan::new(product.shape)?),
        };
        let handle =
            self.handle.handle.as_ref().ok_or_else(|| Error::Illegal("closed products".to_owned()))?;
        plan.run(&plan::Means { gpu: &self.gpu, handle, workspace: &self.workspace }, product)
    }
}

impl Drop for BoundHandle {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        drop(self.handle.take());
    }
}
