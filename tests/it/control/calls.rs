//! Varlink: the protocol, the interface, and what hostile callers may do.

use std::process::Command;
use std::thread;

use super::{SECTION, Varlink, list, start};
use common::echoctl::echoctl;
use common::{Daemon, ensure_nofile_limit, now, program_or_skip};
use serde_json::json;

#[test]
fn the_service_describes_itself() {
    let (daemon, path) = start("");
    let mut client = Varlink::connect(&path);
    let info = &client.call(r#"{"method":"org.varlink.service.GetInfo"}"#)[0]["parameters"];
    assert_eq!(info["product"], "echoed");
    assert_eq!(info["interfaces"], json!(["io.echoed", "org.varlink.service"]));
    for interface in ["io.echoed", "org.varlink.service"] {
        let call = r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"NAME"}}"#;
        let description = &client.call(&call.replace("NAME", interface))[0]["parameters"]["description"];
        let description = description.as_str().expect("a text");
        assert!(description.contains(&format!("interface {interface}\n")), "{description}");
    }
    daemon.stop();
}

#[test]
fn wrong_calls_get_the_errors_of_the_standard_and_the_connection_goes_on() {
    let (daemon, path) = start("");
    let mut client = Varlink::connect(&path);
    for (call, error, parameters) in [
        (
            r#"{"method":"io.echoed.Nothing"}"#,
            "org.varlink.service.MethodNotFound",
            json!({"method":"io.echoed.Nothing"}),
        ),
        (r#"{"method":"io.other.Status"}"#, "org.varlink.service.InterfaceNotFound", json!({"interface":"io.other"})),
        (r#"{"method":"Status"}"#, "org.varlink.service.InterfaceNotFound", json!({"interface":"Status"})),
        (r#"{"method":"io.echoed.Connections"}"#, "org.varlink.service.ExpectedMore", json!({})),
        (
            r#"{"method":"io.echoed.Connections","more":true,"parameters":{"listener":"none"}}"#,
            "io.echoed.NoSuchListener",
            json!({"listener":"none"}),
        ),
        (r#"{"method":"io.echoed.Close"}"#, "org.varlink.service.InvalidParameter", json!({"parameter":"id"})),
        (
            r#"{"method":"io.echoed.Close","parameters":{"id":-1}}"#,
            "org.varlink.service.InvalidParameter",
            json!({"parameter":"id"}),
        ),
        (
            r#"{"method":"io.echoed.Close","parameters":{"id":1,"more":1}}"#,
            "org.varlink.service.InvalidParameter",
            json!({"parameter":"more"}),
        ),
        (r#"{"method":"io.echoed.Close","parameters":{"id":7}}"#, "io.echoed.NoSuchConnection", json!({"id":7})),
        (
            r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x"}}"#,
            "org.varlink.service.InterfaceNotFound",
            json!({"interface":"x"}),
        ),
    ] {
        let replies = client.call(call);
        assert_eq!(replies, [json!({"error": error, "parameters": parameters})], "{call}");
    }
    // No reply is wanted, so the next one is that of the next call.
    assert!(client.send(b"{\"method\":\"io.echoed.Nothing\",\"oneway\":true}\0"));
    let replies = client.call(r#"{"method":"io.echoed.Status","parameters":null,"more":false}"#);
    assert_eq!(replies[0]["parameters"]["state"], "ready");
    daemon.stop();
}

#[test]
fn the_status_is_that_of_the_monitor() {
    let (daemon, path) = start("");
    daemon.connect().exchange("aaaa");
    let mut open = daemon.connect();
    open.exchange("aaaa");
    let mut status = json!(null);
    // A message is counted after its reply is sent.
    common::wait_until("both messages are counted", || {
        status = Varlink::connect(&path).call(r#"{"method":"io.echoed.Status"}"#)[0]["parameters"].clone();
        status["listeners"]["echo"]["messages"] == 2 && status["connections"] == 1
    });
    assert_eq!((&status["ready"], &status["connections"]), (&json!(true), &json!(1)));
    let echo = &status["listeners"]["echo"];
    assert_eq!((&echo["accepted"], &echo["messages"], &echo["received_bytes"]), (&json!(2), &json!(2), &json!(10)));
    let output = echoctl(&["status", "--socket", &path]);
    output.check(0);
    assert!(output.stdout.contains(": ready, up ") && output.stdout.contains("1 of 4,096 connections"), "{output:?}");
    assert_eq!(echoctl(&["status", "--json", "--socket", &path]).json()["listeners"], status["listeners"]);
    daemon.stop();
}

#[test]
fn several_calls_at_once_are_answered_in_their_order() {
    let (daemon, path) = start("");
    let mut client = Varlink::connect(&path);
    let calls = "{\"method\":\"io.echoed.Status\"}\0{\"method\":\"io.echoed.Nothing\"}\0".repeat(50);
    assert!(client.send(calls.as_bytes()));
    for _ in 0..50 {
        assert_eq!(client.next_reply().expect("a reply")["parameters"]["ready"], true);
        assert_eq!(client.next_reply().expect("a reply")["error"], "org.varlink.service.MethodNotFound");
    }
    daemon.stop();
}

#[test]
fn what_is_not_a_call_ends_the_connection_and_nothing_else() {
    let (daemon, path) = start("");
    let mut good = Varlink::connect(&path);
    let mut peer = daemon.connect();
    let before = daemon.status_number("VmRSS");
    let nested = [vec![b'['; 60_000], vec![0]].concat();
    for bytes in [&b"garbage\0"[..], b"\0", b"{}\0", b"[]\0", b"{\"method\":7}\0", b"GET / HTTP/1.1\r\n\r\n\0", &nested]
    {
        let mut client = Varlink::connect(&path);
        client.send(bytes);
        assert_eq!(client.next_reply(), None, "{:?}", String::from_utf8_lossy(bytes));
        peer.exchange("meanwhile");
    }
    // A call without an end: more than all buffers of the kernel hold.
    let mut client = Varlink::connect(&path);
    let taken = (0..64).take_while(|_| client.send(&[b'x'; 1024 * 1024])).count();
    assert!(taken < 64, "all of it was read");
    assert!(daemon.status_number("VmRSS") < before + 1024, "{} KiB", daemon.status_number("VmRSS") - before);
    assert_eq!(good.call(r#"{"method":"io.echoed.Status"}"#)[0]["parameters"]["ready"], true);
    daemon.stop();
}

#[test]
fn a_call_that_takes_longer_than_5_s_ends_the_connection() {
    let (daemon, path) = start("");
    let mut client = Varlink::connect(&path);
    let begun = now();
    client.send(b"{\"method\":");
    assert_eq!(client.next_reply(), None);
    assert!((4..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    daemon.stop();
}

#[test]
fn a_thousand_callers_at_once_are_all_answered_and_messages_meanwhile() {
    if !ensure_nofile_limit(4000) {
        return;
    }
    let (daemon, path) = start("");
    let mut peer = daemon.connect();
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                for _ in 0..100 {
                    let replies = Varlink::connect(&path).call(r#"{"method":"io.echoed.Status"}"#);
                    assert_eq!(replies[0]["parameters"]["ready"], true);
                }
            })
        })
        .collect();
    while callers.iter().any(|caller| !caller.is_finished()) {
        peer.exchange("meanwhile");
    }
    callers.into_iter().for_each(|caller| caller.join().expect("all are answered"));
    daemon.stop();
}

#[test]
fn a_control_socket_is_served_while_all_places_for_messages_are_taken() {
    let (daemon, path) = start("[limits]\nconnections = 1\nreclaim_idle = 'off'\n");
    let mut peer = daemon.connect();
    peer.exchange("a");
    let _waiting = daemon.connect();
    assert_eq!(list(&path, None).len(), 1);
    daemon.stop();
}

#[test]
fn a_control_socket_is_a_unix_socket() {
    let listen = ["--listen", "control=127.0.0.1:0"];
    let mut daemon = Daemon::spawn_with(&mut Command::new(env!("CARGO_BIN_EXE_echoed")), SECTION, &listen);
    assert_eq!(daemon.wait().code(), Some(78));
    let log = daemon.log().join("\n");
    assert!(log.contains("with role = \"control\": each process that can connect may close connections"), "{log}");
}

#[test]
fn a_python_client_by_the_description_of_varlink_gets_every_connection() {
    let Some(python) = program_or_skip("python3") else { return };
    let (daemon, path) = start("");
    let peers: Vec<_> = (0..300).map(|_| daemon.connect()).collect();
    common::wait_until("all are accepted", || list(&path, None).len() == peers.len());
    let script = "import json, socket, sys\n\
                  channel = socket.socket(socket.AF_UNIX)\n\
                  channel.connect(sys.argv[1])\n\
                  call = {'method': 'io.echoed.Connections', 'parameters': {'listener': 'echo'}, 'more': True}\n\
                  channel.sendall(json.dumps(call).encode() + b'\\0')\n\
                  buffered, ids, more = b'', [], True\n\
                  while more:\n    \
                      while b'\\0' not in buffered:\n        \
                          received = channel.recv(65536)\n        \
                          assert received\n        \
                          buffered += received\n    \
                      reply, _, buffered = buffered.partition(b'\\0')\n    \
                      reply = json.loads(reply)\n    \
                      ids += [one['id'] for one in reply['parameters']['connections']]\n    \
                      more = reply.get('continues', False)\n\
                  print(len(ids), len(set(ids)))\n";
    let output = Command::new(python).args(["-c", script, &path]).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "300 300", "{output:?}");
    daemon.stop();
}

#[test]
fn errors_say_what_to_do() {
    let (daemon, path) = start("");
    echoctl(&["close", "7", "--socket", &path]).check_failure(1, "echoctl: there is no connection 7");
    let error = "echoctl: there is no listener of messages named \"none\"";
    echoctl(&["connections", "--listener", "none", "--socket", &path]).check_failure(1, error);
    let error = "echoctl: cannot connect to /nonexistent/io: No such file or directory (os error 2); is \
                 echoed-control.socket started (systemctl start echoed-control.socket)?";
    echoctl(&["status", "--socket", "/nonexistent/io"]).check_failure(2, error);
    daemon.stop();
}
