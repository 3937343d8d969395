//! Answers as text for people.

mod admission;
mod coord;
mod human;
mod network;
mod policy;
mod status;
mod table;
mod workload;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::terminal::{Paint, Style};

pub(crate) use coord::{BackupDone, GroupMembers, home_words, recovery_cost, restore_cost, warnings as coord_warnings};
pub(crate) use human::{age_ms, bytes, rtt};
pub(crate) use network::{path, peer};
pub(crate) use workload::{Brief, StatsRow, StatsTable};

/// What can be shown.
pub(crate) trait Show {
    /// Ends with a line feed.
    fn show(&self, style: Style) -> String;
}

/// The value as indented JSON, with a line feed behind it.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    finish_json(serde_json::to_string_pretty(value))
}

/// The value as JSON in one line.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, Failure> {
    finish_json(serde_json::to_string(value))
}

fn finish_json(text: serde_json::Result<String>) -> Result<String, Failure> {
    text.map(|text| text + "\n").map_err(|error| Failure::new("the answer cannot be written as JSON").caused_by(&error))
}

/// The value with every control character in its texts replaced: a reason or name that another box chose must not steer
/// this terminal.
pub(crate) fn harmless<T: Serialize + DeserializeOwned>(value: &T) -> Result<T, Failure> {
    let strange = |error: serde_json::Error| Failure::new("the answer cannot be shown").caused_by(&error);
    let mut value = serde_json::to_value(value).map_err(strange)?;
    clean(&mut value);
    serde_json::from_value(value).map_err(strange)
}

fn clean(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = harmless_text(text),
        serde_json::Value::Array(list) => list.iter_mut().for_each(clean),
        serde_json::Value::Object(map) => map.values_mut().for_each(clean),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
    }
}

/// Text without control characters and without those that turn the direction of writing.
pub(crate) fn harmless_text(text: &str) -> String {
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// The bytes of a base64 text (RFC 4648 §4).
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    data_encoding::BASE64.decode(text.as_bytes()).ok()
}

/// `label  value` lines, values one below the other.
fn facts(lines: &[(&str, String)], style: Style) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let line = |(label, value): &(&str, String)| {
        let padding = " ".repeat(width - label.len());
        format!("  {}{padding}  {value}\n", style.paint(Paint::Dim, label))
    };
    lines.iter().filter(|(_, value)| !value.is_empty()).map(line).collect()
}

fn hint(text: &str, style: Style) -> String {
    format!("{} {text}\n", style.paint(Paint::Note, "hint:"))
}

/// The first digits of an id: enough to tell it from others.
fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        let mut list = samples::block_list();
        list.blocks[0].reason = "worm\u{1b}[2J\u{9b}31m\r\nerror: fake\u{202e}".into();
        let text = harmless(&list).expect("plain data").show(Style::new(false));
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
        assert_eq!(text.lines().count(), 2, "heading and one row");
    }

    #[test]
    fn json_output_parses_back() {
        fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
            assert_eq!(&serde_json::from_str::<T>(&json(value).expect("plain")).expect("the same type"), value);
            let line = json_line(value).expect("plain");
            assert_eq!(line.matches('\n').count(), 1);
            assert_eq!(&harmless(value).expect("plain"), value, "samples are harmless already");
        }
        check(&samples::status());
        check(&samples::vdc_created());
        check(&samples::vdc_list());
        check(&samples::node_list());
        check(&samples::node_revoked());
        check(&samples::issued_list());
        check(&samples::vdc_recovered());
        check(&samples::peer_list());
        check(&samples::connected());
        check(&samples::invite_created());
        check(&samples::invite_list());
        check(&samples::joined());
        check(&samples::left());
        check(&samples::renewed());
        check(&samples::site_list());
        check(&samples::site_added());
        check(&samples::exposure_list());
        check(&samples::block_list());
        check(&samples::explanation());
        check(&samples::event_list());
        check(&samples::coord_status());
        check(&samples::recover_view());
        check(&samples::restore_view());
        samples::ping_events().iter().for_each(check);
        samples::join_events().iter().for_each(check);
    }
}
