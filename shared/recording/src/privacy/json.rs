//! Edits inside a JSON document that leave every other byte as it is.
//!
//! A parser would lose duplicate members, the order of digits and white space; a
//! recording keeps what was sent. So the document is only walked, and what is to
//! go is noted as a range.

use std::borrow::Cow;
use std::ops::Range;

/// Deepest nesting that is followed; a document beyond it counts as no JSON.
const MAX_DEPTH: u32 = 128;

/// The document cannot be walked to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotJson;

/// One step of a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// `*`: every element, every member.
    Every,
    /// A member's name, or an element's number.
    Name(String),
}

/// What a walk asks about the texts it meets.
pub(super) trait Scan {
    /// What is to stand for `text` (a string unescaped, or a number as written),
    /// `None` where it stays.
    fn replace(&self, text: &str) -> Option<String>;
}

type Edit = (Range<usize>, String);

/// `document` with every value that one of `pointers` leads to replaced by the JSON
/// `replacement`, and every string, member's name and number as `scan` says; `None`
/// where nothing is to be replaced.
pub(super) fn edited(
    document: &[u8],
    pointers: &[&[Step]],
    replacement: &str,
    scan: &dyn Scan,
) -> Result<Option<Vec<u8>>, NotJson> {
    let mut walk = Walk {
        document,
        at: 0,
        replacement,
        scan,
        edits: Vec::new(),
    };
    if document.starts_with(b"\xEF\xBB\xBF") {
        walk.at = 3;
    }
    walk.value(pointers, MAX_DEPTH)?;
    walk.space();
    if walk.at != document.len() {
        return Err(NotJson);
    }
    if walk.edits.is_empty() {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(document.len());
    let mut copied = 0;
    for (range, text) in walk.edits {
        out.extend_from_slice(&document[copied..range.start]);
        out.extend_from_slice(text.as_bytes());
        copied = range.end;
    }
    out.extend_from_slice(&document[copied..]);
    Ok(Some(out))
}

struct Walk<'a> {
    document: &'a [u8],
    at: usize,
    replacement: &'a str,
    scan: &'a dyn Scan,
    /// In the order of the document, none inside another.
    edits: Vec<Edit>,
}

impl<'a> Walk<'a> {
    fn space(&mut self) {
        let rest = &self.document[self.at..];
        let space = |b: &u8| b" \t\r\n".contains(b);
        self.at += rest.iter().take_while(|b| space(b)).count();
    }

    fn peek(&self) -> Result<u8, NotJson> {
        self.document.get(self.at).copied().ok_or(NotJson)
    }

    fn expect(&mut self, byte: u8) -> Result<(), NotJson> {
        self.space();
        if self.peek()? != byte {
            return Err(NotJson);
        }
        self.at += 1;
        Ok(())
    }

    /// One value; `pointers` are what is left of those that lead here or further.
    fn value(&mut self, pointers: &[&[Step]], depth: u32) -> Result<(), NotJson> {
        self.space();
        let (start, edits) = (self.at, self.edits.len());
        match self.peek()? {
            b'{' => self.object(pointers, depth.checked_sub(1).ok_or(NotJson)?)?,
            b'[' => self.list(pointers, depth.checked_sub(1).ok_or(NotJson)?)?,
            b'"' => drop(self.string()?),
            _ => self.scalar()?,
        }
        let value = &self.document[start..self.at];
        // Nothing is hidden by these, and a reader must not take them for text.
        let is_nothing = value == b"null" || value == b"\"\"";
        if !is_nothing && pointers.iter().any(|pointer| pointer.is_empty()) {
            self.edits.truncate(edits);
            let whole = (start..self.at, self.replacement.to_owned());
            self.edits.push(whole);
        }
        Ok(())
    }

    fn object(&mut self, pointers: &[&[Step]], depth: u32) -> Result<(), NotJson> {
        self.at += 1;
        self.space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let name = self.string()?;
            self.expect(b':')?;
            self.value(&below(pointers, &name), depth)?;
            self.space();
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b',' => {}
                b'}' => return Ok(()),
                _ => return Err(NotJson),
            }
        }
    }

    fn list(&mut self, pointers: &[&[Step]], depth: u32) -> Result<(), NotJson> {
        self.at += 1;
        self.space();
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        for index in 0_usize.. {
            let inner = match pointers.is_empty() {
                true => Vec::new(),
                false => below(pointers, &index.to_string()),
            };
            self.value(&inner, depth)?;
            self.space();
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b',' => {}
                b']' => break,
                _ => return Err(NotJson),
            }
        }
        Ok(())
    }

    /// A string, unescaped; it is replaced where the scan says so.
    fn string(&mut self) -> Result<Cow<'a, str>, NotJson> {
        let start = self.at;
        self.expect(b'"')?;
        let mut escaped = false;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let (document, range) = (self.document, start..self.at);
        let text = if escaped {
            let text = serde_json::from_slice(&document[range.clone()]);
            Cow::Owned(text.map_err(|_| NotJson)?)
        } else {
            let inner = std::str::from_utf8(&document[start + 1..self.at - 1]);
            Cow::Borrowed(inner.map_err(|_| NotJson)?)
        };
        if let Some(text) = self.scan.replace(&text) {
            let json = serde_json::Value::String(text).to_string();
            self.edits.push((range, json));
        }
        Ok(text)
    }

    /// A number, `true`, `false`, `null`, and the `NaN` that some servers write.
    fn scalar(&mut self) -> Result<(), NotJson> {
        let rest = &self.document[self.at..];
        let part = |b: &&u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
        let length = rest.iter().take_while(part).count();
        let text = std::str::from_utf8(&rest[..length]).map_err(|_| NotJson)?;
        if text.is_empty() {
            return Err(NotJson);
        }
        if text.contains(|c: char| c.is_ascii_digit()) && self.scan.replace(text).is_some() {
            let range = self.at..self.at + length;
            self.edits.push((range, self.replacement.to_owned()));
        }
        self.at += length;
        Ok(())
    }
}

