//! Suricata: the alerts of its eve.json, one JSON object a line.

use serde_json::Value;

use super::Reported;

/// What a line of eve.json is.
pub(super) fn read(line: &str) -> Reported {
    match serde_json::from_str::<Value>(line) {
        Ok(event) if event["event_type"] == "alert" => Reported::Report(event),
        Ok(Value::Object(_)) => Reported::Other,
        _ => Reported::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_reports_and_nothing_else_is() {
        let alert =
            r#"{"timestamp":"2026-11-28T08:00:00.000001+0000","event_type":"alert","alert":{"severity":1}}"#;
        assert!(matches!(read(alert), Reported::Report(_)));
        assert!(matches!(read(r#"{"event_type":"flow"}"#), Reported::Other));
        for bad in ["", "[]", "7", "{", "alert", r#"{"event_type":"alert""#] {
            assert!(matches!(read(bad), Reported::Malformed), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(read(&deep), Reported::Malformed));
    }
}
