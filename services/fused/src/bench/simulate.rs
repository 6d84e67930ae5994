use anyhow::Context;
use rayon::prelude::*;

use super::arguments::Simulate;
use super::machine::MachineFile;
use super::report::{self, About};
use super::simulated::Engines;
use super::workload::Plan;
use crate::process;

pub(super) fn run(arguments: &Simulate) -> anyhow::Result<()> {
    if arguments.engine.print_machine {
        let cost = super::machine::cost_model(arguments.engine.machine.as_deref())?;
        return process::print(&serde_json::to_string_pretty(&MachineFile::of(&cost))?);
    }
    let inputs = arguments.workload.trace.iter().chain(&arguments.engine.machine).cloned();
    report::check(&arguments.output, inputs)?;
    let plan = Plan::new(&arguments.workload)?;
    let engines = Engines::new(&arguments.engine, &plan, arguments.workload.seed)?;
    let workload = plan.workload()?;
    let runs = engines.policies.par_iter().map(|policy| engines.run(*policy, &workload));
    let runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
    let cost = MachineFile::of(&engines.cost);
    let about = About {
        command: "simulate",
        what: format!("{} on {}", engines.cost.model.name, engines.cost.machine.name),
        workload: plan.describe(),
        details: serde_json::json!({"engine": engines.describe(), "cost_model": cost}),
    };
    report::write(&about, &runs, &arguments.output).context("cannot report")
}
