//! Objectives as they are typed, before hours of load are spent on them.

use tapedeck_analyze::cli::parse_slo;
use tapedeck_analyze::{Parameters, Session, Slo, models, session};

use crate::support::programs::run;
use crate::support::recording;

#[track_caller]
fn parsed(text: &str) -> (String, f64) {
    let slo = parse_slo(text).unwrap();
    (slo.metric, slo.bound)
}

#[test]
fn both_separators_and_the_short_names_of_vllm_are_understood() {
    for (text, metric, bound) in [
        ("ttft_ms=200", "ttft_ms", 200.0),
        ("ttft=200", "ttft_ms", 200.0),
        ("ttft:200", "ttft_ms", 200.0),
        ("tpot:7.5", "tpot_ms", 7.5),
        ("e2el:1e3", "e2el_ms", 1000.0),
        (" e2el_ms : 9 ", "e2el_ms", 9.0),
        ("output_tokens_per_s:30", "output_tokens_per_s", 30.0),
    ] {
        assert_eq!(parsed(text), (metric.to_owned(), bound), "{text}");
    }
}

#[test]
fn a_metric_that_requests_do_not_have_is_refused_with_the_known_ones() {
    for (text, named) in [
        ("nope=1", "nope"),
        ("itl:20", "itl_ms"),
        ("itl_ms=20", "itl_ms"),
        // Columns of a request that are no metric of it.
        ("request_id=1", "request_id"),
        ("t_sent_ns=1", "t_sent_ns"),
        ("=1", ""),
    ] {
        let error = parse_slo(text).unwrap_err();
        let opening =
            format!("no request has one value of {named}\nhint: an SLO can bound ttft_ms, ");
        assert!(error.starts_with(&opening), "{text}: {error}");
    }
}

#[test]
fn a_bound_is_a_finite_number() {
    for text in [
        "ttft_ms",
        "ttft_ms=",
        "ttft=fast",
        "ttft=inf",
        "ttft=NaN",
        "ttft:20:5",
    ] {
        assert!(parse_slo(text).is_err(), "{text}");
    }
}

/// Names are checked without a session; this holds them to the view that an SLO
/// is judged by.
#[test]
fn every_metric_of_a_request_can_be_bounded_and_nothing_else() {
    #[derive(serde::Deserialize)]
    struct Row {
        metric: String,
    }
    let dir = tempfile::tempdir().unwrap();
    let mut events = tapedeck_recording::EventBatch::default();
    events.requests.push(recording::request(0, 0));
    events.responses.push(recording::response(0, 1, 0, None));
    let path = recording::write(&dir.path().join("r"), recording::manifest("r"), 9, [events]);
    let rows: Vec<Row> = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let recordings = session::open_all(&[path]).unwrap();
        let session = Session::open(recordings, &Parameters::default()).await;
        let sql = "SELECT metric FROM request_metric";
        session.unwrap().rows(sql).await.unwrap()
    });
    let mut judged: Vec<String> = rows.into_iter().map(|row| row.metric).collect();
    let mut known: Vec<&str> = models::slo_metrics().collect();
    judged.sort();
    known.sort_unstable();
    assert_eq!(known, judged);
    for metric in known {
        assert!(Slo::new(metric, 1.0).is_ok());
    }
}

#[test]
fn a_run_with_an_unknown_objective_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let ran = run(
        "record",
        [
            "load",
            "--url",
            "sim:",
            "--number",
            "1",
            "--slo",
            "tfft=200",
            "--out",
            out.to_str().unwrap(),
        ],
    );
    let stderr = ran.expect(2).stderr;
    assert!(
        stderr.contains("no request has one value of tfft"),
        "{stderr}"
    );
    assert!(!out.exists());
}
