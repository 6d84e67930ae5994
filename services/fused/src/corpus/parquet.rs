use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow, bail};
use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::MAX_DOCUMENT_BYTES;

/// Rows that are read at once. They share the memory of their page.
const BATCH_ROWS: usize = 256;
/// So many columns are named where the one asked for is missing.
const MAX_NAMED: usize = 16;

/// The documents of a Parquet file: the rows of one column.
pub(super) struct Documents {
    file: SerializedFileReader<File>,
    field: String,
    column_idx: usize,
    max_definition_level: i16,
    row_group: usize,
    rows: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: std::vec::IntoIter<ByteArray>,
    row: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Documents {
    pub(super) fn open(file: File, field: &str, bytes_read: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let file = SerializedFileReader::new(file).context("is no Parquet file that can be read")?;
        let schema = file.metadata().file_metadata().schema_descr();
        let names = schema.columns().iter().map(|column| column.path().string());
        let Some(column_idx) = names.clone().position(|name| name == field) else {
            let mut names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
            names.truncate(MAX_NAMED);
            bail!("no column `{field}` (--field); there are: {}", names.join(", "));
        };
        let column = schema.column(column_idx);
        check_type(&column)?;
        Ok(Self {
            field: field.to_owned(),
            column_idx,
            max_definition_level: column.max_def_level(),
            row_group: 0,
            rows: None,
            batch: Vec::new().into_iter(),
            row: 0,
            bytes_read,
            file,
        })
    }

    fn next_document(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(bytes) = self.batch.next() {
                self.row += 1;
                return self.text(&bytes).map(Some);
            }
            let Some(rows) = &mut self.rows else {
                if self.row_group == self.file.num_row_groups() {
                    return Ok(None);
                }
                let group = self.file.get_row_group(self.row_group)?;
                match group.get_column_reader(self.column_idx)? {
                    ColumnReader::ByteArrayColumnReader(rows) => self.rows = Some(rows),
                    _ => bail!("row group {} has another type in column `{}`", self.row_group, self.field),
                }
                self.row_group += 1;
                let num_bytes = group.metadata().compressed_size();
                self.bytes_read.fetch_add(u64::try_from(num_bytes).unwrap_or(0), Ordering::Relaxed);
                continue;
            };
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            let (num_rows, ..) = rows
                .read_records(BATCH_ROWS, Some(&mut levels), None, &mut values)
                .with_context(|| format!("cannot be read past row {}", self.row))?;
            if let Some(idx) = levels.iter().position(|level| *level < self.max_definition_level) {
                bail!("row {}: column `{}` is null", self.row + idx as u64 + 1, self.field);
            }
            if num_rows == 0 {
                self.rows = None;
            }
            self.batch = values.into_iter();
        }
    }

    fn text(&self, bytes: &ByteArray) -> anyhow::Result<String> {
        let (row, field) = (self.row, &self.field);
        if bytes.len() > MAX_DOCUMENT_BYTES {
            bail!("row {row}: column `{field}` is over {MAX_DOCUMENT_BYTES} bytes");
        }
        let text = std::str::from_utf8(bytes.data()).map_err(|error| {
            anyhow!("row {row}: column `{field}` is not UTF-8 at its byte {}", error.valid_up_to())
        })?;
        Ok(text.to_owned())
    }
}

fn check_type(column: &ColumnDescriptor) -> anyhow::Result<()> {
    let name = column.path().string();
    if column.max_rep_level() > 0 {
        bail!("column `{name}` has lists, not a text a row");
    }
    let is_text = matches!(
        column.converted_type(),
        ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM | ConvertedType::NONE
    );
    match column.physical_type() {
        Type::BYTE_ARRAY if is_text => Ok(()),
        Type::BYTE_ARRAY => bail!("column `{name}` is {}, not text", column.converted_type()),
        other => bail!("column `{name}` is {other}, not text"),
    }
}

impl Iterator for Documents {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_document().transpose()
    }
}
