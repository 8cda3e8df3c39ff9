//! The reference of all fields, for people: a page made of the CustomResourceDefinitions, as `kubectl explain` is. Pure.
//!
//! Owns how a schema is told, and nothing of what it says. Invariant: what is in `docs/reference.md` is exactly this.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

const HEAD: &str = "\
# Reference of the resources

Every field of every kind: what `kubectl explain` says, with types, defaults, bounds and rules. Made of the
CustomResourceDefinitions by `make crds`; change the types in `src/api/`, not this page. How the fields work together is in
[the API](api.md).

A *rule* is checked by the API server, which refuses a manifest with its sentence. `[]` stands for each item of a list, `{}` for
each value of a map. Where no default is said, what is left out is absent.
";

/// The page, in Markdown.
pub fn markdown(definitions: &[CustomResourceDefinition]) -> String {
    let mut page = HEAD.to_owned();
    let names = definitions.iter().map(|definition| &definition.spec.names.kind);
    let links: Vec<String> = names
        .map(|kind| format!("[{kind}](#{})", kind.to_lowercase()))
        .collect();
    let _ = write!(page, "\n{}\n", links.join(" · "));
    for definition in definitions {
        kind(definition, &mut page);
    }
    page
}

fn kind(definition: &CustomResourceDefinition, page: &mut String) {
    let names = &definition.spec.names;
    let _ = write!(page, "\n## {}\n", names.kind);
    for version in &definition.spec.versions {
        let schema = version
            .schema
            .as_ref()
            .and_then(|schema| schema.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema).expect("a schema is plain data");
        let short: Vec<String> = names
            .short_names
            .iter()
            .flatten()
            .map(|name| format!("`{name}`"))
            .collect();
        let short = if short.is_empty() {
            String::new()
        } else {
            format!(", for short {}", short.join(", "))
        };
        let _ = write!(
            page,
            "\n`{}/{}`{short}. {}\n",
            definition.spec.group,
            version.name,
            text(&schema)
        );
        for rule in rules(&schema) {
            let _ = write!(page, "\nRule: {rule}.\n");
        }
        let columns = version.additional_printer_columns.iter().flatten();
        let columns: Vec<String> = columns
            .map(|column| {
                let wide = if column.priority.unwrap_or(0) > 0 {
                    ", with `-o wide`"
                } else {
                    ""
                };
                let what = column.description.as_deref().unwrap_or(&column.json_path);
                format!("| {} | {}{wide} |\n", column.name.to_uppercase(), cell(what))
            })
            .collect();
        let _ = write!(page, "\n| column of `kubectl get` | |\n|---|---|\n{}", columns.concat());
        for part in ["spec", "status"] {
            let Some(inside) = schema["properties"].get(part) else {
                continue;
            };
            let _ = write!(
                page,
                "\n### {} of {}\n\n{}\n",
                part,
                with_article(&names.kind),
                text(inside)
            );
            for rule in rules(inside) {
                let _ = write!(page, "\nRule: {rule}.\n");
            }
            page.push_str("\n| field | type | default | |\n|---|---|---|---|\n");
            fields(inside, "", page);
        }
    }
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// A row for each field below, in the order of the alphabet.
fn fields(schema: &Value, path: &str, page: &mut String) {
    let required = |name: &str| {
        let list = schema["required"].as_array();
        list.is_some_and(|list| list.iter().any(|one| one == name))
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let default = match field.get("default") {
            Some(default) => format!("`{}`", cell(&default.to_string())),
            None if required(name) => "required".into(),
            None => String::new(),
        };
        let mut about = vec![text(field)];
        about.extend(rules(field).into_iter().map(|rule| format!("Rule: {rule}.")));
        about.retain(|part| !part.is_empty());
        let about = cell(&about.join(" "));
        let _ = writeln!(page, "| `{path}` | {} | {default} | {about} |", kind_of(field));
        let (items, values) = (&field["items"], &field["additionalProperties"]);
        fields(field, &path, page);
        fields(items, &format!("{path}[]"), page);
        fields(values, &format!("{path}{{}}"), page);
    }
}

/// The type, with its bounds.
fn kind_of(schema: &Value) -> String {
    let mut parts = vec![
        match (schema["type"].as_str(), schema["additionalProperties"]["type"].as_str()) {
            (Some("array"), _) => format!("list of {}", kinds_of(&schema["items"])),
            (Some("object"), Some(_)) => format!("map of {}", kinds_of(&schema["additionalProperties"])),
            _ => name(schema),
        },
    ];
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values
            .iter()
            .map(|value| format!("`{}`", value.as_str().unwrap_or_default()))
            .collect();
        parts = vec![values.join(", ")];
    }
    parts.extend(bounds(schema));
    parts.join(", ")
}

