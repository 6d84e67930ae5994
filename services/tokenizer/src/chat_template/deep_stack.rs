use std::io;
use std::panic::resume_unwind;
use std::thread;

/// Enough for the deepest template that is read, and to drop the deepest value that fuel pays for: some 100,000 levels.
/// Addresses only: what is not used takes no memory.
const STACK_BYTES: usize = 256 << 20;

/// Does work that goes as deep as somebody else likes: reading a template, rendering it, dropping what it made.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, work)?;
        // A panic goes on where it would have gone without the thread.
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
