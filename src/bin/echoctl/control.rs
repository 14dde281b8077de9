//! The commands that show and steer a running daemon.

use std::io::{self, Write};
use std::time::Duration;

use echoed::cli::echoctl::{Close, Connections, ControlOptions};
use echoed::client::control::{ControlClient, ControlError, write_json};
use echoed::client::table::{Align, Table};
use echoed::escape::{Controls, escape_unsafe};
use echoed::units::{format_number, format_size};
use serde_json::{Map, Value, json};

use crate::{Error, UNANSWERED, ignore_broken_pipe};

fn explain(error: &ControlError) -> Error {
    let text = error.to_string();
    match error {
        ControlError::Connect(..) => Error::not_started(text),
        ControlError::Broken(..) | ControlError::Refused(_) => Error { text, code: UNANSWERED },
    }
}

fn connect(options: &ControlOptions) -> Result<ControlClient, Error> {
    ControlClient::connect(&options.socket).map_err(|error| explain(&error))
}

/// Prints the figures of the daemon.
pub(crate) fn status(options: &ControlOptions) -> Result<(), Error> {
    let status = connect(options)?.call("Status", &json!({})).map_err(|error| explain(&error))?;
    if options.json {
        return print_json(&Value::Object(status));
    }
    let (text, number) = (|key: &str| text_of(&status, key), |key: &str| number_of(&status, key));
    let uptime = describe_time(Duration::from_secs(number("uptime_seconds")));
    let mut output = format!("echoed {}: {}, up {uptime}\n", text("version"), text("state"));
    output += &format!(
        "{} of {} connections, {} of {} of buffers, {} workers\n",
        format_number(number("connections")),
        format_number(number("limit_connections")),
        format_size(number("buffer_bytes")),
        format_size(number("limit_buffer_bytes")),
        number("workers"),
    );
    if number("log_entries_waiting") > 0 {
        output += &format!("{} log entries wait: the log cannot be written to\n", number("log_entries_waiting"));
    }
    let columns = ["OPEN", "ACCEPTED", "MESSAGES", "BYTES IN", "BYTES OUT", "DATAGRAMS", "DROPPED"];
    let columns: Vec<_> = columns.into_iter().map(|name| (name, Align::Right)).collect();
    let mut table = Table::new(&[vec![("LISTENER", Align::Left)], columns].concat());
    for (name, listener) in status.get("listeners").and_then(Value::as_object).into_iter().flatten() {
        let Some(listener) = listener.as_object() else { continue };
        let keys = ["connections", "accepted", "messages", "received_bytes", "sent_bytes", "datagrams_received"];
        let mut row = vec![readable(name)];
        row.extend(keys.map(|key| format_number(number_of(listener, key))));
        let dropped = listener.get("datagrams_dropped").and_then(Value::as_object);
        let dropped = dropped.into_iter().flat_map(Map::values).filter_map(Value::as_u64).sum();
        row.push(format_number(dropped));
        table.push(row);
    }
    print(&format!("{output}\n{}", table.to_text()))
}

/// Prints the open connections.
pub(crate) fn connections(Connections { listener, control }: &Connections) -> Result<(), Error> {
    let columns = [
        ("ID", Align::Right),
        ("LISTENER", Align::Left),
        ("PEER", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
        ("MESSAGES", Align::Right),
        ("BYTES IN", Align::Right),
        ("BYTES OUT", Align::Right),
        ("STATE", Align::Left),
    ];
    let mut table = Table::new(&columns);
    let mut count = 0_u64;
    let parameters = listener.as_ref().map_or(json!({}), |name| json!({ "listener": name }));
    let mut printed = Ok(());
    let listed = connect(control)?.call_more("Connections", &parameters, |reply| {
        for connection in reply.get("connections").and_then(Value::as_array).into_iter().flatten() {
            count += 1;
            if control.json {
                printed = print_json(connection);
            } else if let Some(connection) = connection.as_object() {
                let time = |key| describe_time(Duration::from_micros(number_of(connection, key)));
                let number = |key| format_number(number_of(connection, key));
                table.push(vec![
                    number_of(connection, "id").to_string(),
                    text_of(connection, "listener"),
                    text_of(connection, "peer"),
                    time("age_usec"),
                    time("idle_usec"),
                    number("messages"),
                    number("bytes_in"),
                    number("bytes_out"),
                    text_of(connection, "state"),
                ]);
            }
        }
        printed.is_ok()
    });
    listed.map_err(|error| explain(&error))?;
    if control.json {
        return printed;
    }
    let s = if count == 1 { "" } else { "s" };
    print(&format!("{}\n{} connection{s}\n", table.to_text(), format_number(count)))
}

/// Closes a connection.
pub(crate) fn close(Close { id, control }: &Close) -> Result<(), Error> {
    call(control, "Close", &json!({ "id": id }), &format!("closed connection {id}"))
}

/// Begins lame duck.
pub(crate) fn drain(options: &ControlOptions) -> Result<(), Error> {
    call(options, "Drain", &json!({}), "draining: load balancers are told to send new clients elsewhere")
}

/// Ends lame duck.
pub(crate) fn resume(options: &ControlOptions) -> Result<(), Error> {
    call(options, "Resume", &json!({}), "resumed: load balancers may send new clients again")
}

/// Calls a method whose reply has no parameters, and prints what was done.
fn call(options: &ControlOptions, method: &str, parameters: &Value, done: &str) -> Result<(), Error> {
    let reply = connect(options)?.call(method, parameters).map_err(|error| explain(&error))?;
    if options.json { print_json(&Value::Object(reply)) } else { print(&format!("{done}\n")) }
}

fn print_json(value: &Value) -> Result<(), Error> {
    ignore_broken_pipe(write_json(&mut io::stdout(), value).and_then(|()| io::stdout().flush()))
}

fn print(text: &str) -> Result<(), Error> {
    ignore_broken_pipe(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()))
}

fn text_of(object: &Map<String, Value>, key: &str) -> String {
    readable(object.get(key).and_then(Value::as_str).unwrap_or("?"))
}

fn number_of(object: &Map<String, Value>, key: &str) -> u64 {
    object.get(key).and_then(Value::as_u64).unwrap_or_default()
}

/// Returns a text of the daemon without characters that a terminal would interpret.
fn readable(text: &str) -> String {
    escape_unsafe(text, Controls::Unicode, |_| false).into_owned()
}

/// Writes a time with its two largest units: `3d 4h`, `12min 5s`, `1.5s`, `20ms`.
fn describe_time(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    match units.iter().position(|(size, _)| seconds >= *size) {
        None if time.is_zero() => "0s".to_owned(),
        None => format!("{}ms", time.as_millis()),
        Some(3) => format!("{seconds}s"),
        Some(at) => {
            let ((large, name), (small, small_name)) = (units[at], units[at + 1]);
            match seconds % large / small {
                0 => format!("{}{name}", seconds / large),
                rest => format!("{}{name} {rest}{small_name}", seconds / large),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_two_largest_units() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (60, "1min"), (61, "1min 1s"), (3600, "1h"), (7260, "2h 1min"), (200_000, "2d 7h")]
        {
            assert_eq!(describe_time(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(describe_time(Duration::from_millis(20)), "20ms");
    }
}
