//! Where the kernels' machine code comes from.

mod cache;

use std::path::PathBuf;

use fused_gpu::{Capability, CompilerVersion, Gpu, Module, Source, compile, compiler_version};

use super::Result;
use cache::Cache;

/// Where machine code came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was compiled with this program.
    Embedded,
    /// It was compiled at an earlier start, and lies in this folder.
    Cached(PathBuf),
    /// It was compiled now.
    Compiled {
        /// By this version of NVRTC.
        version: CompilerVersion,
        /// Where the next start finds it; `None`: there is no folder to write to, and the next start compiles again.
        kept: Option<PathBuf>,
    },
}

/// The code of every source, on the GPU.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) rows: Module,
    pub(super) attention: Module,
    pub(super) sample: Module,
    /// Hopper's own; other architectures have no such kernels.
    pub(super) prefill_hopper: Option<Module>,
}

/// Code that build.rs compiled for an architecture; in the order of [`SOURCES`].
struct Embedded {
    capability: Capability,
    images: [&'static [u8]; SOURCES.len()],
}

const EMBEDDED: &[Embedded] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

const SOURCES: [Source<'static>; 4] = [
    Source { file: "rows.cu", text: include_str!("../../../cuda/rows.cu") },
    Source { file: "attention.cu", text: include_str!("../../../cuda/attention.cu") },
    Source { file: "sample.cu", text: include_str!("../../../cuda/sample.cu") },
    Source { file: "prefill_hopper.cu", text: include_str!("../../../cuda/prefill_hopper.cu") },
];
/// What stands in a source for a header, and the header.
const HEADERS: [(&str, &str); 2] = [
    ("#include \"device.cuh\"\n", include_str!("../../../cuda/device.cuh")),
    ("#include \"hopper.cuh\"\n", include_str!("../../../cuda/hopper.cuh")),
];
const HOPPER: Capability = Capability { major: 9, minor: 0 };

/// Loads every source's code, wherever it comes from.
pub(super) fn load(gpu: &Gpu) -> Result<(Modules, Origin)> {
    let capability = gpu.compute_capability();
    // Of the very architecture: what a kernel may have of shared memory differs within a major version.
    if let Some(embedded) = EMBEDDED.iter().find(|embedded| embedded.capability == capability) {
        match load_all(gpu, embedded.images) {
            Ok(modules) => return Ok((modules, Origin::Embedded)),
            // The program was built with a newer toolkit than the driver understands; the machine's own
            // compiler fits it.
            Err(error) if error.is_foreign_image() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let version = compiler_version()?;
    let architecture = architecture(capability);
    let sources = SOURCES.map(|source| (source.file, whole(source.text)));
    let cache = Cache::find();
    let keys = sources.each_ref().map(|(file, text)| cache::Key {
        file,
        text,
        architecture: &architecture,
        version,
    });
    if let Some(cache) = &cache
        && let [Some(rows), Some(attention), Some(sample), Some(prefill)] = keys.map(|key| cache.read(&key))
        && let Ok(modules) = load_all(gpu, [&rows, &attention, &sample, &prefill])
    {
        return Ok((modules, Origin::Cached(cache.folder().to_owned())));
    }

    // Side by side: the compiler takes no more than one core for each.
    let [rows, attention, sample, prefill] = std::thread::scope(|scope| {
        let compilations = sources.each_ref().map(|(file, text)| {
            let architecture = &architecture;
            scope.spawn(move || compile(Source { file, text }, architecture))
        });
        compilations.map(|compilation| {
            let died = |_| Err(fused_gpu::Error::Illegal("the compiler's thread died".to_owned()));
            compilation.join().unwrap_or_else(died)
        })
    });
    let images = [rows?, attention?, sample?, prefill?];
    let modules = load_all(gpu, images.each_ref().map(Vec::as_slice))?;
    let kept =
        cache.filter(|cache| keys.iter().zip(&images).all(|(key, image)| cache.write(key, image).is_ok()));
    Ok((modules, Origin::Compiled { version, kept: kept.map(|cache| cache.folder().to_owned()) }))
}

fn load_all(gpu: &Gpu, images: [&[u8]; SOURCES.len()]) -> fused_gpu::Result<Modules> {
    let [rows, attention, sample, prefill] = images;
    Ok(Modules {
        rows: gpu.load(rows)?,
        attention: gpu.load(attention)?,
        sample: gpu.load(sample)?,
        prefill_hopper: (gpu.compute_capability() == HOPPER).then(|| gpu.load(prefill)).transpose()?,
    })
}

/// A source with its headers in it, since NVRTC looks into no folder.
fn whole(text: &str) -> String {
    HEADERS.iter().fold(text.to_owned(), |text, (include, header)| text.replacen(include, header, 1))
}

/// What compilers call an architecture; Hopper's with its own instructions.
fn architecture(capability: Capability) -> String {
    let suffix = if capability == HOPPER { "a" } else { "" };
    format!("sm_{}{}{suffix}", capability.major, capability.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_become_whole() {
        for source in SOURCES {
            let [(device, _), _] = HEADERS;
            assert_eq!(source.text.matches(device).count(), 1, "{}", source.file);
            assert!(!whole(source.text).contains("#include"), "{}", source.file);
        }
    }

    #[test]
    fn architectures_have_the_compilers_names() {
        let name = |major, minor| architecture(Capability { major, minor });
        assert_eq!([name(8, 0), name(8, 9), name(9, 0), name(12, 0)], ["sm_80", "sm_89", "sm_90a", "sm_120"]);
    }

    #[test]
    fn embedded_code_is_code() {
        for embedded in EMBEDDED {
            assert!(
                embedded.images.iter().all(|image| image.starts_with(b"\x7fELF")),
                "{}",
                embedded.capability
            );
        }
    }

    /// Needs no GPU, but NVRTC.
    #[test]
    fn the_compiler_of_the_first_start_takes_every_source() {
        if let Err(error) = compiler_version() {
            eprintln!("skipped: {error}");
            return;
        }
        for source in SOURCES {
            let text = whole(source.text);
            for architecture in ["sm_80", "sm_90a"] {
                let image = compile(Source { file: source.file, text: &text }, architecture).unwrap();
                assert!(image.starts_with(b"\x7fELF"), "{} for {architecture}", source.file);
            }
        }
        let broken = compile(Source { file: "broken.cu", text: "__global__ void f() { x; }" }, "sm_80");
        let message = broken.unwrap_err().to_string();
        assert!(message.contains("broken.cu") && message.contains("undefined"), "{message}");
    }
}
