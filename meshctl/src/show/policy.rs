//! Exposed ports, blocks, explanations, events.

use vdc_api::{
    BlockList, BlockView, EventList, EventView, Explanation, ExposureList, ExposureView, PartyKind, PartyView,
    Severity, StepVerdict,
};

use super::network::record;
use super::table::{Cell, Table, or_none};
use super::{Show, short};
use crate::terminal::{Paint, Style};

impl Show for ExposureList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["NODE", "SITE", "WORKLOAD", "PORTS"]);
        for exposure in &self.exposures {
            let name = if exposure.local { format!("{} *", exposure.node) } else { exposure.node.clone() };
            let mut row = |workload: Option<&str>, ports: &[String]| {
                let ports = (!ports.is_empty()).then(|| ports.join(" "));
                let workload = or_none(workload, str::to_owned);
                table.row([name.as_str().into(), exposure.site.as_str().into(), workload, or_none(ports, |p| p)]);
            };
            if !exposure.ports.is_empty() {
                row(None, &exposure.ports);
            }
            for workload in &exposure.workloads {
                row(Some(&workload.name), &workload.ports);
            }
        }
        table.render_or("no node declares a port or has a workload", style)
    }
}

/// The answer to `expose` and `unexpose`.
impl Show for ExposureView {
    fn show(&self, style: Style) -> String {
        match self.ports.as_slice() {
            [] => format!("{} declares no port\n", self.fqdn),
            ports => format!("{} may be reached on {}\n", self.fqdn, style.paint(Paint::Strong, &ports.join(" "))),
        }
    }
}

impl Show for BlockList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["BLOCK", "FROM", "TO", "PORT", "SIGNED BY", "REASON"]);
        for block in &self.blocks {
            table.row([
                short(&block.id).into(),
                or_any(block.from.as_deref()),
                or_any(block.to.as_deref()),
                or_any(block.port.as_deref()),
                block.record.issuer.as_str().into(),
                or_none(Some(block.reason.clone()).filter(|reason| !reason.is_empty()), |reason| reason),
            ]);
        }
        table.render_or("no active blocks", style)
    }
}

fn or_any(value: Option<&str>) -> Cell {
    Cell::new(value.unwrap_or("any"))
}

/// The answer to `block` and `unblock`.
impl Show for BlockView {
    fn show(&self, style: Style) -> String {
        let verb = if self.lifted { "lifted" } else { "signed" };
        let id = style.paint(Paint::Strong, &short(&self.id));
        let any = |value: &Option<String>| value.clone().unwrap_or_else(|| "any".to_owned());
        let (from, to, port) = (any(&self.from), any(&self.to), any(&self.port));
        let mut text = format!("{verb} block {id}: from {from} to {to}, port {port}\n");
        if !self.lifted {
            text.push_str(&super::hint(&format!("lift it with `meshctl unblock {}`", short(&self.id)), style));
        }
        text
    }
}

impl Show for Explanation {
    fn show(&self, style: Style) -> String {
        let verdict = if self.allowed { ("allowed", Paint::Good) } else { ("denied", Paint::Bad) };
        let verdict = style.paint(verdict.1, verdict.0);
        let mut text =
            format!("{verdict}: {} from {} to {}\n", self.flow, party(&self.source), party(&self.destination));
        text.push_str(&format!("because {}\n", self.reason));
        if let Some(decider) = &self.decided_by {
            text.push_str(&format!("decided by {}\n", record(decider)));
        }
        if !self.steps.is_empty() {
            let mut table = Table::new(&[">STEP", "LOOKED AT", "VERDICT", "FOUND", "RECORD"]);
            for (index, step) in self.steps.iter().enumerate() {
                let verdict = match step.verdict {
                    StepVerdict::Continue => Cell::new("continue").paint(Paint::Dim),
                    StepVerdict::Allow => Cell::new("allow").paint(Paint::Good),
                    StepVerdict::Deny => Cell::new("deny").paint(Paint::Bad),
                };
                table.row([
                    (index + 1).to_string().into(),
                    step.title.as_str().into(),
                    verdict,
                    step.detail.as_str().into(),
                    or_none(step.record.as_ref(), record),
                ]);
            }
            text.push_str(&format!("\n{}", table.render(style)));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&super::hint(hint, style));
        }
        text
    }
}

