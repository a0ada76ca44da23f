//! A model: what is in one folder in the layout of sentence-transformers.

use crate::configuration::EncoderConfiguration;
use crate::tokenizer::TextTokenizer;
use crate::weights::Weights;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// A loaded model of the BERT family: configuration, tokenizer, weights. Its weights stay in the file, mapped into
/// memory; a device takes from them what it needs.
pub struct Model {
    name: String,
    revision: String,
    configuration: EncoderConfiguration,
    tokenizer: TextTokenizer,
    weights: Weights,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the model is not there.
    #[error("{} is missing: the folder must hold a model in the layout of sentence-transformers", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file of the model could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON file does not hold what it should.
    #[error("{} is not understood: {source}", path.display())]
    NotUnderstood {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The model asks for something that this crate does not implement.
    #[error("{} asks for what is not supported: {what}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What it asks for and what is possible.
        what: String,
    },
    /// `tokenizer.json` could not be loaded.
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights file is damaged, for example cut short by an interrupted download.
    #[error("{} is not a usable safetensors file: {reason}; is it complete? download it again", path.display())]
    DamagedWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights file lacks a tensor of the encoder.
    #[error("{} lacks the tensor `{name}`: is it the model that config.json describes?", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
    },
    /// A tensor does not have the shape that `config.json` says.
    #[error("tensor `{name}` of {} has the shape {found:?}, but by config.json it is {expected:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor's numbers are of a type that is not supported.
    #[error("tensor `{name}` of {} is of type {found}: F32, F16 and BF16 are supported", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
        /// Its type in the file.
        found: String,
    },
}

impl ModelError {
    pub(crate) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound { ModelError::Missing { path } } else { ModelError::Io { path, source } }
    }
}

impl Model {
    /// Loads the model in `folder`: `config.json`, `tokenizer.json`, `model.safetensors` and, where they are there,
    /// `sentence_bert_config.json`, `modules.json` and `1_Pooling/config.json`. The names and shapes of all tensors
    /// are checked. The weights file must not be changed in place while the model is in use; replacing it by
    /// another file is safe.
    ///
    /// # Errors
    /// Which file or tensor is missing, damaged or not supported.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let configuration = EncoderConfiguration::load(folder)?;
        let tokenizer = TextTokenizer::load(&folder.join("tokenizer.json"), configuration.max_tokens)?;
        let weights = Weights::open(&folder.join("model.safetensors"), &configuration)?;
        let revision = revision_of(folder)?;
        let name = folder
            .file_name()
            .or_else(|| folder.as_os_str().into())
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(Self { name, revision, configuration, tokenizer, weights })
    }

    /// The name of the model's folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sixteen hexadecimal digits that change with the contents of the files that vectors depend on. Vectors of
    /// different revisions must not be compared.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Number of values of a vector.
    pub fn dimension(&self) -> usize {
        self.configuration.hidden_size
    }

    /// The longest sequence in tokens, special tokens included; longer texts are truncated to it.
    pub fn max_tokens(&self) -> usize {
        self.configuration.max_tokens
    }

    /// The shape of the encoder.
    pub fn configuration(&self) -> &EncoderConfiguration {
        &self.configuration
    }

    /// What turns texts into token ids for this model.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The tensors of the encoder.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// XXH3-64 over the files that vectors depend on, each with its name and length. Files are read through a small
/// buffer instead of the mapping, so that their pages do not count as memory of this process.
fn revision_of(folder: &Path) -> Result<String, ModelError> {
    const FILES: [(&str, bool); 5] = [
        ("config.json", true),
        ("tokenizer.json", true),
        ("model.safetensors", true),
        ("sentence_bert_config.json", false),
        ("1_Pooling/config.json", false),
    ];
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 256 << 10];
    for (name, required) in FILES {
        let path = folder.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if !required && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ModelError::from_io(&path, error)),
        };
        hash.update(name.as_bytes());
        let mut size_bytes = 0;
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ModelError::from_io(&path, error)),
            };
            hash.update(&buffer[..count]);
            size_bytes += count as u64;
        }
        hash.update(&size_bytes.to_le_bytes());
    }
    Ok(format!("{:016x}", hash.digest()))
}
