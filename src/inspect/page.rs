//! The page at `GET /`: the last requests, newest first. Pure. No script and nothing loaded from elsewhere.
//!
//! Invariant: everything that came with a request goes through [`escape`].

use std::fmt::Write as _;

use super::record::{Record, Verdict};

/// Sent with the page: even if something slipped through, nothing would run.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>tidings inspect</title>
<style>
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; } code, pre { font: 13px/1.4 ui-monospace, monospace; }
article { border: 1px solid #8885; border-left: 4px solid #888; border-radius: 6px; margin: .6rem 0; padding: .5rem .8rem; }
article.good { border-left-color: #2a8a4a; } article.bad { border-left-color: #c0392b; }
.top { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; }
.good strong { color: #2a8a4a; } .bad strong { color: #c0392b; } .why, footer, time { opacity: .75; }
pre { overflow: auto; max-height: 20rem; margin: .4rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-spacing: .8rem 0; } td { vertical-align: top; overflow-wrap: anywhere; }
</style></head><body><h1>tidings inspect</h1>
"#;

/// Renders the page.
pub fn render<'a>(records: impl Iterator<Item = &'a Record>, total: u64) -> String {
    let mut page = String::from(HEAD);
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "<p>{total} requests since the start. As JSON: <a href=\"/requests\">/requests</a></p>"
    );
    for record in records {
        let _ = article(&mut page, record);
    }
    if total == 0 {
        page.push_str("<p>Nothing has arrived yet.</p>");
    }
    page.push_str("</body></html>\n");
    page
}

fn article(page: &mut String, record: &Record) -> std::fmt::Result {
    let class = match record.verdict {
        Verdict::Verified => "good",
        Verdict::Unchecked => "",
        _ => "bad",
    };
    writeln!(
        page,
        "<article class=\"{class}\"><div class=\"top\"><strong>{:?}</strong>",
        record.verdict
    )?;
    writeln!(page, "<code>{} {}</code>", escape(&record.method), escape(&record.path))?;
    let id = record.id.as_deref().unwrap_or("no webhook-id");
    writeln!(
        page,
        "<code>{}</code><span>request {} with this id</span>",
        escape(id),
        record.attempt
    )?;
    writeln!(
        page,
        "<span>answered {}</span><time>{}</time></div>",
        record.status,
        escape(&record.time)
    )?;
    writeln!(
        page,
        "<div class=\"why\">{}</div><details><summary>Headers</summary><table>",
        escape(&record.why)
    )?;
    for (name, value) in &record.headers {
        writeln!(
            page,
            "<tr><td>{}</td><td><code>{}</code></td></tr>",
            escape(name),
            escape(value)
        )?;
    }
    page.push_str("</table></details>");
    let body = record.body.as_deref().or(record.body_base64.as_deref()).unwrap_or("");
    let note = match (record.body_base64.is_some(), record.body_truncated) {
        (true, _) => " (its beginning, in base64)",
        (false, true) => " (its beginning)",
        (false, false) => "",
    };
    writeln!(
        page,
        "<pre>{}</pre><footer>{} bytes{note}</footer></article>",
        escape(body),
        record.bytes
    )
}

/// Text for an HTML element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            // Control characters, and those that turn the direction of text, as the code points they are.
            _ if character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_arrives_becomes_markup() {
        let evil = "<script>alert('1')</script>\"&\u{202e}\u{1b}[2J";
        let record = Record {
            time: "2026-11-24T12:00:00Z".into(),
            method: evil.into(),
            path: evil.into(),
            id: Some(evil.into()),
            attempt: 1,
            verdict: Verdict::NoSignature,
            why: evil.into(),
            status: 200,
            bytes: 3,
            headers: vec![(evil.into(), evil.into())],
            body: Some(evil.into()),
            body_base64: None,
            body_truncated: false,
        };
        let page = render([&record].into_iter(), 1);
        assert!(!page.contains("<script") && !page.contains('\u{1b}') && !page.contains('\u{202e}'));
        assert_eq!(
            page.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;")
                .count(),
            7
        );
    }
}
