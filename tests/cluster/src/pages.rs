//! The pages of documentation of this repository: what is in them, for tests that hold them to it.
//!
//! Invariant: a page is read as GitHub shows it (CommonMark with tables, anchors of headings).

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::repository_root;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// One page.
#[derive(Debug)]
pub struct Page {
    /// From the repository's root.
    pub path: String,
    pub text: String,
}

/// A fenced block of a page.
#[derive(Clone, Debug)]
pub struct Block {
    /// `docs/api.md:12`.
    pub at: String,
    /// The heading it is under.
    pub heading: String,
    /// The word after the fence.
    pub language: String,
    pub text: String,
}

impl Page {
    /// Reads a page, by its path from the repository's root.
    pub fn read(path: &str) -> Page {
        let text = fs::read_to_string(repository_root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Page {
            path: path.to_owned(),
            text,
        }
    }

    /// Every page of the repository that people read.
    pub fn all() -> Vec<Page> {
        let root = repository_root();
        let mut found = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
            .map(|page| root.join(page))
            .to_vec();
        for folder in ["docs", "charts", "examples", "deploy"] {
            collect(&root.join(folder), &mut found);
        }
        found.sort();
        let relative = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        found.iter().map(|path| Page::read(&relative(path))).collect()
    }

    fn events(&self) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        Parser::new_ext(&self.text, options).into_offset_iter()
    }

    fn at(&self, offset: usize) -> String {
        let line = self.text[..offset].matches('\n').count() + 1;
        format!("{}:{line}", self.path)
    }

    /// Its fenced blocks, in order.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut heading, mut in_heading) = (Vec::<Block>::new(), String::new(), false);
        let mut open: Option<Block> = None;
        for (event, range) in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => {
                    heading.clear();
                    in_heading = true;
                }
                Event::End(TagEnd::Heading(_)) => in_heading = false,
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    open = Some(Block {
                        at: self.at(range.start),
                        heading: heading.clone(),
                        language: language.to_string(),
                        text: String::new(),
                    });
                }
                Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
                Event::Text(text) | Event::Code(text) if in_heading => heading.push_str(&text),
                Event::Text(text) => {
                    if let Some(block) = &mut open {
                        block.text.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        blocks
    }

    /// The first block of this language under this heading.
    pub fn block(&self, heading: &str, language: &str) -> String {
        let found = self.blocks_under(heading, language).into_iter().next();
        found.unwrap_or_else(|| panic!("{}: no {language} under {heading}", self.path))
    }

    /// All blocks of this language under this heading.
    pub fn blocks_under(&self, heading: &str, language: &str) -> Vec<String> {
        let mut found = self.blocks();
        found.retain(|block| block.heading == heading && block.language == language);
        found.into_iter().map(|block| block.text).collect()
    }

    /// Where its links lead, and where they are.
    pub fn links(&self) -> Vec<(String, String)> {
        let mut links = Vec::new();
        for (event, range) in self.events() {
            if let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event {
                links.push((dest_url.to_string(), self.at(range.start)));
            }
        }
        links
    }

    /// Its `code` in running text, and where it is.
    pub fn code(&self) -> Vec<(String, String)> {
        let code = self.events().filter_map(|(event, range)| match event {
            Event::Code(code) => Some((code.to_string(), self.at(range.start))),
            _ => None,
        });
        code.collect()
    }

    /// The command in running text that begins so.
    pub fn command(&self, begins: &str) -> String {
        let found = self.code().into_iter().find(|(code, _)| code.starts_with(begins));
        found
            .unwrap_or_else(|| panic!("{}: no command begins {begins}", self.path))
            .0
    }

    /// The anchors of its headings, as GitHub makes them.
    pub fn anchors(&self) -> HashSet<String> {
        let (mut anchors, mut heading) = (HashSet::new(), None);
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = slug(&heading.take().unwrap_or_default());
                    let again = (1..).map(|n| format!("{anchor}-{n}"));
                    let mut names = std::iter::once(anchor.clone()).chain(again);
                    anchors.insert(names.find(|name| !anchors.contains(name)).unwrap());
                }
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        anchors
    }
}

fn slug(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "md") {
            into.push(path);
        }
    }
}