/// The type of many: of a list's items, of a map's values. Their own bounds are in parentheses, apart from the list's.
fn kinds_of(schema: &Value) -> String {
    match &*bounds(schema) {
        [] => format!("{}s", name(schema)),
        bounds => format!("{}s ({})", name(schema), bounds.join(", ")),
    }
}

fn name(schema: &Value) -> String {
    match schema["format"].as_str() {
        Some("date-time") => "time".to_owned(),
        _ => schema["type"].as_str().unwrap_or("any value").to_owned(),
    }
}

fn bounds(schema: &Value) -> Vec<String> {
    let number = |key: &str| schema[key].as_f64();
    let spans = [
        span(number("minimum"), number("maximum"), ""),
        span(number("minLength"), number("maxLength"), " characters"),
        span(number("minItems"), number("maxItems"), " items"),
        span(None, number("maxProperties"), " entries"),
    ];
    spans.into_iter().flatten().collect()
}

fn span(least: Option<f64>, most: Option<f64>, unit: &str) -> Option<String> {
    match (least, most) {
        (Some(least), Some(most)) if least == most => Some(format!("{least}{unit}")),
        (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
        (Some(least), None) => Some(format!("at least {least}{unit}")),
        (None, Some(most)) => Some(format!("at most {most}{unit}")),
        (None, None) => None,
    }
}

/// What its rules say, in the sentences that a person meets.
fn rules(schema: &Value) -> Vec<String> {
    let rules = schema["x-kubernetes-validations"].as_array();
    let sentence = |rule: &Value| {
        let said = rule["message"].as_str().or(rule["rule"].as_str()).unwrap_or_default();
        said.trim_end_matches('.').to_owned()
    };
    rules.into_iter().flatten().map(sentence).collect()
}

fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().trim().to_owned()
}

/// As it can stand in a table.
fn cell(text: &str) -> String {
    let escaped = text.replace('|', "\\|").replace('<', "\\<").replace('*', "\\*");
    escaped.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::crd;

    #[test]
    fn the_page_in_docs_is_what_the_types_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let same = kept == markdown(&crd::crds());
        assert!(same, "docs/reference.md has drifted; make it anew with: make crds");
    }

    #[test]
    fn every_field_has_a_row_with_its_text_and_rules_have_their_sentences() {
        let page = markdown(&crd::crds());
        for row in page.lines().filter(|line| line.starts_with("| `")) {
            assert_eq!(row.replace("\\|", "").matches('|').count(), 5, "{row}");
            // Those of conditions are Kubernetes' own, and have a text each, too.
            assert!(!row.ends_with("|  |"), "there is no text: {row}");
        }
        for row in [
            "| `retry.exponential.attempts` | integer, 1 to 64 | required | Attempts in all, 1 to 64.",
            "| `headers[].name` |",
            "| `signing.scheme` | `StandardWebhooks`, `StandardWebhooksEd25519`, `GitHub`, `Stripe`, `None` | `\"StandardWebhooks\"` |",
            "| `delivery.recentFailures[].reason` |",
            "| `eventTypes` | list of strings (1 to 253 characters), 1 to 64 items | required |",
            "| `selector.ids` | list of strings (17 characters), 1 to 500 items |",
            "| `signing.secretTemplate.labels` | map of strings (at most 63 characters), at most 32 entries |",
        ] {
            assert!(page.contains(row), "{row}");
        }
        assert!(page.contains("Rule: retry needs one of schedule and exponential: remove one of them."));
    }
}
