//! `record simulate`: the embedded server on its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tapedeck_live::{Stop, StopLevel};
use tapedeck_run::signals;
use tapedeck_simulator::{SimConfig, Simulator};

use crate::cli::SimulateArgs;

/// Serves until a signal.
///
/// # Errors
/// When a setting is bad or the address cannot be listened on.
pub(crate) fn run(args: &SimulateArgs) -> Result<()> {
    let config = config(args)?;
    let stop = Arc::new(Stop::default());
    signals::watch(Arc::clone(&stop))?;
    let server = Simulator::start(config, args.listen)?;
    eprintln!("simulator on http://{}/v1 (Ctrl-C to stop)", server.addr());
    while stop.level() == StopLevel::Run {
        std::thread::sleep(Duration::from_millis(100));
    }
    server.stop();
    Ok(())
}

fn config(args: &SimulateArgs) -> Result<SimConfig> {
    let mut config = SimConfig::from_query(&args.sim)?;
    let flags = [
        ("ttft_ms", args.ttft_ms.map(|v| v.to_string())),
        ("itl_ms", args.itl_ms.map(|v| v.to_string())),
        ("tokens", args.tokens.map(|v| v.to_string())),
        ("slots", args.slots.map(|v| v.to_string())),
        ("seed", args.seed.map(|v| v.to_string())),
    ];
    for (key, value) in flags {
        if let Some(value) = value {
            config.set(key, &value)?;
        }
    }
    config.validate()?;
    Ok(config)
}
