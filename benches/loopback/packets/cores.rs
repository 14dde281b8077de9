//! Two sockets of one UDP port, against the reference with a thread for each, and one socket beside them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::set_socket_reuseport;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::address::{Address, Transport};
use crate::load_thread::{LoadThread, run_all};
use crate::packets::candidates::PacketCandidates;
use crate::packets::cases::sample_length;
use crate::packets::load::PacketLoad;
use crate::plan::{Figures, Plan, SLICES, Sample};
use crate::socket_io::Case;
use crate::table::Table;
use crate::{Context as _, Failure, Result, progress};

const CASES: [Case; 4] = [Case::new(16, 1, 64), Case::new(16, 16, 64), Case::new(1024, 1, 64), Case::new(1024, 16, 64)];

/// The reference and the daemon, each with two sockets and with one; the others have one thread only.
const CANDIDATES: [Sockets; 4] = [
    Sockets { candidate: 0, has_two: true },
    Sockets { candidate: 1, has_two: true },
    Sockets { candidate: 0, has_two: false },
    Sockets { candidate: 1, has_two: false },
];

/// A server, and how many sockets it has.
struct Sockets {
    candidate: usize,
    has_two: bool,
}

/// Measures CPU time per packet and packets per second, with two sockets of one port and with one.
pub(crate) fn cores(plan: &Plan, candidates: &PacketCandidates<'_>) -> Result<Vec<Table>> {
    let (servers, loads) = plan.programs.cpus.split_two();
    if servers.len() < 2 {
        return Ok(Vec::new());
    }
    let shared = if servers == loads { ", which the load shares" } else { "" };
    let names = CANDIDATES.map(|Sockets { candidate, has_two }| {
        let name = candidates.name(candidate);
        if has_two { name.to_owned() } else { format!("{name}, one socket") }
    });
    let names = names.each_ref().map(|name| &**name);
    let mut rows: Vec<_> = CASES.iter().map(|case| (format!("udp {case}"), Figures::of(CANDIDATES.len()))).collect();
    let mut lost = [[0; CANDIDATES.len()]; CASES.len()];
    for round in 0..plan.rounds {
        for ((case, (name, figures)), lost) in CASES.iter().zip(&mut rows).zip(&mut lost) {
            progress(format_args!("packets, two sockets, round {} of {}: {name}", round + 1, plan.rounds));
            let samples = sample(plan, candidates, *case, round).context(&*name)?;
            figures.push(&samples);
            lost.iter_mut().zip(&samples).for_each(|(lost, sample)| *lost += sample.lost);
        }
    }
    for ((name, _), lost) in rows.iter_mut().zip(lost).filter(|(_, lost)| lost.iter().any(|lost| *lost > 0)) {
        let of = names.iter().zip(lost).map(|(candidate, lost)| format!("{candidate} lost {lost}"));
        *name = format!("{name} ({})", of.collect::<Vec<_>>().join("; "));
    }
    let title = format!("packet, two sockets of one UDP port (SO_REUSEPORT), two threads on two CPUs{shared}");
    Ok(Figures::tables(&title, "size-depth-sources", &rows, &names).into())
}

fn sample(plan: &Plan, candidates: &PacketCandidates<'_>, case: Case, round: usize) -> Result<Vec<Sample>> {
    let (server_cpus, load_cpus) = plan.programs.cpus.split_two();
    let loads = load_cpus.len();
    let case_of_thread = Case { connections: case.connections / loads, ..case };
    let mut servers = Vec::new();
    for Sockets { candidate, has_two } in CANDIDATES {
        let ([first, second], address) = two_sockets().context("binding two sockets to one port")?;
        let (candidate, second) = (candidates.candidate(candidate), has_two.then_some(second));
        let server = plan.programs.start_with_sockets(candidate, first, second, Address::Udp(address), &server_cpus)?;
        let load_thread = |&cpu: &usize| {
            let address = server.address().clone();
            // All sources of both loads may come to the same socket.
            LoadThread::start(cpu, move || {
                Ok(PacketLoad::open(&address, Transport::Udp, case_of_thread)?.share_buffer(loads))
            })
        };
        let loads: Vec<_> = load_cpus.iter().map(load_thread).collect();
        run_all(&loads, plan.warm_up())?;
        servers.push((server, loads));
    }
    let mut samples = vec![Sample::default(); CANDIDATES.len()];
    for slice in 0..SLICES {
        for candidate in Plan::rotated(0..CANDIDATES.len(), round + slice as usize) {
            let (server, loads) = &mut servers[candidate];
            let run = || run_all(loads, sample_length(plan) / SLICES);
            samples[candidate].add(server, run).context(candidates.name(CANDIDATES[candidate].candidate))?;
        }
    }
    Ok(samples)
}

/// Binds two sockets to one port, which the kernel chooses.
fn two_sockets() -> Result<([OwnedFd; 2], SocketAddrV4)> {
    let open = |port| {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        set_socket_reuseport(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    let first = open(0).context("the first socket")?;
    let address = getsockname(&first).context("the first socket")?;
    let address = SocketAddrV4::try_from(address).map_err(|_| Failure::new("it is not an address of IPv4"))?;
    let second = open(address.port()).context("the second socket")?;
    Ok(([first, second], address))
}
