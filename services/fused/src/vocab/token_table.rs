use std::sync::Arc;

use anyhow::Context;
use fused_vocabulary::TokenId;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::output::Output;

const SCHEMA: &str = "message documents {
    required group input_ids (LIST) { repeated group list { required int32 element (INTEGER(32,false)); } }
    required int64 num_base_tokens;
}";
/// A row group, which is held in memory, ends at whichever it reaches first.
const GROUP_TOKENS: usize = 1 << 20;
const GROUP_ROWS: usize = 1 << 16;

/// A Parquet file with a row a document: its model ids (`input_ids`, a list of unsigned 32-bit numbers) and how many
/// tokens the base vocabulary takes (`num_base_tokens`).
pub(super) struct TokenTable<'a> {
    writer: SerializedFileWriter<Output<'a>>,
    group: Group,
}

/// Rows on their way, as Parquet has lists: an id each, and whether it begins a list and is one at all.
#[derive(Default)]
struct Group {
    ids: Vec<i32>,
    begins: Vec<i16>,
    exists: Vec<i16>,
    num_base_tokens: Vec<i64>,
}

impl<'a> TokenTable<'a> {
    pub(super) fn begin(out: Output<'a>) -> anyhow::Result<Self> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        Ok(Self { writer: SerializedFileWriter::new(out, schema, properties)?, group: Group::default() })
    }

    pub(super) fn push(&mut self, ids: &[TokenId], num_base_tokens: usize) -> anyhow::Result<()> {
        self.group.push(ids, num_base_tokens);
        if self.group.ids.len() >= GROUP_TOKENS || self.group.num_base_tokens.len() >= GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    pub(super) fn end(mut self) -> anyhow::Result<()> {
        if !self.group.num_base_tokens.is_empty() {
            self.write_group()?;
        }
        self.writer.into_inner()?.finish()
    }

    fn write_group(&mut self) -> anyhow::Result<()> {
        let Group { ids, begins, exists, num_base_tokens } = std::mem::take(&mut self.group);
        let mut group = self.writer.next_row_group()?;
        let no_column = || ParquetError::General("the schema has two columns".to_owned());
        let mut column = group.next_column()?.ok_or_else(no_column)?;
        column.typed::<Int32Type>().write_batch(&ids, Some(&exists), Some(&begins))?;
        column.close()?;
        let mut column = group.next_column()?.ok_or_else(no_column)?;
        column.typed::<Int64Type>().write_batch(&num_base_tokens, None, None)?;
        column.close()?;
        group.close().context("the table cannot be written")?;
        Ok(())
    }
}

impl Group {
    fn push(&mut self, ids: &[TokenId], num_base_tokens: usize) {
        self.ids.extend(ids.iter().map(|id| id.0.cast_signed()));
        // An empty list has one entry that does not exist.
        let num_entries = ids.len().max(1);
        self.begins.extend((0..num_entries).map(|idx| i16::from(idx > 0)));
        self.exists.extend(std::iter::repeat_n(i16::from(!ids.is_empty()), num_entries));
        self.num_base_tokens.push(num_base_tokens as i64);
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, RowAccessor};

    use super::*;
    use crate::interrupt::Interrupt;

    #[test]
    fn rows_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.parquet");
        let interrupt = Interrupt::default();
        let mut table = TokenTable::begin(Output::create(&path, &interrupt).unwrap()).unwrap();
        let long: Vec<_> = (0..GROUP_TOKENS as u32).map(TokenId).collect();
        let documents = [&[TokenId(u32::MAX), TokenId(2)][..], &[], &long, &[TokenId(0)]];
        for (idx, ids) in documents.into_iter().enumerate() {
            table.push(ids, idx + 10).unwrap();
        }
        table.end().unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        for (idx, row) in reader.get_row_iter(None).unwrap().enumerate() {
            let row = row.unwrap();
            let id = |field: &Field| match field {
                Field::UInt(id) => TokenId(*id),
                other => panic!("{other:?}"),
            };
            let ids: Vec<_> = row.get_list(0).unwrap().elements().iter().map(id).collect();
            assert!(ids == documents[idx], "{idx}");
            assert_eq!(row.get_long(1).unwrap(), idx as i64 + 10);
        }
    }
}
