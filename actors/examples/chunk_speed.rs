//! How fast texts of several shapes are cut, and that the time grows with their length and not with its square.
//!
//! `chunk_speed MODEL`: the folder of an encoder.

#![allow(clippy::unwrap_used)] // a measurement may fail

use ragged_actors::TextFormat;
use ragged_actors::ingest::chunk::Chunker;
use ragged_kernels::Model;
use std::path::Path;
use std::time::Instant;

fn main() {
    let model = Model::load(Path::new(&std::env::args().nth(1).unwrap())).unwrap();
    let sentence = "one two three four five six seven eight nine ten. ";
    let paragraph = format!("{}\n\n", sentence.repeat(10));
    for (tokens, overlap) in [(16, 0), (256, 32)] {
        for bytes in [1 << 16, 1 << 18, 1 << 20] {
            for (shape, unit) in
                [("one line", sentence), ("paragraphs", &paragraph), ("no spaces", "a9f0"), ("words", "alpha beta ")]
            {
                let text = unit.repeat(bytes / unit.len());
                let begun = Instant::now();
                let chunker = Chunker { tokenizer: model.tokenizer(), tokens, overlap };
                let chunks = chunker.chunks("", &text, TextFormat::Markdown).map_or(0, |chunks| chunks.len());
                let took_ms = begun.elapsed().as_secs_f64() * 1e3;
                println!("chunks of {tokens:>3} tokens, {bytes:>8} bytes, {shape:<10} {chunks:>6} chunks in {took_ms:>8.1} ms");
            }
        }
    }
}
