//! Any bytes as a configuration, and as variables: they are refused with an error or accepted, and the accepted
//! settings are printed as a configuration that loads as the same settings.
//!
//! A first line `ECHOED_…=…` is a variable, and so are those that follow it; the rest is the document.

#![no_main]

use echoed::config::{Settings, Sources};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut document = text;
    let mut environment = Vec::new();
    while let Some((line, rest)) = document.split_once('\n').filter(|(line, _)| line.starts_with("ECHOED_")) {
        if let Some((name, value)) = line.split_once('=') {
            environment.push((name.into(), value.into()));
        }
        document = rest;
    }
    match Settings::from_toml("fuzz", document) {
        Ok(settings) => check(&settings, &settings.to_toml()),
        Err(error) => assert!(error.headlines().all(|line| line.starts_with("fuzz:")), "{error}"),
    }
    if !environment.is_empty() {
        let sources = Sources { root: "/nothing is here".into(), environment, ..Sources::default() };
        match sources.load() {
            Ok(loaded) => check(&loaded.settings, &loaded.print()),
            Err(error) => assert!(error.headlines().all(|line| line.starts_with("ECHOED_")), "{error}"),
        }
    }
});

fn check(settings: &Settings, printed: &str) {
    match Settings::from_toml("printed", printed) {
        Ok(reloaded) => assert_eq!(reloaded, *settings, "{printed}"),
        Err(error) => panic!("{error}\n{printed}"),
    }
}
