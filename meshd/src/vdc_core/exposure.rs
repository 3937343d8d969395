//! The ports at which this host may be reached in the VDC.

use vdc::record::PortRange;
use vdc::roster::issue;
use vdc_api::{self as api, ApiError};

use super::Core;
use super::commands::not_a_member;
use super::issuing::Signer;
use crate::views;

impl Core {
    pub(crate) fn exposure_change(&mut self, change: &api::ExposureChange) -> Result<api::ExposureView, ApiError> {
        let parse = |field: &str, texts: &[String]| {
            texts
                .iter()
                .enumerate()
                .map(|(i, text)| {
                    let spec: Result<api::PortSpec, _> = text.parse();
                    spec.map(views::port_range)
                        .map_err(|e| ApiError::bad_request(&format!("{field}[{i}]"), e.to_string()))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let (add, remove) = (parse("add", &change.add)?, parse("remove", &change.remove)?);
        let own = self.own().ok_or_else(not_a_member)?;
        let held = own.ports().to_vec();
        let mut ports: Vec<_> = held.iter().copied().chain(add).collect();
        for gone in &remove {
            ports = ports.iter().flat_map(|range| without(range, gone)).collect();
        }
        let wanted = normalised(&ports);
        if wanted.len() > 256 {
            return Err(ApiError::bad_request("add", "a node can declare at most 256 port ranges"));
        }
        if wanted != normalised(&held) {
            // One record says what the host and what the workloads expose; each change takes the other's part along.
            let workloads = self.exposed_workloads();
            self.publish(Signer::Node, |view, key| issue::exposure(view, key, wanted.clone(), workloads.clone()))?;
        }
        let own = self.own().ok_or_else(not_a_member)?;
        Ok(self.with_context(|context| context.exposure(own)))
    }
}

/// Ascending, overlapping and adjacent ranges joined.
pub(super) fn normalised(ports: &[PortRange]) -> Vec<PortRange> {
    let mut sorted = ports.to_vec();
    sorted.sort();
    let mut joined: Vec<PortRange> = vec![];
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.protocol == range.protocol && u32::from(range.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What is left of `range` without `gone`.
fn without(range: &PortRange, gone: &PortRange) -> Vec<PortRange> {
    if range.protocol != gone.protocol || gone.last < range.first || range.last < gone.first {
        return vec![*range];
    }
    let mut left = vec![];
    if range.first < gone.first {
        left.push(PortRange { last: gone.first - 1, ..*range });
    }
    if gone.last < range.last {
        left.push(PortRange { first: gone.last + 1, ..*range });
    }
    left
}

#[cfg(test)]
mod tests {
    use vdc::record::Protocol;

    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { protocol: Protocol::Tcp, first, last }
    }

    #[test]
    fn ports_join_and_leave_gaps() {
        assert_eq!(normalised(&[range(82, 90), range(80, 80), range(81, 81)]), [range(80, 90)]);
        assert_eq!(without(&range(80, 90), &range(85, 86)), [range(80, 84), range(87, 90)]);
        assert_eq!(without(&range(80, 90), &range(1, 65535)), []);
        let udp = PortRange { protocol: Protocol::Udp, first: 80, last: 90 };
        assert_eq!(without(&range(80, 90), &udp), [range(80, 90)]);
    }
}
