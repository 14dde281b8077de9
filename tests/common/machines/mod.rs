//! Debians that are booted in containers ([`machine`]), the tests on them ([`test`]), and the documents of the project followed on
//! them ([`page_runner`]). For tests/system and tests/packages.

pub mod clean_root;
pub mod doc_page;
pub mod doc_skips;
pub mod in_debian;
pub mod machine;
pub mod page_runner;
pub mod reconnecting_clients;
pub mod rootfs;
#[macro_use]
pub mod test;
