//! A model's folder with its weights as halves.

use half::f16;
use ragged_kernels::weights::NumberType;
use ragged_kernels::{Model, Tensor};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

/// Files that are copied as they are, where they are there.
const FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "sentence_bert_config.json",
    "modules.json",
];

/// Writes `model` to `folder` with all its weights as halves.
pub fn pack(model: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    let loaded = Model::load(model)?;
    std::fs::create_dir_all(folder.join("1_Pooling"))?;
    for file in FILES.into_iter().chain(["1_Pooling/config.json"]) {
        if model.join(file).exists() {
            std::fs::copy(model.join(file), folder.join(file))?;
        }
    }
    let halves: Vec<(String, Vec<usize>, Vec<u8>)> =
        loaded.weights().tensors().map(|(name, tensor)| (name.to_owned(), tensor.shape.to_vec(), as_halves(&tensor))).collect();
    let views = halves
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    // Python's transformers ask whose format it is.
    let written_by = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(views, Some(written_by), &folder.join("model.safetensors"))?;
    Ok(())
}

fn as_halves(tensor: &Tensor<'_>) -> Vec<u8> {
    match tensor.number_type {
        NumberType::F16 => tensor.bytes.to_vec(),
        NumberType::F32 | NumberType::Bf16 => {
            tensor.values().iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
        }
    }
}
