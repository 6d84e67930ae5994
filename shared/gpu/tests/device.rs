//! The layer on a real GPU. Says that it skips where there is none; `FUSED_REQUIRE_GPU` makes that a failure.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "the helpers of tests, which the lints take for production code"
)]

use std::time::Duration;

use fused_gpu::{Error, Event, Gpu, Source, compile};

/// `None`, and a line about it, where there is no GPU.
fn gpu() -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) if error.is_absence() && std::env::var_os("FUSED_REQUIRE_GPU").is_none() => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Holds everywhere: what is not there is an error.
#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let error = Gpu::open(999).unwrap_err();
    assert!(error.is_absence(), "{error}");
    assert!(Gpu::open(usize::MAX).unwrap_err().is_absence());
}

#[test]
fn a_gpu_says_what_it_is() {
    let Some(gpu) = gpu() else { return };
    eprintln!(
        "{}, capability {}, {} multiprocessors, {} MiB of cache, driver {}, {} of {} MiB free",
        gpu.name(),
        gpu.compute_capability(),
        gpu.num_multiprocessors(),
        gpu.l2_bytes() >> 20,
        gpu.driver_version(),
        gpu.free_bytes().unwrap() >> 20,
        gpu.total_bytes() >> 20,
    );
    assert!(!gpu.name().is_empty() && gpu.num_multiprocessors() > 0 && gpu.l2_bytes() > 0);
    assert!(gpu.free_bytes().unwrap() <= gpu.total_bytes());
}

