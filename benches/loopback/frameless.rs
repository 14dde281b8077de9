//! Servers that know no messages: each starts `cat` for every connection. They can only be compared in how many
//! connections they serve.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::address::{Address, Transport};
use crate::candidates::installed;
use crate::load::ShortConnections;
use crate::plan::Plan;
use crate::server::Server;
use crate::socket_io::Workload;
use crate::stats::{Samples, format_short};
use crate::table::Table;
use crate::{Context as _, Failure, Result, progress};

/// How many connections there are at a time. Ncat has a backlog of ten; a connection that does not fit is retried after
/// a second.
const CONCURRENCY: usize = 8;

const PROGRAMS: [&str; 4] = ["socat", "ncat", "xinetd", "systemd-socket-activate"];

/// Measures connections served in a second, by the servers that frame and by those that do not.
pub(crate) fn cat(plan: &Plan) -> Result<Vec<Table>> {
    let count = plan.programs.count();
    let mut programs: Vec<_> = PROGRAMS.into_iter().filter(|program| installed(program)).collect();
    let mut samples = Samples::of(count + PROGRAMS.len());
    for round in 0..plan.rounds {
        progress(format_args!("cat, round {} of {}", round + 1, plan.rounds));
        for candidate in 0..count {
            let server = plan.programs.start(candidate, Transport::Tcp)?;
            let workload = Workload::new(16, 16);
            samples.push(candidate, rate(&server, &workload, plan.sample / 2).context(plan.programs.name(candidate))?);
        }
        // A program that does not work is skipped: it is not ours.
        programs.retain(|program| {
            let measured = start(plan, program)
                .and_then(|server| rate(&server, &Workload::without_prefix(16, 16), plan.sample / 2));
            match measured {
                Ok(rate) => samples.push(count + program_index(program), rate),
                Err(failure) => progress(format_args!("cat: {program} is left out: {failure}")),
            }
            samples.count(count + program_index(program)) > round
        });
    }
    let mut table = Table::new(
        format!("TCP connections served in a second: connect, one message of 16 bytes, close, {CONCURRENCY} at once"),
        ["server", "/s", "ratio"],
    );
    let names = (0..count).map(|candidate| (candidate, plan.programs.name(candidate).to_owned()));
    let others = programs.iter().map(|program| (count + program_index(program), format!("{program}, cat")));
    for (candidate, name) in names.chain(others) {
        table.row(vec![name, format_short(samples.median(candidate)), format!("{:.3}", samples.ratio(candidate))]);
    }
    Ok(vec![table])
}

fn program_index(program: &str) -> usize {
    PROGRAMS.iter().position(|&other| other == program).unwrap_or_default()
}

fn rate(server: &Server, workload: &Workload, time: Duration) -> Result<f64> {
    let mut short_connections = ShortConnections::new(server.address(), workload, CONCURRENCY)?;
    short_connections.run(time / 5)?;
    let answered = short_connections.run(time)?;
    Ok(answered.messages as f64 / answered.time.as_secs_f64())
}

/// Starts one of these programs on a port that was free a moment ago.
fn start(plan: &Plan, program: &str) -> Result<Server> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let port = address.context("looking for a free port")?.port();
    let words: Vec<String> = match program {
        "socat" => vec![format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,backlog=1024,fork"), "EXEC:cat".into()],
        "ncat" => ["-l", "-k", "-m", "1000", "-e", "/bin/cat", "127.0.0.1", &port.to_string()].map(Into::into).into(),
        "xinetd" => ["-dontfork", "-f", &xinetd(plan, port)?].map(Into::into).into(),
        "systemd-socket-activate" => {
            ["--accept", "--inetd", "-l", &format!("127.0.0.1:{port}"), "cat"].map(Into::into).into()
        }
        _ => return Err(Failure::new(format_args!("{program} is unknown here"))),
    };
    let words: Vec<PathBuf> = [program.to_owned()].into_iter().chain(words).map(PathBuf::from).collect();
    let mut server = plan.programs.spawn(&words, program.to_owned())?;
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    server.wait_until_listening(Address::Tcp(address), |_| TcpStream::connect(address).is_ok())?;
    Ok(server)
}

/// Writes the settings of xinetd, and returns their path.
fn xinetd(plan: &Plan, port: u16) -> Result<String> {
    let path = plan.programs.unused_path("xinetd");
    let user = rustix::process::getuid().as_raw();
    let settings = format!(
        "defaults\n{{\n instances = UNLIMITED\n per_source = UNLIMITED\n cps = 1000000 1\n}}\n\
         service cat\n{{\n type = UNLISTED\n socket_type = stream\n protocol = tcp\n wait = no\n bind = 127.0.0.1\n \
         port = {port}\n user = {user}\n server = /bin/cat\n}}\n"
    );
    fs::write(&path, settings).context(format_args!("writing {}", path.display()))?;
    Ok(path.display().to_string())
}
