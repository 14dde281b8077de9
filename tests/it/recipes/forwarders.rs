//! Programs that forward connections: which of them keep the half-close of a client.

use std::path::Path;

use super::{Program, addresses, file_block, unused_address};
use common::{Daemon, Peer, find_program, program_or_skip, wait_until};

/// Waits until a program listens.
fn wait_until_it_listens(address: &str, program: &Program) {
    wait_until(&format!("it listens; it says: {}", program.output()), || Peer::try_connect(address).is_ok());
}

/// Returns what a client gets that ends its stream behind its message.
fn reply_after_half_close(address: &str) -> String {
    let mut peer = Peer::connect(address);
    peer.send("aaaa\t");
    peer.shutdown();
    String::from_utf8_lossy(&peer.read_to_end()).into_owned()
}

/// Starts nginx with this configuration of the page; if it is installed.
fn start_nginx(configuration: &str) -> Option<Program> {
    let nginx = program_or_skip("nginx")?;
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() { format!("load_module {};\n", module.display()) } else { String::new() };
    let configuration = format!(
        "{load}daemon off;\nmaster_process off;\npid DIRECTORY/pid;\nerror_log DIRECTORY/log;\nevents {{}}\n{configuration}"
    );
    Some(Program::start(
        &nginx,
        &["-p", "DIRECTORY", "-e", "DIRECTORY/log", "-c", "DIRECTORY/nginx.conf"],
        &[("nginx.conf", &configuration)],
    ))
}

#[test]
fn nginx_passes_clients_on_with_their_addresses_and_keeps_the_half_close_only_if_it_is_told_to() {
    let daemon = Daemon::start_with(
        "[defaults]\nproxy_protocol = 'required'\n",
        &["--listen", "127.0.0.1:0", "--log-level", "debug"],
    );
    let page = file_block("/etc/nginx/nginx.conf").replace("127.0.0.1:8085", &addresses(&daemon)[0]);
    for keeps in [true, false] {
        let front = unused_address();
        let mut configuration = page.replace("listen 8080", &format!("listen {front}"));
        if !keeps {
            configuration = configuration.replace("proxy_half_close on;", "");
        }
        let Some(nginx) = start_nginx(&configuration) else { return };
        wait_until_it_listens(&front, &nginx);
        let mut peer = Peer::connect(&front);
        peer.exchange("aaaa");
        drop(peer);
        daemon.wait_for_log("1 messages, 5 bytes in");
        let reply = reply_after_half_close(&front);
        assert_eq!(reply == "server got:aaaa\t", keeps, "{reply:?}");
    }
    daemon.stop();
}

#[test]
fn the_forwarders_of_the_page_lose_the_half_close() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let target = addresses(&daemon)[0].clone();
    let (host, port) = target.split_once(':').expect("it has a port");
    let page = include_str!("../../../docs/monitoring.md");
    for name in ["rinetd", "redir"] {
        assert!(page.contains(name));
        let Some(program) = program_or_skip(name) else { continue };
        let front = unused_address();
        let front_port = front.replace("127.0.0.1:", "");
        let forwarder = if name == "rinetd" {
            let configuration = format!("127.0.0.1 {front_port} {host} {port}\n");
            Program::start(&program, &["-f", "-c", "DIRECTORY/rinetd.conf"], &[("rinetd.conf", &configuration)])
        } else {
            Program::start(&program, &["-n", &front, &target], &[])
        };
        wait_until_it_listens(&front, &forwarder);
        // Whole sessions are served.
        Peer::connect(&front).exchange("aaaa");
        let reply = reply_after_half_close(&front);
        assert_ne!(reply, "server got:aaaa\t", "{name} keeps the half-close: the page is wrong");
    }
    let _ = find_program("redir");
    daemon.stop();
}
