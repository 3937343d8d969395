//! The committed OpenAPI document, and the forms that clients may rely on.

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vdc_api::{
        ErrorBody, ErrorCode, EventsQuery, GroupState, InviteCreate, JoinEvent, PingEvent, PingQuery, StepState,
        StepView,
    };

    #[test]
    fn openapi_document_is_the_committed_one() {
        let committed = include_str!("../openapi.json");
        let mut current = serde_json::to_string_pretty(&vdc_api::openapi()).expect("the document is plain data");
        current.push('\n');
        if committed == current {
            return;
        }
        let line = committed.lines().zip(current.lines()).position(|(a, b)| a != b).map_or(0, |index| index + 1);
        panic!(
            "vdc/api/openapi.json is not what the types say (first difference in line {line}); if the change is meant, \
             run `cargo run -p vdc-api --example openapi` and commit the file"
        );
    }

    #[test]
    fn every_reference_of_the_document_resolves() {
        let document = serde_json::to_value(vdc_api::openapi()).expect("plain data");
        let mut references = Vec::new();
        collect_references(&document, &mut references);
        assert!(references.len() > 100, "the walk found the references");
        for reference in references {
            let pointer = reference.strip_prefix('#').expect("local");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        for operation in vdc_api::endpoint::ALL {
            let item = &document["paths"][operation.path][operation.method.as_str().to_lowercase()];
            assert_eq!(item["operationId"], operation.id);
        }
    }

    fn collect_references(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        serde_json::Value::String(text) if key == "$ref" => into.push(text.clone()),
                        _ => collect_references(value, into),
                    }
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| collect_references(value, into)),
            _ => {}
        }
    }

    #[test]
    fn requests_have_defaults_and_refuse_unknown_fields() {
        let empty: InviteCreate = serde_json::from_str("{}").expect("all has defaults");
        assert_eq!(empty, InviteCreate::default());
        let error = serde_json::from_str::<InviteCreate>(r#"{"expire_s": 5}"#).expect_err("misspelt");
        assert!(error.to_string().contains("expire_s"), "{error}");
        let ping: PingQuery = serde_json::from_str(r#"{"target":"a"}"#).expect("a target is enough");
        assert_eq!(ping, PingQuery::new("a"));
        assert_eq!(serde_json::from_str::<EventsQuery>("{}").expect("defaults"), EventsQuery::default());
    }

    #[test]
    fn responses_may_gain_fields() {
        let text =
            r#"{"code":"new-code","message":"m","hint":null,"causes":[],"field":null,"request_id":"r","more":1}"#;
        let body: ErrorBody = serde_json::from_str(text).expect("tolerant reader");
        assert_eq!(body.code, ErrorCode::Unknown);
    }

    #[test]
    fn stream_items_are_tagged() {
        let step = JoinEvent::Step(StepView {
            id: "redeem".into(),
            title: "redeem the invite".into(),
            state: StepState::Done,
            detail: None,
            elapsed_ms: 41,
        });
        assert_eq!(
            serde_json::to_string(&step).expect("plain"),
            r#"{"type":"step","id":"redeem","title":"redeem the invite","state":"done","detail":null,"elapsed_ms":41}"#
        );
        let lost = PingEvent::Lost { seq: 3, reason: "no reply".into() };
        assert_eq!(serde_json::to_string(&lost).expect("plain"), r#"{"type":"lost","seq":3,"reason":"no reply"}"#);
    }

    #[test]
    fn groups_are_told_in_words_that_stay() {
        let status = serde_json::to_value(vdc_api::samples::coord_status()).expect("plain");
        let (of_vdc, of_berlin) = (&status["groups"][0], &status["groups"][1]);
        assert_eq!((&of_vdc["home"], &of_vdc["state"]), (&json!("vdc"), &json!("serving")));
        assert_eq!(of_vdc["redundancy"]["level"], "none");
        assert_eq!((&of_berlin["home"], &of_berlin["role_here"]), (&json!({"site": "berlin"}), &json!("client")));
        let learner = json!({
            "node": "berlin2", "site": "berlin", "role": "learner", "reachable": true, "last_heard_ms": 140, "lag": 3,
            "since": "2026-03-01T09:30:00Z",
        });
        assert_eq!(of_vdc["members"][3], learner);
        for (state, word) in [
            (GroupState::Serving, "serving"),
            (GroupState::ReadOnly, "read-only"),
            (GroupState::NoLeader, "no-leader"),
            (GroupState::NotHere, "not-here"),
            (GroupState::Refused, "refused"),
        ] {
            assert_eq!(serde_json::to_value(state).expect("plain"), word);
        }
        // Backups outlive releases.
        let line = vdc_api::samples::backup_header().to_line().expect("short");
        let (vdc, group) = (vdc_api::samples::vdc().id, "4e".repeat(32));
        let expected = format!(
            r#"meshd-coord-backup/1 {{"vdc":"{vdc}","home":{{"site":"berlin"}},"group":"{group}","revision":498,"keys":38,"about_bytes":10000,"taken_at":"2026-03-01T03:00:00Z","node":"berlin2.berlin"}}"#
        );
        assert_eq!(line, expected + "\n");
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let join = vdc_api::JoinRequest { token: "vdc1.secret".into(), name: None, node: None };
        assert!(!format!("{join:?}").contains("secret"));
    }
}
