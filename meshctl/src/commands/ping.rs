//! What `ping` prints, in the manner of ping(8).

use vdc_api::PingEvent;

use crate::show::{harmless_text, path, rtt};

/// What has come back so far.
#[derive(Debug, Default)]
pub(super) struct Summary {
    target: String,
    sent: u64,
    received: u32,
    rtt_ms_min: f64,
    rtt_ms_max: f64,
    rtt_ms_sum: f64,
    rtt_ms_square_sum: f64,
}

impl Summary {
    pub(super) fn add(&mut self, event: &PingEvent) {
        match event {
            PingEvent::Started { node, site, .. } => self.target = harmless_text(&format!("{node}.{site}")),
            PingEvent::Reply { rtt_ms, .. } => {
                let first = self.received == 0;
                self.rtt_ms_min = if first { *rtt_ms } else { self.rtt_ms_min.min(*rtt_ms) };
                self.rtt_ms_max = self.rtt_ms_max.max(*rtt_ms);
                self.rtt_ms_sum += rtt_ms;
                self.rtt_ms_square_sum += rtt_ms * rtt_ms;
                self.received = self.received.saturating_add(1);
                self.sent += 1;
            }
            PingEvent::Lost { .. } => self.sent += 1,
        }
    }

    pub(super) fn received(&self) -> u32 {
        self.received
    }

    /// The line for one event.
    pub(super) fn line(&self, event: &PingEvent) -> String {
        let target = &self.target;
        match event {
            PingEvent::Started { address, size_bytes, .. } => format!("PING {target} ({address}) {size_bytes} bytes\n"),
            PingEvent::Reply { seq, rtt_ms, size_bytes, path: used } => {
                let used = used.as_ref().map(|used| format!(" path={}", path(used))).unwrap_or_default();
                format!("{size_bytes} bytes from {target}: seq={seq} time={}{used}\n", rtt(*rtt_ms))
            }
            PingEvent::Lost { seq, reason } => format!("nothing from {target}: seq={seq} ({reason})\n"),
        }
    }

    /// The closing lines; empty if nothing was ever sent.
    pub(super) fn end(&self) -> String {
        if self.sent == 0 {
            return String::new();
        }
        let (target, sent, received) = (&self.target, self.sent, self.received);
        let lost_permille = (sent - u64::from(received)) * 1_000 / sent;
        let mut text = format!(
            "\n--- {target} ping statistics ---\n{sent} sent, {received} received, {}.{} % lost\n",
            lost_permille / 10,
            lost_permille % 10
        );
        if received > 0 {
            let mean = self.rtt_ms_sum / f64::from(received);
            // Rounding may push the difference below zero.
            let deviation = (self.rtt_ms_square_sum / f64::from(received) - mean * mean).max(0.0).sqrt();
            let (min, max) = (self.rtt_ms_min, self.rtt_ms_max);
            text.push_str(&format!("rtt min/avg/max/mdev = {min:.3}/{mean:.3}/{max:.3}/{deviation:.3} ms\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    fn run(events: &[PingEvent]) -> String {
        let mut summary = Summary::default();
        let mut text = String::new();
        for event in events {
            summary.add(event);
            text.push_str(&summary.line(event));
        }
        text + &summary.end()
    }

    #[test]
    fn output_follows_ping_8() {
        assert_eq!(
            run(&samples::ping_events()),
            "\
PING berlin1.berlin (fd5a:3c71:9e02:2:a1b2:c3d2:0:1) 56 bytes
56 bytes from berlin1.berlin: seq=1 time=21.4 ms path=direct 203.0.113.7:7301
nothing from berlin1.berlin: seq=2 (no reply within 1000 ms)
56 bytes from berlin1.berlin: seq=3 time=20.6 ms path=direct 203.0.113.7:7301

--- berlin1.berlin ping statistics ---
3 sent, 2 received, 33.3 % lost
rtt min/avg/max/mdev = 20.600/21.000/21.400/0.400 ms
"
        );
    }

    #[test]
    fn nothing_received_and_nothing_sent_are_told_apart() {
        let lost = PingEvent::Lost { seq: 1, reason: "no tunnel".into() };
        let text = run(&[samples::ping_events().swap_remove(0), lost]);
        assert!(text.ends_with("1 sent, 0 received, 100.0 % lost\n"), "{text}");
        assert_eq!(run(&[]), "");
    }
}
