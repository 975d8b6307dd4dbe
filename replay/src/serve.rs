//! `replay serve`: a server that answers with what was recorded.
//!
//! A request gets the answer to the same body, else to one that is equal in the
//! places of `--match-on`, else the next of its kind that nobody got yet; what is
//! left is a miss. Status, recorded headers and bytes are those of the recording,
//! and so is the time from the request to the headers and to every read: what
//! arrived at once is written at once, on an absolute deadline. Answers that broke
//! off break off, and those whose client ran into its timeout stay silent.
//!
//! Reading order: [`args`], `load` (a recording becomes answers in memory),
//! `answer`, `rebuild` (chunks become bytes again), `matching`, `service`, `paced` (one answer
//! on its way out), `upstream`, `tally`.

mod answer;
pub mod args;
mod load;
mod matching;
mod paced;
mod rebuild;
mod service;
mod tally;
mod upstream;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tapedeck_live::{Stop, StopLevel};
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::raise_open_files_limit;
use tapedeck_run::listen::expect_loopback;
use tapedeck_run::signals;
use tapedeck_simulator::{Running, SimConfig};

use args::{MissArgs, OnMiss, ServeArgs};
use load::{Loaded, Wanted, load};
use matching::Book;
use service::{Miss, Recorded, Spec};
use tally::Tally;
use upstream::Upstream;

/// How often the main thread looks for a stop request.
const WATCH: Duration = Duration::from_millis(50);

/// Serves until a signal. The first one takes no further requests and waits for the
/// answers under way, the second ends at once.
///
/// # Errors
/// When the recording holds nothing to serve, or the address cannot be listened on.
pub fn serve(args: &ServeArgs) -> Result<Ending> {
    raise_open_files_limit();
    expect_loopback("--listen", args.listen, args.allow_remote)?;
    let miss = miss(&args.miss)?;
    let mut loaded = load(&Wanted {
        path: &args.recording,
        filter: args.filter.as_deref(),
        match_on: &args.matching.match_on,
        max_bytes: u64::from(args.memory_mib) << 20,
    })?;
    print_loaded(&loaded);
    let asked = loaded.answers.iter().map(|(asked, _)| asked);
    let book = Book::new(asked, &args.matching.match_on, !args.matching.no_order);
    let answers: Vec<_> = loaded.answers.drain(..).map(|(_, answer)| answer).collect();
    let count = answers.len();
    let tally = Arc::new(Tally::default());
    let closing = Arc::new(AtomicBool::new(false));
    let spec = Spec {
        answers,
        book,
        models: std::mem::take(&mut loaded.models),
        speed: args.speed,
        miss,
        tally: Arc::clone(&tally),
        closing: Arc::clone(&closing),
    };
    let stop = Arc::new(Stop::default());
    signals::watch(Arc::clone(&stop))?;
    let make = move |timers: &_| Recorded::new(spec, timers);
    let server = Running::start("replay-serve", args.listen, make)?;
    eprintln!(
        "serving {count} answers on http://{} (Ctrl-C to stop)",
        server.addr()
    );
    let ended = wait(&server, &stop, &closing, &tally);
    server.stop();
    ended?;
    stop.finish();
    Ok(conclude(args, &loaded, count, &tally))
}

fn wait(server: &Running, stop: &Stop, closing: &AtomicBool, tally: &Tally) -> Result<()> {
    loop {
        match stop.level() {
            StopLevel::Run => {}
            StopLevel::Drain => {
                closing.store(true, Ordering::Relaxed);
                if tally.in_flight() == 0 {
                    return Ok(());
                }
            }
            StopLevel::Now => return Ok(()),
        }
        if !server.is_up() {
            bail!("the server's thread ended");
        }
        std::thread::sleep(WATCH);
    }
}

fn miss(args: &MissArgs) -> Result<Miss> {
    Ok(match (args.on_miss, &args.upstream) {
        (OnMiss::NotFound, None) => Miss::NotFound,
        (OnMiss::Simulate, None) => {
            let config = SimConfig::from_query(&args.sim)?;
            config.validate()?;
            Miss::Simulate(config)
        }
        (OnMiss::Proxy, Some(url)) => Miss::Proxy(Upstream::new(url, &args.tls())?),
        (OnMiss::Proxy, None) => bail!("--on-miss proxy needs --upstream"),
        (OnMiss::NotFound | OnMiss::Simulate, Some(_)) => {
            bail!("--upstream is for --on-miss proxy")
        }
    })
}

/// Doubt first: what of the recording will not be served as it was.
fn print_loaded(loaded: &Loaded) {
    for (_, why, count) in loaded.left_out.reasons() {
        if count > 0 {
            eprintln!("left out: {count} answers {why}");
        }
    }
    if loaded.redacted {
        eprintln!(
            "texts were redacted when this was recorded: answers are without them, and requests that had some are not found by their bodies\nhint: --match-on names places that were kept"
        );
    }
    let other = loaded.streams - loaded.exact_streams;
    if other > 0 {
        eprintln!(
            "{other} of {} streams have their payloads in order, but not the bytes between them: those come in the usual form",
            loaded.streams
        );
    }
}

/// Says what was served. That nothing could be is a finding.
fn conclude(args: &ServeArgs, loaded: &Loaded, answers: usize, tally: &Tally) -> Ending {
    let counts = tally.counts();
    eprintln!("{}", counts.summary());
    eprintln!(
        "{} of {answers} answers were given",
        counts.given.min(answers as u64)
    );
    if args.json {
        let mut summary = json!({
            "recording": args.recording,
            "answers": answers,
            "left_out": left_out_json(loaded),
            "streams": loaded.streams,
            "exact_streams": loaded.exact_streams,
        });
        if let (Value::Object(all), Value::Object(counts)) = (&mut summary, counts.to_json()) {
            all.extend(counts);
        }
        // A reader that has seen enough is no error.
        writeln!(std::io::stdout(), "{summary}").ok();
    }
    match counts.requests() {
        requests if requests > 0 && counts.missed == requests => Ending::Finding,
        _ => Ending::Fine,
    }
}

fn left_out_json(loaded: &Loaded) -> Value {
    let reasons = loaded.left_out.reasons();
    let reasons = reasons.map(|(name, _, count)| (name.to_owned(), json!(count)));
    Value::Object(reasons.into_iter().collect::<Map<_, _>>())
}
