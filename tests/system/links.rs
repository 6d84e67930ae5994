//! Every relative link of the documentation leads somewhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::{Path, PathBuf};

/// The Markdown files of the tree, apart from what is built and what tools keep.
fn documents() -> Vec<PathBuf> {
    let mut folders = vec![fused_testkit::repository()];
    let mut documents = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_kept = name == ".github" || !(name.starts_with('.') || name == "target");
            match path.extension() {
                _ if path.is_dir() && is_kept && !path.is_symlink() => folders.push(path),
                Some(extension) if extension == "md" && is_kept => documents.push(path),
                _ => {}
            }
        }
    }
    documents
}

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<&str> {
    let outside_of_blocks = text.split("```").step_by(2);
    let outside_of_code = outside_of_blocks.flat_map(|part| part.split('`').step_by(2));
    let targets = outside_of_code.flat_map(|part| part.split("](").skip(1));
    targets.filter_map(|rest| Some(rest.split_once(')')?.0)).collect()
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect()
}

fn problem(document: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
    if !path.exists() {
        return Some(format!("{}: {target} is not there", document.display()));
    }
    let text = if fragment.is_empty() { return None } else { std::fs::read_to_string(&path).unwrap() };
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    let found = headings.any(|heading| anchor(heading) == fragment);
    (!found).then(|| format!("{}: {target} has no such heading", document.display()))
}

#[test]
fn every_relative_link_leads_somewhere() {
    let (mut num_links, mut problems) = (0, Vec::new());
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for target in links(&text) {
            num_links += 1;
            problems.extend(problem(&document, target));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(num_links > 5, "{num_links} links found");
}

#[test]
fn a_link_to_nowhere_is_found() {
    let document = fused_testkit::repository().join("README.md");
    assert_eq!(links("a [b](c) `[d](e)` ```[f](g)``` [h](i)"), ["c", "i"]);
    for target in ["no-such-file.md", "README.md#no-such-heading"] {
        assert!(problem(&document, target).is_some(), "{target}");
    }
    for target in ["README.md#two-commands", "#two-commands", "https://example.com/x"] {
        assert_eq!(problem(&document, target), None);
    }
}
