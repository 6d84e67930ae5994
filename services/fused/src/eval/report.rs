use serde_json::{Value, json};

use super::model::Measured;
use super::windows::Windows;
use crate::cli::Documents;

/// What is printed: models side by side.
pub(super) struct Report<'a> {
    pub(super) documents: &'a [String],
    pub(super) order: Documents,
    pub(super) windows: Windows,
    pub(super) measured: &'a [Measured],
}

impl Measured {
    fn bits_per_byte(&self) -> f64 {
        ratio(self.bits, self.num_bytes)
    }

    fn bits_per_token(&self) -> f64 {
        ratio(self.bits, self.num_tokens)
    }

    fn tokens_per_byte(&self) -> f64 {
        ratio(self.num_tokens as f64, self.num_bytes)
    }

    fn bytes_per_token(&self) -> f64 {
        ratio(self.num_bytes as f64, self.num_tokens)
    }

    /// Of the base vocabulary's tokens, how many are not needed.
    fn saved(&self) -> f64 {
        1.0 - ratio(self.num_tokens as f64, self.num_base_tokens)
    }

    fn tokens_per_second(&self) -> f64 {
        self.num_tokens as f64 / self.seconds.max(f64::EPSILON)
    }
}

fn ratio(of: f64, to: usize) -> f64 {
    of / to.max(1) as f64
}

impl Report<'_> {
    /// A column a model.
    pub(super) fn table(&self) -> String {
        type Cell = fn(&Measured) -> String;
        let rows: [(&str, Cell); 8] = [
            ("bits per byte", |m| format!("{:.4}", m.bits_per_byte())),
            ("= bits per token", |m| format!("{:.4}", m.bits_per_token())),
            ("× tokens per byte", |m| format!("{:.4}", m.tokens_per_byte())),
            ("bytes per token", |m| format!("{:.3}", m.bytes_per_token())),
            ("tokens", |m| m.num_tokens.to_string()),
            ("fewer than base tokens", |m| format!("{:.1} %", 100.0 * m.saved())),
            ("seconds", |m| format!("{:.1}", m.seconds)),
            ("tokens per second", |m| format!("{:.0}", m.tokens_per_second())),
        ];
        let width = |m: &Measured| m.label.chars().count().max(10);
        let mut text = format!("{:24}", "");
        for measured in self.measured {
            text += &format!("  {:>1$}", measured.label, width(measured));
        }
        for (name, cell) in rows {
            text += &format!("\n{name:24}");
            for measured in self.measured {
                text += &format!("  {:>1$}", cell(measured), width(measured));
            }
        }
        let num_bytes: usize = self.documents.iter().map(String::len).sum();
        let order = match self.order {
            Documents::Apart => "each read alone",
            Documents::Joined => "read as one stream, their beginnings scored too",
        };
        let device = self.measured.first().map_or("", |measured| measured.device.as_str());
        text += &format!(
            "\n{} documents of {num_bytes} bytes, {order}; windows of {} tokens, {} from one to the next; {device}",
            self.documents.len(),
            self.windows.context,
            self.windows.stride
        );
        text
    }

    /// The same for programs.
    pub(super) fn json(&self) -> String {
        let models = self.measured.iter().map(|measured| {
            json!({
                "model": measured.label,
                "bits_per_byte": measured.bits_per_byte(),
                "bits_per_token": measured.bits_per_token(),
                "tokens_per_byte": measured.tokens_per_byte(),
                "bytes_per_token": measured.bytes_per_token(),
                "bits": measured.bits,
                "tokens": measured.num_tokens,
                "base_tokens": measured.num_base_tokens,
                "seconds": measured.seconds,
                "tokens_per_second": measured.tokens_per_second(),
                "device": measured.device,
            })
        });
        let report = json!({
            "documents": self.documents.len(),
            "bytes": self.documents.iter().map(String::len).sum::<usize>(),
            "order": if self.order == Documents::Apart { "apart" } else { "joined" },
            "context": self.windows.context,
            "stride": self.windows.stride,
            "models": models.collect::<Vec<Value>>(),
        });
        format!("{report:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(label: &str, num_tokens: usize) -> Measured {
        Measured {
            label: label.to_owned(),
            num_bytes: 200,
            num_tokens,
            num_base_tokens: 80,
            bits: 240.0,
            seconds: 2.0,
            device: "cpu".to_owned(),
        }
    }

    #[test]
    fn models_stand_side_by_side_and_parts_multiply() {
        let documents = ["a".repeat(200)];
        let measured = [measured("base", 80), measured("a longer name", 50)];
        let windows = Windows { context: 8, stride: 4 };
        let report = Report { documents: &documents, order: Documents::Apart, windows, measured: &measured };
        let table = report.table();
        let line = |begin: &str| table.lines().find(|line| line.starts_with(begin)).unwrap().to_owned();
        assert_eq!(
            line("bits per byte").split_whitespace().skip(3).collect::<Vec<_>>(),
            ["1.2000", "1.2000"]
        );
        assert_eq!(
            line("= bits per token").split_whitespace().skip(4).collect::<Vec<_>>(),
            ["3.0000", "4.8000"]
        );
        assert_eq!(line("× tokens").split_whitespace().skip(4).collect::<Vec<_>>(), ["0.4000", "0.2500"]);
        assert!(line("fewer than base tokens").ends_with("37.5 %"));
        let widths: Vec<_> = table.lines().take(9).map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["models"][1]["bits_per_byte"], 1.2);
        assert_eq!(json["bytes"], 200);
    }
}
