//! What the tokenizer promises: truncation to the model's length, and counts equal to those of the whole text.

mod support;

use proptest::prelude::*;
use ragged_kernels::Model;
use std::sync::OnceLock;
use tokenizers::Tokenizer;

/// The model and its tokenizer as the library reads it, without truncation and padding.
fn model() -> Option<&'static (Model, Tokenizer)> {
    static MODEL: OnceLock<Option<(Model, Tokenizer)>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let folder = support::model_folder()?;
            let model = Model::load(&folder).expect("the model loads");
            let mut plain = Tokenizer::from_file(folder.join("tokenizer.json")).expect("a tokenizer");
            plain.with_padding(None);
            plain.with_truncation(None).expect("no truncation");
            Some((model, plain))
        })
        .as_ref()
}

fn check(text: &str) {
    let Some((model, plain)) = model() else { return };
    let whole = plain.encode(text, false).expect("tokens");
    assert_eq!(model.tokenizer().count(text), whole.len(), "{text:?}");
    let mut expected = vec![101];
    expected.extend(whole.get_ids().iter().take(model.max_tokens() - 2));
    expected.push(102);
    let sequence = model.tokenizer().encode(text).expect("tokens");
    assert_eq!(sequence.0, expected, "{text:?}");
}

#[test]
fn an_empty_text_has_its_special_tokens() {
    let Some((model, _)) = model() else { return };
    assert_eq!(model.tokenizer().encode("").expect("tokens").0, [101, 102]);
    assert_eq!(model.tokenizer().count(""), 0);
    assert_eq!(model.tokenizer().count(" \n\t "), 0);
}

#[test]
fn a_long_text_is_truncated_to_the_models_length() {
    let Some((model, _)) = model() else { return };
    assert_eq!(model.max_tokens(), 256);
    let text = "retrieval ".repeat(100_000);
    let sequence = model.tokenizer().encode(&text).expect("tokens");
    assert_eq!(sequence.len(), 256);
    assert_eq!((sequence.0[0], sequence.0[255]), (101, 102));
    assert_eq!(model.tokenizer().count(&text), 100_000 * model.tokenizer().count("retrieval"));
}

#[test]
fn texts_with_few_tokens_for_their_length_are_read_to_the_end() {
    check(&" ".repeat(50_000));
    check(&format!("a{}b", " ".repeat(50_000)));
    check(&format!("{} tail", "x".repeat(20_000)));
    check(&"x".repeat(20_000));
    check(&format!("{} tail", "unbelievablylong".repeat(7) + " ").repeat(300));
}

#[test]
fn characters_that_the_normalizer_removes_or_splits_at_do_not_change_counts() {
    for text in [
        "one\u{b}two",
        "one\u{c}two",
        "one\u{85}two",
        "one\u{a0}two",
        "one\u{2028}two",
        "a\u{0}b c\u{fffd}d",
        "e\u{301} \u{301}e",
        "北京是 中国的首都",
        "[MASK] [mask] x[SEP]y [CLS][PAD] [UNK]",
        "\u{200b}zero\u{200d}width",
        "tab\tand\nnewline\r\nreturn",
        "naïve café — coöperate",
        "🚀🔥 🎉",
        "don't stop!!!",
        "\u{feff}bom",
    ] {
        check(text);
        check(&text.repeat(3));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_counted_and_truncated_as_the_whole_text_would_be(text in "\\PC{0,200}") {
        check(&text);
    }

    #[test]
    fn any_characters_are_counted_as_the_whole_text_would_be(
        characters in prop::collection::vec(any::<char>(), 0..200),
    ) {
        check(&characters.into_iter().collect::<String>());
    }

    #[test]
    fn words_and_white_space_in_any_order_are_counted_as_the_whole_text_would_be(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "retrieval", "Unbelievable", "x", ".", "--", "[SEP]", "[MASK]", "日", "é", "\u{301}", " ", "\t", "\n",
                "\r", "\u{b}", "\u{a0}", "\u{85}", "  ", "12345", "\u{0}",
            ]),
            0..400,
        ),
    ) {
        check(&parts.concat());
    }
}
