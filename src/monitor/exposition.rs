//! Metrics as text, in the two notations that Prometheus reads: its own, version 0.0.4, and OpenMetrics 1.0.
//!
//! They differ in the names of counters, which OpenMetrics describes without `_total`, and in the end.

use std::fmt::{Display, Write};

/// A notation of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The text format of Prometheus.
    Prometheus,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// Returns its media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Metrics while they are written.
pub(super) struct Exposition {
    format: Format,
    text: String,
}

/// The samples of one metric.
pub(super) struct Samples<'a> {
    text: &'a mut String,
    name: String,
}

impl Exposition {
    pub(super) fn new(format: Format) -> Self {
        Self { format, text: String::new() }
    }

    /// Begins a counter. Its name is without `_total`; the help is one line without backslashes.
    pub(super) fn counter(&mut self, name: &str, help: &str) -> Samples<'_> {
        let described = if self.format == Format::OpenMetrics { name.to_owned() } else { format!("{name}_total") };
        self.describe(&described, "counter", help);
        Samples { text: &mut self.text, name: format!("{name}_total") }
    }

    /// Begins a gauge.
    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.describe(name, "gauge", help);
        Samples { text: &mut self.text, name: name.to_owned() }
    }

    fn describe(&mut self, name: &str, kind: &str, help: &str) {
        // A String takes everything.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Returns the text.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl Samples<'_> {
    /// Writes a sample with these labels.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(&self.name);
        for (at, (name, value)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"");
            push_escaped(self.text, value);
            self.text.push('"');
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }
}

fn push_escaped(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            character => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(format: Format) -> String {
        let mut exposition = Exposition::new(format);
        let mut messages = exposition.counter("x_messages", "Messages.");
        messages.add(&[("listener", "echo")], 7_u64);
        messages.add(&[("listener", "a\\b\"c\nd"), ("verdict", "busy")], u64::MAX);
        exposition.gauge("x_ready", "Whether it is.").add(&[], 1_u8);
        exposition.gauge("x_seconds", "Seconds.").add(&[], 0.25);
        exposition.counter("x_errors", "Errors.");
        exposition.finish()
    }

    #[test]
    fn each_notation_names_counters_in_its_own_way() {
        let samples = "x_messages_total{listener=\"echo\"} 7\n\
                       x_messages_total{listener=\"a\\\\b\\\"c\\nd\",verdict=\"busy\"} 18446744073709551615\n";
        let gauges = "# HELP x_ready Whether it is.\n# TYPE x_ready gauge\nx_ready 1\n\
                      # HELP x_seconds Seconds.\n# TYPE x_seconds gauge\nx_seconds 0.25\n";
        assert_eq!(
            example(Format::Prometheus),
            format!(
                "# HELP x_messages_total Messages.\n# TYPE x_messages_total counter\n{samples}{gauges}\
                 # HELP x_errors_total Errors.\n# TYPE x_errors_total counter\n"
            )
        );
        assert_eq!(
            example(Format::OpenMetrics),
            format!(
                "# HELP x_messages Messages.\n# TYPE x_messages counter\n{samples}{gauges}\
                 # HELP x_errors Errors.\n# TYPE x_errors counter\n# EOF\n"
            )
        );
    }
}
