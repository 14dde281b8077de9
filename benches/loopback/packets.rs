//! The cost of packets: UDP, datagrams and connections of packets on Unix sockets.

mod candidates;
mod cases;
mod content;
mod cores;
mod fairness;
mod flood;
mod frameless;
mod in_flight;
mod load;
mod memory;
mod packet_io;
mod service;
mod source;
mod tally;
mod window;

use crate::Result;
use crate::plan::Plan;
use crate::report::ReportSection;
use crate::table::Table;

use self::candidates::PacketCandidates;
pub(crate) use self::cases::cases;
pub(crate) use self::content::HEAD;
pub(crate) use self::service::run as serve_datagrams;
pub(crate) use self::window::MAX_WINDOW;

/// Measures everything about packets except [`cores`], or only the costs of the cases if cases were chosen.
pub(crate) fn packets(plan: &Plan) -> Result<ReportSection> {
    let candidates = PacketCandidates::prepare(&plan.programs, &plan.packet_servers)?;
    let mut section = cases::costs(plan, &candidates)?;
    if plan.only_packet_cases {
        return Ok(section);
    }
    let ReportSection { tables, plots } = fairness::fairness(plan, &candidates)?;
    section.tables.extend(tables);
    section.plots.extend(plots);
    section.tables.push(memory::memory(plan, &candidates)?);
    section.tables.extend(frameless::frameless(plan, &candidates)?);
    Ok(section)
}

/// Measures packets with two sockets of one port, and with one.
pub(crate) fn cores(plan: &Plan) -> Result<Vec<Table>> {
    cores::cores(plan, &PacketCandidates::prepare(&plan.programs, &[])?)
}

/// Estimates how many seconds [`packets`] takes.
pub(crate) fn seconds(plan: &Plan) -> f64 {
    let (candidates, rounds) = (2.0 + plan.packet_servers.len() as f64, plan.rounds as f64);
    let sample = plan.sample.as_secs_f64();
    let costs = candidates * rounds * plan.packet_cases.len() as f64 * (0.7 * sample + 0.25);
    if plan.only_packet_cases {
        return costs;
    }
    let fairness = candidates * rounds * 6.0 * (0.45 * sample + 0.1);
    let frameless = rounds * (candidates + 2.0) * (0.3 * sample + 0.1);
    costs + fairness + candidates + frameless
}
