//! Arrows between rooms run one way: services → shared → proto; engine → kernels; only the binary joins services.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::process::Command;

use serde_json::Value;

/// The rank of a room: an arrow may only go to a lower one.
fn rank(manifest: &str) -> u32 {
    if manifest.contains("/services/fused/") {
        4
    } else if manifest.contains("/services/") {
        3
    } else if manifest.contains("/kernels/") {
        2
    } else if manifest.contains("/shared/") {
        1
    } else {
        0
    }
}

#[test]
fn no_arrow_runs_up() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(fused_testkit::repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let manifest = |name: &str| {
        let package = packages.iter().find(|package| package["name"] == name)?;
        package["manifest_path"].as_str()
    };
    let mut num_arrows = 0;
    for package in packages {
        let from = package["manifest_path"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let Some(to) = manifest(name) else { continue };
            num_arrows += 1;
            // Test fixtures may be used from everywhere, by tests.
            if name == "fused-testkit" {
                assert_eq!(dependency["kind"], "dev", "{from} → {to}");
                continue;
            }
            let is_within_shared = rank(from) == 1 && rank(to) == 1;
            assert!(rank(to) < rank(from) || is_within_shared, "{from} → {to}");
            assert!(
                rank(to) != 2 || from.contains("/services/engine/"),
                "only the engine computes: {from} → {to}"
            );
        }
    }
    assert!(num_arrows > 20, "{num_arrows} arrows");
}
