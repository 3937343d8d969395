//! Containers and images.

use serde::{Deserialize, Serialize};
use vdc_api::{
    HealthStatus, ImageList, ImageView, ImagesFreed, Phase, StatsEvent, WorkloadList, WorkloadRemoved, WorkloadView,
};

use super::table::{Cell, NONE, Table, or_none};
use super::{Show, facts, human, short};
use crate::terminal::{Paint, Style};

/// One word for what was changed.
pub(crate) trait Brief {
    fn brief(&self) -> String;
}

impl Brief for WorkloadView {
    fn brief(&self) -> String {
        format!("{}  {}", self.name, phase(self.phase))
    }
}

impl Brief for WorkloadRemoved {
    fn brief(&self) -> String {
        self.name.clone()
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pulling => "pulling",
        Phase::Creating => "creating",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Exited => "exited",
        Phase::BackOff => "back-off",
    }
}

fn health(health: HealthStatus) -> Option<&'static str> {
    match health {
        HealthStatus::None => None,
        HealthStatus::Starting => Some("starting"),
        HealthStatus::Healthy => Some("healthy"),
        HealthStatus::Unhealthy => Some("unhealthy"),
    }
}

fn paint(view: &WorkloadView) -> Paint {
    match (view.phase, view.health) {
        (_, HealthStatus::Unhealthy) | (Phase::BackOff, _) => Paint::Bad,
        (Phase::Running, _) => Paint::Good,
        (Phase::Exited, _) => Paint::Dim,
        _ => Paint::Warn,
    }
}

/// `running (healthy)`, `exited (137)`, `back-off (1)`.
fn state(view: &WorkloadView) -> String {
    let detail = match (view.phase, &view.exit) {
        (Phase::Exited | Phase::BackOff, Some(exit)) => Some(exit.code.to_string()),
        _ => health(view.health).map(str::to_owned),
    };
    let degraded = if view.degraded.is_empty() { "" } else { " *" };
    let name = phase(view.phase);
    detail.map_or_else(|| format!("{name}{degraded}"), |detail| format!("{name} ({detail}){degraded}"))
}

impl Show for WorkloadList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["NAME", "ID", "IMAGE", "STATE", "SINCE", ">RESTARTS", "ADDRESS", "PORTS"]);
        for view in &self.workloads {
            let ports: Vec<String> = view.spec.publish.iter().chain(&view.spec.ports).cloned().collect();
            table.row([
                view.name.clone().into(),
                short(&view.id).into(),
                view.spec.image.clone().into(),
                Cell::new(state(view)).paint(paint(view)),
                view.since.clone().into(),
                view.restarts.to_string().into(),
                or_none(view.addresses.first(), Clone::clone),
                if ports.is_empty() { Cell::new(NONE).paint(Paint::Dim) } else { ports.join(" ").into() },
            ]);
        }
        let mut text = table.render_or("no workloads", style);
        if self.workloads.iter().any(|view| !view.degraded.is_empty()) {
            text.push_str("* something asked for cannot be done by this node: `meshctl inspect NAME` says what\n");
        }
        text
    }
}

