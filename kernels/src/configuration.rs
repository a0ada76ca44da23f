//! What a model's folder says about its shape: `config.json`, `sentence_bert_config.json`, `modules.json` and
//! `1_Pooling/config.json`, as the sentence-transformers library writes them.

use crate::model::ModelError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// The function between the two linear layers of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x/2 (1 + erf(x / sqrt 2))
    Gelu,
    /// max(x, 0)
    Relu,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens, special tokens included.
    Mean,
    /// The vector of the first token, `[CLS]`.
    Cls,
}

/// The shape of a BERT encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfiguration {
    /// Values of a token's vector, and of the text's.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Attention heads of a layer; they divide `hidden_size`.
    pub heads: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of token ids.
    pub vocabulary_size: usize,
    /// Number of positions, the longest sequence.
    pub positions: usize,
    /// Number of token types; type 0 is used.
    pub token_types: usize,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f32,
    /// Activation of the feed-forward network.
    pub activation: Activation,
    /// How token vectors become one vector.
    pub pooling: Pooling,
    /// Longest sequence that the model is to be used with, special tokens included; at most `positions`.
    pub max_tokens: usize,
}

// The largest shapes that are accepted: several times those of the largest BERT models, small enough that no
// product of two of them overflows and that a broken file cannot ask for absurd amounts of memory.
const HIDDEN_SIZE_MAX: usize = 8_192;
const LAYERS_MAX: usize = 128;
const INTERMEDIATE_SIZE_MAX: usize = 65_536;
const POSITIONS_MAX: usize = 8_192;
const TOKEN_TYPES_MAX: usize = 1_024;
const VOCABULARY_SIZE_MAX: usize = 4_000_000;

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    model_type: Option<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_type_vocab_size")]
    type_vocab_size: usize,
    #[serde(default = "default_layer_norm_eps")]
    layer_norm_eps: f32,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

fn default_type_vocab_size() -> usize {
    2
}

fn default_layer_norm_eps() -> f32 {
    1e-12
}

fn default_hidden_act() -> String {
    "gelu".to_owned()
}

#[derive(Deserialize)]
struct SentenceBertFile {
    #[serde(default)]
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct ModuleEntry {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct PoolingFile {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

impl EncoderConfiguration {
    /// Reads the files of a model's folder. Only `config.json` has to be there; without the others pooling is the
    /// mean and the longest sequence is the number of positions.
    ///
    /// # Errors
    /// A file that is missing or not understood, and shapes or features that this crate has no kernels for.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let config: ConfigFile = read_json(&path)?;
        let unsupported = |what: String| ModelError::Unsupported { path: path.clone(), what };
        if let Some(kind) = config.model_type.as_deref().filter(|kind| *kind != "bert") {
            return Err(unsupported(format!("model_type is `{kind}`: only the BERT architecture (`bert`) is implemented")));
        }
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(unsupported(format!("position_embedding_type is `{kind}`: only `absolute` is implemented")));
        }
        let activation = match config.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            other => {
                return Err(unsupported(format!("hidden_act is `{other}`: only `gelu` and `relu` are implemented")));
            }
        };
        for (name, value, limit) in [
            ("hidden_size", config.hidden_size, HIDDEN_SIZE_MAX),
            ("num_hidden_layers", config.num_hidden_layers, LAYERS_MAX),
            ("num_attention_heads", config.num_attention_heads, HIDDEN_SIZE_MAX),
            ("intermediate_size", config.intermediate_size, INTERMEDIATE_SIZE_MAX),
            ("vocab_size", config.vocab_size, VOCABULARY_SIZE_MAX),
            ("max_position_embeddings", config.max_position_embeddings, POSITIONS_MAX),
            ("type_vocab_size", config.type_vocab_size, TOKEN_TYPES_MAX),
        ] {
            if value == 0 || value > limit {
                return Err(unsupported(format!("{name} is {value}: it must be from 1 to {limit}")));
            }
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(unsupported(format!(
                "num_attention_heads is {}, which does not divide hidden_size {}",
                config.num_attention_heads, config.hidden_size
            )));
        }
        if !config.layer_norm_eps.is_finite() || config.layer_norm_eps < 0.0 {
            return Err(unsupported(format!("layer_norm_eps is {}: it must be a small positive number", config.layer_norm_eps)));
        }
        refuse_further_modules(folder)?;
        let longest = read_json_if_there::<SentenceBertFile>(&folder.join("sentence_bert_config.json"))?
            .and_then(|file| file.max_seq_length)
            .unwrap_or(config.max_position_embeddings);
        if longest < 3 {
            return Err(ModelError::Unsupported {
                path: folder.join("sentence_bert_config.json"),
                what: format!("max_seq_length is {longest}: the two special tokens leave no room for text"),
            });
        }
        Ok(Self {
            hidden_size: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            vocabulary_size: config.vocab_size,
            positions: config.max_position_embeddings,
            token_types: config.type_vocab_size,
            layer_norm_epsilon: config.layer_norm_eps,
            activation,
            pooling: load_pooling(folder)?,
            max_tokens: longest.min(config.max_position_embeddings),
        })
    }

    /// Values of one attention head.
    pub fn head_dimension(&self) -> usize {
        self.hidden_size / self.heads
    }
}

/// Refuses a model whose sentence-transformers pipeline has a step that would be left out silently, such as a
/// further dense layer. (Normalisation is always done.)
fn refuse_further_modules(folder: &Path) -> Result<(), ModelError> {
    let path = folder.join("modules.json");
    let Some(modules) = read_json_if_there::<Vec<ModuleEntry>>(&path)? else {
        return Ok(());
    };
    for ModuleEntry { kind } in modules {
        let name = kind.rsplit('.').next().unwrap_or_default();
        if !["Transformer", "Pooling", "Normalize"].contains(&name) {
            return Err(ModelError::Unsupported {
                path,
                what: format!("the module `{kind}`: only Transformer, Pooling and Normalize are implemented"),
            });
        }
    }
    Ok(())
}

fn load_pooling(folder: &Path) -> Result<Pooling, ModelError> {
    let path = folder.join("1_Pooling").join("config.json");
    let Some(file) = read_json_if_there::<PoolingFile>(&path)? else {
        return Ok(Pooling::Mean);
    };
    let others = file.pooling_mode_max_tokens
        || file.pooling_mode_mean_sqrt_len_tokens
        || file.pooling_mode_weightedmean_tokens
        || file.pooling_mode_lasttoken;
    match (file.pooling_mode_mean_tokens, file.pooling_mode_cls_token, others) {
        (true, false, false) => Ok(Pooling::Mean),
        (false, true, false) => Ok(Pooling::Cls),
        _ => Err(ModelError::Unsupported {
            path,
            what: "its pooling: exactly one of pooling_mode_mean_tokens and pooling_mode_cls_token must be set, \
                   and no other"
                .to_owned(),
        }),
    }
}

fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    match read_json(path) {
        Err(ModelError::Missing { .. }) => Ok(None),
        other => other.map(Some),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = std::fs::read(path).map_err(|source| ModelError::from_io(path, source))?;
    serde_json::from_slice(&text).map_err(|source| ModelError::NotUnderstood { path: path.to_owned(), source })
}
