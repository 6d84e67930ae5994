use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use fused_status::{Code, Error};
use minijinja::Value;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::environment::environment;
use super::messages::{messages_of, shape_contents};
use super::parts::ContentForms;
use super::refusal;
use super::rewrite::rewrite;

/// The argument with which a program is told to be [`render_chat_template`].
pub const RENDER_COMMAND: &str = "render-chat-template";

/// What the process may have of everything, the program itself included: fuel ends an honest template that does too much
/// within a tenth of it.
const MAX_MEMORY_BYTES: u64 = 512 << 20;
const MAX_CPU_S: u64 = 2;
/// Twice what fuel lets a template write, and JSON may need for it.
const MAX_ANSWER_BYTES: u64 = 128 << 20;

/// What is asked of the process, on its standard input.
#[derive(Serialize, Deserialize)]
struct Job<T> {
    template: T,
    context: Value,
}

/// What it answers, on its standard output.
#[derive(Serialize, Deserialize)]
enum Answer {
    Text(String),
    Refusal(String),
}

/// Renders a template in a process of its own, which may come to any end.
pub(super) fn render(program: &Path, template: &str, context: &Value) -> Result<String, Error> {
    let job = serde_json::to_vec(&Job { template, context: context.clone() });
    let job = job.map_err(|error| Error::internal(&error))?;
    let answer = run(program, &job).map_err(|error| Error::internal(&error))?;
    match serde_json::from_slice(&answer) {
        Ok(Answer::Text(text)) => Ok(text),
        Ok(Answer::Refusal(message)) => Err(Error::invalid("chat_template", message)),
        // It has ended in the middle of it.
        Err(_) => {
            let message = format!(
                "the chat template nests too deep, or needs more than {MAX_CPU_S} s or {MAX_MEMORY_BYTES} bytes"
            );
            Err(Error::new(Code::InvalidArgument, message).with_param("chat_template"))
        }
    }
}

fn run(program: &Path, job: &[u8]) -> io::Result<Vec<u8>> {
    let mut process = Command::new(program)
        .arg(RENDER_COMMAND)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = process.stdin.take() {
        // It reads all before it answers. Where it cannot, it has ended, and its answer shows that.
        let _ = input.write_all(job);
    }
    let mut answer = Vec::new();
    if let Some(output) = process.stdout.take() {
        output.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    }
    // Its output is closed: it has ended, or is about to.
    process.wait()?;
    Ok(answer)
}

/// The other side: bounds this process, reads a job from standard input, writes the answer to standard output.
///
/// # Errors
/// The process cannot be bounded, or nobody is there who sent a job.
pub fn render_chat_template() -> io::Result<()> {
    for (resource, most) in [
        (Resource::As, MAX_MEMORY_BYTES),
        (Resource::Cpu, MAX_CPU_S),
        // What ends by its bounds leaves nothing behind.
        (Resource::Core, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    // Where a container's memory is short, it is this process that goes and not the one that serves.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut job = Vec::new();
    io::stdin().lock().read_to_end(&mut job)?;
    io::stdout().lock().write_all(&answer_render_job(&job)?)
}

/// Renders the template of a job in this process, whatever that leads to.
///
/// # Errors
/// It is no job.
pub fn answer_render_job(job: &[u8]) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&answer(job)?)?)
}

fn answer(job: &[u8]) -> io::Result<Answer> {
    let job: Job<String> = serde_json::from_slice(job)?;
    Ok(match render_here(&job) {
        Ok(text) => Answer::Text(text),
        Err(error) => Answer::Refusal(refusal(&error)),
    })
}

fn render_here(job: &Job<String>) -> Result<String, minijinja::Error> {
    let (environment, source) = (environment(), rewrite(&job.template));
    let template = environment.template_from_str(&source)?;
    // Each try costs as much as the request may: only what it needs is tried.
    let is_there = |role: &str| {
        role == "user"
            || messages_of(&job.context)
                .any(|message| message.get_attr("role").is_ok_and(|other| other.as_str() == Some(role)))
    };
    let forms = ContentForms::of_template(&template, &job.context, is_there);
    template.render(shape_contents(&job.context, &forms))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_is_rendered_or_refused() {
        let answered = |template: &str| {
            let context = json!({"messages": [{"role": "user", "content": "x", "a": 1.5}]});
            answer(&serde_json::to_vec(&json!({"template": template, "context": context})).unwrap()).unwrap()
        };
        let Answer::Text(text) = answered("own {{ messages[0] }}") else { panic!("refused") };
        assert_eq!(text, "own {'role': 'user', 'content': 'x', 'a': 1.5}");
        let Answer::Refusal(message) = answered("{% if %}") else { panic!("rendered") };
        assert!(message.contains("refuses"), "{message}");
        let Answer::Refusal(message) = answered("{{ 'x' * 100000000 }}") else { panic!("rendered") };
        assert!(message.contains("more work"), "{message}");
    }

    #[test]
    fn a_process_that_ends_without_an_answer_is_a_bad_template() {
        let error = render(Path::new("/bin/false"), "x", &Value::from(())).unwrap_err();
        assert_eq!((error.code(), error.param()), (Code::InvalidArgument, Some("chat_template")));
        let error = render(Path::new("/no/such/program"), "x", &Value::from(())).unwrap_err();
        assert_eq!(error.code(), Code::Internal);
    }
}
