//! What loading a model promises: its shape and a revision that follows its contents, and for a folder that is not
//! a usable model an error that names the file or tensor.

mod support;

use ragged_kernels::{Activation, CpuDevice, Device, Model, ModelError, Pooling, Precision, TokenSequence};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use support::tiny_model::{TINY, TinyModel};

fn load(model: &TinyModel) -> Result<Model, ModelError> {
    Model::load(model.path())
}

fn refusal(model: &TinyModel) -> ModelError {
    match load(model) {
        Ok(_) => panic!("the model should be refused"),
        Err(error) => error,
    }
}

/// The vector of three tokens.
fn vector(model: &TinyModel) -> Vec<f32> {
    let model = Arc::new(load(model).expect("the model loads"));
    let device = CpuDevice::new(model, 1, Precision::F32).expect("a device");
    device.embed(&[TokenSequence(vec![1, 5, 2])]).expect("a vector")
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
    let model = TinyModel::new(TINY);
    let first = load(&model).expect("the model loads").revision().to_owned();
    assert!(first.len() == 16 && first.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(load(&model).expect("the model loads").revision(), first);
    model.write_tensors("bert.", Dtype::F32);
    let second = load(&model).expect("the model loads").revision().to_owned();
    assert_ne!(first, second);
    model.write("sentence_bert_config.json", r#"{"max_seq_length": 10}"#);
    assert_ne!(load(&model).expect("the model loads").revision(), second);
}

#[test]
fn weights_of_every_type_and_with_a_prefix_give_the_same_vectors() {
    let model = TinyModel::new(TINY);
    let expected = vector(&model);
    for prefix in ["", "bert."] {
        for number_type in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            model.write_tensors(prefix, number_type);
            assert_near(&vector(&model), &expected);
        }
    }
}

#[test]
fn odd_shapes_give_the_vector_of_a_plain_implementation() {
    let model = TinyModel::new(TINY);
    for (activation, pooling) in [("gelu", "mean"), ("relu", "mean"), ("gelu", "cls")] {
        model.write_config(&[("hidden_act", activation.into())]);
        model.write_pooling(pooling);
        for tokens in [vec![1], vec![1, 5, 2], (0..TINY.positions as u32).map(|i| i % 8).collect()] {
            let expected = plain_encoder(&model.tensors, &tokens, activation, pooling);
            for set in ragged_kernels::Instructions::available() {
                let loaded = Arc::new(load(&model).expect("the model loads"));
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
        (0..TINY.hidden)
            .map(|column| {
                words[*token as usize * TINY.hidden + column] + positions[position * TINY.hidden + column] + types[column]
            })
            .collect()
    });
    let mut rows = norm(embedded.collect(), "embeddings.LayerNorm");
    for layer in 0..2 {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let queries = linear(&rows, &name("attention.self.query"));
        let keys = linear(&rows, &name("attention.self.key"));
        let values = linear(&rows, &name("attention.self.value"));
        let mut context = vec![vec![0.0; TINY.hidden]; rows.len()];
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
    let sums: Vec<f64> = (0..TINY.hidden).map(|column| rows[..count].iter().map(|row| row[column]).sum()).collect();
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
        let model = TinyModel::new(TINY);
        fs::remove_file(model.path().join(name)).expect("removed");
        let error = refusal(&model);
        assert!(matches!(&error, ModelError::Missing { path } if path.ends_with(name)), "{error}");
    }
    let error = Model::load(Path::new("/nowhere/at/all")).err().expect("an error");
    assert!(matches!(error, ModelError::Missing { .. }));
}

#[test]
fn a_weights_file_cut_short_is_refused_wherever_it_is_cut() {
    let model = TinyModel::new(TINY);
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).expect("weights");
    for length in [0, 1, 7, 8, 9, 100, 1_000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("written");
        let error = refusal(&model);
        assert!(matches!(error, ModelError::DamagedWeights { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn a_missing_tensor_a_wrong_shape_and_a_wrong_type_are_named() {
    let name = "encoder.layer.1.output.dense.weight";

    let mut model = TinyModel::new(TINY);
    let tensor = model.tensors.remove(name).expect("a tensor");
    model.write_tensors("bert.", Dtype::F32);
    let error = refusal(&model);
    assert!(matches!(&error, ModelError::MissingTensor { name: found, .. } if found == name), "{error}");

    model.tensors.insert(name.to_owned(), (vec![TINY.intermediate, TINY.hidden], tensor.1));
    model.write_tensors("", Dtype::F32);
    let error = refusal(&model);
    assert!(
        matches!(&error, ModelError::WrongShape { name: wrong, found, expected, .. }
            if wrong == name && *found == [TINY.intermediate, TINY.hidden] && *expected == [TINY.hidden, TINY.intermediate]),
        "{error}"
    );

    let model = TinyModel::new(TINY);
    model.write_tensors("", Dtype::I32);
    let error = refusal(&model);
    assert!(matches!(&error, ModelError::WrongType { found, .. } if found == "I32"), "{error}");
}

#[test]
fn what_is_not_implemented_is_refused_instead_of_ignored() {
    let unsupported = |model: &TinyModel, file: &str| {
        let error = refusal(model);
        assert!(matches!(&error, ModelError::Unsupported { path, .. } if path.ends_with(file)), "{error}");
    };
    let model = TinyModel::new(TINY);
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
    load(&model).expect("the model loads");
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
    let model = TinyModel::new(TINY);
    model.write("config.json", "{");
    assert!(matches!(refusal(&model), ModelError::NotUnderstood { .. }));
    model.write_config(&[]);
    model.write("tokenizer.json", "{}");
    assert!(matches!(refusal(&model), ModelError::Tokenizer { .. }));
}

#[test]
fn the_longest_sequence_is_the_smaller_of_the_two_limits() {
    let model = TinyModel::new(TINY);
    assert_eq!(load(&model).expect("the model loads").max_tokens(), TINY.positions);
    for (configured, expected) in [(7, 7), (1_000_000, TINY.positions)] {
        model.write("sentence_bert_config.json", &format!(r#"{{"max_seq_length": {configured}}}"#));
        let loaded = load(&model).expect("the model loads");
        assert_eq!(loaded.max_tokens(), expected);
        let sequence = loaded.tokenizer().encode(&"a b c d ".repeat(50)).expect("tokens");
        assert_eq!(sequence.len(), expected);
    }
}
