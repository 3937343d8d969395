//! Progress of long work on stderr: a line that changes on a terminal, finished lines elsewhere.

use vdc_api::{PullProgress, StepState, StepView};

use crate::show::{age_ms, bytes, harmless_text};
use crate::terminal::{Paint, Style};

/// Turns steps into what is written to stderr.
#[derive(Debug)]
pub(crate) struct Progress {
    style: Style,
    /// Whether a line can be written over.
    live: bool,
}

impl Progress {
    pub(crate) fn new(style: Style, live: bool) -> Self {
        Self { style, live }
    }

    /// The text for one step.
    pub(crate) fn step(&self, step: &StepView) -> String {
        let (title, elapsed) = (harmless_text(&step.title), age_ms(step.elapsed_ms));
        let detail = step.detail.as_deref().map(harmless_text).map(|detail| format!("  {detail}")).unwrap_or_default();
        let back = if self.live { "\r\u{1b}[K" } else { "" };
        let elapsed = self.style.paint(Paint::Dim, &elapsed);
        match step.state {
            StepState::Started if self.live => format!("{back}… {title}{detail}"),
            StepState::Started => String::new(),
            StepState::Done => format!("{back}{} {title}{detail}  {elapsed}\n", self.style.paint(Paint::Good, "✓")),
            StepState::Failed => format!("{back}{} {title}{detail}  {elapsed}\n", self.style.paint(Paint::Bad, "✗")),
        }
    }

    /// Ends a line that was to be written over.
    pub(crate) fn end(&self) -> &'static str {
        if self.live { "\r\u{1b}[K" } else { "" }
    }
}

/// How far a pull is, in one line.
#[derive(Debug)]
pub(crate) struct Bar {
    progress: Progress,
    /// Whether a line stands there.
    open: bool,
    last: u64,
}

/// Cells of a bar.
const BAR_CELLS: u64 = 24;
/// Percents between two lines where a line cannot be written over.
const STEP_PERCENT: u64 = 25;

fn cells(percent: u64) -> String {
    let filled = usize::try_from(percent * BAR_CELLS / 100).unwrap_or(0);
    let cells = usize::try_from(BAR_CELLS).unwrap_or(0);
    format!("{}{}", "█".repeat(filled), "░".repeat(cells.saturating_sub(filled)))
}

impl Bar {
    pub(crate) fn new(style: Style, live: bool) -> Self {
        Self { progress: Progress::new(style, live), open: false, last: 0 }
    }

    /// The text for one step; nothing where it would only repeat itself.
    pub(crate) fn text(&mut self, at: &PullProgress) -> String {
        let percent = (at.bytes_done.min(at.bytes_total) * 100).checked_div(at.bytes_total).unwrap_or(0);
        let (done, total) = (bytes(at.bytes_done), bytes(at.bytes_total));
        let layers = format!("{} of {} layers", at.layers_done, at.layers_total);
        if self.progress.live {
            self.open = true;
            let bar = cells(percent);
            return format!("\r\u{1b}[K{bar} {percent:>3} %  {done} of {total}  {layers}");
        }
        if percent < self.last + STEP_PERCENT && self.open {
            return String::new();
        }
        (self.open, self.last) = (true, percent / STEP_PERCENT * STEP_PERCENT);
        format!("getting the image: {percent} %, {done} of {total}, {layers}\n")
    }

    /// Ends a line that was to be written over.
    pub(crate) fn end(&mut self) -> &'static str {
        if std::mem::take(&mut self.open) { self.progress.end() } else { "" }
    }
}

/// How many bytes have gone, in one line.
#[derive(Debug)]
pub(crate) struct ByteBar {
    what: &'static str,
    progress: Progress,
    /// What stands there, in thousandths; none if nothing does.
    shown: Option<u64>,
}

impl ByteBar {
    pub(crate) fn new(what: &'static str, style: Style, live: bool) -> Self {
        Self { what, progress: Progress::new(style, live), shown: None }
    }

    /// The text for one step; nothing where it would only repeat itself. `about` bytes are expected.
    pub(crate) fn text(&mut self, done: u64, about: u64) -> String {
        let parts = |of: u64| (done.min(about).saturating_mul(of)).checked_div(about).unwrap_or(0);
        let (percent, thousandths) = (parts(100), parts(1_000));
        if self.progress.live {
            if self.shown == Some(thousandths) {
                return String::new();
            }
            self.shown = Some(thousandths);
            let bar = cells(percent);
            return format!("\r\u{1b}[K{bar} {percent:>3} %  {} of about {}", bytes(done), bytes(about));
        }
        let step = percent / STEP_PERCENT * STEP_PERCENT;
        if step <= self.shown.unwrap_or(0) {
            return String::new();
        }
        self.shown = Some(step);
        format!("{}: {percent} %, {} of about {}\n", self.what, bytes(done), bytes(about))
    }

    /// Ends a line that was to be written over.
    pub(crate) fn end(&mut self) -> &'static str {
        if self.progress.live && self.shown.take().is_some() { self.progress.end() } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::{JoinEvent, samples};

    use super::*;

    fn render(live: bool) -> String {
        let progress = Progress::new(Style::new(false), live);
        let steps = samples::join_events().into_iter().filter_map(|event| match event {
            JoinEvent::Step(step) => Some(progress.step(&step)),
            JoinEvent::Joined(_) => None,
        });
        steps.collect()
    }

    #[test]
    fn steps_are_lines_without_a_terminal() {
        assert_eq!(
            render(false),
            "✓ reach a registrar  paris1 at 198.51.100.4:7302  84ms\n✓ redeem the invite  121ms\n"
        );
    }

    #[test]
    fn steps_write_over_themselves_on_a_terminal() {
        let text = render(true);
        assert!(text.starts_with("\r\u{1b}[K… reach a registrar\r\u{1b}[K✓ reach a registrar"), "{text:?}");
        assert_eq!(text.matches('\n').count(), 2);
    }

    #[test]
    fn bytes_are_told_in_quarters_without_a_terminal() {
        let mut bar = ByteBar::new("sending", Style::new(false), false);
        let text: String = [0, 10, 250, 300, 700, 1_000, 1_200].iter().map(|done| bar.text(*done, 1_000)).collect();
        assert_eq!(
            text,
            "sending: 25 %, 250 B of about 1.0 kB\nsending: 70 %, 700 B of about 1.0 kB\n\
             sending: 100 %, 1.0 kB of about 1.0 kB\n"
        );
        assert_eq!(bar.end(), "");
        assert_eq!(bar.text(5, 0), "", "nothing is known of the end");
        let mut live = ByteBar::new("sending", Style::new(false), true);
        assert!(live.text(500, 1_000).contains("50 %"));
        assert_eq!(live.text(500, 1_000), "");
        assert_ne!(live.end(), "");
        assert_eq!(live.end(), "");
    }
}
