//! Compiles the CUDA kernels ahead of time, where the feature `cuda` asks for them and nvcc is there: the
//! environment variable `FUSED_NVCC`, then `$CUDA_HOME/bin/nvcc`, then `nvcc` on `PATH`. Without it the program
//! compiles them itself at its first start (`src/cuda/image`).
#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, thread};

/// Files that have kernels; `device.cuh` and `hopper.cuh` are included by them.
const SOURCES: [&str; 4] = ["rows", "attention", "sample", "prefill_hopper"];
/// Compute capability and architecture: A100; L4, L40, RTX 40; H100 and H200. Others compile at the first start.
const ARCHITECTURES: [(u32, u32, &str); 3] = [(8, 0, "sm_80"), (8, 9, "sm_89"), (9, 0, "sm_90a")];
/// Compilers at a time: each takes some hundred megabytes.
const NUM_JOBS: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    for watched in ["build.rs", "cuda"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for watched in ["FUSED_NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={watched}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut list = String::from("&[\n");
    match find_nvcc()? {
        Some(nvcc) => {
            compile_all(&nvcc, &out)?;
            for (major, minor, architecture) in ARCHITECTURES {
                write!(
                    list,
                    "    Embedded {{ capability: Capability {{ major: {major}, minor: {minor} }}, images: ["
                )?;
                for source in SOURCES {
                    write!(list, "include_bytes!({:?}), ", image(&out, source, architecture))?;
                }
                list.push_str("] },\n");
            }
        }
        None => println!(
            "cargo::warning=no nvcc (FUSED_NVCC, CUDA_HOME, PATH): the CUDA kernels will be compiled at the \
             first start, by NVRTC"
        ),
    }
    list.push_str("]\n");
    fs::write(out.join("embedded.rs"), list)?;
    Ok(())
}

fn find_nvcc() -> Result<Option<PathBuf>, Box<dyn Error>> {
    if let Some(named) = env::var_os("FUSED_NVCC").filter(|named| !named.is_empty()) {
        let nvcc = PathBuf::from(named);
        return match nvcc.is_file() {
            true => Ok(Some(nvcc)),
            false => Err(format!("FUSED_NVCC names {}, which is no file", nvcc.display()).into()),
        };
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(env::split_paths(&path));
    Ok(folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()))
}

fn compile_all(nvcc: &Path, out: &Path) -> Result<(), String> {
    let tasks: Vec<_> = ARCHITECTURES
        .iter()
        .flat_map(|&(_, _, architecture)| SOURCES.map(|source| (source, architecture)))
        .collect();
    for batch in tasks.chunks(NUM_JOBS) {
        thread::scope(|scope| {
            let jobs: Vec<_> = batch
                .iter()
                .map(|&(source, architecture)| scope.spawn(move || compile(nvcc, source, architecture, out)))
                .collect();
            jobs.into_iter().try_for_each(|job| {
                job.join().unwrap_or_else(|_| Err("a compiler's thread panicked".to_owned()))
            })
        })?;
    }
    Ok(())
}

fn compile(nvcc: &Path, source: &str, architecture: &str, out: &Path) -> Result<(), String> {
    let file = format!("cuda/{source}.cu");
    let compute = architecture.replace("sm_", "compute_");
    let output = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-cubin", &file, "-o"])
        .arg(image(out, source, architecture))
        .arg(format!("-gencode=arch={compute},code={architecture}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} does not start: {error}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let log = [output.stdout, output.stderr].concat();
    Err(format!(
        "{} does not compile {file} for {architecture}:\n{}",
        nvcc.display(),
        String::from_utf8_lossy(&log)
    ))
}

fn image(out: &Path, source: &str, architecture: &str) -> PathBuf {
    out.join(format!("{source}.{architecture}.cubin"))
}
