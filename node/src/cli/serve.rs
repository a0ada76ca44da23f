//! `ragged serve`: runs a node.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::settings;
use clap::Args;
use clap::builder::PossibleValuesParser;

const AFTER_HELP: &str = "\
Every option overrides a key of the configuration; `ragged config` lists them all. A file (--config) and variables such as
RAGGED_HTTP_LISTEN set the others. The first start writes the administrator's key to `admin.key` in the data folder.

Examples:
  ragged serve
  ragged serve --data-dir /srv/ragged --listen 127.0.0.1:7500 --log-format json
  ragged serve --join 10.0.0.1:7401 --token rj_...";

/// Arguments of `ragged serve`; `--config` and `--data-dir` are among those of every command.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Address of the API (http.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Folder of the embedding model (model_dir)
    #[arg(long, value_name = "FOLDER")]
    model_dir: Option<String>,
    /// Number of shards of a new cluster (cluster.shards)
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// Address of the port for other nodes (cluster.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    cluster_listen: Option<String>,
    /// What other nodes dial, when it is not that (cluster.advertise)
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Join the cluster of the node with this cluster port, when the data folder is new (cluster.join)
    #[arg(long, value_name = "HOST:PORT")]
    join: Option<String>,
    /// The token that lets the node join; better given by RAGGED_CLUSTER_TOKEN, since other users can see arguments (cluster.token)
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// What embeds: `auto`, `cpu`, `gpu` or `gpu:0,2` (embedding.device)
    #[arg(long, value_name = "DEVICE")]
    embedding_device: Option<String>,
    /// What the processor multiplies when it embeds: `auto`, `f32`, `bf16` or `int8` (embedding.precision)
    #[arg(long, value_name = "PRECISION")]
    embedding_precision: Option<String>,
    /// Threads of the encoder (embedding.threads)
    #[arg(long, value_name = "N")]
    embedding_threads: Option<String>,
    /// Threads of searches (search.threads)
    #[arg(long, value_name = "N")]
    search_threads: Option<String>,
    /// Logs for people or for machines (log.format)
    #[arg(long, value_parser = PossibleValuesParser::new(["text", "json"]))]
    log_format: Option<String>,
    /// What is logged, such as `info` or `ragged=debug,warn` (log.filter)
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Another key of the configuration, such as `limits.queued_searches=100`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_assignment)]
    assignments: Vec<(&'static str, String)>,
}

fn parse_assignment(text: &str) -> Result<(&'static str, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| "this is not of the form KEY=VALUE".to_owned())?;
    let key =
        crate::config::Key::find(name.trim()).ok_or_else(|| format!("there is no key {name}; `ragged config` lists them"))?;
    Ok((key.path, value.to_owned()))
}

impl Arguments {
    fn into_flags(self) -> Vec<(&'static str, String)> {
        let named = [
            ("http.listen", self.listen),
            ("model_dir", self.model_dir),
            ("cluster.shards", self.shards),
            ("cluster.listen", self.cluster_listen),
            ("cluster.advertise", self.advertise),
            ("cluster.join", self.join),
            ("cluster.token", self.token),
            ("embedding.device", self.embedding_device),
            ("embedding.precision", self.embedding_precision),
            ("embedding.threads", self.embedding_threads),
            ("search.threads", self.search_threads),
            ("log.format", self.log_format),
            ("log.filter", self.log_filter),
        ];
        let given = named.into_iter().filter_map(|(key, value)| value.map(|value| (key, value)));
        given.chain(self.assignments).collect()
    }
}

/// Runs a node until a signal ends it.
pub fn run(arguments: Arguments, globals: &Globals) -> Result<Exit, CliError> {
    // Before anything else runs: what is compiled for a newer processor would end it without a word.
    crate::serve::check_processor().map_err(CliError::Node)?;
    let loaded = settings::load(globals, arguments.into_flags())?;
    let runtime = super::runtime()?;
    let served = runtime.block_on(crate::serve::serve(loaded.config));
    // What is still blocking a thread would otherwise be waited for, after everything has been stopped in order.
    runtime.shutdown_background();
    served.map(|()| Exit::Success).map_err(CliError::Node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn every_option_sets_a_key_that_there_is() {
        let line = "serve --listen 127.0.0.1:1 --model-dir /m --shards 32 --embedding-device cpu --embedding-threads 1 --search-threads 2 --log-format json \
                    --log-filter debug --cluster-listen 127.0.0.1:2 --advertise a:2 --join b:2 --token rj_x --set limits.queued_searches=7";
        let flags = Only::try_parse_from(line.split_whitespace()).ok().unwrap().arguments.into_flags();
        assert_eq!(flags.len(), 13);
        for (key, value) in &flags {
            assert!(crate::config::Key::find(key).is_some_and(|key| key.value(value).is_ok()), "{key}");
        }
        assert_eq!(flags[12], ("limits.queued_searches", "7".to_owned()));
        assert!(Only::try_parse_from(["serve", "--set", "no.such.key=1"]).is_err());
    }
}
