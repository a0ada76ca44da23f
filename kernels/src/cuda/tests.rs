//! The encoder on the emulated GPU: the vectors of the processor, and what becomes of faults.

use super::emulator::{Emulator, REFUSAL};
use super::*;
use crate::cpu::CpuDevice;
use crate::precision::Precision;
use crate::test_support as support;
use crate::test_support::tiny_model::{Shape, TinyModel, VOCABULARY};

/// How near the vectors of halves must be to those of the processor.
const COSINE_MIN: f32 = 0.9995;

fn model() -> Option<Arc<Model>> {
    Some(Arc::new(Model::load(&support::model_folder()?).unwrap()))
}

fn sequences(lengths: &[usize]) -> Vec<TokenSequence> {
    sequences_of(30_000, lengths)
}

/// Sequences of tokens of a vocabulary of this size.
fn sequences_of(vocabulary: u32, lengths: &[usize]) -> Vec<TokenSequence> {
    let mut token = 1_000;
    let mut next = || {
        token = (token * 31 + 7) % 30_000;
        token % vocabulary
    };
    lengths.iter().map(|length| TokenSequence((0..*length).map(|_| next()).collect())).collect()
}

fn assert_near(model: &Model, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.chunks(model.dimension()).zip(expected.chunks(model.dimension())) {
        let cosine: f32 = found.iter().zip(expected).map(|(left, right)| left * right).sum();
        assert!(cosine >= COSINE_MIN, "the cosine is {cosine}");
    }
}

/// An emulated GPU, of those that multiply by warpgroups or of the others.
fn machine(has_warpgroups: bool) -> Arc<Emulator> {
    let mut machine = Emulator::new(1);
    machine.has_warpgroups = has_warpgroups;
    Arc::new(machine)
}

#[test]
fn vectors_are_those_of_the_processor() {
    let Some(model) = model() else { return };
    let gpu = SharedEncoder::new(machine(true), model.clone(), EncoderOptions::default()).unwrap();
    let cpu = CpuDevice::new(model.clone(), 2, Precision::F32).unwrap();
    // Queries, each shape twice so that it is recorded and replayed; a batch; a long text; none.
    for lengths in [&[5][..], &[9], &[5], &[40], &[1, 70, 17, 64], &[200], &[]] {
        let sequences = sequences(lengths);
        assert_near(&model, &gpu.embed(&sequences).unwrap(), &cpu.embed(&sequences).unwrap());
    }
}

/// Models whose rows are wider than half of what a warp can hold, in all ways, and as small ones.
#[test]
fn vectors_of_other_models_are_those_of_the_processor() {
    let wide = Shape { hidden: 640, heads: 10, intermediate: 720, positions: 140, scale: 1.0 / 8.0 };
    let narrow = Shape { hidden: 64, heads: 2, intermediate: 72, positions: 140, scale: 0.5 };
    for (shape, activation, pooling) in [(wide, "gelu", "mean"), (wide, "relu", "cls"), (narrow, "relu", "mean")] {
        let tiny = TinyModel::new(shape);
        tiny.write_config(&[("hidden_act", activation.into())]);
        tiny.write_pooling(pooling);
        let model = Arc::new(Model::load(tiny.path()).unwrap());
        let cpu = CpuDevice::new(model.clone(), 2, Precision::F32).unwrap();
        for has_warpgroups in [true, false] {
            let gpu = SharedEncoder::new(machine(has_warpgroups), model.clone(), EncoderOptions::default()).unwrap();
            for lengths in [&[5][..], &[5], &[3, 130, 66]] {
                let sequences = sequences_of(VOCABULARY as u32, lengths);
                assert_near(&model, &gpu.embed(&sequences).unwrap(), &cpu.embed(&sequences).unwrap());
            }
        }
    }
}

