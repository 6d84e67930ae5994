//! A stream of documents, worked on in parallel in bounded batches: however long the stream, a few batches are in
//! memory, and results come in the documents' order, so that threads change nothing.

use rayon::prelude::*;

use crate::Error;

/// A batch ends at whichever it reaches first. Large enough to keep threads busy, small enough to stop soon.
const MAX_BATCH_BYTES: usize = 4 << 20;
const MAX_BATCH_DOCUMENTS: usize = 4096;

/// Hands each document, with what `work` makes of it, to `take`. `work` runs on the threads of the current rayon pool
/// while the next batch is being read; `take` runs on this thread, in the documents' order.
///
/// # Errors
/// The first of reading (as [`Error::Corpus`]), `work` or `take`.
pub fn work_in_order<T, D, E>(
    mut documents: impl Iterator<Item = Result<String, D>> + Send,
    work: impl Fn(&str) -> Result<T, E> + Sync,
    mut take: impl FnMut(String, T) -> Result<(), E>,
) -> Result<(), E>
where
    T: Send,
    D: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: From<Error> + Send,
{
    let mut batch = next_batch(&mut documents)?;
    while !batch.is_empty() {
        let work_on_batch =
            || batch.par_iter().with_max_len(1).map(|text| work(text)).collect::<Vec<Result<T, E>>>();
        let (next, worked) = rayon::join(|| next_batch(&mut documents), work_on_batch);
        for (document, result) in batch.into_iter().zip(worked) {
            take(document, result?)?;
        }
        batch = next?;
    }
    Ok(())
}

/// The next documents; none at the end.
fn next_batch<D>(documents: &mut impl Iterator<Item = Result<String, D>>) -> Result<Vec<String>, Error>
where
    D: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut batch, mut num_bytes) = (Vec::new(), 0);
    while num_bytes < MAX_BATCH_BYTES && batch.len() < MAX_BATCH_DOCUMENTS {
        let Some(document) = documents.next() else { break };
        let document = document.map_err(|error| Error::Corpus(error.into()))?;
        num_bytes += document.len();
        batch.push(document);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Never = std::convert::Infallible;

    #[test]
    fn results_come_in_order_whatever_their_size() {
        let sizes: Vec<usize> =
            (0..10_000).map(|idx| if idx % 1000 == 7 { 2 << 20 } else { idx % 13 }).collect();
        let documents = sizes.iter().map(|size| Ok::<_, Never>("x".repeat(*size)));
        let mut seen = Vec::new();
        work_in_order(
            documents,
            |text| Ok(text.len()),
            |text, len| {
                assert_eq!(text.len(), len);
                seen.push(len);
                Ok::<_, Error>(())
            },
        )
        .unwrap();
        assert_eq!(seen, sizes);
    }

    #[test]
    fn the_first_error_ends_it() {
        let documents = || (0..5).map(|idx| if idx == 3 { Err("unreadable") } else { Ok(idx.to_string()) });
        let error = work_in_order(documents(), |_| Ok(()), |_, ()| Ok::<_, Error>(())).unwrap_err();
        assert!(matches!(error, Error::Corpus(source) if source.to_string() == "unreadable"));
        let work = |text: &str| if text == "1" { Err(Error::Cancelled) } else { Ok(()) };
        let mut num_taken = 0;
        let take = |_, ()| {
            num_taken += 1;
            Ok(())
        };
        let error = work_in_order(documents().take(3), work, take).unwrap_err();
        assert!(matches!(error, Error::Cancelled));
        assert_eq!(num_taken, 1);
    }
}
