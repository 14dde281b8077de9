//! The servers of packets that are compared.

use crate::address::Transport;
use crate::candidates::{Candidate, PacketServer, compile};
use crate::programs::Programs;
use crate::server::Server;
use crate::{Context as _, Result};

/// The candidates; they are identified by their index, and 0 is the reference.
pub(crate) struct PacketCandidates<'a> {
    programs: &'a Programs,
    candidates: Vec<PacketCandidate>,
}

#[derive(Clone)]
struct PacketCandidate {
    candidate: Candidate,
    /// Whether it serves connections, too.
    with_connections: bool,
}

impl<'a> PacketCandidates<'a> {
    /// Prepares the reference, the daemon, and `others`; the first two come first.
    pub(crate) fn prepare(programs: &'a Programs, others: &[&(&str, PacketServer)]) -> Result<Self> {
        let reference = Candidate::plain("C mmsg", compile("packets", programs.directory())?, &[]);
        let subject = programs.daemon().cloned().unwrap_or_else(|| reference.duplicate());
        let single = Candidate::plain("C single", reference.program(), &["-1"]);
        let mut candidates =
            [reference, subject].map(|candidate| PacketCandidate { candidate, with_connections: true }).to_vec();
        for (_, other) in others {
            candidates.push(match other {
                PacketServer::Single => PacketCandidate { candidate: single.clone(), with_connections: true },
                PacketServer::Datagrams => {
                    let program = std::env::current_exe().context("asking for the path of this program")?;
                    let candidate = Candidate::plain("tokio datagrams", program, &["--serve", "datagrams"]);
                    PacketCandidate { candidate, with_connections: false }
                }
            });
        }
        Ok(Self { programs, candidates })
    }

    /// Returns the number of candidates.
    pub(crate) fn count(&self) -> usize {
        self.candidates.len()
    }

    /// Returns the candidates that serve `transport`.
    pub(crate) fn serving(&self, transport: Transport) -> Vec<usize> {
        let all = self.candidates.iter().enumerate();
        let serving = all.filter(|(_, one)| one.with_connections || transport != Transport::Seqpacket);
        serving.map(|(index, _)| index).collect()
    }

    /// Returns their names in the results.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.candidates.iter().map(|one| &*one.candidate.name).collect()
    }

    /// Returns the name of one candidate.
    pub(crate) fn name(&self, index: usize) -> &str {
        &self.candidates[index].candidate.name
    }

    /// Returns one candidate.
    pub(crate) fn candidate(&self, index: usize) -> &Candidate {
        &self.candidates[index].candidate
    }

    /// Starts a server of its own on the CPU of servers, and waits until it is ready.
    pub(crate) fn start(&self, index: usize, transport: Transport) -> Result<Server> {
        self.programs.start_candidate(self.candidate(index), transport, &[self.programs.cpus.server])
    }
}
