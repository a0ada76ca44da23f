//! Makes the vectors that vector search is measured with: of documents, and of questions about them.
//!
//! Usage: `embed_texts MODEL_DIR DOCS_JSONL_GZ QUESTIONS OUT_DIR [f32|bf16|int8]`, f32 unless another is named. A document's vector is that of its
//! title and text; a question is the title of a document without what stands before its colon, and QUESTIONS of them are taken, evenly spread.
//! Writes `documents.f32` and `questions.f32` (values in little endian, one vector after the other), the questions' words as `questions.jsonl`,
//! and prints how many there are.

mod documents;

use documents::Document;
use ragged_kernels::{CpuDevice, Device, Model, Precision, TokenSequence};
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

const BATCH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_folder, documents, questions, out, rest @ ..] = arguments.as_slice() else {
        return Err("usage: embed_texts MODEL_DIR DOCS_JSONL_GZ QUESTIONS OUT_DIR [f32|bf16|int8]".into());
    };
    let precision = rest.first().map_or(Ok(Precision::F32), |name| name.parse())?;
    let model = Arc::new(Model::load(Path::new(model_folder))?);
    let device = CpuDevice::new(Arc::clone(&model), std::thread::available_parallelism()?.get(), precision)?;
    let documents = documents::read(Path::new(documents), usize::MAX)?;
    let texts: Vec<String> = documents.iter().map(Document::whole).collect();
    let wanted: usize = questions.parse()?;
    let question = |number: usize| {
        let title = &documents[number * documents.len() / wanted].title;
        title.split_once(':').map_or(title.as_str(), |(_, rest)| rest.trim()).to_owned()
    };
    let questions: Vec<String> = (0..wanted.min(documents.len())).map(question).collect();
    write(&device, &model, &texts, &Path::new(out).join("documents.f32"))?;
    write(&device, &model, &questions, &Path::new(out).join("questions.f32"))?;
    let mut words = BufWriter::new(File::create(Path::new(out).join("questions.jsonl"))?);
    for question in &questions {
        writeln!(words, "{}", serde_json::json!({ "text": question }))?;
    }
    words.flush()?;
    println!("{} documents, {} questions", texts.len(), questions.len());
    Ok(())
}

fn write(device: &CpuDevice, model: &Model, texts: &[String], path: &Path) -> Result<(), Box<dyn Error>> {
    let mut file = BufWriter::new(File::create(path)?);
    for some in texts.chunks(BATCH) {
        let sequences = some.iter().map(|text| model.tokenizer().encode(text)).collect::<Result<Vec<TokenSequence>, _>>()?;
        for value in device.embed(&sequences)? {
            file.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}
