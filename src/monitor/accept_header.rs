//! Which notation of metrics a client accepts (RFC 9110, section 12.5.1).

use super::exposition::Format;

const OPEN_METRICS: &str = "application/openmetrics-text";

/// Returns the notation that a client prefers by its `Accept` header. OpenMetrics only if that is named, and no range that has the
/// text format is preferred.
pub(super) fn preferred_format(accept: &str) -> Format {
    let (mut open_metrics, mut text) = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality =
            parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q="))).map_or(1000, per_mille);
        match &*media_type {
            OPEN_METRICS => open_metrics = quality.max(open_metrics),
            "text/plain" | "text/*" | "*/*" => text = quality.max(text),
            _ => {}
        }
    }
    if open_metrics > 0 && open_metrics >= text { Format::OpenMetrics } else { Format::Prometheus }
}

/// Returns a quality in thousandths; that of something else is 0.
fn per_mille(quality: &str) -> u32 {
    let quality: f32 = quality.parse().unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is 0 to 1000")]
    let quality = (quality.clamp(0.0, 1.0) * 1000.0) as u32;
    quality
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_sent_only_if_the_client_asks_for_it() {
        for accept in [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "text/html, Application/OpenMetrics-Text",
        ] {
            assert_eq!(preferred_format(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=nonsense",
            "application/openmetrics-text;q=0.2, text/plain;q=0.3",
            ",;q=;,",
        ] {
            assert_eq!(preferred_format(accept), Format::Prometheus, "{accept}");
        }
    }
}
