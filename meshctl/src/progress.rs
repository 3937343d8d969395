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
            let filled = usize::try_from(percent * BAR_CELLS / 100).unwrap_or(0);
            let cells = usize::try_from(BAR_CELLS).unwrap_or(0);
            let bar = format!("{}{}", "█".repeat(filled), "░".repeat(cells.saturating_sub(filled)));
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
}
