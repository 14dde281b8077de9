//! The recipes of docs/monitoring.md, each run with the program that it is for.

mod checks;
mod forwarders;
mod haproxy;
mod prometheus;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::Daemon;
use tempfile::TempDir;

/// Returns the block of the page that begins with the name of this file.
fn file_block(name: &str) -> String {
    block(&format!("# {name}\n"))
}

/// Returns the block of the page that begins like this.
fn block(beginning: &str) -> String {
    let page = include_str!("../../docs/monitoring.md");
    let blocks = page.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let found = blocks.map(|(_, text)| text).find(|text| text.starts_with(beginning));
    format!("{}\n", found.unwrap_or_else(|| panic!("docs/monitoring.md has no block that begins with {beginning:?}")))
}

/// A program that runs in the foreground, ended when it is dropped.
struct Program {
    child: Child,
    directory: TempDir,
}

impl Program {
    /// Starts a program, with a directory of its own. In the arguments and files, `DIRECTORY` is its path.
    fn start(program: &Path, arguments: &[&str], files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().to_str().expect("it is UTF-8").to_owned();
        for (name, text) in files {
            fs::write(directory.path().join(name), text.replace("DIRECTORY", &path)).expect("it can be written");
        }
        let output = fs::File::create(directory.path().join("output")).expect("it can be made");
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|argument| argument.replace("DIRECTORY", &path))).current_dir(&path);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("it can be duplicated")).stderr(output);
        Self { child: command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())), directory }
    }

    /// What it has written so far, and to its file `log`.
    fn output(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        read("output") + &read("log")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns an address of 127.0.0.1 at which no program listens now.
fn unused_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").to_string()
}

/// Returns the addresses of a daemon, without their schemes.
fn addresses(daemon: &Daemon) -> Vec<String> {
    let addresses = daemon.addresses();
    addresses.iter().map(|address| address.split_once(':').map_or(&**address, |(_, rest)| rest).to_owned()).collect()
}
