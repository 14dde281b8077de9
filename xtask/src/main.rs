//! What is done with the repository, and not by cargo itself.
//!
//! `cargo xtask pages` writes everything that is generated from the command lines, the documents and the catalog ([`pages`]).

mod pages;

use std::env;
use std::fs;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pages"] => {
            for (path, text) in pages::generated_files() {
                if let Err(error) = fs::write(pages::in_repository(&path), text) {
                    eprintln!("xtask: cannot write {path}: {error}");
                    return ExitCode::FAILURE;
                }
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: cargo xtask pages");
            ExitCode::from(2)
        }
    }
}
