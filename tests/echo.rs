//! What everybody sees who talks to it.

mod common;

use common::Daemon;

#[test]
fn a_message_is_answered_over_tcp_and_over_a_unix_socket() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock", "--listen", "[::1]:0"]);
    for address in daemon.addresses() {
        let mut peer = common::Peer::connect(&address);
        peer.exchange("aaaa");
        peer.send("b\t\tcc\t");
        peer.expect("server got:b\tserver got:\tserver got:cc\t");
        peer.shutdown();
        peer.expect_close();
    }
    daemon.stop();
}
