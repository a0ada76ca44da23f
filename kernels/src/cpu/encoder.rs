//! The forward pass of a BERT encoder on one thread.
//!
//! Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019): sums of word, position and type
//! embeddings, normalised; then layers of self-attention and a feed-forward network, each with a residual
//! connection and layer normalisation after it.
//!
//! All sequences of a group are one matrix of tokens x hidden size without padding: linear layers see all rows at
//! once, attention goes from sequence to sequence.

use super::aligned::AlignedBlock;
use super::attention::{Attention, AttentionBuffers};
use super::balance::Balance;
use super::kernels::{Kernels, ProductKernels};
use super::numbers::Numbers;
use super::operand::{NarrowedRows, PassedRows};
use super::packed::{Linear, PackedMatrix};
use super::prepared::PackedWeights;
use super::product::{Epilogue, Product, Results};
use crate::configuration::{EncoderConfiguration, Pooling};
use crate::instructions::Instructions;
use crate::model::{Model, ModelError};
use crate::precision::Precision;
use crate::tokenizer::TokenSequence;
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

/// Rows that pass through the feed-forward network together. Its weights stream from memory once for each such
/// part; measured, that costs more than a wide middle that does not fit the level-2 cache (96 rows: 10 % slower).
const FEED_FORWARD_ROWS: usize = 256;

/// A model's weights in the layout of one instruction set's kernels.
pub(crate) struct Encoder {
    model: Arc<Model>,
    kernels: Kernels,
    /// All packed matrices.
    block: PackedWeights,
    /// For each position, its embedding plus that of token type 0.
    position_embeddings: Vec<f32>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
}

struct LayerNorm {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

struct Layer {
    /// Queries, keys and values of all heads as one product.
    projections: PackedMatrix,
    attention_output: PackedMatrix,
    attention_norm: LayerNorm,
    /// How rows are made even for `intermediate`, if it multiplies whole numbers.
    balance: Option<Balance>,
    intermediate: PackedMatrix,
    output: PackedMatrix,
    output_norm: LayerNorm,
}

/// A thread's buffers, used again for every group of sequences.
pub(crate) struct Workspace {
    tokens: usize,
    hidden: AlignedBlock,
    projections: PassedRows,
    context: PassedRows,
    intermediate: PassedRows,
    /// What a product reads.
    narrowed: NarrowedRows,
    attention: AttentionBuffers,
}

impl Workspace {
    fn new(configuration: &EncoderConfiguration, kernels: &Kernels, tokens: usize, tokens_of_longest: usize) -> Self {
        let EncoderConfiguration { hidden_size, intermediate_size, .. } = *configuration;
        let feed_forward_rows = tokens.min(FEED_FORWARD_ROWS);
        let passed = kernels.rows.passed;
        Self {
            tokens,
            hidden: AlignedBlock::new(tokens * hidden_size),
            projections: PassedRows::new(passed, tokens, 3 * hidden_size),
            context: PassedRows::new(passed, tokens, hidden_size),
            intermediate: PassedRows::new(kernels.passed_within_feed_forward(), feed_forward_rows, intermediate_size),
            narrowed: NarrowedRows::for_shapes(&[
                (tokens, hidden_size, kernels.attention.layout),
                (feed_forward_rows, hidden_size, kernels.feed_forward.layout),
                (feed_forward_rows, intermediate_size, kernels.feed_forward.layout),
            ]),
            attention: AttentionBuffers::new(tokens_of_longest, configuration.head_dimension()),
        }
    }
}

impl Encoder {
    /// Packs the weights of `model` for `kernels`, or takes them as they have been packed into a file in `prepared`.
    pub(crate) fn new(model: Arc<Model>, kernels: Kernels, prepared: Option<&Path>) -> Result<Self, ModelError> {
        let configuration = model.configuration();
        let hidden = configuration.hidden_size;
        let intermediate = configuration.intermediate_size;
        let Kernels { attention, feed_forward, .. } = kernels;
        let mut words = 0;
        let mut place = |kernels: &ProductKernels, inputs, outputs| {
            let ProductKernels { panel_columns, layout, .. } = *kernels;
            let matrix = PackedMatrix::at(words, inputs, outputs, panel_columns, layout);
            words += PackedMatrix::size(inputs, outputs, panel_columns, layout);
            matrix
        };
        let mut layers = Vec::with_capacity(configuration.layers);
        for index in 0..configuration.layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let attention_norm = LayerNorm::load(&model, &name("attention.output.LayerNorm"))?;
            let balance = (feed_forward.layout.numbers == Numbers::Int8)
                .then(|| Balance::after_layer_norm(&attention_norm.scale, &attention_norm.shift));
            layers.push(Layer {
                projections: place(attention, hidden, 3 * hidden),
                attention_output: place(attention, hidden, hidden),
                attention_norm,
                balance,
                intermediate: place(feed_forward, hidden, intermediate),
                output: place(feed_forward, intermediate, hidden),
                output_norm: LayerNorm::load(&model, &name("output.LayerNorm"))?,
            });
        }
        let make = || pack(&model, &layers, words);
        let block = match prepared {
            Some(folder) => {
                let form = |kernels: &ProductKernels| format!("{:?} in panels of {}", kernels.layout, kernels.panel_columns);
                let description = format!("{} {}, {}", model.revision(), form(attention), form(feed_forward));
                PackedWeights::prepared(folder, &description, words, make)?
            }
            None => PackedWeights::Memory(make()?),
        };
        let mut position_embeddings = vec![0.0; configuration.positions * hidden];
        let positions = model.weights().tensor("embeddings.position_embeddings.weight")?.values().into_owned();
        let types = model.weights().tensor("embeddings.token_type_embeddings.weight")?;
        let mut first_type = vec![0.0; hidden];
        types.copy_row(0, &mut first_type);
        for (sums, position) in position_embeddings.chunks_exact_mut(hidden).zip(positions.chunks_exact(hidden)) {
            for ((sum, position), token_type) in sums.iter_mut().zip(position).zip(&first_type) {
                *sum = position + token_type;
            }
        }
        let embedding_norm = LayerNorm::load(&model, "embeddings.LayerNorm")?;
        model.weights().release_pages();
        Ok(Self { model, kernels, block, position_embeddings, embedding_norm, layers })
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of memory that the packed weights take, and what is kept beside them; not what lies in a file.
    pub(crate) fn weights_bytes(&self) -> usize {
        self.block.memory_bytes() + self.position_embeddings.len() * size_of::<f32>()
    }

