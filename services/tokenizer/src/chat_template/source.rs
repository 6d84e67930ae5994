use minijinja::{Error, ErrorKind};

/// The longest tag, its texts in quotes not counted. The engine folds an expression's constants before there is fuel, in
/// time that grows with the square of its length; the longest tags of published templates have some 500 bytes.
const MAX_TAG_BYTES: usize = 4096;

/// Refuses a template with an expression that is too long, before it is parsed.
pub(super) fn check_source(source: &str) -> Result<(), Error> {
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        rest = &rest[start + 1..];
        let Some(kind) = rest.bytes().next() else { break };
        match kind {
            b'#' => rest = rest.find("#}").map_or("", |end| &rest[end + 2..]),
            b'{' | b'%' => {
                let (code_bytes, end) = tag(&rest.as_bytes()[1..]);
                if code_bytes > MAX_TAG_BYTES {
                    let problem = format!("a tag has {code_bytes} bytes, over {MAX_TAG_BYTES}");
                    return Err(Error::new(ErrorKind::SyntaxError, problem));
                }
                // Ends are ASCII, so that this is a border of characters.
                rest = rest.get(1 + end..).unwrap_or("");
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many bytes outside of quotes a tag has, and where it ends: at the `}` that nothing in it opened.
fn tag(bytes: &[u8]) -> (usize, usize) {
    let (mut num_open, mut code_bytes, mut idx) = (0_usize, 0, 0);
    while let Some(byte) = bytes.get(idx) {
        idx += 1;
        match byte {
            b'\'' | b'"' => {
                while let Some(inner) = bytes.get(idx) {
                    idx += if *inner == b'\\' { 2 } else { 1 };
                    if inner == byte {
                        break;
                    }
                }
            }
            b'{' => num_open += 1,
            b'}' if num_open == 0 => return (code_bytes, idx),
            b'}' => num_open -= 1,
            _ => {}
        }
        code_bytes += 1;
    }
    (code_bytes, bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_code_is_refused_and_long_text_is_not() {
        let long = "+1".repeat(MAX_TAG_BYTES);
        for refused in [
            format!("{{{{ 1{long} }}}}"),
            format!("{{{{ {{'a': {{}}}}{long} }}}}"),
            format!("{{{{ '}}}}'{long} }}}}"),
            format!("{{{{ '\\'}}}}'{long} }}}}"),
            format!("{{% if 1{long} %}}"),
            format!("text {{ {{# {{{{ #}} {{% set a = 1{long}"),
        ] {
            assert!(check_source(&refused).is_err(), "{}", &refused[..30]);
        }
        for taken in [
            long.clone(),
            format!("{{# {long} #}}{{{{ 1 }}}}"),
            format!("{{{{ '{long}ü' }}}}ü{{{{ \"{long}\" }}}}"),
            "{{ 1+1 }}ä{% if 1 %}{ü".repeat(MAX_TAG_BYTES),
            "{".to_owned(),
            "{{ '\\".to_owned(),
        ] {
            check_source(&taken).unwrap();
        }
    }
}
