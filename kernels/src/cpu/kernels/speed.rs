use super::*;
use crate::cpu::product::{Epilogue, PackedMatrix};
use std::time::Instant;
#[test]
#[ignore]
fn speed() {
    for set in [Instructions::Avx512, Instructions::Avx2] {
    let kernels = Kernels::of(set).unwrap();
    for (rows, inputs, outputs, ep) in [(8,96,48,Epilogue::Store),(256,384,48,Epilogue::Store),(256, 384, 1152, Epilogue::Store), (256,384,384,Epilogue::Add), (96,384,1536,Epilogue::Store),(96,384,1536,Epilogue::Activate(Activation::Gelu)), (96,1536,384,Epilogue::Add),(256,1536,384,Epilogue::Add), (12,384,1152,Epilogue::Store), (12,384,1536,Epilogue::Store)] {
        let mut block = crate::cpu::aligned::AlignedBlock::new(PackedMatrix::size(inputs, outputs, kernels.panel_columns));
        let w = vec![0.5f32; inputs*outputs]; let b = vec![0.1f32; outputs];
        let matrix = PackedMatrix::pack(&mut block, 0, inputs, kernels.panel_columns, &[(&w,&b,1.0)]);
        let mut a = crate::cpu::aligned::AlignedBlock::new(rows*inputs);
        for (i,x) in a.iter_mut().enumerate() { *x = (i%7) as f32 - 3.0; }
        let mut out = crate::cpu::aligned::AlignedBlock::new(rows*outputs);
        let mut best = f64::MAX;
        let n = (400_000_000 / (rows*inputs*outputs)).max(1);
        for _ in 0..30 {
            let t = Instant::now();
            for _ in 0..n {
            out[0]=0.0;
            kernels.multiply(Product{block:&block, matrix:&matrix, activations:&a, out:&mut out, rows, epilogue: ep});
            }
            best = best.min(t.elapsed().as_secs_f64()/n as f64);
        }
        println!("{set} {rows}x{inputs}x{outputs} {ep:?}: {:.0} GFLOP/s", 2.0*(rows*inputs*outputs) as f64/best/1e9);
    }
    }
}