fn party(party: &PartyView) -> String {
    match (&party.node, &party.site, &party.address) {
        (Some(node), Some(site), Some(address)) => match (party.kind, &party.workload) {
            (PartyKind::Host, _) => format!("{node}.{site} ({address})"),
            (PartyKind::Workload, Some(workload)) => format!("{workload}.{node}.{site} ({address})"),
            (PartyKind::Workload, None) => format!("a workload of {node}.{site} ({address})"),
        },
        _ => format!("{} (no reachable member)", party.asked),
    }
}

impl Show for EventList {
    fn show(&self, style: Style) -> String {
        if self.events.is_empty() {
            "no events\n".to_owned()
        } else {
            self.events.iter().map(|e| e.show(style)).collect()
        }
    }
}

impl Show for EventView {
    /// One line, the same in lists and in streams.
    fn show(&self, style: Style) -> String {
        let paint = match self.severity {
            Severity::Info => Paint::Plain,
            Severity::Warning => Paint::Warn,
            Severity::Error => Paint::Bad,
        };
        let vdc = self.vdc.as_deref().unwrap_or("-");
        let kind = style.paint(paint, &format!("{:<18}", self.kind));
        format!("{}  {vdc:<10}  {kind}  {}\n", style.paint(Paint::Dim, &self.at), self.message)
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    const PLAIN: fn() -> Style = || Style::new(false);

    #[test]
    fn explanation_names_the_deciding_record() {
        assert_eq!(
            samples::explanation().show(PLAIN()),
            "\
allowed: 80/tcp from lisbon1.lisbon (fd5a:3c71:9e02:3:a1b2:c3d3:0:1) to berlin1.berlin (fd5a:3c71:9e02:2:a1b2:c3d2:0:1)
because rule members of policy version 1 allows declared ports, and berlin1 declared 80/tcp
decided by policy 0303030303030303, number 3 by paris1.paris

STEP  LOOKED AT      VERDICT   FOUND                               RECORD
   1  block records  continue  1 active, none matches              -
   2  rule members   allow     declared ports; 80/tcp is declared  exposure 0909090909090909, number 9 by paris1.paris
"
        );
    }

    #[test]
    fn denial_of_a_stranger_is_told() {
        let mut explanation = samples::explanation();
        explanation.allowed = false;
        explanation.source.node = None;
        explanation.source.asked = "fd00::9".into();
        (explanation.steps, explanation.decided_by) = (vec![], None);
        explanation.reason = "no reachable member owns fd00::9".into();
        let text = explanation.show(PLAIN());
        assert!(text.starts_with("denied: 80/tcp from fd00::9 (no reachable member) to berlin1.berlin"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn workloads_are_parties_by_name_or_as_their_nodes() {
        let mut explanation = samples::explanation();
        explanation.source.kind = PartyKind::Workload;
        (explanation.destination.kind, explanation.destination.workload) = (PartyKind::Workload, Some("web".into()));
        let text = explanation.show(PLAIN());
        let from = "from a workload of lisbon1.lisbon (fd5a:3c71:9e02:3:a1b2:c3d3:0:1)";
        assert!(text.contains(from) && text.contains(" to web.berlin1.berlin (fd5a:"), "{text}");
    }

    #[test]
    fn ports_blocks_and_events_are_listed() {
        assert_eq!(
            samples::exposure_list().show(PLAIN()),
            "\
NODE     SITE    WORKLOAD  PORTS
berlin1  berlin  -         80/tcp 8000-8010/udp
berlin1  berlin  web       80/tcp
"
        );
        assert_eq!(
            samples::exposure_list().exposures[1].show(PLAIN()),
            "berlin1.berlin.acme.internal may be reached on 80/tcp 8000-8010/udp\n"
        );
        assert_eq!(
            samples::block_list().show(PLAIN()),
            "\
BLOCK     FROM            TO   PORT     SIGNED BY     REASON
e7e7e7e7  lisbon1.lisbon  any  445/tcp  paris1.paris  worm
"
        );
        assert_eq!(
            samples::block().show(PLAIN()),
            "signed block e7e7e7e7: from lisbon1.lisbon to any, port 445/tcp\nhint: lift it with `meshctl unblock e7e7e7e7`\n"
        );
        assert_eq!(
            samples::event_list().show(PLAIN()),
            "\
2026-03-01T12:00:01Z  acme        node-joined         berlin1 joined site berlin by invite 3f3f3f3f
2026-03-01T12:00:02Z  acme        node-revoked        lisbon1 was revoked: stolen
"
        );
    }
}
