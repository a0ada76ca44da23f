//! What loading a model promises: its shape and a revision that follows its contents, and for a folder that is not
//! a usable model an error that names the file or tensor.

mod support;

use half::{bf16, f16};
use ragged_kernels::{Activation, CpuDevice, Device, Model, ModelError, Pooling, Precision, TokenSequence};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const HIDDEN: usize = 24;
const INTERMEDIATE: usize = 40;
const VOCABULARY: usize = 8;
const POSITIONS: usize = 20;

/// A tiny model of two layers with three heads, whose weights are a fixed pattern.
struct TinyModel {
    folder: TempDir,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl TinyModel {
    fn new() -> Self {
        let mut tensors = BTreeMap::new();
        let mut seed = 1u32;
        let mut add = |name: String, shape: Vec<usize>, middle: f32| {
            let values = (0..shape.iter().product())
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Multiples of 1/64 below 1/2: exact in f16 and bf16 too.
                    middle + ((seed >> 26) as f32 - 32.0) / 64.0
                })
                .collect::<Vec<f32>>();
            tensors.insert(name, (shape, values));
        };
        for (table, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)] {
            add(format!("embeddings.{table}_embeddings.weight"), vec![rows, HIDDEN], 0.0);
        }
        add("embeddings.LayerNorm.weight".into(), vec![HIDDEN], 1.0);
        add("embeddings.LayerNorm.bias".into(), vec![HIDDEN], 0.0);
        for layer in 0..2 {
            let mut linear = |name: &str, outputs, inputs| {
                add(format!("encoder.layer.{layer}.{name}.weight"), vec![outputs, inputs], 0.0);
                add(format!("encoder.layer.{layer}.{name}.bias"), vec![outputs], 0.0);
            };
            for name in ["attention.self.query", "attention.self.key", "attention.self.value"] {
                linear(name, HIDDEN, HIDDEN);
            }
            linear("attention.output.dense", HIDDEN, HIDDEN);
            linear("intermediate.dense", INTERMEDIATE, HIDDEN);
            linear("output.dense", HIDDEN, INTERMEDIATE);
            for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
                add(format!("encoder.layer.{layer}.{name}.weight"), vec![HIDDEN], 1.0);
                add(format!("encoder.layer.{layer}.{name}.bias"), vec![HIDDEN], 0.0);
            }
        }
        let model = Self { folder: tempfile::tempdir().expect("a folder"), tensors };
        model.write_config(&[]);
        model.write_tokenizer();
        model.write_tensors("", Dtype::F32);
        model
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write_config(&self, changes: &[(&str, serde_json::Value)]) {
        let mut config = serde_json::json!({
            "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        });
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        fs::write(self.path().join("config.json"), config.to_string()).expect("written");
    }

    fn write_tokenizer(&self) {
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6, "##x": 7}},
        });
        fs::write(self.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    }

    fn write_tensors(&self, prefix: &str, number_type: Dtype) {
        let bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                let bytes = match number_type {
                    Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                    Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
                    Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
                    Dtype::I32 => vec![0; values.len() * 4],
                    other => panic!("{other}"),
                };
                (format!("{prefix}{name}"), (shape.clone(), bytes))
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, (shape, bytes))| (name, TensorView::new(number_type, shape.clone(), bytes).expect("a tensor")));
        serialize_to_file(views, None, &self.path().join("model.safetensors")).expect("written");
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, contents).expect("written");
    }

    fn load(&self) -> Result<Model, ModelError> {
        Model::load(self.path())
    }

    fn error(&self) -> ModelError {
        match self.load() {
            Ok(_) => panic!("the model should be refused"),
            Err(error) => error,
        }
    }

    /// The vector of three tokens.
    fn vector(&self) -> Vec<f32> {
        let model = Arc::new(self.load().expect("the model loads"));
        let device = CpuDevice::new(model, 1, Precision::F32).expect("a device");
        device.embed(&[TokenSequence(vec![1, 5, 2])]).expect("a vector")
    }
}

fn assert_near(left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert!((left - right).abs() < 1e-5, "{left} {right}");
    }
}

#[test]
fn the_installed_model_has_its_published_shape() {
    let Some(folder) = support::model_folder() else { return };
    let model = Model::load(&folder).expect("the model loads");
    assert_eq!(model.name(), folder.file_name().expect("a name").to_string_lossy());
    assert_eq!((model.dimension(), model.max_tokens()), (384, 256));
    let configuration = model.configuration();
    assert_eq!((configuration.layers, configuration.heads), (6, 12));
    assert_eq!(configuration.activation, Activation::Gelu);
    assert_eq!(configuration.pooling, Pooling::Mean);
}