/// Batches of many parts, for any number of queues, and one that passes more rows than a part may have.
#[test]
fn parts_of_a_batch_come_back_in_order_from_all_queues() {
    let tiny = TinyModel::new(Shape { hidden: 64, heads: 2, intermediate: 72, positions: 140, scale: 0.5 });
    let model = Arc::new(Model::load(tiny.path()).unwrap());
    let cpu = CpuDevice::new(model.clone(), 2, Precision::F32).unwrap();
    let lengths: Vec<usize> = (0..20).map(|number| 1 + number * 7 % 37).chain([139, 2, 140]).collect();
    let sequences = sequences_of(VOCABULARY as u32, &lengths);
    let expected = cpu.embed(&sequences).unwrap();
    // Rows that are no whole steps are made such.
    for (lanes, rows) in [(1, 0), (2, 100), (3, 128), (4, 300)] {
        let options = EncoderOptions { lanes, rows, ..EncoderOptions::default() };
        let gpu = SharedEncoder::new(machine(true), model.clone(), options).unwrap();
        assert_near(&model, &gpu.embed(&sequences).unwrap(), &expected);
    }
}

#[test]
fn a_gpu_with_too_little_memory_says_so_however_much_there_is() {
    let tiny = TinyModel::new(Shape { hidden: 64, heads: 2, intermediate: 72, positions: 140, scale: 0.5 });
    let model = Arc::new(Model::load(tiny.path()).unwrap());
    let machine = machine(true);
    let start = |pieces| {
        machine.allocations_left.store(pieces, Ordering::Relaxed);
        SharedEncoder::new(machine.clone(), model.clone(), EncoderOptions::default())
    };
    let needed = (0..1_000).find(|pieces| match start(*pieces) {
        Ok(_) => true,
        Err(GpuError::OutOfMemory { .. }) => false,
        Err(fault) => panic!("{fault}"),
    });
    assert!(needed.is_some_and(|needed| needed > 10), "{needed:?}");
}

#[test]
fn work_that_fails_anywhere_in_a_batch_is_an_error() {
    let tiny = TinyModel::new(Shape { hidden: 64, heads: 2, intermediate: 72, positions: 140, scale: 0.5 });
    let model = Arc::new(Model::load(tiny.path()).unwrap());
    let machine = machine(true);
    let sequences = sequences_of(VOCABULARY as u32, &[5, 70]);
    for launches in 0.. {
        let gpu = SharedEncoder::new(machine.clone(), model.clone(), EncoderOptions::default()).unwrap();
        machine.launches_left.store(launches, Ordering::Relaxed);
        let embedded = gpu.embed(&sequences);
        machine.launches_left.store(usize::MAX, Ordering::Relaxed);
        match embedded {
            Ok(_) => return assert!(launches > 5, "{launches}"),
            // A race would be a failure of another kind.
            Err(DeviceError::Gpu(GpuError::Failed { reason, .. })) if reason == REFUSAL => {}
            Err(fault) => panic!("{fault}"),
        }
        assert!(matches!(gpu.embed(&sequences), Err(DeviceError::Gpu(GpuError::Lost))));
    }
}

#[test]
fn a_gpu_that_failed_is_not_asked_again_and_nobody_waits_for_it() {
    let Some(model) = model() else { return };
    let machine = Arc::new(Emulator::new(1));
    let gpu = SharedEncoder::new(machine.clone(), model, EncoderOptions::default()).unwrap();
    machine.launches_left.store(5, Ordering::Relaxed);
    let sequences = sequences(&[4]);
    assert!(matches!(gpu.embed(&sequences), Err(DeviceError::Gpu(GpuError::Failed { .. }))));
    machine.launches_left.store(usize::MAX, Ordering::Relaxed);
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| assert!(matches!(gpu.embed(&sequences), Err(DeviceError::Gpu(GpuError::Lost)))));
        }
    });
}

#[test]
fn bad_sequences_are_refused_before_the_gpu_sees_them() {
    let Some(model) = model() else { return };
    let gpu = SharedEncoder::new(Arc::new(Emulator::new(1)), model, EncoderOptions::default()).unwrap();
    let bad = [vec![], vec![u32::MAX], vec![101; 10_000]];
    for tokens in bad {
        assert!(!matches!(gpu.embed(&[TokenSequence(tokens)]).unwrap_err(), DeviceError::Gpu(_)));
    }
    assert!(gpu.embed(&sequences(&[3])).is_ok());
}
