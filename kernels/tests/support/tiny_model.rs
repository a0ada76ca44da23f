//! A model small enough for tests that look at every value, whose weights are a fixed pattern.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Tokens that it knows.
pub const VOCABULARY: usize = 8;
pub const LAYERS: usize = 2;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub positions: usize,
    /// What weights are multiplied by: a power of two, the smaller the larger the model is, so that what they are multiplied with stays about as large.
    pub scale: f32,
}

/// Three heads, all sizes odd for vectors of a processor.
pub const TINY: Shape = Shape { hidden: 24, heads: 3, intermediate: 40, positions: 20, scale: 1.0 };

/// A folder with the model, and its tensors.
pub struct TinyModel {
    folder: TempDir,
    shape: Shape,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl TinyModel {
    pub fn new(shape: Shape) -> Self {
        let Shape { hidden, intermediate, positions, scale, .. } = shape;
        let mut tensors = BTreeMap::new();
        let mut seed = 1u32;
        let mut add = |name: String, shape: Vec<usize>, middle: f32| {
            let values = (0..shape.iter().product())
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Small multiples of a power of two: exact in f16 and bf16 too.
                    middle + scale * ((seed >> 26) as f32 - 32.0) / 64.0
                })
                .collect::<Vec<f32>>();
            tensors.insert(name, (shape, values));
        };
        for (table, rows) in [("word", VOCABULARY), ("position", positions), ("token_type", 2)] {
            add(format!("embeddings.{table}_embeddings.weight"), vec![rows, hidden], 0.0);
        }
        add("embeddings.LayerNorm.weight".into(), vec![hidden], 1.0);
        add("embeddings.LayerNorm.bias".into(), vec![hidden], 0.0);
        for layer in 0..LAYERS {
            let mut linear = |name: &str, outputs, inputs| {
                add(format!("encoder.layer.{layer}.{name}.weight"), vec![outputs, inputs], 0.0);
                add(format!("encoder.layer.{layer}.{name}.bias"), vec![outputs], 0.0);
            };
            for name in ["attention.self.query", "attention.self.key", "attention.self.value"] {
                linear(name, hidden, hidden);
            }
            linear("attention.output.dense", hidden, hidden);
            linear("intermediate.dense", intermediate, hidden);
            linear("output.dense", hidden, intermediate);
            for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
                add(format!("encoder.layer.{layer}.{name}.weight"), vec![hidden], 1.0);
                add(format!("encoder.layer.{layer}.{name}.bias"), vec![hidden], 0.0);
            }
        }
        let model = Self { folder: tempfile::tempdir().expect("a folder"), shape, tensors };
        model.write_config(&[]);
        model.write_tokenizer();
        model.write_tensors("", Dtype::F32);
        model
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn write_config(&self, changes: &[(&str, serde_json::Value)]) {
        let Shape { hidden, heads, intermediate, positions, .. } = self.shape;
        let mut config = serde_json::json!({
            "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
            "intermediate_size": intermediate, "vocab_size": VOCABULARY, "max_position_embeddings": positions,
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

    pub fn write_tensors(&self, prefix: &str, number_type: Dtype) {
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

    /// How vectors are made of rows: "cls" or "mean".
    pub fn write_pooling(&self, pooling: &str) {
        let (cls, mean) = (pooling == "cls", pooling == "mean");
        let modes = serde_json::json!({ "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": mean });
        self.write("1_Pooling/config.json", &modes.to_string());
    }

    pub fn write(&self, name: &str, contents: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, contents).expect("written");
    }
}