#[test]
fn a_revision_is_sixteen_digits_that_change_with_the_contents() {
    let model = TinyModel::new();
    let first = model.load().expect("the model loads").revision().to_owned();
    assert!(first.len() == 16 && first.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(model.load().expect("the model loads").revision(), first);
    model.write_tensors("bert.", Dtype::F32);
    let second = model.load().expect("the model loads").revision().to_owned();
    assert_ne!(first, second);
    model.write("sentence_bert_config.json", r#"{"max_seq_length": 10}"#);
    assert_ne!(model.load().expect("the model loads").revision(), second);
}

#[test]
fn weights_of_every_type_and_with_a_prefix_give_the_same_vectors() {
    let model = TinyModel::new();
    let expected = model.vector();
    for prefix in ["", "bert."] {
        for number_type in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            model.write_tensors(prefix, number_type);
            assert_near(&model.vector(), &expected);
        }
    }
}

#[test]
fn odd_shapes_give_the_vector_of_a_plain_implementation() {
    let model = TinyModel::new();
    for (activation, pooling) in [("gelu", "mean"), ("relu", "mean"), ("gelu", "cls")] {
        model.write_config(&[("hidden_act", activation.into())]);
        model.write(
            "1_Pooling/config.json",
            &format!(r#"{{"pooling_mode_cls_token": {}, "pooling_mode_mean_tokens": {}}}"#, pooling == "cls", pooling == "mean"),
        );
        for tokens in [vec![1], vec![1, 5, 2], (0..POSITIONS as u32).map(|i| i % 8).collect()] {
            let expected = plain_encoder(&model.tensors, &tokens, activation, pooling);
            for set in ragged_kernels::Instructions::available() {
                let loaded = Arc::new(model.load().expect("the model loads"));
                let device = CpuDevice::with_instructions(loaded, 1, Precision::F32, set).expect("a device");
                let vector = device.embed(&[TokenSequence(tokens.clone())]).expect("a vector");
                assert_near(&vector, &expected);
            }
        }
    }
}

/// The encoder in the plainest form, in f64, one head and one value at a time.
fn plain_encoder(
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    tokens: &[u32],
    activation: &str,
    pooling: &str,
) -> Vec<f32> {
    type Rows = Vec<Vec<f64>>;
    let get = |name: &str| -> Vec<f64> { tensors[name].1.iter().map(|value| f64::from(*value)).collect() };
    let linear = |rows: &Rows, name: &str| -> Rows {
        let (weights, biases) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let output = |row: &Vec<f64>, index: usize| {
            let weights = &weights[index * row.len()..(index + 1) * row.len()];
            row.iter().zip(weights).map(|(a, b)| a * b).sum::<f64>() + biases[index]
        };
        rows.iter().map(|row| (0..biases.len()).map(|index| output(row, index)).collect()).collect()
    };
    let norm = |rows: Rows, name: &str| -> Rows {
        let (scale, shift) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        rows.into_iter()
            .map(|row| {
                let mean = row.iter().sum::<f64>() / row.len() as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
                let normal = row.iter().map(|x| (x - mean) / (variance + 1e-12).sqrt());
                normal.zip(&scale).zip(&shift).map(|((x, scale), shift)| x * scale + shift).collect()
            })
            .collect()
    };
    let add = |left: &Rows, right: &Rows| -> Rows {
        let sum = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
        left.iter().zip(right).map(sum).collect()
    };
    let words = get("embeddings.word_embeddings.weight");
    let positions = get("embeddings.position_embeddings.weight");
    let types = get("embeddings.token_type_embeddings.weight");
    let embedded = tokens.iter().enumerate().map(|(position, token)| {
        (0..HIDDEN)
            .map(|column| words[*token as usize * HIDDEN + column] + positions[position * HIDDEN + column] + types[column])
            .collect()
    });
    let mut rows = norm(embedded.collect(), "embeddings.LayerNorm");
    for layer in 0..2 {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let queries = linear(&rows, &name("attention.self.query"));
        let keys = linear(&rows, &name("attention.self.key"));
        let values = linear(&rows, &name("attention.self.value"));
        let mut context = vec![vec![0.0; HIDDEN]; rows.len()];
        for head in 0..3 {
            let columns = head * 8..(head + 1) * 8;
            for (query, context) in queries.iter().zip(&mut context) {
                let weight = |key: &Vec<f64>| {
                    let product: f64 = columns.clone().map(|c| query[c] * key[c]).sum();
                    (product / 8f64.sqrt()).exp()
                };
                let weights: Vec<f64> = keys.iter().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for column in columns.clone() {
                    let values = values.iter().map(|value| value[column]);
                    context[column] = weights.iter().zip(values).map(|(w, v)| w / sum * v).sum();
                }
            }
        }
        let attended = linear(&context, &name("attention.output.dense"));
        rows = norm(add(&rows, &attended), &name("attention.output.LayerNorm"));
        let mut middle = linear(&rows, &name("intermediate.dense"));
        for value in middle.iter_mut().flatten() {
            *value = match activation {
                "relu" => value.max(0.0),
                _ => *value * 0.5 * (1.0 + erf(*value / 2f64.sqrt())),
            };
        }
        rows = norm(add(&rows, &linear(&middle, &name("output.dense"))), &name("output.LayerNorm"));
    }
    let count = if pooling == "cls" { 1 } else { rows.len() };
    let sums: Vec<f64> = (0..HIDDEN).map(|column| rows[..count].iter().map(|row| row[column]).sum()).collect();
    let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
    sums.iter().map(|x| (x / length) as f32).collect()
}

/// The error function by its Maclaurin series, for the small values of a tiny model.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn a_missing_file_is_named() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let model = TinyModel::new();
        fs::remove_file(model.path().join(name)).expect("removed");
        let error = model.error();
        assert!(matches!(&error, ModelError::Missing { path } if path.ends_with(name)), "{error}");
    }
    let error = Model::load(Path::new("/nowhere/at/all")).err().expect("an error");
    assert!(matches!(error, ModelError::Missing { .. }));
}

