//! The encoder on the emulated GPU: the vectors of the processor, and what becomes of faults.

use super::emulator::Emulator;
use super::*;
use crate::cpu::CpuDevice;
use crate::precision::Precision;
use crate::test_support as support;

/// How near the vectors of halves must be to those of the processor.
const COSINE_MIN: f32 = 0.9995;

fn model() -> Option<Arc<Model>> {
    Some(Arc::new(Model::load(&support::model_folder()?).unwrap()))
}

fn sequences(lengths: &[usize]) -> Vec<TokenSequence> {
    let mut token = 1_000;
    let mut next = || {
        token = (token * 31 + 7) % 30_000;
        token
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

#[test]
fn vectors_are_those_of_the_processor() {
    let Some(model) = model() else { return };
    let gpu = SharedEncoder::new(Arc::new(Emulator::new(1)), model.clone(), EncoderOptions::default()).unwrap();
    let cpu = CpuDevice::new(model.clone(), 2, Precision::F32).unwrap();
    // Queries, each shape twice so that it is recorded and replayed; a batch; a long text; none.
    for lengths in [&[5][..], &[9], &[5], &[40], &[1, 70, 17, 64], &[200], &[]] {
        let sequences = sequences(lengths);
        assert_near(&model, &gpu.embed(&sequences).unwrap(), &cpu.embed(&sequences).unwrap());
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
