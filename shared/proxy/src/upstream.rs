//! Where requests go: one server, or several of which the path or the turn
//! decides.

use std::ops::Range;

use http::uri::{PathAndQuery, Uri};
use tapedeck_live::Target;

/// A server and the paths that are its.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Whole segments that a path begins with, without a slash at the end; empty for
    /// every path.
    pub prefix: String,
    /// Stands in place of the prefix, without a slash at its end; `None` leaves the
    /// path as it came.
    pub base_path: Option<String>,
    pub target: Target,
    /// Scheme, host and port.
    pub origin: String,
}

impl Upstream {
    fn covers(&self, path: &str) -> bool {
        let rest = path.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| self.prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// How it is called in the metrics.
    pub(crate) fn label(&self) -> String {
        match self.prefix.as_str() {
            "" => self.origin.clone(),
            prefix => format!("{prefix}={}", self.origin),
        }
    }

    /// The path of a request there.
    pub(crate) fn uri(&self, uri: &Uri) -> Result<Uri, http::Error> {
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let base = match &self.base_path {
            Some(base) if path != "*" && !(base.is_empty() && self.prefix.is_empty()) => base,
            _ => return Uri::builder().path_and_query(path).build(),
        };
        let rest = path.strip_prefix(&self.prefix).unwrap_or(path);
        let slash = if rest.starts_with('/') { "" } else { "/" };
        let joined = format!("{base}{slash}{rest}");
        Uri::builder().path_and_query(joined).build()
    }
}

/// All servers, those of longer prefixes first.
#[derive(Debug, Clone)]
pub struct Upstreams(Vec<Upstream>);

impl Upstreams {
    /// Servers of equal prefix take turns.
    #[must_use]
    pub fn new(mut all: Vec<Upstream>) -> Self {
        all.sort_by(|a, b| {
            let longer_first = b.prefix.len().cmp(&a.prefix.len());
            longer_first.then_with(|| a.prefix.cmp(&b.prefix))
        });
        Self(all)
    }

    #[must_use]
    pub fn all(&self) -> &[Upstream] {
        &self.0
    }

    /// The place of the server for `path`; `turn` tells how many requests were
    /// placed before. `None` where no server takes it.
    pub(crate) fn choose(&self, path: &str, turn: impl FnOnce() -> u64) -> Option<usize> {
        let peers = self.covering(path)?;
        let count = peers.len() as u64;
        match count {
            1 => Some(peers.start),
            _ => Some(peers.start + (turn() % count) as usize),
        }
    }

    fn covering(&self, path: &str) -> Option<Range<usize>> {
        let first = self.0.iter().position(|upstream| upstream.covers(path))?;
        let prefix = &self.0[first].prefix;
        let peers = self.0[first..].iter().take_while(|u| u.prefix == *prefix);
        Some(first..first + peers.count())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn upstream(prefix: &str, base_path: Option<&str>, origin: &str) -> Upstream {
        Upstream {
            prefix: prefix.to_owned(),
            base_path: base_path.map(str::to_owned),
            target: Target {
                addrs: Vec::new(),
                host: String::new(),
                tls: None,
            },
            origin: origin.to_owned(),
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_decides() {
        let upstreams = Upstreams::new(vec![
            upstream("", None, "any"),
            upstream("/a", None, "a"),
            upstream("/a/b", None, "ab"),
        ]);
        for (path, expected) in [
            ("/a/b/c", "ab"),
            ("/a/b", "ab"),
            ("/a/bc", "a"),
            ("/a", "a"),
            ("/ab", "any"),
            ("*", "any"),
        ] {
            let found = upstreams.choose(path, || 0).unwrap();
            assert_eq!(upstreams.all()[found].origin, expected, "{path}");
        }
        let only = Upstreams::new(vec![upstream("/a", None, "a")]);
        assert_eq!(only.choose("/v1/models", || 0), None);
    }

    #[test]
    fn servers_without_a_prefix_take_turns_and_others_cost_no_turn() {
        let upstreams = Upstreams::new(vec![
            upstream("", None, "one"),
            upstream("/x", None, "x"),
            upstream("", None, "two"),
        ]);
        let turns = Cell::new(0);
        let next = || {
            turns.set(turns.get() + 1);
            turns.get() - 1
        };
        let chosen: Vec<&str> = ["/v1", "/x/1", "/v1", "/v1"]
            .iter()
            .map(|path| upstreams.choose(path, next).unwrap())
            .map(|at| upstreams.all()[at].origin.as_str())
            .collect();
        assert_eq!(chosen, ["one", "x", "two", "one"]);
    }

    #[test]
    fn a_base_path_stands_in_place_of_the_prefix() {
        let uri = |prefix: &str, base: Option<&str>, text: &str| {
            let upstream = upstream(prefix, base, "");
            upstream.uri(&text.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(uri("", Some(""), "/v1/x?a=b"), "/v1/x?a=b");
        assert_eq!(uri("", Some("/api"), "http://h/v1?q"), "/api/v1?q");
        assert_eq!(uri("", Some("/api"), "*"), "*");
        assert_eq!(uri("/a", None, "/a/v1?q"), "/a/v1?q");
        assert_eq!(uri("/a", Some(""), "/a/v1?q"), "/v1?q");
        assert_eq!(uri("/a", Some("/api"), "/a/v1"), "/api/v1");
        assert_eq!(uri("/a", Some(""), "/a?q"), "/?q");
    }
}