#[test]
fn a_weights_file_cut_short_is_refused_wherever_it_is_cut() {
    let model = TinyModel::new();
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).expect("weights");
    for length in [0, 1, 7, 8, 9, 100, 1_000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("written");
        let error = model.error();
        assert!(matches!(error, ModelError::DamagedWeights { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn a_missing_tensor_a_wrong_shape_and_a_wrong_type_are_named() {
    let name = "encoder.layer.1.output.dense.weight";

    let mut model = TinyModel::new();
    let tensor = model.tensors.remove(name).expect("a tensor");
    model.write_tensors("bert.", Dtype::F32);
    let error = model.error();
    assert!(matches!(&error, ModelError::MissingTensor { name: found, .. } if found == name), "{error}");

    model.tensors.insert(name.to_owned(), (vec![INTERMEDIATE, HIDDEN], tensor.1));
    model.write_tensors("", Dtype::F32);
    let error = model.error();
    assert!(
        matches!(&error, ModelError::WrongShape { name: wrong, found, expected, .. }
            if wrong == name && *found == [INTERMEDIATE, HIDDEN] && *expected == [HIDDEN, INTERMEDIATE]),
        "{error}"
    );

    let model = TinyModel::new();
    model.write_tensors("", Dtype::I32);
    let error = model.error();
    assert!(matches!(&error, ModelError::WrongType { found, .. } if found == "I32"), "{error}");
}

#[test]
fn what_is_not_implemented_is_refused_instead_of_ignored() {
    let unsupported = |model: &TinyModel, file: &str| {
        let error = model.error();
        assert!(matches!(&error, ModelError::Unsupported { path, .. } if path.ends_with(file)), "{error}");
    };
    let model = TinyModel::new();
    for (key, value) in [
        ("model_type", serde_json::json!("roberta")),
        ("hidden_act", "gelu_new".into()),
        ("position_embedding_type", "relative_key".into()),
        ("num_attention_heads", 5.into()),
        ("hidden_size", 0.into()),
        ("vocab_size", 1_000_000_000_000u64.into()),
        ("layer_norm_eps", (-1.0).into()),
    ] {
        model.write_config(&[(key, value)]);
        unsupported(&model, "config.json");
    }
    model.write_config(&[]);
    let normal =
        [r#"{"type": "sentence_transformers.models.Transformer"}"#, r#"{"type": "sentence_transformers.models.Pooling"}"#]
            .join(",");
    model.write("modules.json", &format!("[{normal}]"));
    model.load().expect("the model loads");
    model.write("modules.json", &format!(r#"[{normal}, {{"type": "sentence_transformers.models.Dense"}}]"#));
    unsupported(&model, "modules.json");
    model.write("modules.json", "[]");
    model.write("1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#);
    unsupported(&model, "1_Pooling/config.json");
    model.write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);
    model.write("sentence_bert_config.json", r#"{"max_seq_length": 2}"#);
    unsupported(&model, "sentence_bert_config.json");
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let model = TinyModel::new();
    model.write("config.json", "{");
    assert!(matches!(model.error(), ModelError::NotUnderstood { .. }));
    model.write_config(&[]);
    model.write("tokenizer.json", "{}");
    assert!(matches!(model.error(), ModelError::Tokenizer { .. }));
}

#[test]
fn the_longest_sequence_is_the_smaller_of_the_two_limits() {
    let model = TinyModel::new();
    assert_eq!(model.load().expect("the model loads").max_tokens(), POSITIONS);
    for (configured, expected) in [(7, 7), (1_000_000, POSITIONS)] {
        model.write("sentence_bert_config.json", &format!(r#"{{"max_seq_length": {configured}}}"#));
        let loaded = model.load().expect("the model loads");
        assert_eq!(loaded.max_tokens(), expected);
        let sequence = loaded.tokenizer().encode(&"a b c d ".repeat(50)).expect("tokens");
        assert_eq!(sequence.len(), expected);
    }
}
