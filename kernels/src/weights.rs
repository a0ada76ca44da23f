//! The tensors of a model, in a memory-mapped safetensors file.

use crate::configuration::EncoderConfiguration;
use crate::model::ModelError;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How the numbers of a tensor are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single precision number.
    Bf16,
}

impl NumberType {
    /// Bytes of one number.
    pub fn size_bytes(self) -> usize {
        match self {
            NumberType::F32 => 4,
            NumberType::F16 | NumberType::Bf16 => 2,
        }
    }
}

struct Entry {
    number_type: NumberType,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The tensors of an encoder. Their names are those of the BERT architecture without a `bert.` prefix, for example
/// `encoder.layer.0.attention.self.query.weight`; all that the configuration calls for are there and have the
/// shape that it says.
pub struct Weights {
    map: Mmap,
    tensors: HashMap<String, Entry>,
    path: PathBuf,
}

/// One tensor, in the mapped file. Linear layers are kept as one row of inputs for each output.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// How its numbers are kept.
    pub number_type: NumberType,
    /// Its shape, outermost dimension first.
    pub shape: &'a [usize],
    /// Its numbers, little-endian, without gaps, in row-major order; not necessarily aligned.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// All numbers, as they are in the file where they are aligned f32 values.
    pub fn values(&self) -> Cow<'_, [f32]> {
        if self.number_type == NumberType::F32
            && cfg!(target_endian = "little")
            && let Ok(values) = bytemuck::try_cast_slice(self.bytes)
        {
            return Cow::Borrowed(values);
        }
        let mut values = vec![0.0; self.bytes.len() / self.number_type.size_bytes()];
        widen(self.number_type, self.bytes, &mut values);
        Cow::Owned(values)
    }

    /// Copies row `row` of a matrix to `values`, which is as long as the row.
    ///
    /// # Panics
    /// If the tensor is not a matrix with that row of that length.
    pub fn copy_row(&self, row: usize, values: &mut [f32]) {
        assert!(self.shape.len() == 2 && row < self.shape[0] && values.len() == self.shape[1]);
        let row_bytes = self.shape[1] * self.number_type.size_bytes();
        let bytes = &self.bytes[row * row_bytes..(row + 1) * row_bytes];
        widen(self.number_type, bytes, values);
    }
}

fn widen(number_type: NumberType, bytes: &[u8], values: &mut [f32]) {
    match number_type {
        NumberType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        NumberType::F16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = crate::lanes::portable::widen(f16::from_le_bytes(*bytes));
            }
        }
        NumberType::Bf16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

impl Weights {
    /// Maps the file and checks that it holds every tensor that the configuration calls for.
    pub(crate) fn open(path: &Path, configuration: &EncoderConfiguration) -> Result<Self, ModelError> {
        let io_error = |source| ModelError::from_io(path, source);
        let file = File::open(path).map_err(io_error)?;
        // SAFETY: the contract of `Model::load` says that the file is not changed in place while it is mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        let parsed = SafeTensors::deserialize(&map)
            .map_err(|error| ModelError::DamagedWeights { path: path.to_owned(), reason: error.to_string() })?;
        let mut tensors = HashMap::new();
        for (full_name, view) in parsed.tensors() {
            let name = full_name.strip_prefix("bert.").unwrap_or(&full_name);
            let number_type = match view.dtype() {
                Dtype::F32 => NumberType::F32,
                Dtype::F16 => NumberType::F16,
                Dtype::BF16 => NumberType::Bf16,
                // Such as `embeddings.position_ids`, which is not needed. A tensor that is needed is reported below.
                _ => continue,
            };
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            tensors.insert(
                name.to_owned(),
                Entry { number_type, shape: view.shape().to_vec(), bytes: start..start + view.data().len() },
            );
        }
        for (name, expected) in tensors_of(configuration) {
            match tensors.get(&name) {
                None => {
                    return Err(missing(path, &name, &parsed));
                }
                Some(entry) if entry.shape != expected => {
                    return Err(ModelError::WrongShape { path: path.to_owned(), name, found: entry.shape.clone(), expected });
                }
                Some(_) => {}
            }
        }
        Ok(Self { map, tensors, path: path.to_owned() })
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], only for names that the configuration does not call for.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        let entry =
            self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor { path: self.path.clone(), name: name.to_owned() })?;
        Ok(Tensor { number_type: entry.number_type, shape: &entry.shape, bytes: &self.map[entry.bytes.clone()] })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Tensor<'_>)> {
        self.tensors.iter().map(|(name, entry)| {
            let bytes = &self.map[entry.bytes.clone()];
            (name.as_str(), Tensor { number_type: entry.number_type, shape: &entry.shape, bytes })
        })
    }

    /// Tells the system that the mapped file's pages are not needed for now, so that they no longer count as memory
    /// of this process. They are read again from the page cache or the disk when they are touched.
    pub fn release_pages(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the mapping is of a file, read-only and never written to, so dropping its pages loses
            // nothing: the next access reads the same bytes from the file.
            let advised = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            if let Err(error) = advised {
                tracing::debug!(%error, "the pages of the weights stay in memory");
            }
        }
    }
}

fn missing(path: &Path, name: &str, parsed: &SafeTensors<'_>) -> ModelError {
    let present = [name.to_owned(), format!("bert.{name}")].iter().find_map(|full_name| parsed.tensor(full_name).ok());
    match present {
        Some(view) => ModelError::WrongType { path: path.to_owned(), name: name.to_owned(), found: view.dtype().to_string() },
        None => ModelError::MissingTensor { path: path.to_owned(), name: name.to_owned() },
    }
}

/// Names and shapes of an encoder's tensors.
fn tensors_of(configuration: &EncoderConfiguration) -> Vec<(String, Vec<usize>)> {
    let EncoderConfiguration { hidden_size: hidden, intermediate_size: intermediate, .. } = *configuration;
    let table = |name: &str, rows| (format!("embeddings.{name}_embeddings.weight"), vec![rows, hidden]);
    let mut tensors = vec![
        table("word", configuration.vocabulary_size),
        table("position", configuration.positions),
        table("token_type", configuration.token_types),
        ("embeddings.LayerNorm.weight".to_owned(), vec![hidden]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![hidden]),
    ];
    for layer in 0..configuration.layers {
        let mut linear = |name: &str, outputs, inputs| {
            let name = format!("encoder.layer.{layer}.{name}");
            tensors.push((format!("{name}.weight"), vec![outputs, inputs]));
            tensors.push((format!("{name}.bias"), vec![outputs]));
        };
        for name in ["self.query", "self.key", "self.value", "output.dense"] {
            linear(&format!("attention.{name}"), hidden, hidden);
        }
        linear("intermediate.dense", intermediate, hidden);
        linear("output.dense", hidden, intermediate);
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            for part in ["weight", "bias"] {
                let name = format!("encoder.layer.{layer}.{name}.{part}");
                tensors.push((name, vec![hidden]));
            }
        }
    }
    tensors
}
