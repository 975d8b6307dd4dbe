//! `derived/`: a report that starts from it says what it would say without.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tapedeck_analyze::session::SMALL_VIEWS;
use tapedeck_analyze::{Format, Parameters, ReportOptions, Session, report};
use tapedeck_recording::manifest::{Manifest, State};
use tapedeck_recording::{ChunkKind, EventBatch, Recording};

use crate::support::recording::{self, MS, chunk, edit_manifest, request, response};

/// Enough chunks for a file to be worth it.
const REQUESTS: i64 = 170;
const CHUNKS: i32 = 100;
const FILE: &str = "derived/chunk_stream.parquet";

/// Gaps that differ, some requests of two choices and some that failed.
fn events() -> EventBatch {
    let mut events = EventBatch::default();
    for id in 0..REQUESTS {
        let t_sent_ns = id * 3 * MS;
        events.requests.push(request(id, t_sent_ns));
        let mut t_ns = t_sent_ns + 20 * MS + (id * 7919) % MS;
        for index in 0..CHUNKS {
            let mut row = chunk(id, index, ChunkKind::Content, t_ns);
            row.choice_index = Some(if id % 5 == 0 { index % 2 } else { 0 });
            row.tokens = (id % 3 == 0).then_some(1);
            events.chunks.push(row, Some(b"x"));
            t_ns += (i64::from(index) * 104_729 + id * 1_299_709) % (9 * MS);
        }
        let mut end = response(id, t_ns, CHUNKS, (id % 3 == 1).then_some(CHUNKS));
        if id % 11 == 0 {
            end.outcome = tapedeck_recording::Outcome::Truncated;
        }
        events.responses.push(end);
    }
    events
}

fn json(path: &Path) -> String {
    json_within(path, None)
}

fn json_within(path: &Path, memory_limit_bytes: Option<usize>) -> String {
    let options = ReportOptions {
        warmup_ms: 100.0,
        memory_limit_bytes,
        ..ReportOptions::default()
    };
    let paths = [path.to_owned()];
    let report = report(&paths, &options);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(report).unwrap().render(Format::Json)
}

#[test]
fn a_report_is_the_same_with_and_without_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    recording::write(&path, recording::manifest("r"), 1 << 15, [events()]);
    let (folder, file) = (path.join("derived"), path.join(FILE));

    // A recording that still grows has none: the numbers come from the chunks.
    edit_manifest(&path, |manifest| manifest.state = State::Open);
    let expected = json(&path);
    assert!(expected.contains("\"itl_ms\""));
    assert!(!folder.exists());
    edit_manifest(&path, |manifest| manifest.state = State::Sealed);

    assert_eq!(json(&path), expected, "while it is made");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
    assert_eq!(
        fs::read_dir(&folder).unwrap().count(),
        5,
        "two files, their hashes and those of the sealed files, nothing beside them"
    );

    let inode = fs::metadata(&file).unwrap().ino();
    assert_eq!(json(&path), expected, "from the file");
    assert_eq!(
        fs::metadata(&file).unwrap().ino(),
        inode,
        "which was not made again"
    );

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert_eq!(json(&path), expected, "after a damaged file");
    assert_ne!(fs::read(&file).unwrap(), bytes, "which was made again");

    // A file of other rows, with a key that fits them.
    let other = dir.path().join("other");
    let mut fewer = events();
    fewer.responses.truncate(10);
    recording::write(&other, recording::manifest("other"), 1 << 15, [fewer]);
    assert_ne!(json(&other), expected);
    fs::copy(other.join(FILE), &file).unwrap();
    assert_eq!(json(&path), expected, "after a stale file");

    // Where nothing can be kept a report does without.
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "in the way").unwrap();
    assert_eq!(json(&path), expected, "without a folder");
}

#[test]
fn a_sealed_file_that_has_changed_is_doubt_that_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    recording::write(&path, recording::manifest("r"), 1 << 15, [events()]);
    let sound = json(&path);
    assert!(sound.contains("\"verdict\": \"ok\""), "{sound}");

    // The same bytes, written again: what is remembered of the file is not.
    let segment = Manifest::load(&path).unwrap().segments[1].clone();
    let bytes = fs::read(path.join(&segment.file)).unwrap();
    fs::write(path.join(&segment.file), &bytes).unwrap();
    assert_eq!(json(&path), sound);

    // A file that opens and reads, and is not the one that was sealed.
    let file = fs::File::options()
        .write(true)
        .open(path.join(&segment.file))
        .unwrap();
    let magic = std::os::unix::fs::FileExt::write_at(&file, b"par1", 0);
    assert_eq!(magic.unwrap(), 4, "nobody reads the magic at the start");
    fs::remove_dir_all(path.join("derived")).unwrap();
    let doubted = json(&path);
    assert!(doubted.contains("\"verdict\": \"invalid\""), "{doubted}");
    assert!(
        !path.join(FILE).exists(),
        "rows of a damaged file are not kept"
    );
    let text = {
        let paths = [path.clone()];
        let options = ReportOptions::default();
        let report = report(&paths, &options);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(report).unwrap().render(Format::Table)
    };
    let doubt = text.find("1 sealed files have changed").unwrap();
    assert!(doubt < text.find("Mean TTFT").unwrap(), "{text}");

    fs::write(path.join(&segment.file), &bytes).unwrap();
    assert_eq!(json(&path), sound, "mended");
}