    /// What products multiply.
    pub(crate) fn precision(&self) -> Precision {
        self.kernels.feed_forward.layout.numbers.into()
    }

    /// The instruction set that products are computed with.
    pub(crate) fn instructions(&self) -> Instructions {
        self.kernels.feed_forward.instructions
    }

    /// The vectors of `sequences`, one after the other, each of Euclidean length one. The caller has checked that
    /// no sequence is empty or longer than the model's positions and that all tokens are in the vocabulary.
    /// `workspace` is created or replaced where it is too small.
    pub(crate) fn embed(&self, sequences: &[&TokenSequence], workspace: &mut Option<Workspace>) -> Result<Vec<f32>, ModelError> {
        let configuration = self.model.configuration();
        let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        let longest = sequences.iter().map(|sequence| sequence.len()).max();
        let Some(longest) = longest else {
            return Ok(Vec::new());
        };
        let is_large_enough = workspace.as_ref().is_some_and(|it| it.tokens >= tokens && it.attention.tokens_max() >= longest);
        if !is_large_enough {
            // Freed first, so that there are never two.
            *workspace = None;
        }
        let workspace = workspace.get_or_insert_with(|| Workspace::new(configuration, &self.kernels, tokens, longest));
        self.embed_tokens(sequences, workspace)?;
        for layer in &self.layers {
            self.attend(layer, sequences, tokens, workspace);
            self.feed_forward(layer, tokens, workspace);
        }
        Ok(self.pool(sequences, workspace))
    }

    fn embed_tokens(&self, sequences: &[&TokenSequence], workspace: &mut Workspace) -> Result<(), ModelError> {
        let hidden = self.model.dimension();
        let words = self.model.weights().tensor("embeddings.word_embeddings.weight")?;
        let mut rows = workspace.hidden.chunks_exact_mut(hidden);
        let mut tokens = 0;
        for sequence in sequences {
            let positions = self.position_embeddings.chunks_exact(hidden);
            for ((token, position), row) in sequence.0.iter().zip(positions).zip(&mut rows) {
                words.copy_row(*token as usize, row);
                for (value, position) in row.iter_mut().zip(position) {
                    *value += position;
                }
                tokens += 1;
            }
        }
        self.normalize(&self.embedding_norm, &mut workspace.hidden[..tokens * hidden]);
        Ok(())
    }

    fn attend(&self, layer: &Layer, sequences: &[&TokenSequence], tokens: usize, workspace: &mut Workspace) {
        let configuration = self.model.configuration();
        let hidden = configuration.hidden_size;
        let Workspace { hidden: rows, projections, context, narrowed, attention, .. } = workspace;
        let rows = &mut rows[..tokens * hidden];
        self.kernels.attention.multiply(Product {
            block: &self.block,
            matrix: &layer.projections,
            activations: self.kernels.attention.narrow(narrowed, rows, hidden),
            out: projections.results(tokens),
            rows: tokens,
            epilogue: Epilogue::Store,
        });
        let mut first = 0;
        for sequence in sequences {
            let last = first + sequence.len();
            self.kernels.rows.attend(Attention {
                projections: projections.rows_from(first),
                out: context.rows_mut(first..last),
                tokens: sequence.len(),
                heads: configuration.heads,
                buffers: attention,
            });
            first = last;
        }
        self.kernels.attention.multiply(Product {
            block: &self.block,
            matrix: &layer.attention_output,
            activations: self.kernels.attention.operand(narrowed, context, tokens),
            out: Results::Values(rows),
            rows: tokens,
            epilogue: Epilogue::Add,
        });
        self.normalize(&layer.attention_norm, rows);
    }

