//! A new element, and how it is written.

use std::fmt::Write as _;

/// An element that is to be put into the XML.
pub(super) struct Element {
    pub(super) tag: &'static str,
    attributes: Vec<(String, String)>,
    children: Vec<Element>,
}

impl Element {
    pub(super) fn new(tag: &'static str) -> Element {
        Element {
            tag,
            attributes: Vec::new(),
            children: Vec::new(),
        }
    }

    /// With one more attribute, whose value is not escaped yet.
    pub(super) fn with(mut self, name: &str, value: &str) -> Element {
        self.attributes.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With one more child.
    pub(super) fn child(mut self, child: Element) -> Element {
        self.children.push(child);
        self
    }

    /// Its text. `line` is the line break and indentation before it, empty where all is on one
    /// line; each child has one of its own, indented by `unit` more.
    pub(super) fn render(&self, line: &str, unit: &str) -> String {
        let mut text = format!("<{}", self.tag);
        for (name, value) in &self.attributes {
            // Writing into a string cannot fail.
            let _ = write!(text, " {name}=\"{}\"", escape(value));
        }
        if self.children.is_empty() {
            return text + "/>";
        }
        text.push('>');
        let below = match line {
            "" => String::new(),
            line => format!("{line}{unit}"),
        };
        for child in &self.children {
            text += &below;
            text += &child.render(&below, unit);
        }
        text + line + "</" + self.tag + ">"
    }
}

/// A value as it stands between quotes of either kind.
pub(super) fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&apos;"),
            // Bare, these would be read back as spaces.
            '\n' => text.push_str("&#10;"),
            '\r' => text.push_str("&#13;"),
            '\t' => text.push_str("&#9;"),
            other => text.push(other),
        }
    }
    text
}
