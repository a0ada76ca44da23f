//! What the encoder promises: the vectors of the reference implementation, whatever the instruction set and
//! however texts are batched, and a clear error for everything that it cannot encode.

mod support;

use ragged_kernels::{CpuDevice, Device, DeviceError, Instructions, Model, Precision, TokenSequence};
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

/// A device for each instruction set and precision that this processor has.
fn devices(model: &Arc<Model>) -> Vec<CpuDevice> {
    let sets = Instructions::available();
    let choices = sets.into_iter().flat_map(|set| Precision::ALL.map(|precision| (set, precision)));
    choices
        .filter_map(|(set, precision)| match CpuDevice::with_instructions(Arc::clone(model), 2, precision, set) {
            Err(DeviceError::PrecisionUnavailable { .. }) if precision == Precision::Bf16 => None,
            device => Some(device.expect("a device")),
        })
        .collect()
}

/// The most exact device.
fn device_of_f32(model: &Arc<Model>, threads: usize) -> CpuDevice {
    CpuDevice::new(Arc::clone(model), threads, Precision::F32).expect("a device")
}

/// The least cosine of a device's vectors with the reference's.
fn least_cosine(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 0.9999,
        Precision::Bf16 => 0.9995,
        Precision::Int8 => 0.99,
    }
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
            assert!(cosine >= least_cosine(device.precision()), "{}: {cosine} for {:?}", device.name(), reference.text);
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
            // A sum in another order can make another whole number of an activation.
            let difference = 1.0 - cosine(&alone, vector);
            let most = if device.precision() == Precision::F32 { 1e-9 } else { 1e-3 };
            assert!(difference < most, "{}, sequence {index}: {difference:e}", device.name());
        }
    }
}

#[test]
fn many_callers_at_once_get_their_own_vectors() {
    let Some(model) = model() else { return };
    let device = device_of_f32(&model, 2);
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
fn weights_that_are_prepared_in_a_file_give_the_same_vectors() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let batch = sequences(&[40, 3, 200]);
    for precision in Precision::ALL {
        let Ok(device) = CpuDevice::new(Arc::clone(&model), 2, precision) else { continue };
        let expected = device.embed(&batch).expect("vectors");
        for _ in ["made", "found"] {
            let prepared = CpuDevice::with_prepared_weights(Arc::clone(&model), 2, precision, folder.path()).expect("a device");
            assert!(prepared.embed(&batch).expect("vectors") == expected, "{}", prepared.name());
            assert!(prepared.weights_bytes() < device.weights_bytes());
        }
    }
}

#[test]
fn no_sequences_give_no_vectors() {
    let Some(model) = model() else { return };
    let device = device_of_f32(&model, 1);
    assert!(device.embed(&[]).expect("nothing").is_empty());
}

#[test]
fn sequences_that_cannot_be_encoded_are_named() {
    let Some(model) = model() else { return };
    let device = device_of_f32(&model, 2);
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
    let expected = device_of_f32(&model, 1).embed(&batch).expect("vectors");
    for threads in [0, 3, 7] {
        let device = device_of_f32(&model, threads);
        let vectors = device.embed(&batch).expect("vectors");
        for (left, right) in vectors.iter().zip(&expected) {
            assert!((left - right).abs() < 1e-5);
        }
    }
}

#[test]
fn instructions_that_the_processor_lacks_are_refused() {
    let Some(model) = model() else { return };
    for set in Instructions::ALL {
        let device = CpuDevice::with_instructions(Arc::clone(&model), 1, Precision::F32, set);
        match device {
            // Tiles multiply only halves.
            Ok(device) => {
                assert!(set.is_available());
                assert!(
                    device.instructions() == set || set == Instructions::Amx && device.instructions() == Instructions::Avx512
                );
            }
            Err(DeviceError::InstructionsUnavailable(named)) => {
                assert!(named == set && !set.is_available());
            }
            Err(other) => panic!("{other}"),
        }
    }
}
