//! What an agent in a guest says: its guest's flows, and nothing else.
//!
//! One JSON object a line, `flow` or `flow-end` as in a file of events but without `guest`: whose word it is says the socket that it comes by.

use guestseal_rules::event::{Event, FlowEnds, FlowTold, What};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Said {
    Flow(FlowTold),
    FlowEnd(FlowEnds),
}

/// The event that an agent's line is; nothing if it is another than an agent may tell.
pub(super) fn read(line: &str, guest: &str) -> Option<Event> {
    let what = match serde_json::from_str(line).ok()? {
        Said::Flow(flow) => What::Flow(flow),
        Said::FlowEnd(flow) => What::FlowEnd(flow),
    };
    Some(Event {
        time: None,
        guest: guest.to_owned(),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_speaks_of_its_own_flows_and_of_nothing_else() {
        let flow = r#"{"flow": {"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443", "user": "alice"}}"#;
        assert_eq!(read(flow, "web").unwrap().guest, "web");
        let end = r#"{"flow-end": {"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443"}}"#;
        assert!(matches!(read(end, "web").unwrap().what, What::FlowEnd(_)));
        for other in [
            r#"{"guest": "db", "flow": {"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443"}}"#,
            r#"{"flow": {"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443"}, "flow-end": {}}"#,
            r#"{"release": {}}"#,
            r#"{"clear": {"service": "av", "name": "*"}}"#,
            r#"{"login": {"user": "root"}}"#,
            r#""flow""#,
            "",
        ] {
            assert!(read(other, "web").is_none(), "{other}");
        }
    }
}