/// What is left of `pointers` behind the member or element `name`.
fn below<'p>(pointers: &[&'p [Step]], name: &str) -> Vec<&'p [Step]> {
    let leads = |step: &Step| match step {
        Step::Every => true,
        Step::Name(wanted) => wanted == name,
    };
    pointers
        .iter()
        .filter_map(|pointer| pointer.split_first())
        .filter(|(step, _)| leads(step))
        .map(|(_, rest)| rest)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Digits;

    impl Scan for Digits {
        fn replace(&self, text: &str) -> Option<String> {
            text.contains("42").then(|| text.replace("42", "#"))
        }
    }

    struct Nothing;

    impl Scan for Nothing {
        fn replace(&self, _text: &str) -> Option<String> {
            None
        }
    }

    fn steps(pointer: &str) -> Vec<Step> {
        let names = pointer.split('/').skip(1);
        names
            .map(|name| match name {
                "*" => Step::Every,
                name => Step::Name(name.to_owned()),
            })
            .collect()
    }

    fn at(pointer: &str, document: &str) -> Result<Option<String>, NotJson> {
        let steps = steps(pointer);
        let out = edited(document.as_bytes(), &[&steps], "\"X\"", &Nothing)?;
        Ok(out.map(|out| String::from_utf8(out).unwrap()))
    }

    #[test]
    fn a_pointer_replaces_what_it_leads_to_and_no_other_byte() {
        let document = r#" {"a" : [ {"b":1.50, "c":"x"},{"b":{"d":[]}} ], "a":[{"b":0}],"e":"b"}"#;
        let expected = r#" {"a" : [ {"b":"X", "c":"x"},{"b":"X"} ], "a":[{"b":"X"}],"e":"b"}"#;
        assert_eq!(at("/a/*/b", document), Ok(Some(expected.to_owned())));
        assert_eq!(at("/a/1/b/e", document), Ok(None));
        assert_eq!(at("/*", r#"{"a":null,"b":""}"#), Ok(None));
        assert_eq!(at("", "[1]"), Ok(Some("\"X\"".to_owned())));
        assert_eq!(
            at("/*/b", r#"{"\u0062":2,"x":{"b":3}}"#),
            Ok(Some(r#"{"\u0062":2,"x":{"b":"X"}}"#.to_owned()))
        );
        assert_eq!(
            at("/b", r#"{"\u0062":2}"#),
            Ok(Some(r#"{"\u0062":"X"}"#.to_owned()))
        );
    }

    #[test]
    fn texts_are_scanned_unescaped_and_written_as_json() {
        let document = br#"{"k42":"a\"42\n","n":[1423,7,true],"s":"plain"}"#;
        let out = edited(document, &[], "\"X\"", &Digits).unwrap().unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, r##"{"k#":"a\"#\n","n":["X",7,true],"s":"plain"}"##);
    }

    #[test]
    fn what_is_no_whole_document_is_none() {
        for text in [
            "",
            "[DONE]x",
            "{\"a\":1",
            "{\"a\"}",
            "[1,]",
            "\"\\ud800\"",
            "{}{}",
            "[\"a",
            "\"\\",
        ] {
            assert_eq!(at("/a", text), Err(NotJson), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(at("/a", &deep), Err(NotJson));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let steps = steps("/a/*");
            edited(&bytes, &[&steps], "\"X\"", &Digits).ok();
        }

        #[test]
        fn an_edited_document_is_still_one(text in "[\\[\\]{}\",:a42 ]{0,24}") {
            let steps = steps("/a/*");
            if let Ok(Some(out)) = edited(text.as_bytes(), &[&steps], "\"X\"", &Digits) {
                edited(&out, &[], "\"X\"", &Nothing).unwrap();
            }
        }
    }
}
