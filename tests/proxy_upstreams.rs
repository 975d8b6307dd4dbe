//! Several servers behind one proxy.

use std::collections::BTreeSet;
use std::time::Duration;

use tapedeck_recording::Outcome;

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script};
use crate::support::nobody::Nobody;
use crate::support::programs::run_line;
use crate::support::proxy::{ProxyProcess, converse, post};

const LONG: Duration = Duration::from_secs(10);
const BODY: &str = r#"{"model":"m","stream":true}"#;

fn server() -> MockLlm {
    MockLlm::start(Script::always(Stream::chat(2, 0, 0).reply()))
}

/// Status of the answer to a request for `path`.
fn ask(proxy: &ProxyProcess, path: &str) -> String {
    let seen = converse(proxy.addr, &post(path, "", BODY), LONG);
    seen.status.split(' ').next().unwrap().to_owned()
}

fn paths(mock: &MockLlm) -> Vec<String> {
    let served = mock.ledger().into_iter();
    served.map(|served| served.request.path.clone()).collect()
}

#[test]
fn servers_take_turns_and_the_longest_prefix_has_its_own() {
    let (one, two, keeps, goes) = (server(), server(), server(), server());
    let kept = format!("/v1/special={}", keeps.url());
    let gone = format!("/v1/special/deep/={}/base/", goes.url());
    let dir = tempfile::tempdir().unwrap();
    let further = ["--upstream", &two.url(), &kept, "--upstream", &gone];
    let proxy = ProxyProcess::start(&one.url(), dir.path(), &further);
    for path in [
        "/v1/chat/completions",
        "/v1/chat/completions",
        "/v1/special/chat/completions?a=b",
        "/v1/special/deep/v1/chat/completions",
        "/v1/specials/chat/completions",
        "/v1/chat/completions",
    ] {
        assert_eq!(ask(&proxy, path), "200", "{path}");
    }
    let requests = |label: &str| {
        let name = "tapedeck_proxy_upstream_requests_total";
        proxy.metric(&format!("{name}{{upstream=\"{label}\"}}"))
    };
    assert_eq!((requests(&one.url()), requests(&two.url())), (2.0, 2.0));
    assert_eq!(requests(&kept), 1.0);
    let rows = proxy.finish();
    assert_eq!(paths(&one).len(), 2);
    assert_eq!(
        paths(&two),
        ["/v1/chat/completions", "/v1/chat/completions"]
    );
    assert_eq!(paths(&keeps), ["/v1/special/chat/completions?a=b"]);
    assert_eq!(paths(&goes), ["/base/v1/chat/completions"]);
    let workers: Vec<&str> = rows
        .requests
        .iter()
        .filter_map(|r| r.worker.as_deref())
        .collect();
    let (one, two, keeps, goes) = (one.url(), two.url(), keeps.url(), goes.url());
    assert_eq!(workers, [&one, &two, &keeps, &goes, &one, &two]);
    // The client's own path is what is recorded.
    assert_eq!(
        &*rows.requests[3].url_path,
        "/v1/special/deep/v1/chat/completions"
    );
    // A connection belongs to one server, and its number to one connection.
    let connections = rows.requests.iter();
    let connections = connections.map(|r| (r.conn_id, r.worker.clone(), r.conn_reused));
    let opened: Vec<_> = connections.clone().filter(|c| c.2 == Some(false)).collect();
    let numbers: BTreeSet<_> = opened.iter().map(|c| c.0).collect();
    assert_eq!(numbers.len(), opened.len());
    let owners: BTreeSet<_> = connections.map(|c| (c.0, c.1)).collect();
    assert_eq!(owners.len(), numbers.len());
}

#[test]
fn a_server_that_is_down_costs_its_own_requests_and_no_others() {
    let up = server();
    let nobody = Nobody::take();
    let down = nobody.url();
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&up.url(), dir.path(), &["--upstream", &down]);
    let statuses: Vec<String> = (0..4)
        .map(|_| ask(&proxy, "/v1/chat/completions"))
        .collect();
    assert_eq!(statuses, ["200", "502", "200", "502"]);
    let name = "tapedeck_proxy_upstream_unanswered_total";
    let unanswered = |url: &str| proxy.metric(&format!("{name}{{upstream=\"{url}\"}}"));
    assert_eq!((unanswered(&up.url()), unanswered(&down)), (0.0, 2.0));
    let rows = proxy.finish();
    for (request, response) in rows.requests.iter().zip(&rows.responses) {
        let (url, outcome) = match request.request_id % 2 {
            0 => (up.url(), Outcome::Ok),
            _ => (down.clone(), Outcome::ConnectionError),
        };
        assert_eq!(request.worker.as_deref(), Some(url.as_str()));
        assert_eq!(response.outcome, outcome);
        assert_eq!(request.attempt, 0, "a proxy does not try again");
    }
}

#[test]
fn a_path_of_nobody_is_told_so_and_counted() {
    let mock = server();
    let dir = tempfile::tempdir().unwrap();
    let only = format!("/a={}", mock.url());
    let proxy = ProxyProcess::start(&only, dir.path(), &[]);
    assert_eq!(ask(&proxy, "/v1/chat/completions"), "404");
    assert_eq!(ask(&proxy, "/a/v1/chat/completions"), "200");
    let unrecorded = "tapedeck_proxy_unrecorded_requests_total{reason=\"upstream\"}";
    assert_eq!(proxy.metric(unrecorded), 1.0);
    // The log keeps up, and says so.
    proxy.await_metric("tapedeck_proxy_wal_lag_seconds ", 0.0);
    assert!(proxy.metric("tapedeck_proxy_wal_sync_lag_seconds ") < 10.0);
    assert_eq!(proxy.finish().requests.len(), 1);
}

#[test]
fn servers_that_cannot_be_told_apart_are_refused() {
    for (given, message) in [
        (
            "/a=http://127.0.0.1:1 /a=http://127.0.0.1:2",
            "--upstream /a=… is given twice",
        ),
        ("http://127.0.0.1:1 http://127.0.0.1:1", "is given twice"),
        ("/a", "--upstream /a names no server"),
    ] {
        let line = format!("proxy --listen 127.0.0.1:0 --upstream {given}");
        let ran = run_line("record", &line).expect(2);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
    }
}