/// Some operator of a plan with its figures went to the disk.
fn spilled(plan: &str) -> bool {
    let mut counts = plan.split("spill_count=").skip(1);
    counts.any(|rest| !rest.starts_with('0'))
}

#[test]
fn what_does_not_fit_goes_to_the_disk_and_comes_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    recording::write(&path, recording::manifest("r"), 1 << 15, [events()]);
    // Each chunk a hundred times: 1.7 million rows to sort.
    const SORTED: &str = "SELECT c.t_ns + v.value AS t_ns, c.request_id, c.chunk_index \
        FROM chunks AS c CROSS JOIN (SELECT unnest(range(0, 100)) AS value) AS v \
        ORDER BY c.t_ns + v.value DESC, c.request_id, c.chunk_index";
    // Position and value of some rows in the middle: a sort that lost or swapped one moves them.
    let some = format!(
        "SELECT count(*) AS rows, sum(t_ns * (place % 1000)) AS places FROM \
         (SELECT t_ns, row_number() OVER () AS place FROM ({SORTED}))"
    );
    let ask = |limit: usize, sql: &str| {
        let parameters = Parameters {
            memory_limit_bytes: limit,
            ..Parameters::default()
        };
        let recordings = vec![Recording::open(&path).unwrap()];
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let session = Session::open(recordings, &parameters).await.unwrap();
            let rows = session.query(sql).await.unwrap().collect().await.unwrap();
            arrow::util::pretty::pretty_format_batches(&rows)
                .unwrap()
                .to_string()
        })
    };
    let (little, much) = (32 << 20, 1 << 30);
    let plan = ask(little, &format!("EXPLAIN ANALYZE {SORTED}"));
    assert!(plan.contains("spill_count="), "{plan}");
    assert!(spilled(&plan), "{plan}");
    assert_eq!(ask(little, &some), ask(much, &some));
}

/// Many requests of few chunks, the later ones sent twice here and there.
fn many() -> impl Iterator<Item = EventBatch> {
    (0..30_i64).map(|batch| {
        let mut events = EventBatch::default();
        for id in batch * 400..(batch + 1) * 400 {
            let t_sent_ns = id * MS / 4;
            let attempts = if id > 6_000 && id % 50 == 0 { 2 } else { 1 };
            for attempt in 0..attempts {
                let mut row = request(id, t_sent_ns + i64::from(attempt) * MS);
                row.attempt = attempt;
                events.requests.push(row);
                for index in 0..4 {
                    let t_ns = t_sent_ns + 9 * MS + i64::from(index) * (MS + id * 7_919 % MS);
                    let mut row = chunk(id, index, ChunkKind::Content, t_ns);
                    row.attempt = attempt;
                    events.chunks.push(row, Some(b"x"));
                }
                let mut end = response(id, t_sent_ns + 20 * MS, 4, Some(4));
                end.attempt = attempt;
                events.responses.push(end);
            }
        }
        events
    })
}

#[test]
fn a_report_in_little_memory_goes_to_the_disk_and_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    recording::write(&path, recording::manifest("r"), 1 << 13, many());
    edit_manifest(&path, |manifest| manifest.state = State::Open);
    let expected = json(&path);
    assert!(expected.contains("\"requests\": 11600"), "{expected}");
    edit_manifest(&path, |manifest| manifest.state = State::Sealed);
    // Less than a kilobyte a request: joins that hold one side would not fit.
    let limit = 11 << 20;
    assert_eq!(json_within(&path, Some(limit)), expected);
    assert!(path.join(FILE).exists());

    let parameters = Parameters {
        memory_limit_bytes: limit,
        ..Parameters::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let plan = runtime.block_on(async {
        let recordings = vec![Recording::open(&path).unwrap()];
        let session = Session::open_derived(recordings, &parameters, &SMALL_VIEWS);
        let session = session.await.unwrap();
        let rows = session.query("EXPLAIN ANALYZE SELECT * FROM latency_percentiles");
        let rows = rows.await.unwrap().collect().await.unwrap();
        arrow::util::pretty::pretty_format_batches(&rows)
            .unwrap()
            .to_string()
    });
    assert!(plan.contains("SortMergeJoinExec"), "{plan}");
    assert!(
        plan.contains("/tapedeck-"),
        "kept rows are read from files: {plan}"
    );
}
