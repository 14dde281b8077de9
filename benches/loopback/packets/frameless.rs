//! Servers of UDP that send back the bytes as they are. They can only be compared in how many packets they answer.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use crate::address::{Address, Transport};
use crate::candidates::installed;
use crate::load::{Answered, Run as _};
use crate::packets::candidates::PacketCandidates;
use crate::packets::content::Content;
use crate::packets::load::PacketLoad;
use crate::plan::Plan;
use crate::server::Server;
use crate::socket_io::Case;
use crate::stats::{format_short, median};
use crate::table::Table;
use crate::{Context as _, Failure, Result, progress};

/// Few sources, since one of these programs starts a process for each packet.
const CASE: Case = Case::new(16, 1, 8);

/// The programs, and what is measured of them.
const PROGRAMS: [(&str, &str); 2] = [("socat", "socat, a process for each packet"), ("xinetd", "xinetd, its own echo")];

/// Packets answered in a second, by the servers that put a prefix before them and by those that do not.
pub(crate) fn frameless(plan: &Plan, candidates: &PacketCandidates<'_>) -> Result<Vec<Table>> {
    let count = candidates.count();
    let mut programs: Vec<_> =
        PROGRAMS.into_iter().enumerate().map(|(index, (program, name))| (count + index, program, name)).collect();
    programs.retain(|(_, program, _)| {
        let found = installed(program);
        if !found {
            progress(format_args!("packets: {program} is left out: it is not installed"));
        }
        found
    });
    let mut outcomes = vec![Vec::new(); count + PROGRAMS.len()];
    for round in 0..plan.rounds {
        progress(format_args!("packets, without a prefix, round {} of {}", round + 1, plan.rounds));
        for (candidate, outcomes) in outcomes.iter_mut().enumerate().take(count) {
            let server = candidates.start(candidate, Transport::Udp)?;
            let answered = measure(&server, Content::new(CASE.size), plan.sample / 4);
            outcomes.push(answered.context(candidates.name(candidate))?);
        }
        // A program that does not work is skipped: it is not ours.
        programs.retain(|&(index, program, _)| {
            let measured = start(plan, program)
                .and_then(|server| measure(&server, Content::without_prefix(CASE.size), plan.sample / 4));
            match measured {
                Ok(answered) => outcomes[index].push(answered),
                Err(failure) => progress(format_args!("packets: {program} is left out: {failure}")),
            }
            outcomes[index].len() > round
        });
    }
    let mut table = Table::new(
        format!(
            "Packets of UDP answered in a second: {} bytes, {} sources, one message at a time",
            CASE.size, CASE.connections
        ),
        ["server", "/s", "ratio", "lost, %"],
    );
    let names = candidates.names().into_iter().enumerate();
    for (index, name) in names.chain(programs.iter().map(|&(index, _, name)| (index, name))) {
        let (own, lost) = (rate(&outcomes[index]), lost_per_cent(&outcomes[index]));
        let ratio = own / rate(&outcomes[0]);
        table.row(vec![name.to_owned(), format_short(own), format!("{ratio:.4}"), format!("{lost:.1}")]);
    }
    Ok(vec![table])
}

fn measure(server: &Server, content: Content, time: Duration) -> Result<Answered> {
    let mut load = PacketLoad::with_content(server.address(), Transport::Udp, CASE, content)?;
    load.run(time / 5)?;
    let answered = load.run(time)?;
    if load.tally().wrong > 0 {
        return Err(Failure::new(format_args!("{} replies were wrong", load.tally().wrong)));
    }
    Ok(answered)
}

/// Returns the median of the rates.
fn rate(outcomes: &[Answered]) -> f64 {
    let rates = outcomes.iter().map(|answered| answered.messages as f64 / answered.time.as_secs_f64());
    median(&rates.collect::<Vec<_>>())
}

/// Returns how many of a hundred messages were lost.
fn lost_per_cent(outcomes: &[Answered]) -> f64 {
    let lost: u64 = outcomes.iter().map(|answered| answered.lost).sum();
    let messages: u64 = outcomes.iter().map(|answered| answered.messages).sum();
    100.0 * lost as f64 / (lost + messages) as f64
}

/// Starts one of these programs on a port that was free a moment ago.
fn start(plan: &Plan, program: &str) -> Result<Server> {
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    let port = address.context("looking for a free port")?.port();
    let words: Vec<String> = match program {
        "socat" => vec![format!("UDP4-RECVFROM:{port},bind=127.0.0.1,fork"), "PIPE".to_owned()],
        "xinetd" => ["-dontfork", "-f", &xinetd(plan, port)?].map(Into::into).into(),
        _ => return Err(Failure::new(format_args!("{program} is unknown here"))),
    };
    let words: Vec<PathBuf> = [program.to_owned()].into_iter().chain(words).map(PathBuf::from).collect();
    let mut server = plan.programs.spawn(&words, program.to_owned())?;
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    server.wait_until_listening(Address::Udp(address), |_| echoes(address).unwrap_or(false))?;
    Ok(server)
}

/// Asks a server whether it echoes.
fn echoes(address: SocketAddrV4) -> std::io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send(b"?")?;
    Ok(socket.recv(&mut [0; 1])? == 1)
}

/// Writes the settings of xinetd, and returns their path.
fn xinetd(plan: &Plan, port: u16) -> Result<String> {
    let path = plan.programs.unused_path("xinetd");
    let user = rustix::process::getuid().as_raw();
    let settings = format!(
        "defaults\n{{\n instances = UNLIMITED\n per_source = UNLIMITED\n cps = 1000000 1\n}}\n\
         service echo\n{{\n type = INTERNAL UNLISTED\n id = echo-dgram\n socket_type = dgram\n protocol = udp\n \
         wait = yes\n bind = 127.0.0.1\n port = {port}\n user = {user}\n}}\n"
    );
    fs::write(&path, settings).context(format_args!("writing {}", path.display()))?;
    Ok(path.display().to_string())
}