    fn feed_forward(&self, layer: &Layer, tokens: usize, workspace: &mut Workspace) {
        let configuration = self.model.configuration();
        let hidden = configuration.hidden_size;
        let Workspace { hidden: rows, intermediate, narrowed, .. } = workspace;
        let rows = &mut rows[..tokens * hidden];
        // Parts of nearly equal size, so that no small remainder pays for streaming all the weights.
        let parts = tokens.div_ceil(FEED_FORWARD_ROWS);
        let part_rows = tokens.div_ceil(parts).next_multiple_of(8).min(FEED_FORWARD_ROWS);
        for rows in rows.chunks_mut(part_rows * hidden) {
            let count = rows.len() / hidden;
            self.kernels.feed_forward.multiply(Product {
                block: &self.block,
                matrix: &layer.intermediate,
                activations: match &layer.balance {
                    Some(balance) => self.kernels.feed_forward.narrow_even(narrowed, rows, hidden, balance),
                    None => self.kernels.feed_forward.narrow(narrowed, rows, hidden),
                },
                out: intermediate.results(count),
                rows: count,
                epilogue: Epilogue::Activate(configuration.activation),
            });
            self.kernels.feed_forward.multiply(Product {
                block: &self.block,
                matrix: &layer.output,
                activations: self.kernels.feed_forward.operand(narrowed, intermediate, count),
                out: Results::Values(rows),
                rows: count,
                epilogue: Epilogue::Add,
            });
            self.normalize(&layer.output_norm, rows);
        }
    }

    fn normalize(&self, norm: &LayerNorm, rows: &mut [f32]) {
        let epsilon = self.model.configuration().layer_norm_epsilon;
        self.kernels.rows.layer_norm(rows, &norm.scale, &norm.shift, epsilon);
    }

    fn pool(&self, sequences: &[&TokenSequence], workspace: &Workspace) -> Vec<f32> {
        let configuration = self.model.configuration();
        let hidden = configuration.hidden_size;
        let mut vectors = vec![0.0; sequences.len() * hidden];
        let mut first = 0;
        for (sequence, vector) in sequences.iter().zip(vectors.chunks_exact_mut(hidden)) {
            let last = first + sequence.len();
            let rows = match configuration.pooling {
                Pooling::Mean => first..last,
                Pooling::Cls => first..first + 1,
            };
            // The sum points where the mean does, and only the direction is kept.
            for row in workspace.hidden[rows.start * hidden..rows.end * hidden].chunks_exact(hidden) {
                for (sum, value) in vector.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            crate::exact::normalize(vector);
            first = last;
        }
        vectors
    }
}

impl LayerNorm {
    fn load(model: &Model, name: &str) -> Result<Self, ModelError> {
        let load = |part: &str| -> Result<Vec<f32>, ModelError> {
            let tensor = model.weights().tensor(&format!("{name}.{part}"))?;
            Ok(tensor.values().into_owned())
        };
        Ok(Self { scale: load("weight")?, shift: load("bias")? })
    }
}

/// Packs the matrices of all layers, which take so many words.
fn pack(model: &Model, layers: &[Layer], words: usize) -> Result<AlignedBlock<u32>, ModelError> {
    let mut block = AlignedBlock::new(words);
    let query_scale = 1.0 / (model.configuration().head_dimension() as f32).sqrt();
    for (index, layer) in layers.iter().enumerate() {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let projections =
            [(name("attention.self.query"), query_scale), (name("attention.self.key"), 1.0), (name("attention.self.value"), 1.0)];
        fill(model, &layer.projections, &mut block, &projections, None)?;
        fill(model, &layer.attention_output, &mut block, &[(name("attention.output.dense"), 1.0)], None)?;
        fill(model, &layer.intermediate, &mut block, &[(name("intermediate.dense"), 1.0)], layer.balance.as_ref())?;
        fill(model, &layer.output, &mut block, &[(name("output.dense"), 1.0)], None)?;
        model.weights().release_pages();
    }
    Ok(block)
}

/// Packs the named linear layers side by side, each multiplied by its factor, for rows that are made even if it is said how.
fn fill(
    model: &Model,
    matrix: &PackedMatrix,
    block: &mut [u32],
    layers: &[(String, f32)],
    balance: Option<&Balance>,
) -> Result<(), ModelError> {
    let mut tensors = Vec::with_capacity(layers.len());
    for (name, factor) in layers {
        let weights = model.weights().tensor(&format!("{name}.weight"))?;
        let biases = model.weights().tensor(&format!("{name}.bias"))?;
        tensors.push((weights, biases, *factor));
    }
    let mut values = Vec::with_capacity(layers.len());
    for (weights, biases, factor) in &tensors {
        let (weights, biases) = (weights.values(), biases.values());
        values.push(match balance {
            Some(balance) => {
                let (weights, biases) = balance.linear(&weights, &biases);
                (Cow::Owned(weights), Cow::Owned(biases), *factor)
            }
            None => (weights, biases, *factor),
        });
    }
    let layers: Vec<Linear<'_>> =
        values.iter().map(|(weights, biases, factor)| Linear { weights, biases, factor: *factor }).collect();
    matrix.fill(block, &layers);
    Ok(())
}
