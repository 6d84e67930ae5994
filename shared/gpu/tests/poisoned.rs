//! What a kernel that goes astray leaves behind: a process of its own, since nothing works in it afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unsafe_code,
    reason = "a test, which does what nothing else may"
)]

use fused_gpu::{Event, Gpu, Source, compile};

#[test]
fn a_lost_context_says_so_and_ends_quietly() {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) if error.is_absence() => return eprintln!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    let capability = gpu.compute_capability();
    let source =
        Source { file: "astray.cu", text: "extern \"C\" __global__ void astray(int* p) { *p = 1; }" };
    let image = match compile(source, &format!("sm_{}{}", capability.major, capability.minor)) {
        Err(error) if error.is_absence() => return eprintln!("skipped: {error}"),
        image => image.unwrap(),
    };
    let kernel = gpu.load(&image).unwrap().kernel("astray", 0).unwrap();
    let (buffer, mut pinned) = (gpu.alloc(1 << 20).unwrap(), gpu.pinned(1 << 20).unwrap());
    let graph = gpu.capture(|| gpu.fill(buffer.view(), 1)).unwrap();
    let event = Event::new(&gpu).unwrap();

    // SAFETY: none: the address is nobody's, which the hardware finds out and this test is about.
    unsafe { gpu.launch(&kernel, (1, 1, 1), 1, 0, &64_u64) }.unwrap();
    let error = gpu.synchronize().unwrap_err();
    eprintln!("{error}");
    assert!(error.poisons_context() && !error.is_out_of_memory(), "{error}");
    for error in [
        gpu.alloc(1).unwrap_err(),
        gpu.free_bytes().unwrap_err(),
        graph.launch().unwrap_err(),
        gpu.copy_to_host(&buffer, 0, &mut pinned, 0..1).unwrap_err(),
        event.record().and_then(|()| event.wait()).unwrap_err(),
    ] {
        assert!(error.poisons_context(), "{error}");
    }
    drop((buffer, pinned, graph, event, kernel, gpu));
}
