//! What the device does with a fault of its own.

use super::*;

use crate::test_support as support;

#[test]
fn a_panic_of_the_encoder_is_an_error_and_the_device_goes_on() {
    let Some(folder) = support::model_folder() else {
        return;
    };
    let model = Arc::new(Model::load(&folder).expect("the model loads"));
    let device = CpuDevice::new(model, 2, Precision::F32).expect("a device");
    let good = TokenSequence(vec![101, 2_000, 102]);
    let expected = device.embed(std::slice::from_ref(&good)).expect("a vector");
    // A token outside the vocabulary, past the check: once on the calling thread, once on the workers.
    let bad = TokenSequence(vec![u32::MAX]);
    for good_ones in [1, 300] {
        let mut sequences = vec![good.clone(); good_ones];
        sequences.push(bad.clone());
        for _ in 0..3 {
            let outcome = device.embed_checked(&sequences);
            assert!(matches!(outcome, Err(DeviceError::Panicked(_))));
        }
        let vectors = device.embed(&vec![good.clone(); good_ones]).expect("vectors");
        for vector in vectors.chunks(expected.len()) {
            for (left, right) in vector.iter().zip(&expected) {
                assert!((left - right).abs() < 1e-5);
            }
        }
    }
}
