//! The cost of a message: case by case, and as the number of connections grows.

use crate::address::Transport;
use crate::plan::{Figures, Plan};
use crate::plot::Plot;
use crate::report::ReportSection;
use crate::socket_io::Case;
use crate::stats::{Samples, format_short};
use crate::table::Table;
use crate::{Context as _, Result, progress};

/// The cases of the section `cpu`: one message at a time on one, some and many connections, then pipelines,
/// then large messages.
pub(crate) const CASES: [Case; 6] = [
    Case::new(16, 1, 1),
    Case::new(16, 1, 64),
    Case::new(16, 1, 1000),
    Case::new(16, 16, 64),
    Case::new(1024, 16, 64),
    Case::new(65_536, 1, 8),
];

/// Measures CPU time per message and messages per second, case by case.
pub(crate) fn cpu(plan: &Plan) -> Result<ReportSection> {
    let named = plan.cases.iter().map(|(transport, case)| format!("{} {case}", transport.name()));
    let mut rows: Vec<_> = named.map(|name| (name, Figures::of(plan.programs.count()))).collect();
    for round in 0..plan.rounds {
        for (&(transport, case), (name, figures)) in plan.cases.iter().zip(&mut rows) {
            progress(format_args!("cpu, round {} of {}: {name}", round + 1, plan.rounds));
            figures.push(&plan.sample(transport, case, plan.sample, round).context(name)?);
        }
    }
    let candidates = plan.programs.count();
    let ratios = |figures: &Figures| (1..candidates).map(|candidate| figures.cpu.ratio(candidate)).collect();
    let plot = Plot {
        name: "cpu",
        title: format!("CPU time per message, ratio to {}", plan.programs.name(0)),
        series: (1..candidates).map(|candidate| plan.programs.name(candidate).to_owned()).collect(),
        groups: rows.iter().map(|(name, figures)| (name.clone(), ratios(figures))).collect(),
        first_colour: 1,
        mark: Some(1.0),
    };
    let tables = Figures::tables("message", "size-depth-connections", &rows, &plan.programs.names());
    Ok(ReportSection { tables: tables.into(), plots: vec![plot] })
}

/// Measures CPU time per message as the number of connections grows.
pub(crate) fn scaling(plan: &Plan) -> Result<Vec<Table>> {
    let counts = [64, 1000.min(plan.many_connections), plan.many_connections];
    let candidates = plan.programs.count();
    let mut samples = vec![Samples::of(candidates); counts.len()];
    for round in 0..plan.rounds {
        progress(format_args!("scaling, round {} of {}", round + 1, plan.rounds));
        for (&connections, samples) in counts.iter().zip(&mut samples) {
            let mut figures = Figures::of(candidates);
            figures.push(&plan.sample(Transport::Tcp, Case::new(16, 1, connections), plan.sample / 2, round)?);
            for candidate in 0..candidates {
                samples.push(candidate, figures.cpu.median(candidate));
            }
        }
    }
    let mut headings = vec!["server".to_owned()];
    headings.extend(counts.map(|connections| format!("{connections}: ns")));
    headings.extend(counts.windows(2).map(|pair| format!("{} : {}", pair[1], pair[0])));
    let mut table = Table::new(
        "CPU time of the server per message by number of connections; TCP, 16 bytes, one message at a time",
        headings,
    );
    for candidate in 0..candidates {
        let medians: Vec<f64> = samples.iter().map(|samples| samples.median(candidate)).collect();
        let mut row = vec![plan.programs.name(candidate).to_owned()];
        row.extend(medians.iter().map(|&median| format_short(median)));
        row.extend(medians.windows(2).map(|pair| format!("{:.2}", pair[1] / pair[0])));
        table.row(row);
    }
    Ok(vec![table])
}
