//! What the encoder promises: the vectors of the reference implementation, whatever the instruction set and
//! however texts are batched, and a clear error for everything that it cannot encode.

mod support;

use ragged_kernels::{CpuDevice, Device, DeviceError, Instructions, Model, TokenSequence};
use serde::Deserialize;
use std::sync::{Arc, OnceLock};

#[derive(Deserialize)]
struct Reference {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

fn model() -> Option<Arc<Model>> {
    static MODEL: OnceLock<Option<Arc<Model>>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let folder = support::model_folder()?;
            Some(Arc::new(Model::load(&folder).expect("the model loads")))
        })
        .clone()
}

fn references() -> Option<Vec<Reference>> {
    let path = support::shared_folder()?.join("data/minilm_reference.json");
    let text = std::fs::read(path).expect("the reference is readable");
    Some(serde_json::from_slice(&text).expect("the reference is understood"))
}

fn devices(model: &Arc<Model>) -> Vec<CpuDevice> {
    Instructions::available()
        .into_iter()
        .map(|set| CpuDevice::with_instructions(Arc::clone(model), 2, set).expect("a device"))
        .collect()
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    product(left, right) / (product(left, left) * product(right, right)).sqrt()
}

fn encode(model: &Model, text: &str) -> TokenSequence {
    model.tokenizer().encode(text).expect("tokens")
}

/// Sequences of the given lengths with tokens that differ from one another.
fn sequences(lengths: &[usize]) -> Vec<TokenSequence> {
    let mut token = 1_000;
    lengths
        .iter()
        .map(|length| {
            let tokens = (0..*length).map(|_| {
                token = (token * 31 + 7) % 30_000;
                token
            });
            TokenSequence(tokens.collect())
        })
        .collect()
}

#[test]
fn vectors_are_those_of_the_reference_for_every_instruction_set() {
    let (Some(model), Some(references)) = (model(), references()) else {
        return;
    };
    let sequences: Vec<TokenSequence> = references.iter().map(|reference| encode(&model, &reference.text)).collect();
    for device in devices(&model) {
        let vectors = device.embed(&sequences).expect("vectors");
        let mut worst = 1.0f64;
        for (reference, vector) in references.iter().zip(vectors.chunks(model.dimension())) {
            let cosine = cosine(&reference.vector, vector);
            assert!(cosine >= 0.9999, "{}: {cosine} for {:?}", device.name(), reference.text);
            worst = worst.min(cosine);
            let length: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
        println!("{}: smallest cosine 1 - {:.1e}", device.name(), 1.0 - worst);
    }
}

#[test]
fn token_counts_are_those_of_the_reference() {
    let (Some(model), Some(references)) = (model(), references()) else {
        return;
    };
    for reference in references {
        let sequence = encode(&model, &reference.text);
        assert_eq!(sequence.len(), reference.tokens, "{:?}", reference.text);
    }
}

#[test]
fn a_batch_gives_the_vectors_of_its_sequences_one_by_one_and_in_order() {
    let Some(model) = model() else { return };
    let batch = sequences(&[1, 256, 3, 17, 255, 2, 90, 31, 33, 64, 8, 512, 200, 5, 7, 96, 97, 1, 128, 16, 15, 47, 48, 49]);
    for device in devices(&model) {
        let together = device.embed(&batch).expect("vectors");
        assert_eq!(together.len(), batch.len() * model.dimension());
        for (index, vector) in together.chunks(model.dimension()).enumerate() {
            let alone = device.embed(&batch[index..=index]).expect("a vector");
            for (left, right) in alone.iter().zip(vector) {
                assert!((left - right).abs() < 1e-5, "{}, sequence {index}", device.name());
            }
        }
    }
}

#[test]
fn many_callers_at_once_get_their_own_vectors() {
    let Some(model) = model() else { return };
    let device = CpuDevice::new(Arc::clone(&model), 2).expect("a device");
    let batch = sequences(&[40, 60, 5, 80, 20, 33]);
    let expected = device.embed(&batch).expect("vectors");
    std::thread::scope(|scope| {
        for first in 0..batch.len() {
            let (device, batch, expected, model) = (&device, &batch, &expected, &model);
            scope.spawn(move || {
                let mut rotated = batch.clone();
                rotated.rotate_left(first);
                let mut vectors = device.embed(&rotated).expect("vectors");
                vectors.rotate_right(first * model.dimension());
                for (left, right) in vectors.iter().zip(expected) {
                    assert!((left - right).abs() < 1e-5);
                }
            });
        }
    });
}

#[test]
fn no_sequences_give_no_vectors() {
    let Some(model) = model() else { return };
    let device = CpuDevice::new(model, 1).expect("a device");
    assert!(device.embed(&[]).expect("nothing").is_empty());
}

#[test]
fn sequences_that_cannot_be_encoded_are_named() {
    let Some(model) = model() else { return };
    let device = CpuDevice::new(Arc::clone(&model), 2).expect("a device");
    let good = encode(&model, "good");

    let empty = device.embed(&[good.clone(), TokenSequence(Vec::new())]);
    assert!(matches!(empty, Err(DeviceError::EmptySequence { sequence: 1 })));

    let long = device.embed(&sequences(&[5, 6, 513]));
    assert!(matches!(long, Err(DeviceError::SequenceTooLong { sequence: 2, tokens: 513, limit: 512 })));

    for token in [30_522, u32::MAX] {
        let unknown = device.embed(&[good.clone(), TokenSequence(vec![101, token])]);
        assert!(matches!(
            unknown,
            Err(DeviceError::TokenOutOfRange { sequence: 1, token: found, vocabulary: 30_522 })
                if found == token
        ));
    }
    let last = TokenSequence(vec![101, 30_521, 102]);
    assert_eq!(device.embed(&[last, good]).expect("vectors").len(), 2 * 384);
}

#[test]
fn unusual_numbers_of_threads_work() {
    let Some(model) = model() else { return };
    let batch = sequences(&[100, 30, 70]);
    let expected = CpuDevice::new(Arc::clone(&model), 1).expect("a device").embed(&batch).expect("vectors");
    for threads in [0, 3, 7] {
        let device = CpuDevice::new(Arc::clone(&model), threads).expect("a device");
        let vectors = device.embed(&batch).expect("vectors");
        for (left, right) in vectors.iter().zip(&expected) {
            assert!((left - right).abs() < 1e-5);
        }
    }
}

#[test]
fn instructions_that_the_processor_lacks_are_refused() {
    let Some(model) = model() else { return };
    for set in [Instructions::Avx512, Instructions::Avx2, Instructions::Portable] {
        let device = CpuDevice::with_instructions(Arc::clone(&model), 1, set);
        match device {
            Ok(device) => assert!(set.is_available() && device.instructions() == set),
            Err(DeviceError::InstructionsUnavailable(named)) => {
                assert!(named == set && !set.is_available());
            }
            Err(other) => panic!("{other}"),
        }
    }
}
