//! The server that requests go to, and the simulator that is it where there is
//! one.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use http::header::{AUTHORIZATION, HeaderValue};
use tapedeck_live::{Target, Timeouts};
use tapedeck_simulator::{Running, SimConfig, Simulator};
use tapedeck_wire::dialect::Api;
use url::Url;

use crate::args::{ServerMetricsArgs, TargetArgs};
use crate::discover;
use crate::options::tls_options;
use crate::requests::{endpoint, further_headers};
use crate::sampling::Sampling;
use crate::secrets::mask_url;
use crate::server_metrics;

/// A resolved server. A simulator lives as long as this does.
#[derive(Debug)]
pub struct Server {
    pub url: Url,
    /// As given, without the API's path.
    base: String,
    pub target: Target,
    /// As recorded: no secrets, and `sim:…` rather than an address.
    pub shown: String,
    /// Every setting of the simulator, as its query.
    pub simulator_settings: Option<String>,
    _simulator: Option<Running>,
}

impl Server {
    /// Resolves the server, starting the embedded simulator for `sim:`.
    ///
    /// # Errors
    /// When the URL, its host, its certificates or the simulator's settings are
    /// bad.
    pub fn reach(args: &TargetArgs, api: Api) -> Result<Self> {
        let address = args.address();
        let config = match address.strip_prefix("sim:") {
            Some(_) => Some(SimConfig::from_url(&address)?),
            None => None,
        };
        let settings = config.as_ref().map(SimConfig::to_query);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let simulator = match config {
            Some(config) => Some(Simulator::start(config, any)?),
            None => None,
        };
        let url = match &simulator {
            Some(simulator) => format!("http://{}", simulator.addr()),
            None => address.clone(),
        };
        let base = url;
        let url = endpoint(&base, args, api)?;
        let target = Target::resolve(&url, &tls_options(args))?;
        Ok(Self {
            shown: match &simulator {
                Some(_) => address,
                None => mask_url(url.as_str()),
            },
            simulator_settings: settings,
            url,
            base,
            target,
            _simulator: simulator,
        })
    }

    /// The same server's URL for another API.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub fn url_for(&self, args: &TargetArgs, api: Api) -> Result<Url> {
        endpoint(&self.base, args, api)
    }

    /// What to sample beside a load on this server.
    ///
    /// # Errors
    /// When a URL, a header or certificates cannot be used.
    pub fn sampling(&self, metrics: &ServerMetricsArgs, args: &TargetArgs) -> Result<Sampling> {
        let mut headers = further_headers(args)?;
        if let Some(key) = &args.api_key {
            let bearer = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut bearer = bearer.ok().context("--api-key cannot be sent")?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let target = server_metrics::Target {
            url: &self.url,
            tls: tls_options(args),
            headers,
        };
        Sampling::resolve(metrics, &[target])
    }

    /// The first model that the server lists, in answer to the credentials of `api`.
    ///
    /// # Errors
    /// When it does not answer or lists none.
    pub fn first_model(&self, args: &TargetArgs, api: Api, timeouts: &Timeouts) -> Result<String> {
        discover::first_model(&self.url, args, api, timeouts)
    }
}