impl Show for WorkloadView {
    fn show(&self, style: Style) -> String {
        let spec = &self.spec;
        let limits = [
            spec.memory_bytes.map(|bytes| format!("memory {}", human::bytes(bytes))),
            spec.cpu_millis.map(|millis| format!("processors {}.{:03}", millis / 1_000, millis % 1_000)),
            spec.pids.map(|pids| format!("processes {pids}")),
            spec.io_weight.map(|weight| format!("disk weight {weight}")),
        ];
        let limits: Vec<String> = limits.into_iter().flatten().collect();
        let lines = [
            ("id", self.id.clone()),
            ("node", format!("{}.{}", self.node, self.site)),
            ("name", self.fqdn.clone().unwrap_or_default()),
            ("addresses", self.addresses.join("  ")),
            ("image", spec.image.clone()),
            ("manifest", self.manifest.clone()),
            ("command", spec.command.join(" ")),
            ("created", self.created_at.clone()),
            ("why", self.reason.clone()),
            ("since", self.since.clone()),
            ("next start", self.next_retry.clone().unwrap_or_default()),
            ("restarts", self.restarts.to_string()),
            ("process", self.pid.map(|pid| pid.to_string()).unwrap_or_default()),
            ("ports", spec.ports.join(" ")),
            ("published", spec.publish.join(" ")),
            ("volumes", spec.volumes.join(" ")),
            ("limits", limits.join(", ")),
        ];
        let name = style.paint(Paint::Strong, &self.name);
        let mut text = format!("{name}  {}\n{}", style.paint(paint(self), &state(self)), facts(&lines, style));
        for degraded in &self.degraded {
            let line = format!("this node cannot do the {}: {}", degraded.what, degraded.why);
            text.push_str(&format!("  {}\n", style.paint(Paint::Warn, &line)));
        }
        text
    }
}

/// One workload's use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatsRow {
    pub(crate) name: String,
    /// Processors in use since the last look.
    pub(crate) cpu_share: Option<f64>,
    #[serde(flatten)]
    pub(crate) now: StatsEvent,
}

/// What workloads use.
#[derive(Debug)]
pub(crate) struct StatsTable {
    pub(crate) rows: Vec<StatsRow>,
}

impl Show for StatsTable {
    fn show(&self, style: Style) -> String {
        let mut table =
            Table::new(&["NAME", ">CPU", ">CPU TIME", ">MEMORY", ">MOST", ">PROCESSES", ">RECEIVED", ">SENT"]);
        for row in &self.rows {
            let now = &row.now;
            table.row([
                super::harmless_text(&row.name).into(),
                or_none(row.cpu_share, |share| format!("{:.1} %", share * 100.0)),
                human::age_ms(now.cpu_ns / 1_000_000).into(),
                human::bytes(now.memory_bytes).into(),
                human::bytes(now.memory_bytes_max).into(),
                now.pids.to_string().into(),
                human::bytes(now.received_bytes).into(),
                human::bytes(now.sent_bytes).into(),
            ]);
        }
        table.render_or("no workload runs", style)
    }
}

impl Show for ImageList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["IMAGE", "MANIFEST", ">SIZE", ">LAYERS", ">IN USE", "CREATED"]);
        for image in &self.images {
            let digest: String = image.manifest.trim_start_matches("sha256:").chars().take(12).collect();
            let names = if image.names.is_empty() { vec![NONE.to_owned()] } else { image.names.clone() };
            for name in names {
                table.row([
                    name.into(),
                    digest.clone().into(),
                    human::bytes(image.size_bytes).into(),
                    image.layers.to_string().into(),
                    image.in_use.to_string().into(),
                    or_none(image.created_at.as_ref(), Clone::clone),
                ]);
            }
        }
        table.render_or("no images", style)
    }
}

impl Show for ImageView {
    fn show(&self, style: Style) -> String {
        let name = self.names.first().cloned().unwrap_or_else(|| self.manifest.clone());
        let lines = [
            ("manifest", self.manifest.clone()),
            ("names", self.names.join("  ")),
            ("size", human::bytes(self.size_bytes)),
            ("layers", self.layers.to_string()),
        ];
        format!("{}\n{}", style.paint(Paint::Strong, &name), facts(&lines, style))
    }
}

impl Brief for ImagesFreed {
    fn brief(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|name| format!("removed {name}")).collect();
        format!("{}; freed {}", names.join(", "), human::bytes(self.bytes))
    }
}

impl Show for ImagesFreed {
    fn show(&self, _: Style) -> String {
        let names: String = self.names.iter().map(|name| format!("removed {name}\n")).collect();
        format!("{names}freed {} in {}\n", human::bytes(self.bytes), human::count(self.layers.into(), "layer"))
    }
}
