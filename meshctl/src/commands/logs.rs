//! What workloads wrote, through restarts of the daemon.

use std::io::{self, Write as _};
use std::time::Duration;

use vdc_api::{LogEvent, LogStream, LogsQuery, endpoint};

use super::Run;
use crate::cli::{Logs, Output};
use crate::failure::{Exit, Failure};
use crate::show;

/// Between two attempts to go on with a log that is followed, and how long they go on.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_FOR: Duration = Duration::from_secs(120);

/// Where a followed log stands: lines of one moment come together, so they are counted.
#[derive(Clone, Debug, Default)]
struct Place {
    at: Option<String>,
    lines: u32,
    /// Lines of that moment to pass over after a new beginning.
    skip: u32,
}

impl Place {
    /// Whether a line was not shown yet; notes it.
    fn is_new(&mut self, at: &str) -> bool {
        if self.at.as_deref() != Some(at) {
            *self = Self { at: Some(at.to_owned()), lines: 1, skip: 0 };
            return true;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.lines += 1;
        true
    }

    /// The question that goes on here.
    fn resume(&mut self, query: &LogsQuery) -> LogsQuery {
        let Some(at) = &self.at else { return query.clone() };
        self.skip = self.lines;
        LogsQuery { since: Some(at.clone()), tail: None, ..query.clone() }
    }
}

impl Run<'_> {
    pub(super) async fn logs(&mut self, args: Logs) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let query = LogsQuery { follow: args.follow, since: args.since, tail: args.tail, stream: args.stream };
        let mut place = Place::default();
        let mut lost_since: Option<std::time::Instant> = None;
        loop {
            let asked = place.resume(&query);
            let read = async {
                let mut events = client.stream(endpoint::WORKLOAD_LOGS, &[&vdc, &args.workload], &asked, &()).await?;
                while let Some(event) = events.next().await? {
                    lost_since = None;
                    self.log_event(&event, &mut place, args.timestamps)?;
                }
                Ok::<_, Failure>(())
            };
            match read.await {
                Err(failure) if args.follow && failure.exit == Exit::NoDaemon => {
                    let since = *lost_since.get_or_insert_with(std::time::Instant::now);
                    if since.elapsed() > RETRY_FOR {
                        return Err(failure);
                    }
                    tokio::time::sleep(RETRY).await;
                }
                ended => return ended,
            }
        }
    }

    fn log_event(&mut self, event: &LogEvent, place: &mut Place, timestamps: bool) -> Result<(), Failure> {
        let (at, stream, text, base64) = match event {
            LogEvent::Line { at, stream, text, base64 } => (at, *stream, text, base64.as_deref()),
            LogEvent::Gap { records } => {
                self.terminal.note(&format!("note: {records} records were rotated away before they could be read\n"));
                return Ok(());
            }
        };
        if !place.is_new(at) {
            return Ok(());
        }
        if self.global.output == Output::Json {
            return self.terminal.print(&show::json_line(event)?);
        }
        let bytes = match base64 {
            Some(base64) => show::decode_base64(base64).unwrap_or_default(),
            None => text.clone().into_bytes(),
        };
        let front = if timestamps { format!("{at} ") } else { String::new() };
        let written = |mut to: Box<dyn io::Write>| {
            to.write_all(front.as_bytes()).and_then(|()| to.write_all(&bytes)).and_then(|()| to.flush())
        };
        let written = match stream {
            LogStream::Stdout => written(Box::new(io::stdout().lock())),
            LogStream::Stderr => written(Box::new(io::stderr().lock())),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(Exit::Done)),
            Err(error) => Err(Failure::new("cannot write what the workload wrote").caused_by(&error)),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_goes_on_where_it_stood() {
        let mut place = Place::default();
        let query = LogsQuery { follow: true, tail: Some(5), ..LogsQuery::default() };
        assert_eq!(place.resume(&query), query);
        assert!(place.is_new("a") && place.is_new("b") && place.is_new("b"));
        let resumed = place.resume(&query);
        assert_eq!((resumed.since.as_deref(), resumed.tail), (Some("b"), None));
        assert!(!place.is_new("b") && !place.is_new("b"), "they were shown");
        assert!(place.is_new("b") && place.is_new("c"));
    }
}
