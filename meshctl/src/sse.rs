//! Server-Sent Events, as far as our daemon uses them.

/// Longest event in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` unless it is named.
    pub(crate) name: String,
    pub(crate) data: String,
}

/// The event is longer than this client reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// What has come of the current line.
    line: Vec<u8>,
    name: String,
    data: Option<String>,
}

impl Parser {
    /// Takes more bytes and returns the events that they complete. Comments and unknown fields are passed over.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() + self.data.as_ref().map_or(0, String::len) > EVENT_BYTES_MAX {
                    return Err(TooLong);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            events.extend(self.take_line(&String::from_utf8_lossy(&line)));
        }
        Ok(events)
    }

    fn take_line(&mut self, line: &str) -> Option<Event> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let name = if name.is_empty() { "message".to_owned() } else { name };
            return self.data.take().map(|data| Event { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (field, &mut self.data) {
            ("event", _) => value.clone_into(&mut self.name),
            ("data", Some(data)) => {
                data.push('\n');
                data.push_str(value);
            }
            ("data", none) => *none = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nevent: message\ndata: {\"a\":1}\n\nretry: 5\ndata: one\r\ndata:two\r\n\r\nevent: error\ndata: x\n\n";

    fn expected() -> Vec<Event> {
        let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
        vec![event("message", "{\"a\":1}"), event("message", "one\ntwo"), event("error", "x")]
    }

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        for size in 1..STREAM.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                events.extend(parser.feed(chunk).expect("short"));
            }
            assert_eq!(events, expected(), "cut every {size} bytes");
        }
    }

    #[test]
    fn unfinished_event_is_not_given() {
        assert_eq!(Parser::default().feed(b"data: half"), Ok(vec![]));
    }

    #[test]
    fn endless_event_is_refused() {
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 60_000], b"\n"].concat();
        assert!((0..20).any(|_| parser.feed(&line) == Err(TooLong)));
    }
}