#[test]
fn bytes_come_back() {
    let Some(gpu) = gpu() else { return };
    let bytes: Vec<u8> = (0..100_003_u32).map(|at| (at % 251) as u8).collect();
    let buffer = gpu.upload(&bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    buffer.read(&mut back).unwrap();
    assert!(back == bytes);

    let zeroed = gpu.alloc_zeroed(1000).unwrap();
    zeroed.write(10, &[1, 2, 3]).unwrap();
    gpu.fill(zeroed.slice(900..901).unwrap(), 9).unwrap();
    gpu.copy(zeroed.slice(10..13).unwrap(), zeroed.slice(500..503).unwrap()).unwrap();
    let mut back = [7; 1000];
    zeroed.read(&mut back).unwrap();
    let mut wanted = [0; 1000];
    wanted[10..13].copy_from_slice(&[1, 2, 3]);
    wanted[500..503].copy_from_slice(&[1, 2, 3]);
    wanted[900] = 9;
    assert_eq!(back, wanted);
    let part = zeroed.slice(400..600).unwrap().slice(100..103).unwrap();
    assert_eq!((part.offset(), part.len(), part.address()), (500, 3, zeroed.address() + 500));

    let nothing = gpu.upload(&[]).unwrap();
    nothing.read(&mut []).unwrap();
    assert!(nothing.is_empty());
}

#[test]
fn bytes_that_are_not_there_are_refused() {
    let Some(gpu) = gpu() else { return };
    let buffer = gpu.alloc_zeroed(100).unwrap();
    let bounds = |result: Result<(), Error>| matches!(result, Err(Error::Bounds { .. }));
    assert!(bounds(buffer.write(98, &[0; 3])));
    assert!(bounds(buffer.write(usize::MAX, &[0; 3])));
    assert!(bounds(buffer.read(&mut [0; 101])));
    assert!(bounds(buffer.slice(0..101).map(|_| ())));
    assert!(bounds(buffer.slice(90..100).unwrap().slice(5..11).map(|_| ())));
    assert!(gpu.copy(buffer.slice(0..10).unwrap(), buffer.slice(5..15).unwrap()).is_err(), "they overlap");
    assert!(gpu.copy(buffer.slice(0..10).unwrap(), buffer.slice(50..55).unwrap()).is_err());
    let mut pinned = gpu.pinned(10).unwrap();
    assert!(bounds(gpu.copy_to_device(&pinned, 5..11, &buffer, 0)));
    assert!(bounds(gpu.copy_to_host(&buffer, 95, &mut pinned, 0..10)));
    let same_opened_twice = Gpu::open(0).unwrap();
    assert!(same_opened_twice.fill(buffer.view(), 0).is_err());
    assert!(same_opened_twice.copy_to_device(&pinned, 0..1, &buffer, 0).is_err());

    let error = gpu.alloc(1 << 46).unwrap_err();
    assert!(error.is_out_of_memory() && !error.poisons_context(), "{error}");
    gpu.alloc(1 << 20).unwrap();
}

#[test]
fn pinned_memory_waits_for_its_copies() {
    let Some(gpu) = gpu() else { return };
    const LEN: usize = 64 << 20;
    let (mut there, mut back) = (gpu.pinned(LEN).unwrap(), gpu.pinned(LEN).unwrap());
    let buffer = gpu.alloc(LEN).unwrap();
    assert!(back.as_slice().unwrap().iter().all(|&byte| byte == 0));
    for round in 1..4 {
        there.as_mut_slice().unwrap().fill(round);
        gpu.copy_to_device(&there, 0..LEN, &buffer, 0).unwrap();
        gpu.copy_to_host(&buffer, 0, &mut back, 0..LEN).unwrap();
        // Changed at once: the copy must have been waited for.
        there.as_mut_slice().unwrap().fill(0xFF);
        assert!(back.as_slice().unwrap().iter().all(|&byte| byte == round));
    }
    gpu.copy_to_host(&buffer, 0, &mut back, 0..LEN).unwrap();
    drop(back);
    drop(buffer);
    gpu.synchronize().unwrap();
}

#[test]
fn events_know_when_and_whether() {
    let Some(gpu) = gpu() else { return };
    let buffer = gpu.alloc(256 << 20).unwrap();
    let (before, after) = (Event::timed(&gpu).unwrap(), Event::timed(&gpu).unwrap());
    assert!(before.is_done().unwrap(), "never recorded");
    before.record().unwrap();
    for _ in 0..20 {
        gpu.fill(buffer.view(), 3).unwrap();
    }
    after.record().unwrap();
    after.wait().unwrap();
    assert!(after.is_done().unwrap());
    let took = after.since(&before).unwrap();
    assert!(took > Duration::from_micros(100) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn graphs_keep_what_they_use() {
    let Some(gpu) = gpu() else { return };
    const LEN: usize = 32 << 20;
    let (kept, given_back) = (gpu.alloc_zeroed(LEN).unwrap(), gpu.alloc_zeroed(LEN).unwrap());
    let graph = gpu
        .capture(|| {
            gpu.fill(kept.view(), 5)?;
            gpu.fill(given_back.view(), 6)
        })
        .unwrap();
    drop(given_back);
    let others: Vec<_> = (0..4).map(|_| gpu.alloc_zeroed(LEN).unwrap()).collect();
    graph.launch().unwrap();
    let mut bytes = vec![0; LEN];
    kept.read(&mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 5));
    for other in &others {
        other.read(&mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "the graph wrote to somebody else's memory");
    }

    // Many are launched, and outlive the handle that recorded them; what was kept for them comes back.
    let free = gpu.free_bytes().unwrap();
    (0..100).for_each(|_| graph.launch().unwrap());
    let sent = std::thread::spawn(move || graph.launch().map(|()| graph)).join().unwrap().unwrap();
    drop(sent);
    // Others may allocate meanwhile; a leak would be there each time.
    assert!(gpu.free_bytes().unwrap() + (LEN / 2) >= free);
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let Some(gpu) = gpu() else { return };
    let buffer = gpu.alloc_zeroed(8).unwrap();
    let mut pinned = gpu.pinned(8).unwrap();
    let event = Event::new(&gpu).unwrap();
    let graph = gpu.capture(|| {
        assert!(gpu.copy_to_device(&pinned, 0..8, &buffer, 0).is_err());
        assert!(gpu.copy_to_host(&buffer, 0, &mut pinned, 0..8).is_err());
        assert!(buffer.read(&mut [0; 8]).is_err());
        assert!(event.record().is_err());
        assert!(gpu.capture(|| Ok::<_, Error>(())).is_err());
        gpu.fill(buffer.view(), 1)
    });
    graph.unwrap().launch().unwrap();
    let mut bytes = [0; 8];
    buffer.read(&mut bytes).unwrap();
    assert_eq!(bytes, [1; 8], "and the recording goes on");

    // A panic ends a recording.
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = gpu.capture(|| -> Result<(), Error> { panic!("enough") });
    }));
    assert!(panics.is_err());
    event.record().unwrap();
    event.wait().unwrap();
}

#[test]
fn what_is_no_kernel_is_refused() {
    let Some(gpu) = gpu() else { return };
    assert!(gpu.load(b"").is_err());
    assert!(gpu.load(b"#!/bin/sh").is_err());
    let capability = gpu.compute_capability();
    let source = Source { file: "nothing.cu", text: "extern \"C\" __global__ void nothing(int) {}" };
    let image = match compile(source, &format!("sm_{}{}", capability.major, capability.minor)) {
        Err(error) if error.is_absence() => return eprintln!("skipped in part: {error}"),
        image => image.unwrap(),
    };
    let module = gpu.load(&image).unwrap();
    module.kernel("nothing", 0).unwrap();
    assert!(module.kernel("something", 0).is_err());
    assert!(module.kernel("noth\0ing", 0).is_err());
    assert!(module.kernel("nothing", 1 << 30).is_err());
    let other = compile(source, if capability.major == 8 { "sm_90" } else { "sm_80" }).unwrap();
    let error = gpu.load(&other).unwrap_err();
    assert!(error.is_foreign_image(), "{error}");
}
