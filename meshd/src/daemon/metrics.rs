//! Metrics for Prometheus, named by its conventions (base units, `_total` for counters).

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use vdc_api as api;

/// One value with its labels.
struct Sample {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    labels: Vec<(&'static str, String)>,
    value: Value,
}

enum Value {
    Gauge(f64),
    Counter(u64),
}

/// Everything that one scrape shows; a snapshot, so values of one scrape belong together.
struct Snapshot {
    samples: Vec<Sample>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot({} samples)", self.samples.len())
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut last = "";
        let mut samples: Vec<&Sample> = self.samples.iter().collect();
        samples.sort_by_key(|sample| sample.name);
        let mut index = 0;
        while index < samples.len() {
            let first = samples[index];
            debug_assert_ne!(first.name, last, "samples are grouped by name");
            last = first.name;
            let kind = match first.value {
                Value::Gauge(_) => prometheus_client::metrics::MetricType::Gauge,
                Value::Counter(_) => prometheus_client::metrics::MetricType::Counter,
            };
            let mut family = encoder.encode_descriptor(first.name, first.help, first.unit.as_ref(), kind)?;
            while let Some(sample) = samples.get(index).filter(|sample| sample.name == first.name) {
                let labels = Labels(sample.labels.clone());
                let metric = family.encode_family(&labels)?;
                match sample.value {
                    Value::Gauge(value) => ConstGauge::new(value).encode(metric)?,
                    Value::Counter(value) => ConstCounter::new(value).encode(metric)?,
                }
                index += 1;
            }
        }
        Ok(())
    }
}

/// The metrics of this moment in OpenMetrics text.
pub(super) fn render(status: &api::Status, drops: &[(&'static str, u64)]) -> String {
    let mut samples = vec![Sample {
        name: "meshd_uptime",
        help: "Time since the daemon started",
        unit: Some(Unit::Seconds),
        labels: vec![],
        value: Value::Gauge(float(status.uptime_s)),
    }];
    for (reason, packets) in drops {
        samples.push(Sample {
            name: "meshd_dropped_packets",
            help: "Packets that the data plane dropped, by reason",
            unit: None,
            labels: vec![("reason", (*reason).to_owned())],
            value: Value::Counter(*packets),
        });
    }
    for vdc in &status.vdcs {
        vdc_samples(vdc, &mut samples);
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot { samples }));
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a String cannot fail");
    text
}

fn vdc_samples(vdc: &api::VdcStatus, samples: &mut Vec<Sample>) {
    let name = &vdc.vdc.name;
    let mut gauge = |metric, help, unit, labels: Vec<(&'static str, String)>, value| {
        let labels = std::iter::once(("vdc", name.clone())).chain(labels).collect();
        samples.push(Sample { name: metric, help, unit, labels, value: Value::Gauge(value) });
    };
    for standing in ["current", "grace", "expired", "revoked"] {
        let of_standing =
            |node: &&api::NodeView| serde_json::to_value(node.standing).is_ok_and(|value| value == standing);
        let count = vdc.nodes.iter().filter(of_standing).count() as u64;
        let labels = vec![("standing", standing.to_owned())];
        gauge("meshd_members", "Members of the VDC, by standing", None, labels, float(count));
    }
    let tunnels = vdc.nodes.iter().filter(|n| n.link.as_ref().is_some_and(|l| l.state == api::LinkState::Active));
    gauge("meshd_tunnels_active", "Tunnels that are up", None, vec![], float(tunnels.count() as u64));
    let links = vdc.nodes.iter().filter(|n| n.link.as_ref().is_some_and(|l| l.control.is_some())).count() as u64;
    gauge("meshd_control_links", "Open control links", None, vec![], float(links));
    gauge("meshd_roster_records", "Signed records held", None, vec![], float(vdc.roster.records));
    let (help, unit) = ("Memory that the records take", Some(Unit::Bytes));
    gauge("meshd_roster_size", help, unit, vec![], float(vdc.roster.size_bytes));
    if let Some(age) = vdc.roster.age_s {
        let help = "Time since the records were last found equal to another member's";
        gauge("meshd_roster_age", help, Some(Unit::Seconds), vec![], float(age));
    }
    gauge("meshd_problems", "Problems that status shows", None, vec![], float(vdc.problems.len() as u64));
    for node in &vdc.nodes {
        let Some(link) = node.link.as_ref().filter(|link| link.bytes_sent + link.bytes_received > 0) else { continue };
        let peer = format!("{}.{}", node.name, node.site);
        if let Some(rtt_ms) = link.rtt_ms {
            let labels = vec![("vdc", name.clone()), ("peer", peer.clone())];
            samples.push(Sample {
                name: "meshd_peer_rtt",
                help: "Round-trip time to a peer over the path in use",
                unit: Some(Unit::Seconds),
                labels,
                value: Value::Gauge(rtt_ms / 1e3),
            });
        }
        for (direction, bytes) in [("sent", link.bytes_sent), ("received", link.bytes_received)] {
            samples.push(Sample {
                name: "meshd_peer_traffic",
                help: "Payload exchanged with a peer",
                unit: Some(Unit::Bytes),
                labels: vec![("vdc", name.clone()), ("peer", peer.clone()), ("direction", direction.to_owned())],
                value: Value::Counter(bytes),
            });
        }
    }
}

/// Counts fit a double up to 2^53; beyond that the last digits do not matter to a graph.
#[expect(clippy::cast_precision_loss, reason = "a graph does not show the last digits of 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_open_metrics_with_units_and_labels() {
        let version = api::Version { daemon: "0.1.0".into(), commit: None, api: "v1".into() };
        let status = api::Status {
            version,
            uptime_s: 7,
            now: String::new(),
            vdcs: vec![],
            not_served: vec![],
            problems: vec![],
        };
        let text = render(&status, &[("spoofed-source", 3), ("replay", 0)]);
        for line in [
            "# TYPE meshd_uptime_seconds gauge",
            "meshd_uptime_seconds{} 7.0",
            "# TYPE meshd_dropped_packets counter",
            "meshd_dropped_packets_total{reason=\"spoofed-source\"} 3",
            "meshd_dropped_packets_total{reason=\"replay\"} 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
