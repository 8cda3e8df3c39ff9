//! Pages of docs/ that a person follows, followed: every `sh` block of each, in order, as it is there, in what `make up` starts.

use serde_json::Value;
use tidings_cluster::{Page, eventually};

use super::local::{Place, run, shell};
use super::team::PATIENCE;

/// They continue each other.
const PAGES: [&str; 5] = ["first-webhook", "sharing-keys", "debugging", "replaying", "rotation"];

#[test]
fn the_pages_work_when_they_are_pasted() {
    let place = Place::new();
    run(&place.dir, "up");
    for name in PAGES {
        let page = Page::read(&format!("docs/{name}.md"));
        let blocks = page.blocks().into_iter().filter(|block| block.language == "sh");
        let script: String = blocks.map(|block| block.text).collect();
        assert!(!script.is_empty(), "{name}");
        let said = shell(&place.dir, &script);
        let got = |words: &str| shell(&place.dir, &format!("kubectl get -n shop {words}"));
        match name {
            "first-webhook" => {
                assert!(
                    said.contains(r#"{"id":"lead-2041","matched":1,"duplicate":false}"#),
                    "{said}"
                );
                assert!(
                    said.contains("whsec_") && said.contains(r#""state":"delivered""#),
                    "{said}"
                );
                assert!(said.contains("Succeeding"), "{said}");
            }
            "sharing-keys" => assert!(said.contains("yes") && said.contains("whsec_"), "{said}"),
            "debugging" => {
                // The message's attempts, what is sent, and what the inspector saw.
                assert!(
                    said.contains(r#""statusCode": 503"#) && said.contains(r#""reason": "ServerError""#),
                    "{said}"
                );
                assert!(said.contains(r#""verdict": "Verified""#), "{said}");
                assert!(said.contains("Ben Okri"), "{said}");
            }
            "replaying" => {
                let replay: Value = serde_json::from_str(&got("replay leads-again -o json")).unwrap();
                assert_eq!(
                    (&replay["status"]["matched"], &replay["status"]["succeeded"]),
                    (&2.into(), &2.into())
                );
                assert!(said.contains("leads-count"), "{said}");
            }
            _ => {
                // Each message of the condition names the key to share.
                assert!(said.contains("share key") || said.contains("key k"), "{said}");
                let rotating = r#"whe/crm -o jsonpath='{.status.conditions[?(@.type=="KeyRotating")].reason}'"#;
                eventually("the end of the overlap", PATIENCE, || {
                    Ok(got(rotating).trim().is_empty())
                })
                .unwrap();
                let secret: Value = serde_json::from_str(&got("secret crm-signing -o json")).unwrap();
                assert!(secret["data"]["previous"].is_null(), "it was revoked");
            }
        }
    }
    run(&place.dir, "down");
}
