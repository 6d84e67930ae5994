//! Time of a step's matrix products: measured up to 256 rows, a floor beyond, scaled to other models and machines.

use super::cost::{CostModel, Machine, ModelShape};

/// Microseconds of cuBLAS's products inside a CUDA graph, weights rotated past the L2 cache: Llama-8B on an H200.
struct Measured {
    num_rows: f64,
    qkv: f64,
    output: f64,
    gate_up: f64,
    down: f64,
    head: f64,
}

#[rustfmt::skip]
const MEASURED: [Measured; 7] = [
    Measured { num_rows: 1.0,   qkv: 15.0, output: 13.2, gate_up: 56.3,  down: 31.8, head: 248.0 },
    Measured { num_rows: 8.0,   qkv: 15.2, output: 13.1, gate_up: 57.0,  down: 32.5, head: 250.0 },
    Measured { num_rows: 16.0,  qkv: 15.3, output: 13.4, gate_up: 57.2,  down: 32.7, head: 254.0 },
    Measured { num_rows: 32.0,  qkv: 15.7, output: 13.5, gate_up: 58.1,  down: 33.5, head: 266.0 },
    Measured { num_rows: 64.0,  qkv: 15.7, output: 11.8, gate_up: 62.3,  down: 35.8, head: 284.0 },
    Measured { num_rows: 128.0, qkv: 16.4, output: 13.9, gate_up: 67.6,  down: 37.8, head: 276.0 },
    Measured { num_rows: 256.0, qkv: 20.9, output: 16.7, gate_up: 100.2, down: 52.7, head: 407.0 },
];

/// Seconds of the products in all layers.
pub(super) fn layers_s(cost: &CostModel, num_rows: usize) -> f64 {
    products_s(
        cost,
        num_rows,
        Weights {
            of: |model| model.num_layer_parameters,
            measured_us: |row| 32.0 * (row.qkv + row.output + row.gate_up + row.down),
        },
    )
}

/// Seconds of the output head's product; nothing where nothing is drawn.
pub(super) fn head_s(cost: &CostModel, num_rows: usize) -> f64 {
    products_s(cost, num_rows, Weights { of: |model| model.num_head_parameters, measured_us: |row| row.head })
}

/// One of the two sets of weights.
struct Weights {
    of: fn(&ModelShape) -> f64,
    measured_us: fn(&Measured) -> f64,
}

/// What was measured, in units of reading the weights once, is taken to hold for other weights and machines too: rows
/// count in units of how many a machine multiplies while it reads a weight.
fn products_s(cost: &CostModel, num_rows: usize, weights: Weights) -> f64 {
    if num_rows == 0 {
        return 0.0;
    }
    let (model, machine) = (&cost.model, &cost.machine);
    let (own_model, own_machine) = (ModelShape::llama_8b(), Machine::h200());
    let read_s = read_s(model, machine, weights.of);
    let unit = read_s / self::read_s(&own_model, &own_machine, weights.of);
    let scale = rows_per_read(&own_model, &own_machine) / rows_per_read(model, machine);
    let measured_s = interpolate(num_rows as f64 * scale, weights.measured_us) * 1e-6 * unit;
    let flops_s = 2.0 * (weights.of)(model) * num_rows as f64 / machine.flops_per_s;
    measured_s.max(flops_s)
}

fn read_s(model: &ModelShape, machine: &Machine, weights: fn(&ModelShape) -> f64) -> f64 {
    weights(model) * model.bytes_per_element as f64 / machine.bytes_per_s
}

/// Rows whose operations take as long as reading the weights.
fn rows_per_read(model: &ModelShape, machine: &Machine) -> f64 {
    machine.flops_per_s / machine.bytes_per_s * model.bytes_per_element as f64 / 2.0
}

/// Linear between the measured points, constant outside.
fn interpolate(num_rows: f64, measured_us: fn(&Measured) -> f64) -> f64 {
    let mut below = &MEASURED[0];
    for point in &MEASURED {
        if num_rows < point.num_rows {
            let share = (num_rows - below.num_rows).max(0.0) / (point.num_rows - below.num_rows).max(1.0);
            return measured_us(below) + share * (measured_us(point) - measured_us(below));
        }
        below = point;
    }
    measured_us(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step_ms(num_rows: usize) -> f64 {
        let cost = CostModel::llama_8b_on_h200();
        (layers_s(&cost, num_rows) + head_s(&cost, num_rows)) * 1e3
    }

    #[test]
    fn measured_points_are_met() {
        let expected = [(1, 3.97), (8, 4.02), (16, 4.05), (32, 4.13), (64, 4.30), (128, 4.62), (256, 6.51)];
        for (num_rows, ms) in expected {
            assert!((step_ms(num_rows) - ms).abs() < 0.01, "{num_rows} rows: {}", step_ms(num_rows));
        }
        assert!((step_ms(96) - (4.30 + 4.62) / 2.0).abs() < 0.01, "linear between them");
    }

    #[test]
    fn more_rows_never_take_less_but_where_that_was_measured() {
        // The table's own dip: the head at 128 rows.
        let mut last = 0.0;
        for num_rows in (0..4096).map(|num_rows| num_rows * 2) {
            let ms = layers_s(&CostModel::llama_8b_on_h200(), num_rows) * 1e3;
            assert!(ms >= last, "{num_rows} rows");
            last = ms;
        }
        let floor = 2.0 * ModelShape::llama_8b().num_layer_parameters * 8190.0 / 650e12 * 1e3;
        assert!((last - floor).abs() < 1e-6, "far out it is the machine's operations");
    }

    #[test]
    fn half_the_weights_on_a_machine_half_as_fast_take_as_long() {
        let mut cost = CostModel::llama_8b_on_h200();
        cost.model.num_layer_parameters /= 2.0;
        cost.model.num_head_parameters /= 2.0;
        cost.machine.bytes_per_s /= 2.0;
        cost.machine.flops_per_s /= 2.0;
        for num_rows in [1, 100, 256, 300, 5000] {
            let own = layers_s(&CostModel::llama_8b_on_h200(), num_rows);
            assert!((layers_s(&cost, num_rows) - own).abs() < 1e-9);
        }
    }
}
